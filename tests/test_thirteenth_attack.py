"""What a thirteenth attack found: scores and results used again although
something that decided them had changed, and candidates that were replaced.

Authors
 * The speechbrain_merge authors 2026
"""

import io
import json
import shutil
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import killed_stages
import pytest
import torch
import yaml
from counted_scorings import trained
from hyperpyyaml import load_hyperpyyaml
from killed_stages import STUDY_YAML
from tiny_models import tiny_ctc_data

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import CheckpointPool, merge
from speechbrain_merge.brain.decisive import (
    beside,
    data_settings,
    decisive_settings,
)
from speechbrain_merge.brain.statistics import collect_fisher
from speechbrain_merge.export.recipe import _serialized
from speechbrain_merge.methods import Average, MergeMethod, Restricted
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.stage.content import decided_by
from speechbrain_merge.study import Study

# --------------------------------------------------------------------- pools


def saver_of(folder, name="save"):
    """A model with a pool of its own checkpointer."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(model.bias)
    pool = CheckpointPool(folder / "pool", {"model": model})
    saver = Checkpointer(folder / name, {"model": model, "pool": pool})
    return model, pool, saver


def train(model, saver, epoch, value):
    """One epoch, after which all weights have one value."""
    torch.nn.init.constant_(model.weight, value)
    saver.save_checkpoint(meta={"WER": 20.0 - value, "epoch": epoch})


def test_weights_that_are_put_back_replace_nothing(tmp_path):
    """As on a plateau: the model of a better epoch, and on from there."""
    model, pool, saver = saver_of(tmp_path)
    for epoch, value in enumerate([1.0, 2.0, 3.0, 1.0, 5.0, 6.0], start=1):
        train(model, saver, epoch, value)
    names = [candidate.name for candidate in pool.candidates()]
    assert names == [f"run/epoch-000{epoch}" for epoch in (1, 2, 3, 5, 6)]


@pytest.mark.parametrize("moved", [False, True])
def test_a_copied_training_is_another(tmp_path, caplog, moved):
    model, pool, saver = saver_of(tmp_path, "first")
    train(model, saver, 1, 1.0)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    if moved:
        shutil.rmtree(tmp_path / "first")
    else:
        train(model, saver, 2, 2.0)
    before = [candidate.name for candidate in pool.candidates()]
    del saver, pool  # another process would hold its run
    model, pool, saver = saver_of(tmp_path, "second")
    saver.recover_if_possible()
    train(model, saver, 2, 7.0)
    names = [candidate.name for candidate in pool.candidates()]
    assert names[: len(before)] == before
    other = "run" if moved else "run-2"
    assert names[len(before) :] == [f"{other}/epoch-0002"]
    assert ("is a copy of a checkpoint" in caplog.text) != moved


def test_a_training_under_another_name_of_its_folder_is_the_same(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "results")
    model, pool, saver = saver_of(tmp_path, "results/first")
    train(model, saver, 1, 1.0)
    del saver, pool
    model, pool, saver = saver_of(tmp_path, "alias/first")
    saver.recover_if_possible()
    train(model, saver, 2, 7.0)
    names = [candidate.name for candidate in pool.candidates()]
    assert names == ["run/epoch-0001", "run/epoch-0002"]


def test_a_copied_training_has_the_base_of_the_first(tmp_path):
    model, pool, saver = saver_of(tmp_path, "first")
    pool.store_base(resuming=False)
    train(model, saver, 1, 1.0)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    train(model, saver, 2, 2.0)
    del saver, pool
    model, pool, saver = saver_of(tmp_path, "second")
    pool.store_base()
    saver.recover_if_possible()
    train(model, saver, 2, 7.0)
    candidates = pool.candidates()
    assert candidates[-1].name == "run-2/epoch-0002"
    assert len({each.base_digest for each in candidates} - {None}) == 1
    assert candidates[-1].base.samefile(candidates[0].base)
    merge("ties", candidates, candidates[-1].base, progress=False)


# ------------------------------------------------------------------- studies

MODELS = {
    "a": {"train": "a"},
    "b": {"train": "b"},
    "mean": {"merge": "average", "of": ["a", "b"]},
}


@pytest.fixture(scope="module")
def study_run(tmp_path_factory):
    """A study that has run: its folder."""
    folder = tmp_path_factory.mktemp("study")
    killed_stages.study_yaml(folder)
    text = STUDY_YAML.replace("number_of_epochs: 2", "number_of_epochs: 1")
    (folder / "train.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_study()
    return folder


@pytest.fixture
def study(study_run, tmp_path, monkeypatch):
    """The working folder of a copy of that study."""
    shutil.copytree(study_run, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study"


def run_study(build=killed_stages.build):
    """Runs it; its results."""
    Study(
        "results",
        MODELS,
        {"expert": {"hparams": "train.yaml"}},
        domains=["a", "b"],
        checkpoint="last",
        tests=["a"],
        exports=["mean"],
    ).run(build, {"noprogressbar": True})
    return json.loads(Path("results/results.json").read_text())


def test_records_of_tests_that_were_exchanged(study):
    results = json.loads(Path("results/results.json").read_text())
    places = [
        Path("results", next(iter(row["sets"]["0"].values()))["a"]["scores"])
        for row in results["rows"]
        if row["name"] in ("original", "a", "b")
    ]
    for ending in (".json", ".jsonl", ".txt"):
        one, other = (place.with_suffix(ending) for place in places[:2])
        shutil.move(one, "kept")
        shutil.move(other, one)
        shutil.move("kept", other)
    with pytest.raises(RecordError, match="is the record of another test"):
        run_study()


def test_an_export_follows_what_it_is_made_with(study):
    folder = Path("results/exported/mean")
    before = (folder / "hyperparams.yaml").stat().st_mtime_ns
    run_study()
    assert (folder / "hyperparams.yaml").stat().st_mtime_ns == before
    inference = Path("inference.yaml")
    inference.write_text(inference.read_text() + "beam_size: 66\n")
    run_study()
    assert "beam_size: 66" in (folder / "hyperparams.yaml").read_text()

    def build(*given):
        run = killed_stages.build(*given)
        first = run.export

        def export(weights, target, texts):
            first(weights, target, {**texts, "letters.txt": "abc"})

        run.export = export
        return run

    run_study(build)
    assert (folder / "letters.txt").read_text() == "abc"


# ---------------------------------------------------------------------- data


class Loud:
    """A function of a pipeline, with a setting."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, wav):
        """Louder."""
        return self.factor * wav


def pipeline(takes="close", factor=1.0, held=1.0):
    """A dataset whose audio comes of one column or another."""
    data = {"1": {"close": 1.0, "far": 2.0}}
    options = {"held": held, "lr": held}  # of which it reads one

    def scaled(wav):
        return wav * options["held"]

    found = sb.dataio.dataset.DynamicItemDataset(data)
    found.add_dynamic_item(Loud(factor), takes=takes, provides="loud")
    found.add_dynamic_item(scaled, takes="loud", provides="sig")
    found.set_output_keys(["id", "sig"])
    return found


class Rows(torch.utils.data.Dataset):
    """A dataset of one's own."""

    def __init__(self, factor):
        self.factor = factor

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.factor * index


def test_what_is_made_of_rows_counts():
    brain = sb.Brain(run_opts={"device": "cpu"})
    found = [
        data_settings(brain, data, **loading)
        for data, loading in (
            (pipeline(), {}),
            (pipeline("far"), {}),
            (pipeline(factor=2.0), {}),
            (pipeline(held=2.0), {}),
            (pipeline(), {"collate_fn": PaddedBatch}),
            (pipeline(), {"collate_fn": lambda batch: batch}),
            (Rows(1), {}),
            (Rows(2), {}),
        )
    ]
    assert len(set(found)) == len(found)
    assert data_settings(brain, pipeline()) == found[0]
    assert data_settings(brain, Rows(2)) == found[-1]


# ------------------------------------------------------------------- methods


class Own(MergeMethod):
    """A method of a recipe."""

    def merge_tensor(self, name, experts, base):
        """The first."""
        return experts[0]


class Edited(Own):
    """The same after an edit."""

    def merge_tensor(self, name, experts, base):
        """The last."""
        return experts[-1]


def test_the_code_of_a_method_of_the_recipe_counts():
    assert decided_by(Average()) == {}
    assert decided_by(Own()) == decided_by(Own()) != decided_by(Edited())
    within = [
        Restricted(each, include=["encoder"]) for each in (Own(), Edited())
    ]
    assert decided_by(within[0]) != decided_by(within[1])


# ------------------------------------------------- what is trained beside it


def test_what_is_trained_beside_the_weights_counts(tmp_path):
    """Statistics were found again with another head."""
    brain, head = trained(tmp_path), torch.nn.Linear(2, 2)
    model = brain.modules["model"]
    weights = {f"model.{k}": v for k, v in model.state_dict().items()}
    assert beside(brain, weights) == {}
    brain.modules["head"] = head
    brain.checkpointer.add_recoverable("head", head)

    def fisher():
        return collect_fisher(
            brain, weights, tiny_ctc_data(2), output=tmp_path / "statistics"
        )

    path = fisher()
    assert fisher() == path
    before = beside(brain, weights)
    assert list(before) == ["head"]
    torch.nn.init.zeros_(head.weight)
    assert beside(brain, weights) != before
    assert fisher() != path


# -------------------------------------------------------------------- export


def test_a_mapping_with_a_tag_within_brackets_is_read_back():
    """As ``full_scorers: [!ref <coverage>]`` of LibriSpeech's CRDNN."""
    text = (
        "scorers: [!new:collections.Counter {one: 5}, !ref <other>]\nother: 1\n"
    )
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = {key.value: node for key, node in root.value}
    assert load_hyperpyyaml(_serialized(nodes))["scorers"] == [{"one": 5}, 1]


class Reading(sb.Brain):
    """Decodes by settings whose names sound like training."""

    def compute_objectives(self, predictions, batch, stage):
        """By a threshold."""
        return self.hparams.train_threshold


def test_values_of_a_brain_that_were_passed_over():
    """By their names or their kind."""

    def settings(**given):
        brain = Reading(
            {"linear": torch.nn.Linear(1, 1)}, run_opts={"device": "cpu"}
        )
        brain.hparams = SimpleNamespace(
            train_threshold=given.pop("threshold", 0), train_more=len(given)
        )
        if "hook" in given:
            brain.modules.linear.register_forward_hook(given.pop("hook"))
        for name, value in given.items():
            setattr(brain, name, value)
        return decisive_settings(brain)

    changes = [
        {},
        {"threshold": 1},
        {"name": "one"},
        {"name": "two"},
        {"words": deque(["one"])},
        {"words": deque(["two"])},
        {"words": io.StringIO("one")},
        {"hook": lambda module, given, found: 2 * found},
    ]
    found = [settings(**dict(change)) for change in changes]
    assert len(set(found)) == len(found)
    assert settings() == found[0] and settings(name="two") == found[3]
