"""The SpeechDomains recipe run as a user runs it, on a tiny Whisper."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, parse_eval_result_entries
from hyperpyyaml import load_hyperpyyaml
from tiny_models import make_speech, tiny_whisper
from transformers import WhisperForConditionalGeneration
from warm_python import python

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import provenance
from speechbrain_merge.export.folder import module_state
from speechbrain_merge.pool import read_pool
from speechbrain_merge.records.reading import read_yaml
from speechbrain_merge.weights import fold, open_weights
from speechbrain_merge.weights.adapter_scales import adapter_arguments
from speechbrain_merge.weights.low_rank import open_adapter

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
RATES = ("reverb", "digits", "read")
CARD = {
    "license": "mit",
    "base_model": "me/tiny",
    "leaderboard": {"read": "ami_wer"},
}


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


SETTINGS = {
    "number_of_epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 2,
    "lr": 0.001,
    "max_decode_ratio": 0.01,
}


def command(material, results, hparams, *more, **settings):
    """The command line of a small study."""
    expert = {"with": {**SETTINGS, **settings}}
    return [
        python(),
        "train.py",
        f"hparams/{hparams}.yaml",
        "--device=cpu",
        f"--output_folder={results}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        "--domains=[reverb, digits]",
        "--test_domains=[reverb, digits, read]",
        "--study="
        + json.dumps({"trainings": {"expert": expert}, "card": CARD}),
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


def rows_of(results):
    """The rows of the results, by their names."""
    found = json.loads((results / "results.json").read_text())
    return {row["name"]: row for row in found["rows"]}


@pytest.fixture(scope="module")
def mast(material, tmp_path_factory):
    """The folder of a study of trajectories, run as a user runs it."""
    results = tmp_path_factory.mktemp("mast") / "results"
    run([sys.executable, *command(material, results, "mast")[1:]])
    return results


@pytest.mark.parametrize("hparams", ["mast", "smact"])
def test_a_study_from_one_command(material, tmp_path, hparams, request):
    if hparams == "mast":
        results, printed = request.getfixturevalue("mast"), ""
    else:
        results = tmp_path / "results"
        printed = run(command(material, results, hparams))
    rows = rows_of(results)
    names = list(rows)
    if hparams == "mast":
        assert names[1:] == ["reverb", "digits", "mast-reverb", "mast-digits"]
        merged = rows["mast-digits"]["about"]["1986"]
        assert merged["selected"] == merged["candidates"]
        assert all(n.startswith("digits/") for n in merged["selected"])
    else:
        # two draws for each of two experts
        assert len(names) == 1 + 4 + 1 and names[-1] == "smact"
        pools = results / "seed-1986/models"
        rates = [
            read_pool(pools / f"{name}-run-0{draw}/pool")[0].hyperparameters
            for name in ("reverb", "digits")
            for draw in (1, 2)
        ]
        assert len({each["lr"] for each in rates}) == 2
        export = results / "exported/smact"
        assert (export / "hyperparams.yaml").is_file()
        card = (export / "README.md").read_text()
        assert "by `average`" in card and "| **smact** (this model) |" in card
        data = ModelCard(card).data
        assert data.base_model_relation == "merge" and data.license == "mit"
        assert {result.dataset_name for result in data.eval_results} == set(
            RATES
        )
        for result in data.eval_results:
            assert "95 % interval" in result.metric_name
        [entry] = parse_eval_result_entries(
            read_yaml(export / ".eval_results/open_asr_leaderboard.yaml")
        )
        errors, words = (
            rows["smact"]["sets"]["1986"]["usual"]["read"][key]
            for key in ("errors", "words")
        )
        assert entry.value == round(100 * errors / words, 2)
        assert "WhisperASR hears" in printed
    assert names[0] == "original"
    for row in rows.values():
        counts = row["sets"]["1986"]["usual"]
        assert set(counts) == set(RATES)
        for domain in RATES:
            assert counts[domain]["utterances"] == 4
            lines = (results / counts[domain]["scores"]).read_text()
            assert lines.count("\n") >= 4
    assert "| generalist |" in (results / "results.md").read_text()
    assert (results / "merge_curve.png").stat().st_size > 5000
    assert (results / "domains.png").stat().st_size > 5000

    before, text = files(results), (results / "results.json").read_bytes()
    again = run(command(material, results, hparams))
    assert files(results) == before
    trained = list(results.glob("seed-1986/models/*/finished.json"))
    assert again.count("is done already") >= len(trained)
    assert (results / "results.json").read_bytes() == text


def test_the_second_search_scores_no_candidate_twice(material, tmp_path):
    """MAcT and SMAcT of the demo share the scores of single candidates."""
    results = tmp_path / "results"
    arguments = command(material, results, "demo")
    place = next(i for i, a in enumerate(arguments) if a.startswith("--study="))
    asked = json.loads(arguments[place].partition("=")[2])
    arguments[place] = "--study=" + json.dumps({**asked, "exports": []})
    run(arguments)
    times = json.loads((results / "times.json").read_text())
    singles = {
        name: [
            t for t in times[name]["1986"]["trials"] if t["kind"] == "single"
        ]
        for name in ("mact", "smact")
    }
    known = {trial["candidate"] for trial in singles["mact"]}
    assert len(known) == 2
    again = [t for t in singles["smact"] if t["candidate"] in known]
    assert len(again) == 2 and all(trial["reused"] for trial in again)


def test_a_benchmark_of_methods(material, tmp_path):
    results = tmp_path / "results"
    arguments = [
        *command(material, results, "benchmark", "--trials=2"),
        "--models=" + json.dumps({"joint": {"with": {"number_of_epochs": 1}}}),
    ]
    some = "average, fisher, layer_scaled, consensus"
    run([*arguments, f"--only=[reverb, digits, joint, {some}]"])
    rows = rows_of(results)
    assert list(rows) == ["original", "reverb", "digits", "joint"] + [
        "average",
        "fisher",
        "layer_scaled",
        "consensus",
    ]
    about = {name: row["about"]["1986"] for name, row in rows.items()}
    times = json.loads((results / "times.json").read_text())
    for name in ("average", "fisher", "layer_scaled", "consensus"):
        # the joint model is compared with, not merged
        assert about[name]["candidates"] == ["reverb", "digits"]
        cost = times[name]["1986 cost"]
        assert cost["merge_seconds"] > 0 and cost["peak_megabytes"] > 0
        assert cost["trials"] == (2 if about[name]["chosen"] else 0)
    assert about["consensus"]["chosen"].keys() == {"scale"}
    assert about["layer_scaled"]["chosen"].keys() == {"last"}
    assert about["average"]["chosen"] is None
    # what else is shown beside the reference is against it
    found = json.loads((results / "results.json").read_text())
    pairs = {pair["names"][1]: pair for pair in found["comparisons"]["pairs"]}
    assert set(pairs) == set(rows) - {"average"}
    assert all(pair["names"][0] == "average" for pair in pairs.values())
    one = pairs["consensus"]
    assert one["low"] <= one["difference"] <= one["high"]
    assert all(pair["holm"] >= pair["p"] for pair in pairs.values())
    table = (results / "results.md").read_text()
    assert "difference to<br>average" in table
    assert (results / "pareto.png").stat().st_size > 5000

    before = files(results)
    run([*arguments, f"--only=[reverb, digits, joint, {some}]"])
    assert files(results) == before
    done = subprocess.run(
        [*arguments, "--only=[average, slerp]"],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert "no model 'slerp'" in done.stdout + done.stderr


@pytest.mark.parametrize("number", [2, 4])
def test_joint_training_has_as_many_steps_as_all_experts(
    number, tmp_path, monkeypatch
):
    monkeypatch.chdir(RECIPE)
    path = RECIPE / "hparams" / "benchmark.yaml"
    overrides = {
        "output_folder": str(tmp_path),
        "whisper_hub": str(tmp_path),
        "data_folder": str(tmp_path),
        "domains": [f"d{place}" for place in range(number)],
    }
    with open(path, encoding="utf-8") as file:
        models = load_hyperpyyaml(file, overrides)["models"]
    # an expert has 5 epochs, of a schedule of 120 steps
    joint = {"number_of_epochs": 5 * number, "lr_decay_steps": 120 * number}
    assert models["joint"]["with"] == joint


def test_other_settings_are_refused_not_mixed(material, mast):
    changed = command(material, mast, "mast", weight_decay=0.5)
    done = subprocess.run(changed, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "done with other settings (" in said and "yaml.weight_decay" in said


def test_wrong_keys_are_found_before_anything_is_trained(material, tmp_path):
    for settings, message in (
        ({"lerning_rate": 1}, "has no key `lerning_rate`"),
        ({"batch_size": 2, "data_folder": "nowhere"}, "nowhere"),
    ):
        done = subprocess.run(
            command(material, tmp_path, "mast", **settings),
            cwd=RECIPE,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert message in done.stdout + done.stderr
        assert not list(tmp_path.rglob("finished.json"))


def test_a_killed_study_goes_on(material, mast, tmp_path):
    whole, killed = mast, tmp_path / "killed"
    process = subprocess.Popen(
        command(material, killed, "mast"),
        cwd=RECIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pool = killed / "seed-1986/models/digits/pool/digits"
    for _ in range(600):
        if any(pool.glob("epoch-0001*.safetensors")):
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    run(command(material, killed, "mast"))
    one, other = (
        (folder / "results.json").read_bytes() for folder in (whole, killed)
    )
    assert one == other


def test_one_expert(material, tmp_path):
    arguments = [
        python(),
        "train.py",
        "hparams/train.yaml",
        "--device=cpu",
        f"--output_folder={tmp_path / 'expert'}",
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


@pytest.fixture(scope="module")
def lora_study(material, tmp_path_factory):
    """The folder of a study of adapters, run once."""
    results = tmp_path_factory.mktemp("lora") / "results"
    run(
        [
            *command(material, results, "lora"),
            "--trials=2",
            "--lora_rank=2",
            "--lora_lr=0.01",
        ]
    )
    return results


CORE = ("core_task_arithmetic", "core_ties", "core_tsv_m")


@pytest.mark.parametrize("name", CORE)
def test_adapters_merged_in_core_space_load_anywhere(
    lora_study, material, name
):
    """PEFT on the base, SpeechBrain's adapter on the base, the folded model."""
    peft = pytest.importorskip("peft")
    exported = lora_study / "exported"
    torch.manual_seed(0)
    features = torch.randn(1, 80, 3000)
    tokens = torch.tensor([[1, 2, 3]])

    def logits(model):
        with torch.no_grad():
            return model.eval()(features, decoder_input_ids=tokens).logits

    def base():
        return WhisperForConditionalGeneration.from_pretrained(
            material / "whisper"
        )

    adapted = peft.PeftModel.from_pretrained(
        base(), exported / f"{name}-adapter.peft"
    )
    folded = WhisperForConditionalGeneration.from_pretrained(exported / name)
    wanted = logits(folded)
    assert not torch.allclose(wanted, logits(base()), atol=1e-3)
    torch.testing.assert_close(logits(adapted), wanted, rtol=0, atol=1e-4)

    path = exported / f"{name}-adapter.safetensors"
    host = base()
    model = AdaptedModel(host, LoRA, **adapter_arguments(path))
    loaded = model.load_state_dict(dict(open_weights(path)), strict=False)
    assert not loaded.unexpected_keys
    torch.testing.assert_close(logits(host), wanted, rtol=0, atol=1e-4)


def test_what_is_tested_is_the_merged_adapter(lora_study):
    """The row of a merge is of the base with the adapter that is exported."""
    rows = rows_of(lora_study)
    assert list(rows)[1:] == ["reverb", "digits", "average", *CORE]
    for name in CORE:
        about = rows[name]["about"]["1986"]
        assert about["method"]["name"] == "core_space"
        assert about["candidates"] == ["reverb", "digits"]
        assert about["chosen"].keys() == {"scale"} and len(about["trials"]) == 2
        path = lora_study / f"exported/{name}-adapter.safetensors"
        assert provenance(path)["parameters"]["scale"] == pytest.approx(
            about["chosen"]["scale"]
        )
        # both adapters of rank 2
        seed = lora_study / "seed-1986"
        base = module_state(seed / "original.safetensors", "whisper")
        tested = module_state(
            seed / f"merge/{name}/merged.safetensors", "whisper"
        )
        with open_weights(path) as weights:
            layers = open_adapter(weights).layers
        assert {layer.rank for layer in layers.values()} == {4}  # 2 and 2
        with fold(path, base=base) as again:
            for key in again:
                torch.testing.assert_close(
                    again[key], tested[key], rtol=0, atol=1e-6
                )


def test_recordings_of_another_domain_help_a_synthetic_one(material, tmp_path):
    """The base with what the first expert has and the second lacks."""
    results = tmp_path / "results"
    given = [
        each
        for each in command(material, results, "analogy", "--trials=2")
        if not each.startswith(("--domains", "--test_domains", "--data_"))
    ]
    # the sets of other domains stand for what a synthetic voice speaks
    data = tmp_path / "data"
    (data / "csv").mkdir(parents=True)
    synthetic = {"digits": "reverb_synthetic", "read": "digits_synthetic"}
    for file in (material / "data/csv").iterdir():
        text = file.read_text().replace("$data_root", str(material / "data"))
        (data / "csv" / file.name).write_text(text)
        domain = file.name.partition("_")[0]
        if domain in synthetic:
            name = file.name.replace(domain, synthetic[domain])
            text = text.replace(f",{domain},", f",{synthetic[domain]},")
            text = re.sub("^speech", "synthetic", text, flags=re.MULTILINE)
            (data / "csv" / name).write_text(text)
    names = {
        "data_folder": data,
        "recordings": material / "data",
        "source": "reverb",
        "target": "digits",
        "other": "read",
    }
    run([*given, *(f"--{key}={value}" for key, value in names.items())])
    rows = rows_of(results)
    assert list(rows) == [
        "original",
        "real-source",
        "synthetic-source",
        "synthetic-target",
        "analogy",
        "analogy-tuned",
        "real-target",
    ]
    assert set(rows["analogy"]["sets"]["1986"]["usual"]) == {
        "digits",
        "digits_synthetic",
        "reverb",
        "read",
    }
    seed = results / "seed-1986"
    first, second, base = (
        dict(open_weights(read_pool(seed / f"models/{name}/pool")[0]))
        for name in ("real-source", "synthetic-source", "synthetic-target")
    )
    for name in ("analogy", "analogy-tuned"):
        about = rows[name]["about"]["1986"]
        scale = about["method"]["scale"]
        assert name == "analogy" or scale == about["chosen"]["scale"]
        assert name != "analogy" or scale == 0.5
        with open_weights(seed / f"merge/{name}/merged.safetensors") as made:
            for key, tensor in base.items():
                torch.testing.assert_close(
                    made[key],
                    tensor + scale * (first[key] - second[key]),
                    rtol=0,
                    atol=1e-6,
                )
