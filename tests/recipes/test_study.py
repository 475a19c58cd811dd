"""The SpeechDomains recipe run as a user runs it, on a tiny Whisper."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import make_speech, tiny_whisper

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
RATES = ("reverb", "digits", "read")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tiny Whisper and a data folder with three domains."""
    folder = tmp_path_factory.mktemp("material")
    tiny_whisper(folder / "whisper", layers=1)
    data = folder / "data"
    (data / "csv").mkdir(parents=True)
    for seed, domain in enumerate(RATES):
        for part, split in enumerate(("train", "valid", "test")):
            made = make_speech(data / domain / split, 4, 10 * seed + part)
            with open(made, newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                row["domain"] = domain
                row["wav"] = row["wav"].replace(str(data), "$data_root")
            target = data / "csv" / f"{domain}_{split}.csv"
            with open(target, "w", newline="") as file:
                columns = ["ID", "duration", "wav", "spk_id", "domain", "wrd"]
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
    return folder


def command(material, results, hparams, *more):
    """The command line of a small study."""
    overrides = {
        "results_folder": str(results),
        "number_of_epochs": 2,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "lr": 0.001,
        "max_decode_ratio": 0.01,
    }
    return [
        sys.executable,
        "train.py",
        f"hparams/{hparams}.yaml",
        "--device=cpu",
        f"--results_folder={results}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        "--experts=[reverb, digits]",
        "--test_domains=[reverb, digits, read]",
        f"--expert_overrides={json.dumps(overrides)}",
        *more,
    ]


def run(arguments, **kwargs):
    """Runs it and gives what it printed."""
    done = subprocess.run(
        arguments, cwd=RECIPE, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def files(folder):
    """Time of writing of all weights and results."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".jsonl")
    }


@pytest.mark.parametrize("hparams", ["mast", "smact"])
def test_a_study_from_one_command(material, tmp_path, hparams):
    results = tmp_path / "results"
    printed = run(command(material, results, hparams))
    found = json.loads((results / "results.json").read_text())
    names = [row["name"] for row in found["rows"]]
    if hparams == "mast":
        assert names[1:] == ["reverb", "digits", "mast-reverb", "mast-digits"]
        merged = found["merges"]["mast-digits"]
        assert merged["selected"] == merged["candidates"]
        assert all(n.startswith("digits/") for n in merged["selected"])
    else:
        # two draws for each of two experts
        assert len(names) == 1 + 4 + 1 and names[-1] == "smact"
        rates = [run["lr"] for run in found["runs"]]
        assert len(set(rates)) == 2 and len(rates) == 4
        export = results / "exported"
        assert (export / "hyperparams.yaml").is_file()
        card = (export / "README.md").read_text()
        assert "by `average`" in card and "| smact |" in card
        assert "WhisperASR hears" in printed
    assert names[0] == "generalist"
    for row in found["rows"]:
        assert set(row["sets"]) == set(RATES)
        for domain in RATES:
            assert row["sets"][domain]["utterances"] == 4
    lines = (results / "evaluated/generalist/read.jsonl").read_text()
    assert lines.count("\n") >= 4
    assert "| generalist |" in (results / "results.md").read_text()
    assert (results / "merge_curve.png").stat().st_size > 5000
    assert (results / "domains.png").stat().st_size > 5000

    before = files(results)
    again = run(command(material, results, hparams))
    assert files(results) == before
    assert again.count("is finished") == len(found["runs"])
    rerun = json.loads((results / "results.json").read_text())
    assert rerun["rows"] == found["rows"]


def test_a_benchmark_of_methods(material, tmp_path):
    results = tmp_path / "results"
    arguments = [
        *command(material, results, "benchmark", "--trials=2"),
        "--only=[average, fisher, layer_scaled, consensus]",
        '--joint={"domains": [reverb, digits], "number_of_epochs": 1}',
    ]
    run(arguments)
    found = json.loads((results / "results.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["generalist", "reverb", "digits", "joint"] + [
        "average",
        "fisher",
        "layer_scaled",
        "consensus",
    ]
    # the joint model is compared with, not merged
    assert all(len(m["candidates"]) == 2 for m in found["merges"].values())
    assert rows["consensus"]["chosen"].keys() == {"scale"}
    assert rows["layer_scaled"]["chosen"].keys() == {"last"}
    assert rows["average"]["chosen"] is None
    for name in ("average", "fisher", "layer_scaled", "consensus"):
        cost = rows[name]["cost"]
        assert cost["merge_seconds"] > 0 and cost["peak_megabytes"] > 0
        assert cost["trials"] == (2 if rows[name]["chosen"] else 0)
    # what else is shown beside the reference is against it
    assert "difference" not in rows["average"]
    low, high = (
        rows["consensus"]["difference"][end] for end in ("low", "high")
    )
    assert low <= rows["consensus"]["difference"]["difference"] <= high
    table = (results / "results.md").read_text()
    assert "difference to<br>average" in table
    assert (results / "pareto.png").stat().st_size > 5000

    before = files(results)
    run(arguments)
    assert files(results) == before
    one_more = [*arguments, "--only=[average, consensus, slerp]"]
    one_more.remove("--only=[average, fisher, layer_scaled, consensus]")
    done = subprocess.run(one_more, cwd=RECIPE, capture_output=True, text=True)
    assert "`only` names ['slerp']" in done.stdout + done.stderr


def test_other_settings_are_refused_not_mixed(material, tmp_path):
    results = tmp_path / "results"
    first = command(material, results, "mast", "--seed=1")
    run(first)
    changed = command(material, results, "mast", "--seed=2")
    done = subprocess.run(changed, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode != 0
    assert "done with other settings (seed)" in done.stdout + done.stderr


def test_a_killed_study_goes_on(material, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(material, whole, "mast"))
    process = subprocess.Popen(
        command(material, killed, "mast"),
        cwd=RECIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pool = killed / "pool" / "digits"
    for _ in range(600):
        if any(pool.glob("epoch-0001*.safetensors")):
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    run(command(material, killed, "mast"))
    one, other = (
        json.loads((folder / "results.json").read_text())["rows"]
        for folder in (whole, killed)
    )
    assert [row["sets"] for row in one] == [row["sets"] for row in other]


def test_one_expert(material, tmp_path):
    arguments = [
        sys.executable,
        "train.py",
        "hparams/train.yaml",
        "--device=cpu",
        f"--results_folder={tmp_path}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        "--domains=[reverb]",
        "--test_domains=[reverb]",
        "--number_of_epochs=1",
        "--steps_per_epoch=2",
        "--batch_size=2",
        "--max_decode_ratio=0.01",
    ]
    run(arguments)
    rates = json.loads((tmp_path / "expert/expert/wer.json").read_text())
    assert rates["reverb"]["utterances"] == 4
    assert set(rates["reverb"]["buckets"]) == {"(0, 5]", "(5, 30]", "(30, inf)"}
    shutil.rmtree(tmp_path)
