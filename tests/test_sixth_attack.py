"""What a sixth attack found, each as the attack did it.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.cli import main
from speechbrain_merge.evaluation import (
    read_scores,
    score_utterances,
    write_scores,
)
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.records import files
from speechbrain_merge.study.testing import scores_of
from speechbrain_merge.weights import open_weights


def _merged(folder, *experts):
    output = folder / "merged.safetensors"
    done = main(
        ["merge", "average", *map(str, experts), "-o", str(output), "--quiet"]
    )
    return load_file(output) if done == 0 else None


@pytest.mark.parametrize("tied", [{"b": "a"}, {"a": "b"}])
def test_a_name_that_is_stored_holds_its_own_values(tmp_path, tied):
    """Metadata of a tie that training has broken since lose no tensor."""
    for value in (1.0, 3.0):
        tensors = {"a": torch.full((2,), value), "b": torch.full((2,), -value)}
        path = tmp_path / f"{value:g}.safetensors"
        save_file(tensors, path, metadata={"tied": json.dumps(tied)})
    merged = _merged(
        tmp_path, tmp_path / "1.safetensors", tmp_path / "3.safetensors"
    )
    assert merged["a"].tolist() == [2.0, 2.0]
    assert merged["b"].tolist() == [-2.0, -2.0]


def _checkpoint(folder, encoder):
    folder.mkdir()
    (folder / "CKPT.yaml").write_text("WER: 3\nunixtime: 1.0\n")
    torch.save({"weight": torch.ones(2)}, folder / "decoder.ckpt")
    torch.save(encoder, folder / "encoder.ckpt")
    return folder


@pytest.mark.parametrize("extra", [None, {"scale": torch.ones(1)}])
def test_a_module_with_extra_state_is_not_left_out(tmp_path, extra, capsys):
    """Half a checkpoint would be merged, and nothing said of the other."""
    state = {"weight": torch.ones(2), "layer._extra_state": extra}
    source = _checkpoint(tmp_path / "CKPT+1", state)
    assert _merged(tmp_path, source, source) is None
    said = capsys.readouterr().err
    assert "encoder.ckpt" in said and "layer._extra_state" in said


def test_weights_inside_of_other_things_are_told(tmp_path, caplog):
    """They are left out, as an optimizer is, but not without a word."""
    inner = {"model": {"weight": torch.ones(2)}, "step": 3}
    source = _checkpoint(tmp_path / "CKPT+1", inner)
    with caplog.at_level(logging.WARNING), open_weights(source) as weights:
        assert weights.names() == ["decoder.weight"]
    assert "encoder.ckpt: left out" in caplog.text


def test_an_optimizer_is_left_out_without_a_word(tmp_path, caplog):
    """And so are a normaliser and a scheduler."""
    model = torch.nn.Linear(2, 2)
    model(torch.ones(2)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    source = _checkpoint(tmp_path / "CKPT+1", optimizer.state_dict())
    mean = {"count": 3, "glob_mean": torch.ones(2), "glob_std": torch.ones(2)}
    torch.save(mean, source / "normalizer.ckpt")
    torch.save({"losses": [1.0], "n_steps": 3}, source / "scheduler.ckpt")
    with caplog.at_level(logging.WARNING), open_weights(source) as weights:
        assert weights.names() == ["decoder.weight"]
    assert "left out" not in caplog.text


def test_an_adapter_beside_its_model_is_not_passed_over(tmp_path, capsys):
    """Hugging Face computes with both; the model alone is another one."""
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    save_file(
        {
            "base_model.model.fc.lora_A.weight": torch.ones(1, 2),
            "base_model.model.fc.lora_B.weight": torch.ones(2, 1),
        },
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert _merged(tmp_path, tmp_path, tmp_path) is None
    assert "holds a model" in capsys.readouterr().err
    model = tmp_path / "model.safetensors"
    assert _merged(tmp_path, model, model)["fc.weight"].tolist() == [[1, 1]] * 2


def _pool(folder, runs=("r",)):
    for run in runs:
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(folder / "pool", {"model": model}, run=run)
        saver = Checkpointer(folder / run, {"model": model, "pool": pool})
        for epoch in (1, 2):
            with torch.no_grad():
                model.weight.add_(1.0)
            saver.save_checkpoint(meta={"WER": 9.0, "epoch": epoch})
    return folder / "pool"


def test_candidates_that_a_manifest_lost_are_told(tmp_path, caplog):
    """A merge of the others is another merge than was asked for."""
    pool = _pool(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(read_pool(pool)) == 2
    assert "left out" not in caplog.text
    manifest = pool / "r/manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    with caplog.at_level(logging.WARNING):
        assert len(read_pool(pool)) == 1
    assert "1 candidates are left out" in caplog.text
    assert "epoch-0002.safetensors" in caplog.text


def test_a_run_that_lost_its_manifest_is_told(tmp_path, caplog):
    """The other runs of the pool are not the whole pool."""
    pool = _pool(tmp_path, ("one", "two"))
    (pool / "two/manifest.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        assert {each.run for each in read_pool(pool)} == {"one"}
    assert "2 candidates are left out" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"words": 3', '"words": 300'),
        lambda text: text.replace('"substitutions": 1', '"substitutions": 0'),
        lambda text: text.replace("=S=", "==="),
        lambda text: text.replace('"a", "x", "c"', '"a", "c"'),
        lambda text: text + text.splitlines()[0] + "\n",
    ],
)
def test_scores_have_the_counts_of_their_alignment(tmp_path, change):
    """An error rate of a changed line is none, whatever its check."""
    path = tmp_path / "scores.jsonl"
    said = {"u1": "a b c", "u2": "d e"}
    write_scores(path, score_utterances(said, {"u1": "a x c", "u2": "d"}))
    text = re.sub(r', "of": 2, "check": "\w+"', "", path.read_text())
    assert change(text) != text and "check" not in text
    path.write_text(change(text))
    with pytest.raises(ValueError, match="(?s)scores.jsonl, line .*u1"):
        read_scores(path)


def test_scores_of_several_references_and_clipped_ones_are_read(tmp_path):
    """Their counts are averaged, or fewer than the steps."""
    heard = {"u1": "a x c d e f g h", "u2": "d", "u3": ""}
    one = {"u1": "a b c", "u2": "d e", "u3": ""}
    two = {"u1": "a x", "u2": "d f", "u3": "g"}
    for references in (one, [one, two]):
        for clip in (False, True):
            scores = score_utterances(references, heard, clip=clip)
            write_scores(tmp_path / "scores.jsonl", scores)
            assert read_scores(tmp_path / "scores.jsonl") == scores


def test_scores_of_a_study_add_up_to_its_results(tmp_path):
    """A file that lost its last line has another error rate."""
    path = tmp_path / "scores/set.jsonl"
    path.parent.mkdir()
    said = {"u1": "a b c", "u2": "d e"}
    scores = score_utterances(said, {"u1": "a x c", "u2": "d"})
    write_scores(path, scores)
    counts = {"errors": 2, "words": 5, "utterances": 2}
    counts["scores"] = "scores/set.jsonl"
    assert scores_of(tmp_path, counts) == scores
    write_scores(path, scores[:1])
    with pytest.raises(ValueError, match="set.jsonl: the utterances add up"):
        scores_of(tmp_path, counts)


def test_a_temporary_file_that_another_finishes_is_no_fault(
    tmp_path, monkeypatch
):
    """Two merges at one place: one moves its file while the other looks."""
    target = tmp_path / "out.safetensors"
    gone = files.temporary_beside(target)  # as listed just before it was moved
    monkeypatch.setattr(files, "temporaries", lambda *_: [gone])
    assert files.remove_stale(tmp_path, target.name) == []
