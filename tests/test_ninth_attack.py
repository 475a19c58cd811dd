"""What a ninth attack found, each as the attack did it."""

import killed_stages
import pytest
import torch
from counted_scorings import Decoder, MergingCTC, ask, trained
from filled_pool import names, resume, saver_of, train_a_little
from safetensors.torch import save_file
from tiny_models import tiny_ctc_data, tiny_network, tiny_whisper
from tiny_recipe import TinyCTC, tiny_ctc_brain

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import CheckpointPool, MergeStage, merge_adapters
from speechbrain_merge.export import export_whisper
from speechbrain_merge.export.ctranslate2 import export_ctranslate2
from speechbrain_merge.export.folder import export_folder
from speechbrain_merge.export.ggml import export_ggml
from speechbrain_merge.methods import create
from speechbrain_merge.report.comparison_page import write_comparison
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import open_weights


def test_candidates_of_one_epoch_without_steps_all_stay(tmp_path):
    """A Brain without `MergeMixin` does not say its steps."""
    model = tiny_network(0)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, intra_epoch=True)
    brain = tiny_ctc_brain(
        tmp_path,
        model,
        TinyCTC,
        epochs=1,
        recoverables={"pool": pool},
        run_opts={"ckpt_interval_steps": 2},
    )
    data = tiny_ctc_data(12)
    brain.fit(
        brain.hparams.epoch_counter,
        data,
        data,
        train_loader_kwargs={"batch_size": 2},
    )
    assert len(names(pool)) == 3
    assert all(each.path.is_file() for each in pool.candidates())


def test_what_was_abandoned_in_an_epoch_is_still_replaced(tmp_path):
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    for value in (1.0, 2.0, 3.0):
        train_a_little(model, value)
        saver.save_checkpoint(meta={"epoch": 1}, name=f"{value}")
    # the last two are lost, and trained again to other weights
    for lost in ("2.0", "3.0"):
        saver.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda c, name=lost: c.path.name.endswith(name),
        )
    pool, saver = resume(tmp_path, model)
    for value in (4.0, 5.0):
        train_a_little(saver.recoverables["model"], value)
        saver.save_checkpoint(meta={"epoch": 1})
    found = [open_weights(each)["model.bias"][0] for each in pool.candidates()]
    assert found == [1.0, 4.0, 5.0]


@pytest.mark.parametrize(
    "model",
    [
        {"encoder": {"w": torch.ones(2)}, "decoder": {"w": torch.ones(2)}},
        {"w": torch.ones(2), "norm._extra_state": {"calls": 3}},
        {"w": torch.ones(2), "bias": None},
        [{"w": torch.ones(2)}],
    ],
)
def test_other_tensors_are_not_taken_for_the_model(tmp_path, model):
    path = tmp_path / "model.pt"
    torch.save({"model": model, "statistics": {"mean": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="'statistics', and weights .*'model'"):
        open_weights(path)
    state = torch.optim.Adam([torch.ones(2)]).state_dict()
    state["state"] = {0: {"exp_avg": torch.ones(2)}}
    torch.save({"model": {"w": torch.ones(2)}, "optimizer": state}, path)
    assert open_weights(path).names() == ["w"]


@pytest.fixture
def brain(tmp_path):
    """A Brain over a pool, whose search was done."""
    made = trained(tmp_path / "results")
    assert ask(made)[1] > 0 and ask(made)[1] == 0
    return made


def deaf(self, batch, stage):
    """Hears nothing."""
    found, lengths = TinyCTC.compute_forward(self, batch, stage)
    return found - 1e6 * torch.arange(found.shape[-1]), lengths


def test_a_recipe_that_was_edited_scores_again(brain, monkeypatch):
    monkeypatch.setattr(MergingCTC, "compute_forward", deaf)
    result, scored = ask(brain)
    assert scored > 0 and result.value == 100.0


def test_a_decoder_that_was_edited_scores_again(brain, monkeypatch):
    monkeypatch.setattr(Decoder, "__call__", lambda self, found: found * 0)
    assert ask(brain)[1] > 0


def test_training_that_was_edited_scores_nothing_again(brain, monkeypatch):
    monkeypatch.setattr(MergingCTC, "fit_batch", deaf, raising=False)
    assert ask(brain)[1] == 0


def test_data_that_are_read_in_another_way_are_scored_again(brain):
    def scored(function):
        data = tiny_ctc_data(10, seed=50)
        data.add_dynamic_item(function, takes="wrd", provides="said")
        outputs = {key: key for key in ("id", "feats", "tokens")}
        data.set_output_keys({**outputs, "wrd": "said"})
        stage = MergeStage("average", [brain.pool], search=GreedySearch())
        before = brain.scorings
        value = brain.merge(stage, data, {"batch_size": 2}).value
        return brain.scorings - before, value

    def plain(words):
        return words

    def other(words):
        return words.replace("o", "0")

    times, first = scored(plain)
    assert times > 0 and scored(plain)[0] == 0
    times, second = scored(other)
    assert times > 0 and second > first


def test_a_study_whose_recipe_was_edited_tests_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = killed_stages.study_of_loaded_weights(tmp_path)
    before = study()
    assert study()["scores"] == before["scores"]
    monkeypatch.setattr(killed_stages.ASR, "compute_forward", deaf)
    assert study()["wer"] == 100.0 != before["wer"]


def test_the_same_weights_under_other_names_are_merged_anew(brain):
    """The result on record names candidates that are gone."""
    folder = brain.pool.folder
    (folder / "run").rename(folder / "renamed")
    stage = MergeStage("average", [folder], search=GreedySearch())
    result = brain.merge(stage, tiny_ctc_data(10, seed=50), {"batch_size": 2})
    assert {name.partition("/")[0] for name in result.selected} == {"renamed"}


def test_nothing_takes_the_place_of_what_it_is_made_of(tmp_path):
    """An adapter, and what a folder was exported from, are still there."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        layer = "base_model.model.fc.lora"
        folders.append(tmp_path / f"{seed}")
        folders[-1].mkdir()
        save_file(
            {
                f"{layer}_A.weight": torch.randn(2, 4),
                f"{layer}_B.weight": torch.randn(4, 2),
            },
            folders[-1] / "adapter_model.safetensors",
        )
        (folders[-1] / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "lora_alpha": 1, "r": 2}'
        )
    merged = tmp_path / "merged"
    merge_adapters("average", folders, merged, progress=False)
    before = (merged / "adapter_model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(merged)
    for name in ("merged", "link"):
        with pytest.raises(FileExistsError, match="is made of"):
            merge_adapters(
                "average", [tmp_path / name, folders[0]], merged, progress=False
            )
    with pytest.raises(FileExistsError, match="is made of"):
        with export_folder(merged, str(merged), None, None):
            pass
    with pytest.raises(FileExistsError, match="a comparison did not write"):
        write_comparison({}, merged)
    assert (merged / "adapter_model.safetensors").read_bytes() == before


def test_an_export_is_not_made_over_its_whisper(tmp_path):
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    whisper = Whisper(hub, hub + "/cache")
    state = {f"whisper.{k}": v for k, v in whisper.state_dict().items()}
    folder = export_whisper(state, whisper, tmp_path / "exported")
    for export in (export_ggml, export_ctranslate2):
        with pytest.raises(FileExistsError, match="is made of"):
            export(folder, folder)
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["karcher", "multislerp", "average"])
def test_weights_whose_sum_overflows_are_refused(name):
    """They gave a model of zeros."""
    with pytest.raises(ValueError, match="`weights` must be 1e.30 at most"):
        create(name, weights=[1e308, 9e307])
