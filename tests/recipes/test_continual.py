"""Continual learning in the SpeechDomains recipe, on a tiny Whisper."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from tiny_models import make_speech, tiny_whisper
from warm_python import python

from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import digest, open_weights

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
DOMAINS = ("reverb", "digits", "codes", "read")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tiny Whisper and a data folder with four domains."""
    folder = tmp_path_factory.mktemp("material")
    tiny_whisper(folder / "whisper", layers=2)
    data = folder / "data"
    (data / "csv").mkdir(parents=True)
    for seed, domain in enumerate(DOMAINS):
        for part, split in enumerate(("train", "valid", "test")):
            # one domain is smaller than the others
            size = 2 if (domain, split) == ("digits", "train") else 4
            made = make_speech(data / domain / split, size, 10 * seed + part)
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


SETTINGS = {
    "batch_size": 2,
    "max_decode_ratio": 0.01,
    "cut_fraction": 0.5,
    "window": 4,
}


def command(material, results, *more, hparams="hparams/aode.yaml"):
    """The command line of a small study."""
    return [
        python(),
        "train.py",
        str(hparams),
        "--device=cpu",
        f"--output_folder={results}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        "--domains=[reverb, digits]",
        "--test_domains=[reverb, digits, read]",
        "--epochs=1",
        "--steps_per_epoch=2",
        "--lr=0.001",
        "--lora_rank=2",
        "--test_window=4",
        "--study=" + json.dumps({"trainings": {"expert": {"with": SETTINGS}}}),
        *more,
    ]


def run(arguments, **kwargs):
    """Runs it and gives what it printed."""
    done = subprocess.run(
        arguments, cwd=RECIPE, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def refused(arguments):
    """Runs it, and gives what it says when it fails."""
    done = subprocess.run(arguments, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout + done.stderr


def files(folder):
    """Time of writing of all weights and measurements."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".jsonl") or path.name == "key.json"
    }


@pytest.fixture(scope="module")
def study(material, tmp_path_factory):
    """The whole study, made once."""
    results = tmp_path_factory.mktemp("study") / "results"
    printed = run(command(material, results))
    return results, printed


def trained(results, name):
    """The candidate that a training left."""
    return read_pool(results / f"seed-1986/models/{name}/pool" / name)[-1]


def tensors(source):
    """All weights of a source."""
    with open_weights(source) as weights:
        return {name: weights[name].clone() for name in weights}


def merged(results, name):
    """A merged model's weights."""
    return tensors(results / f"seed-1986/merge/{name}/merged.safetensors")


def rows_of(results):
    """The rows of the results, by their names."""
    found = json.loads((results / "results.json").read_text())
    return {row["name"]: row for row in found["rows"]}


def counts(row):
    """The counts of a row on every set, of the one seed and mode."""
    return row["sets"]["1986"]["usual"]


def test_the_whole_study_from_one_command(study, material):
    results, printed = study
    found = json.loads((results / "results.json").read_text())
    rows = rows_of(results)
    assert list(rows)[:7] == [
        "original",
        "reverb",
        "digits",
        "in-turn",
        "in-turn-reversed",
        "in-turn-lwf",
        "in-turn-frozen",
    ]
    assert {
        "aode",
        "aode-original",
        "combined",
        "resampled",
        "aode-2",
        "aode-3",
        "aode-3-original",
        "aode-3-favour-digits",
        "aode-3-favour-original",
        "oracle-lora",
        "aode-lora",
        "most-extreme",
        "least-extreme",
    } <= set(rows)
    for row in rows.values():
        assert {
            name: sets["utterances"] for name, sets in counts(row).items()
        } == {"reverb": 4, "digits": 4, "read": 4}
    trainings = {name: len(row["trainings"]) for name, row in rows.items()}
    assert trainings["original"] == 0 and trainings["combined"] == 1
    assert trainings["aode"] == 2 and trainings["in-turn"] == 2
    assert trainings["aode-3"] == 6 and trainings["oracle-lora"] == 2
    (sequence,) = (
        each
        for each in found["sequences"]
        if each["name"] == "in-turn-reversed"
    )
    assert sequence["domains"] == ["digits", "reverb"]
    assert len(sequence["rates"]) == 3
    table = (results / "results.md").read_text()
    assert "| AoDE 3rd + original |" in table
    assert "backward transfer" in table and "after Holm" in table
    assert "AoDE against in-turn |" in table
    # what is forgotten is asked where no expert was trained
    assert "AoDE against in-turn, on read |" in table
    assert "AoDE 3rd + original" in printed
    assert "AoDE 3rd + original," in (results / "results.csv").read_text()
    assert r"\bottomrule" in (results / "results.tex").read_text()
    for picture in ("domains", "experts", "forgetting"):
        assert (results / f"{picture}.png").stat().st_size > 5000
    # what is only on the way to another model is not tested: the same weights
    # are decoded once, whatever they are called
    assert "second-reverb" in found["models"]
    # nor are its checkpoints kept
    assert not (results / "seed-1986/models/reverb/save").exists()
    # each set of weights is decoded once on each set
    decoded = [
        json.loads(path.read_text())["settings"]
        for path in (results / "scores").glob("*.json")
    ]
    seen = [
        (each["weights"], each["set"], str(each["settings"]))
        for each in decoded
    ]
    assert len(set(seen)) == len(seen)

    before, text = files(results), (results / "results.json").read_bytes()
    again = run(command(material, results))
    assert files(results) == before
    assert (results / "results.json").read_bytes() == text
    assert again.count("is done already") == len(
        list(results.glob("seed-1986/models/*/finished.json"))
    )


def test_a_moved_study_goes_on(study, material, tmp_path):
    """Nothing is done again, and the results are the same."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(study[0], moved)
    before, text = files(moved), (moved / "results.json").read_bytes()
    weights = {n: t for n, t in before.items() if n.endswith(".safetensors")}
    run(command(material, moved))
    after = files(moved)
    assert {n: after[n] for n in weights} == weights
    assert set(after) == set(before)
    assert (moved / "results.json").read_bytes() == text


def test_merges_are_of_what_they_say(study):
    results, _ = study
    original = tensors(results / "seed-1986/original.safetensors")
    experts = [tensors(trained(results, n)) for n in ("reverb", "digits")]
    third = [
        tensors(trained(results, f"third-{n}")) for n in ("reverb", "digits")
    ]
    lora = [
        tensors(trained(results, f"lora-{n}")) for n in ("reverb", "digits")
    ]
    moved = 0
    for name, before in original.items():
        a, b = (expert[name].double() for expert in experts)
        c, d = (expert[name].double() for expert in third)
        o = before.double()
        moved += not torch.equal(a, b)
        for label, expected in (
            ("aode", (a + b) / 2),
            ("aode-original", (a + b + o) / 3),
            ("aode-3", (c + d) / 2),
            ("aode-3-original", (c + d + o) / 3),
            ("aode-3-favour-digits", (c + 4 * d + o) / 6),
            ("aode-3-favour-original", (c + d + 4 * o) / 6),
            ("most-extreme", torch.where(b.abs() > a.abs(), b, a)),
            ("least-extreme", torch.where(b.abs() < a.abs(), b, a)),
            ("aode-lora", (lora[0][name].double() + lora[1][name]) / 2),
        ):
            torch.testing.assert_close(
                merged(results, label)[name].double(),
                expected,
                rtol=0,
                atol=1e-7,
            )
    assert moved > 40
    # LoRA leaves all but linear weights as they were, and moves those
    changed = {n for n in original if not torch.equal(lora[0][n], original[n])}
    assert changed and all(n.endswith(".weight") for n in changed)
    assert not any("norm" in n or "embed" in n or "conv" in n for n in changed)


def test_each_training_starts_where_the_graph_says(study):
    results, _ = study

    def content(path):
        with open_weights(path) as weights:
            return digest(weights)

    starts = {
        "reverb": results / "seed-1986/original.safetensors",
        "in-turn": trained(results, "reverb").path,
        "in-turn-reversed": trained(results, "digits").path,
        "second-digits": results / "seed-1986/merge/aode/merged.safetensors",
        "third-digits": results / "seed-1986/merge/aode-2/merged.safetensors",
        "combined": results / "seed-1986/original.safetensors",
        "in-turn-lwf-1": results / "seed-1986/original.safetensors",
        "in-turn-lwf": trained(results, "in-turn-lwf-1").path,
        "lora-digits": results / "seed-1986/original.safetensors",
    }
    for name, path in starts.items():
        assert trained(results, name).base_digest == content(path), name


def test_what_holds_a_training_back_does(study):
    results, _ = study
    original = tensors(results / "seed-1986/original.safetensors")
    plain = tensors(trained(results, "reverb"))
    frozen = tensors(trained(results, "in-turn-frozen-1"))
    held = tensors(trained(results, "in-turn-lwf-1"))
    still = {n for n in original if torch.equal(frozen[n], original[n])}
    decoder = {n for n in original if n.startswith("whisper.model.decoder.")}
    assert decoder <= still
    assert len(decoder) < len(still | decoder) < len(original)
    assert any(not torch.equal(plain[n], original[n]) for n in decoder)
    assert any(not torch.equal(plain[n], held[n]) for n in decoder)


def test_an_oracle_hears_each_domain_with_its_expert(study):
    results, _ = study
    rows = rows_of(results)
    for domain in ("reverb", "digits"):
        place = counts(rows["oracle-lora"])[domain]["scores"]
        done = (results / place).with_suffix(".json")
        record = json.loads(done.read_text())
        expert = trained(results, f"lora-{domain}")
        assert record["settings"]["weights"] == expert.digest
    assert (
        counts(rows["oracle-lora"])["read"]["errors"]
        == counts(rows["original"])["read"]["errors"]
    )


def test_a_domain_more_without_the_old_data(material, study, tmp_path):
    before = study[0] / "seed-1986"
    data = tmp_path / "data"
    # what the new month has: one domain's data, and the test set of another
    (data / "csv").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        shutil.copy(material / f"data/csv/codes_{split}.csv", data / "csv")
    shutil.copy(material / "data/csv/read_test.csv", data / "csv")
    shutil.copytree(material / "data/codes", data / "codes")
    shutil.copytree(material / "data/read/test", data / "read/test")
    yaml = (RECIPE / "hparams/add_domain.yaml").read_text()
    # this month's experts are of other domains than those in the file
    for word, name in (("codes", None), ("accent", "digits")):
        entry = yaml[yaml.index(f"    {word}:\n        load") :]
        entry = entry[: entry.index("row: False\n") + len("row: False\n")]
        other = "" if name is None else entry.replace(word, name)
        yaml = yaml.replace(entry, other)
    yaml = yaml.replace("[reverb, accent, codes", "[reverb, digits")
    yaml = yaml.replace("[reverb, codes,", "[reverb,")
    (tmp_path / "add_domain.yaml").write_text(yaml)
    results = tmp_path / "added"
    arguments = [
        each
        for each in command(
            material, results, hparams=tmp_path / "add_domain.yaml"
        )
        if not each.startswith(("--domains", "--test_dom", "--lora", "--data"))
    ] + [
        f"--data_folder={data}",
        f"--before={before}",
        "--domains=[codes]",
        "--test_domains=[codes, read]",
    ]
    gone = material / "gone"
    (material / "data").rename(gone)
    try:
        run(arguments)
        first = files(results), files(before)
        run(arguments)
        assert (files(results), files(before)) == first
    finally:
        gone.rename(material / "data")
    original = tensors(before / "original.safetensors")
    one, two = (trained(study[0], name) for name in ("reverb", "digits"))
    three = trained(results, "codes")
    both = merged(results, "aode-more")
    less = merged(results, "aode-less")
    one, two, new = tensors(one), tensors(two), tensors(three)
    for name in original:
        mean = (one[name].double() + two[name] + new[name]) / 3
        torch.testing.assert_close(both[name].double(), mean, rtol=0, atol=1e-7)
        mean = (one[name].double() + new[name]) / 2
        torch.testing.assert_close(less[name].double(), mean, rtol=0, atol=1e-7)
    # it started where the others did
    assert three.base_digest == digest(original)
    assert list(rows_of(results)) == [
        "original",
        "aode",
        "codes",
        "aode-more",
        "aode-less",
    ]
    # last month's average is formed again, to the bit
    assert digest(merged(results, "aode")) == digest(merged(study[0], "aode"))


def test_a_killed_study_goes_on_and_ends_alike(material, study, tmp_path):
    whole, _ = study
    some = "--only=[aode, second-digits]"
    process = subprocess.Popen(
        command(material, tmp_path, some),
        cwd=RECIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1200):
        # the second expert has begun
        pool = tmp_path / "seed-1986/models/digits/pool/digits"
        if (pool / "manifest.jsonl").is_file():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    done = tmp_path / "seed-1986/models/reverb/finished.json"
    first = done.stat().st_mtime_ns
    run(command(material, tmp_path, some))
    assert done.stat().st_mtime_ns == first
    for name in ("reverb", "digits", "second-digits"):
        assert trained(tmp_path, name).digest == trained(whole, name).digest
    assert list(rows_of(tmp_path)) == ["original", "aode"]


def test_a_missing_domain_is_found_before_anything_is_trained(
    material, tmp_path
):
    arguments = [
        each.replace("[reverb, digits]", "[reverb, ditgits]")
        for each in command(material, tmp_path)
    ]
    message = refused(arguments)
    assert "There are no data of 'ditgits'" in message
    assert "ditgits_train.csv" in message
    assert not list(tmp_path.rglob("finished.json"))


def test_what_comes_of_other_weights_is_refused(material, study, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(study[0], results)
    shutil.rmtree(results / "seed-1986/models/reverb")
    yaml = (RECIPE / "hparams/aode.yaml").read_text()
    yaml = yaml.replace(
        '    "{domain}":\n        train: "{domain}"\n',
        "    reverb: {train: reverb, with: {weight_decay: 0.5}}\n"
        "    digits: {train: digits}\n",
    )
    (tmp_path / "aode.yaml").write_text(yaml)
    said = refused(
        command(
            material,
            results,
            "--only=[second-digits]",
            hparams=tmp_path / "aode.yaml",
        )
    )
    assert "second-digits/finished.json says" in said
    assert "other settings (weights of its start)" in said


def test_what_comes_of_other_data_is_refused(material, study, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(study[0], results)
    path = material / "data/csv/digits_train.csv"
    before = path.read_text()
    rows = before.splitlines(keepends=True)
    path.write_text("".join([rows[0], rows[2], rows[1]]))
    try:
        said = refused(command(material, results, "--only=[aode]"))
    finally:
        path.write_text(before)
    assert "Data have changed since models were trained on them" in said
    assert "digits_train.csv (digits" in said
    assert str(results / "seed-1986/models/digits") in said
