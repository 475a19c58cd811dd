"""Recipes of upstream's shapes evaluate the merge, and nothing of their own.

What is tested here on recipes written for it, `tests/upstream` checks on
SpeechBrain's own.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_recipes import (
    ConformerRecipe,
    CTCRecipe,
    TransducerRecipe,
    evaluate,
    merge,
    recipe,
    strangers,
)
from transducer_loss import transducer_loss
from warm_python import python

import speechbrain as sb

ROOT = Path(__file__).resolve().parents[2]
DIFFS = sorted((ROOT / "docs").glob("*.diff"))


@pytest.mark.parametrize("kind", [ConformerRecipe, CTCRecipe, TransducerRecipe])
def test_the_merge_is_evaluated_on_every_set(tmp_path, caplog, kind):
    brain, valid_data, tests = recipe(kind, tmp_path)
    saved = sorted((tmp_path / "save").iterdir())
    brain.sizes = []
    found, result = merge(brain, valid_data)
    # as many utterances to a batch as in validation, and not one
    sizes = [size for stage, size in brain.sizes if stage == sb.Stage.VALID]
    assert max(sizes) > 1
    assert found.value is not None and len(result.selected) == 3
    for data in tests.values():
        caplog.clear()
        losses = [evaluate(brain, data), evaluate(brain, data)]
        assert losses[0] == losses[1]
        assert brain.evaluated and not strangers(brain, result.path)
        assert f"{kind.__name__} loaded other weights" in caplog.text
    assert sorted((tmp_path / "save").iterdir()) == saved
    assert len(brain.pool.candidates()) == 3
    text = (tmp_path / "train_log.txt").read_text()
    said = re.findall(
        r"^evaluated: merge 'all' \(average\) of (.*?), ", text, re.M
    )
    assert said == [" + ".join(result.selected)] * 4
    # without the promise it is the recipe's average, saved in its own way
    brain.use_weights(None)
    evaluate(brain, tests["clean"])
    assert strangers(brain, result.path)
    (left,) = brain.checkpointer.list_checkpoints()
    assert left.meta[kind.METRIC] == kind.WINS
    assert len(brain.pool.candidates()) == 3
    # and the merge is still the merge, in another process too
    again, _, _ = recipe(kind, tmp_path)
    assert all(each.reused for each in merge(again, valid_data))
    evaluate(again, tests["clean"])
    assert not strangers(again, result.path)


def test_two_processes_evaluate_the_same_merge(tmp_path):
    command = [python(), "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", ROOT / "tests" / "host_recipes.py"]
    done = subprocess.run(
        [*command, tmp_path],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [
        json.loads((tmp_path / f"rank-{rank}.json").read_text())
        for rank in (0, 1)
    ]
    for name in ("ConformerRecipe", "OnOneProcess"):
        first, second = (rank[name] for rank in ranks)
        assert first == second
        assert first["wrapped"] == "DistributedDataParallel"
        assert first["strangers"] == [] and first["batches"] == 3
        assert first["losses"][0] == first["losses"][1]
        assert first["merged"] == 2
        assert len(first["metas"]) == 2 and max(first["metas"]) <= 1.0


def test_the_loss_of_the_transducer():
    """All paths through a small lattice, one by one."""
    logits = torch.randn(1, 3, 3, 4)
    scores, target = logits.log_softmax(-1)[0], [2, 3]
    paths = [
        moves
        for moves in itertools.product("bl", repeat=5)
        if moves.count("l") == 2 and moves[-1] == "b"
    ]
    total = []
    for moves in paths:
        frame = label = 0
        path = torch.zeros(())
        for move in moves:
            if move == "b":
                path = path + scores[frame, label, 0]
                frame += 1
            else:
                path = path + scores[frame, label, target[label]]
                label += 1
        total.append(path)
    expected = -torch.logsumexp(torch.stack(total), 0)
    one = torch.ones(1)
    loss = transducer_loss(logits, torch.tensor([target]), one, one, 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("diff", DIFFS, ids=lambda path: path.stem)
def test_diffs_are_small(diff):
    text = diff.read_text(encoding="utf-8")
    added = re.findall(r"^\+(?!\+)(.*)$", text, re.MULTILINE)
    removed = re.findall(r"^-(?!-)(.*)$", text, re.MULTILINE)
    assert len(added) <= 12 and len(removed) <= 2
    assert all(len(line) <= 80 for line in added)
    assert '    asr_brain.merge(hparams["merge_stage"], valid_data)' in added


def test_there_are_diffs_of_four_recipes():
    assert len(DIFFS) == 4
