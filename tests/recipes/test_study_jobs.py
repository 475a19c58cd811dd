"""A study over several seeds: killed, in several processes, and as jobs.

Whatever the way, its ``results.json`` ends with the same bytes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_domains import make_domains
from tiny_models import tiny_whisper
from warm_python import python

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
SETTINGS = {
    "batch_size": 2,
    "max_decode_ratio": 0.01,
    "cut_fraction": 0.5,
    "window": 4,
    "dropout": 0.1,  # so that a resumed training has to draw the same
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tiny Whisper and a data folder with three domains."""
    folder = tmp_path_factory.mktemp("material")
    tiny_whisper(folder / "whisper", layers=1)
    make_domains(folder / "data", ("reverb", "digits", "read"))
    return folder


def command(material, results, *more, seeds=(1, 2, 3)):
    """The command line of a small study of three seeds."""
    return [
        python(),
        "train.py",
        "hparams/aode.yaml",
        "--device=cpu",
        f"--output_folder={results}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        f"--seeds={list(seeds)}",
        "--domains=[reverb, digits]",
        "--test_domains=[reverb, digits, read]",
        "--only=[reverb, aode]",
        "--epochs=2",
        "--steps_per_epoch=2",
        "--lr=0.001",
        "--test_window=4",
        "--study=" + json.dumps({"trainings": {"expert": {"with": SETTINGS}}}),
        *more,
    ]


def run(arguments):
    """Runs it, and gives what it printed."""
    done = subprocess.run(arguments, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    """The study, run in one go and by Python itself."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    printed = run([sys.executable, *command(material, results)[1:]])
    return results, printed


def same_results(one, other):
    """Whether two studies ended with the same bytes."""
    first, second = (
        (folder / "results.json").read_bytes() for folder in (one, other)
    )
    return first == second


def test_tables_show_mean_and_spread_over_seeds(undisturbed):
    results, printed = undisturbed
    found = json.loads((results / "results.json").read_text())
    assert found["seeds"] == [1, 2, 3]
    row = found["rows"][-1]
    assert row["name"] == "aode" and set(row["sets"]) == {"1", "2", "3"}
    assert "±" in printed and "Means over the seeds 1, 2, 3" in printed
    # the start has the same weights whatever the seed: decoded once
    places = {
        found["rows"][0]["sets"][seed]["usual"]["read"]["scores"]
        for seed in ("1", "2", "3")
    }
    assert len(places) == 1


def test_five_kills_change_nothing(undisturbed, material, tmp_path):
    draw = random.Random(20)
    arguments = command(material, tmp_path / "results")
    for _ in range(5):
        process = subprocess.Popen(
            arguments,
            cwd=RECIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # somewhere between the start and the end, on a slow machine too
        reached = len(list((tmp_path / "results").rglob("*.safetensors")))
        until = reached + draw.randint(1, 3)
        for _ in range(2400):
            made = list((tmp_path / "results").rglob("*.safetensors"))
            if len(made) >= until or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(draw.random() / 2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run(arguments)
    assert same_results(undisturbed[0], tmp_path / "results")


def test_two_jobs_at_a_time_give_the_same(undisturbed, material, tmp_path):
    results = tmp_path / "results"
    run(command(material, results, "--jobs=2"))
    assert same_results(undisturbed[0], results)
    assert (results / "jobs/aode@3.log").is_file()


def test_jobs_by_submitit_give_the_same(undisturbed, material, tmp_path):
    pytest.importorskip("submitit")
    results, alone = tmp_path / "results", tmp_path / "alone"
    more = ["--launcher=local", "--jobs=2"]
    submitted = command(material, results, *more, seeds=[2])
    run([sys.executable, *submitted[1:]])  # and so run its jobs
    run(command(material, alone, seeds=[2]))
    assert same_results(alone, results)
    assert list((results / "jobs").rglob("*_submitted.pkl"))


def test_a_job_that_fails_is_named_with_its_log(material, tmp_path):
    broken = tmp_path / "whisper"
    broken.mkdir()
    arguments = [
        f"--whisper_hub={broken}" if each.startswith("--whisper_hub") else each
        for each in command(
            material, tmp_path / "results", "--jobs=2", seeds=[1]
        )
    ]
    done = subprocess.run(arguments, cwd=RECIPE, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "original@1" in said and "jobs/original@1.log" in said
    assert "not begun, since it is made from" in said


def test_a_plan_is_printed_and_nothing_done(undisturbed, material, tmp_path):
    printed = run(command(material, tmp_path / "new", "--plan=True"))
    assert "to do" in printed and "12 of 12 models are left" in printed
    assert not (tmp_path / "new/seed-1").exists()
    printed = run(command(material, undisturbed[0], "--plan=True"))
    assert "0 of 12 models are left" in printed
    one_more = [
        each
        for each in command(material, undisturbed[0], "--plan=True")
        if not each.startswith("--only")
    ] + ["--only=[reverb, combined]"]
    printed = run(one_more)
    assert "3 of 9 models are left" in printed


def test_a_misspelt_test_set_is_known_before_anything_is_done(
    material, tmp_path
):
    arguments = [
        each.replace("reverb, digits, read]", "reverb, digitz]")
        for each in command(material, tmp_path / "new", "--plan=True")
    ]
    done = subprocess.run(arguments, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode != 0 and "to do" not in done.stdout
    said = done.stdout + done.stderr
    assert "'digitz', which is in `tests` of the study" in said
    assert "csv/digitz_test.csv); there are digits, read, reverb." in said
    assert not (tmp_path / "new/seed-1").exists()
