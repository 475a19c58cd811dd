"""Continual learning in the SpeechDomains recipe, on a tiny Whisper."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_speech, tiny_whisper

from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import digest, open_weights

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/whisper"
)
DOMAINS = ("reverb", "digits", "codes", "read")


def recipe_module(name):
    """One of the recipe's modules, where no other recipe has its name."""
    sys.path.insert(0, str(RECIPE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def graph():
    """The recipe's modules that plan a study."""
    plan, models = recipe_module("model_plan"), recipe_module("model_graph")
    return SimpleNamespace(**{**vars(models), **vars(plan)})


def described(plan):
    """What a plan says of each model, in short."""
    return {
        model.name: (model.start, model.domains, model.members)
        for model in plan
    }


SMALL = {
    "{domain}": {"train": "{domain}"},
    "aode": {"merge": "average", "of": "{each}"},
}


def test_names_stand_for_all_domains_or_for_this_one(graph):
    models = {
        **SMALL,
        "second-{domain}": {"train": "{domain}", "from": "aode"},
        "heavy-{domain}": {
            "merge": "average",
            "of": ["second-{each}", "original"],
            "weights": {"second-{domain}": "4/8"},
        },
        "all": {"train": "{each}"},
    }
    plan = graph.plan_models(models, ["a", "b"])
    assert described(plan) == {
        "original": (None, (), ()),
        "a": ("original", ("a",), ()),
        "b": ("original", ("b",), ()),
        "aode": (None, (), ("a", "b")),
        "second-a": ("aode", ("a",), ()),
        "second-b": ("aode", ("b",), ()),
        "heavy-a": (None, (), ("second-a", "second-b", "original")),
        "heavy-b": (None, (), ("second-a", "second-b", "original")),
        "all": ("original", ("a", "b"), ()),
    }
    assert plan[6].method.weights == [0.5, 1.0, 1.0]
    assert plan[7].method.weights == [1.0, 0.5, 1.0]
    by_name = {model.name: model for model in plan}
    assert graph.trained_for("heavy-a", by_name) == [
        "a",
        "b",
        "second-a",
        "second-b",
    ]


def test_sequences_share_what_is_the_same_training(graph):
    models = {
        **SMALL,
        "turn": {"in_turn": "{each}"},
        "back": {"in_turn": "{each}", "reverse": True},
        "other": {"in_turn": "{each}", "with": {"lr": 1}},
    }
    plan = graph.plan_models(models, ["a", "b", "c"])
    by_name = {model.name: model for model in plan}
    assert by_name["turn"].stages == ("a", "turn-2", "turn")
    assert by_name["back"].stages == ("c", "back-2", "back")
    assert by_name["other"].stages == ("other-1", "other-2", "other")
    assert [by_name[n].start for n in by_name["turn"].stages] == [
        "original",
        "a",
        "turn-2",
    ]
    assert by_name["back"].domains == ("a",)
    assert not by_name["turn-2"].row and by_name["turn"].row
    some = graph.with_ancestors(plan, ["back"])
    assert [(m.name, m.row) for m in some] == [
        ("original", True),
        ("c", False),
        ("back-2", False),
        ("back", True),
    ]
    with pytest.raises(ValueError, match="`only`: no model 'bak'.* 'back'"):
        graph.with_ancestors(plan, ["bak"])


@pytest.mark.parametrize(
    "models, message",
    [
        ({"m": {"train": "a", "merge": "average"}}, "found train and merge"),
        ({"m": {}}, "'m': expected one of train"),
        ({"m": "average"}, "expected a mapping"),
        ({"m": {"train": "a", "form": "b"}}, "nothing is known of form"),
        ({"m": {"train": "a", "from": "aod"}}, "is it 'aode'"),
        ({"m": {"merge": "average", "of": ["{each}", "c"]}}, "no model 'c'"),
        ({"m": {"merge": "average"}}, "`of` is missing"),
        ({"m": {"merge": "average", "of": ["a", "a"]}}, "twice"),
        (
            {"m": {"merge": "average", "of": "{each}", "weights": [1]}},
            "1 `weights` for 2 members",
        ),
        (
            {"m": {"merge": "average", "of": "{each}", "weights": {"c": 1}}},
            "`weights` has c, and its members are a, b",
        ),
        ({"m": {"merge": "slerp", "of": ["a"]}}, "slerp"),
        (
            {
                "o": {"oracle": "{domain}"},
                "m": {"merge": "average", "of": ["o", "a"]},
            },
            "'o' is an oracle",
        ),
        (
            {
                "o": {"oracle": "{domain}"},
                "m": {"train": "a", "from": "o"},
            },
            "no weights to start from",
        ),
        ({"m m": {"train": "a"}}, "a folder's"),
        ({"{domain}ode": {"train": "{domain}"}}, "two models 'aode'"),
        ({"m": {"train": "a", "title": "aode"}}, "same title"),
    ],
)
def test_a_specification_that_is_none_is_named(graph, models, message):
    with pytest.raises(ValueError, match=message):
        graph.plan_models({**SMALL, **models}, ["a", "b"])


def test_members_of_different_origins_are_refused_unless_told(graph):
    mixed = {
        **SMALL,
        "next": {"train": "b", "from": "aode"},
        "m": {"merge": "average", "of": ["a", "next", "original"]},
    }
    with pytest.raises(ValueError, match="a from original, next from aode"):
        graph.plan_models(mixed, ["a", "b"])
    mixed["m"]["mixed_origins"] = True
    assert graph.plan_models(mixed, ["a", "b"])[-1].members[1] == "next"


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


def command(material, results, *more, hparams="hparams/aode.yaml"):
    """The command line of a small study."""
    return [
        sys.executable,
        "train.py",
        str(hparams),
        "--device=cpu",
        f"--results_folder={results}",
        f"--whisper_hub={material / 'whisper'}",
        f"--data_folder={material / 'data'}",
        "--domains=[reverb, digits]",
        "--test_domains=[reverb, digits, read]",
        "--epochs=1",
        "--steps_per_epoch=2",
        "--lr=0.001",
        "--lora_rank=2",
        "--test_window=4",
        "--expert_overrides="
        + json.dumps(
            {
                "batch_size": 2,
                "max_decode_ratio": 0.01,
                "cut_fraction": 0.5,
                "window": 4,
            }
        ),
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
    return read_pool(results / "pool" / name)[-1]


def tensors(source):
    """All weights of a source."""
    with open_weights(source) as weights:
        return {name: weights[name].clone() for name in weights}


def merged(results, name):
    """A merged model's weights."""
    return tensors(results / "merged" / f"{name}.safetensors")


def test_the_whole_study_from_one_command(study, material):
    results, printed = study
    found = json.loads((results / "results.json").read_text())
    rows = {row["model"]: row for row in found["rows"]}
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
            name: sets["utterances"] for name, sets in row["sets"].items()
        } == {"reverb": 4, "digits": 4, "read": 4}
    trainings = {name: len(row["trainings"]) for name, row in rows.items()}
    assert trainings["original"] == 0 and trainings["combined"] == 1
    assert trainings["aode"] == 2 and trainings["in-turn"] == 2
    assert trainings["aode-3"] == 6 and trainings["oracle-lora"] == 2
    sequence = found["sequences"]["in-turn-reversed"]
    assert sequence["domains"] == ["digits", "reverb"]
    assert len(sequence["rates"]) == 3
    table = (results / "results.md").read_text()
    assert "| AoDE 3rd + original |" in table
    assert "backward transfer" in table and "backward transfer" in printed
    for picture in ("domains", "experts", "forgetting"):
        assert (results / f"{picture}.png").stat().st_size > 5000
    # what is only on the way to another model is not tested
    assert not (results / "evaluated" / "second-reverb").exists()
    # nor are its checkpoints kept
    assert not (results / "reverb" / "save").exists()

    before = files(results)
    again = run(command(material, results))
    assert files(results) == before
    assert again.count("is finished") == len(
        list(results.glob("*/finished.json"))
    ) + len(list(results.glob("merged/*.json")))
    rerun = json.loads((results / "results.json").read_text())
    assert rerun == found


def test_merges_are_of_what_they_say(study):
    results, _ = study
    original = tensors(results / "original.safetensors")
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
        "reverb": results / "original.safetensors",
        "in-turn": trained(results, "reverb").path,
        "in-turn-reversed": trained(results, "digits").path,
        "second-digits": results / "merged/aode.safetensors",
        "third-digits": results / "merged/aode-2.safetensors",
        "combined": results / "original.safetensors",
        "in-turn-lwf-1": results / "original.safetensors",
        "in-turn-lwf": trained(results, "in-turn-lwf-1").path,
        "lora-digits": results / "original.safetensors",
    }
    for name, path in starts.items():
        assert trained(results, name).base_digest == content(path), name


def test_what_holds_a_training_back_does(study):
    results, _ = study
    original = tensors(results / "original.safetensors")
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
    found = json.loads((results / "results.json").read_text())
    rows = {row["model"]: row for row in found["rows"]}
    for domain in ("reverb", "digits"):
        done = results / f"evaluated/lora-{domain}/evaluated.json"
        rates = json.loads(done.read_text())["rates"]
        assert list(rates) == [domain]
        assert rows["oracle-lora"]["sets"][domain] == rates[domain]
    assert (
        rows["oracle-lora"]["sets"]["read"] == rows["original"]["sets"]["read"]
    )


def test_balanced_draws_take_all_domains_equally():
    names = list(range(110))
    data = SimpleNamespace(
        data_ids=names,
        data={i: {"domain": "few" if i < 10 else "many"} for i in names},
    )
    sampler = recipe_module("draws").balanced_sampler(data, seed=7)
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn.append([data.data[i]["domain"] for i in sampler])
    assert all(len(epoch) == 110 for epoch in drawn)
    few = sum(epoch.count("few") for epoch in drawn) / 2200
    assert 0.46 < few < 0.54
    assert drawn[0] != drawn[1]


def added(material, study, results, *more):
    """The command line that adds a domain to the study's pool, or takes one."""
    arguments = command(
        material, results, *more, hparams="hparams/add_domain.yaml"
    )
    foreign = ("--domains", "--test_domains", "--lora_rank", "--data_folder")
    kept = [each for each in arguments if not each.startswith(foreign)]
    return [*kept, f"--pool_folder={study[0] / 'pool'}"]


def test_a_domain_more_without_the_old_data(material, study, tmp_path):
    results, data = study[0], tmp_path / "data"
    # what the new month has: one domain's data, and the test set of another
    (data / "csv").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        shutil.copy(material / f"data/csv/codes_{split}.csv", data / "csv")
    shutil.copy(material / "data/csv/read_test.csv", data / "csv")
    shutil.copytree(material / "data/codes", data / "codes")
    shutil.copytree(material / "data/read/test", data / "read/test")
    new = [
        f"--data_folder={data}",
        "--domain=codes",
        "--test_domains=[codes, read]",
    ]
    gone = material / "gone"
    (material / "data").rename(gone)
    try:
        arguments = added(material, study, tmp_path / "added") + new
        run(arguments)
        before = files(tmp_path / "added"), files(results / "pool")
        run(arguments)
        after = files(tmp_path / "added"), files(results / "pool")
        assert after == before
        back = added(material, study, tmp_path / "back")
        back += [
            f"--data_folder={data}",
            "--domain=null",
            "--extends=aode_with_codes",
            "--name=back",
            "--leave_out=[codes]",
            "--test_domains=[]",
        ]
        run(back)
    finally:
        gone.rename(material / "data")
    original = tensors(results / "original.safetensors")
    one, two, three = (
        tensors(trained(results, name))
        for name in ("reverb", "digits", "codes")
    )
    merged_path = tmp_path / "added/merged/aode_with_codes/merged.safetensors"
    both = tensors(merged_path)
    for name in original:
        mean = (one[name].double() + two[name] + three[name]) / 3
        torch.testing.assert_close(both[name].double(), mean, rtol=0, atol=1e-7)
    # it started where the others did
    assert trained(results, "codes").base_digest == digest(original)
    found = json.loads((tmp_path / "added/results.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        "original",
        "codes",
        "aode",
        "aode_with_codes",
    ]
    assert [name.split("/")[0] for name in found["members"]] == [
        "reverb",
        "digits",
        "codes",
    ]
    # leaving it out again gives last month's average, to the bit
    rolled = tensors(tmp_path / "back/merged/back/merged.safetensors")
    assert digest(rolled) == digest(merged(results, "aode"))
    # a name that is taken is not added twice
    said = refused(
        added(material, study, tmp_path / "again")
        + [f"--data_folder={data}", "--domain=codes"]
    )
    assert "has a run 'codes' already" in said


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
        if (tmp_path / "pool/digits/manifest.jsonl").is_file():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    first = (tmp_path / "reverb/finished.json").stat().st_mtime_ns
    run(command(material, tmp_path, some))
    assert (tmp_path / "reverb/finished.json").stat().st_mtime_ns == first
    for name in ("reverb", "digits", "second-digits"):
        assert trained(tmp_path, name).digest == trained(whole, name).digest
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["model"] for row in found["rows"]] == [
        "original",
        "aode",
        "second-digits",
    ]


def test_a_missing_domain_is_found_before_anything_is_trained(
    material, tmp_path
):
    arguments = [
        each.replace("[reverb, digits]", "[reverb, ditgits]")
        for each in command(material, tmp_path)
    ]
    assert "ditgits_train.csv was not found" in refused(arguments)
    assert not list(tmp_path.glob("*/finished.json"))


def test_what_comes_of_other_weights_is_refused(material, study, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(study[0], results)
    for folder in ("reverb", "pool/reverb"):
        shutil.rmtree(results / folder)
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
    assert "'second-digits' was trained from other weights than 'aode'" in said
