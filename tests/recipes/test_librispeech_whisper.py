"""Merging in SpeechBrain's LibriSpeech Whisper recipe, as a user runs it.

The recipe here is a small one of the same shape, with the lines of
docs/librispeech_whisper.diff in it.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make_speech, tiny_whisper

from speechbrain.dataio.dataio import read_audio
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import open_weights

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).parent / "librispeech_whisper"


def changes(sign):
    """Lines of the diff that begin with a sign, without it."""
    text = (ROOT / "docs" / "librispeech_whisper.diff").read_text()
    return re.findall(rf"^[{sign}](?![{sign}])(.*)$", text, re.MULTILINE)


def test_the_change_to_the_recipe_is_small():
    added, removed = changes("+"), changes("-")
    assert removed == ["class ASR(sb.Brain):"]
    assert len(added) + len(removed) <= 12
    # the recipe that is run here has these very lines
    recipe = (RECIPE / "train.py").read_text()
    recipe += (RECIPE / "hparams.yaml").read_text()
    for line in added:
        assert f"\n{line}\n" in recipe, line
        assert len(line) <= 80


def say(path, texts):
    """Gives the utterances of a CSV other transcripts."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        for row, text in zip(rows, texts):
            table.writerow({**row, "wrd": text})
    return rows


def make_data(folder):
    """What a user has: a Whisper to start from, and data in four sets."""
    hub = tiny_whisper(folder / "hub", layers=1)
    data = folder / "data"
    # What is said can be learned from the transcripts alone: that takes few
    # steps, and on the other sets there is still something to get wrong
    mixed = ["one two", "one two three", "one", "two one"]
    sets = {"train": ["one two"] * 4 + ["one two three"] * 4}
    for name in ("valid", "test_clean", "test_other"):
        sets[name] = mixed[: 3 + (name == "valid")]
    for seed, (name, texts) in enumerate(sets.items()):
        make_speech(data / name, len(texts), seed)
        say(data / name / "speech.csv", texts)
    return hub, data


def run(hub, data, output):
    """Runs the recipe as a user does; gives its log."""
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "hparams.yaml"),
            *("--data_folder", data, "--whisper_hub", hub),
            *("--output_folder", output, "--noprogressbar", "--device=cpu"),
        ],
        cwd=RECIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def loss_of(weights, hub, csv_file):
    """Mean negative log-likelihood per utterance, worked out by hand."""
    whisper = Whisper(hub, hub + "/cache", language="english").eval()
    whisper.load_state_dict(dict(weights), strict=True)
    losses = []
    with open(csv_file, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        tokens = whisper.tokenizer(row["wrd"]).input_ids
        with torch.no_grad():
            _, logits, _ = whisper(
                read_audio(row["wav"]).unsqueeze(0),
                torch.tensor([tokens[:-1]]),
            )
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[0], torch.tensor(tokens[1:])
            ).item()
        )
    return sum(losses) / len(losses)


def test_the_recipe_collects_merges_and_evaluates(tmp_path):
    hub, data = make_data(tmp_path)
    output = tmp_path / "results"
    log = run(hub, data, output)
    candidates = read_pool(output / "pool")
    assert [each.epoch for each in candidates] == [1, 2, 3, 4, 5]
    assert len(list((output / "save").glob("CKPT*"))) in (1, 2)
    stage = output / "merge" / "average"
    result = json.loads((stage / "result.json").read_text())["result"]
    assert len(result["trials"]) == 5 and "5 candidates give" in log
    chosen = [each for each in candidates if each.name in result["selected"]]
    assert len(chosen) == len(result["selected"])
    assert result["value"] <= candidates[0].score  # where the search starts
    opened = [open_weights(each, "whisper") for each in chosen]
    with open_weights(stage / "merged.safetensors", "whisper") as merged:
        for name, tensor in merged.items():
            stack = torch.stack([weights[name] for weights in opened])
            assert torch.equal(tensor, stack.double().mean(0).float()), name
        # evaluate() evaluated these weights, and not the best checkpoint's
        text = (output / "train_log.txt").read_text()
        losses = [float(x) for x in re.findall(r"test loss: ([^,]*)", text)]
        best = min(candidates, key=lambda each: each.score)
        for loss, name in zip(losses, ("clean", "other"), strict=True):
            table = data / f"test_{name}" / "speech.csv"
            expected = loss_of(merged, hub, table)
            assert loss == pytest.approx(expected, rel=1e-4)
            with open_weights(best, "whisper") as weights:
                other = loss_of(weights, hub, table)
            assert loss != pytest.approx(other, rel=1e-3)
            assert (output / f"wer_test_{name}.txt").stat().st_size > 0

    # the second run merges no more, and evaluates the same
    path = stage / "merged.safetensors"
    before = path.stat().st_mtime_ns
    evaluated = [
        (output / f"wer_test_{name}.txt").read_text()
        for name in ("clean", "other")
    ]
    log = run(hub, data, output)
    assert "Merge stage 'average': found in" in log
    assert "greedy search" not in log
    assert path.stat().st_mtime_ns == before
    assert len(read_pool(output / "pool")) == 5
    assert evaluated == [
        (output / f"wer_test_{name}.txt").read_text()
        for name in ("clean", "other")
    ]
    text = (output / "train_log.txt").read_text()
    losses = re.findall(r"test loss: ([^,]*)", text)
    assert losses[:2] == losses[2:]
