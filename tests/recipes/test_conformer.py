"""The Conformer recipe run as a user runs it, on made-up speech."""

import csv
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_recipe import make_speech
from warm_python import python

from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from speechbrain_merge import MergeStage
from speechbrain_merge.methods import available, create
from speechbrain_merge.methods.transport import align
from speechbrain_merge.methods.transport.learned_map import read_learned_map
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import open_weights

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/SpeechDomains/ASR/conformer"
SHAPE = {
    "d_model": 16,
    "nhead": 2,
    "d_ffn": 32,
    "num_encoder_layers": 1,
    "kernel_size": 3,
    "n_mels": 16,
}
# Of the others, a Transformer of another kind is the source, or they are trained
METHODS = sorted(
    set(available())
    - {"attention_merge", "learnable_attention_merge", "adamerging"}
)
FUSIONS = ("direct", "aligned", "by_activations", "literally", "softly")
STEPS = {"number_of_epochs": 1, "steps_per_epoch": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with two domains."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "csv").mkdir()
    columns = ["ID", "duration", "wav", "spk_id", "domain", "wrd"]
    for seed, domain in enumerate(("tones", "others")):
        for part, split in enumerate(("train", "valid", "test")):
            made = make_speech(folder / domain / split, 4, 10 * seed + part)
            with open(made, newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                row["domain"], row["wrd"] = domain, row["wrd"].upper()
                row["wav"] = row["wav"].replace(str(folder), "$data_root")
            target = folder / "csv" / f"{domain}_{split}.csv"
            with open(target, "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
    return folder


@pytest.fixture
def train(monkeypatch):
    """The recipe's train.py as a module, not another recipe's."""

    def forget():
        for name, module in list(sys.modules.items()):
            # not getattr, which would import SpeechBrain's lazy modules
            file = vars(module).get("__file__") or ""
            if file.startswith(str(ROOT / "recipes")):
                del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(str(RECIPE))
    yield importlib.import_module("train")
    forget()


RUN_OPTS = {"device": "cpu", "noprogressbar": True}


def prepared(train, data, folder, yaml="train", build=None, **overrides):
    """One run, built as a study builds it."""
    overrides = {
        "data_folder": str(data),
        "results_folder": str(folder),
        "domains": ["tones"],
        **SHAPE,
        **STEPS,
        **overrides,
    }
    path = str(RECIPE / "hparams" / f"{yaml}.yaml")
    return (build or train.build)(path, overrides, RUN_OPTS)


def command(hparams, arguments):
    """A command line of the recipe."""
    return [
        python(),
        "train.py",
        f"hparams/{hparams}.yaml",
        "--device=cpu",
        "--noprogressbar",
        *(
            f"--{name}={value if isinstance(value, Path) else json.dumps(value)}"
            for name, value in arguments.items()
        ),
    ]


def fusions(data, results, **more):
    """The command line of a small study of fusion."""
    own = {"with": {**SHAPE, **STEPS}}
    arguments = {
        "data_folder": data,
        "output_folder": results,
        "seeds": [7],
        "domains": ["tones"],
        "pretrain_domains": ["tones"],
        "moderate": {"number_of_epochs": 1, "steps_per_epoch": 2},
        "models": {
            "SSL": {"with": {"number_of_epochs": 2}},
            "direct+FFT": {"with": {"number_of_epochs": 1}},
        },
        "study": {
            "trainings": {"expert": own, "pretrain": own},
            "landscapes": {"fusion": {"points": 3, "plane_points": 2}},
        },
    }
    return command("otf", {**arguments, **more})


def run(arguments):
    """Runs it and gives what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, cwd=RECIPE, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def weights(path):
    """All tensors of a file."""
    with open_weights(path) as opened:
        return {name: opened[name].clone() for name in opened.names()}


def rates_of(folder, seed="7"):
    """The rates of all rows: name to mode to set to counts."""
    results = json.loads((folder / "results.json").read_text())
    return {row["name"]: row["sets"][seed] for row in results["rows"]}


def pool_of(results, name, seed="7"):
    """The candidates of a training of a study."""
    return read_pool(results / f"seed-{seed}/models/{name}/pool/{name}")


def best_of(results, name, seed="7"):
    """The candidate that stands for a training."""
    [best] = select(pool_of(results, name, seed), best=1)
    return best


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    """The results folder of a study that broke off and went on to its end."""
    results = tmp_path_factory.mktemp("study") / "results"
    # something stands where the first fine-tuning goes
    obstacle = results / "seed-7/models/SL+MFT"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("")
    done = subprocess.run(
        [sys.executable, *fusions(data, results)[1:]],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "seed-7/models/SL+MFT" in done.stdout + done.stderr
    obstacle.unlink()
    assert (results / "seed-7/merge/aligned/merged.safetensors").is_file()
    assert not (results / "results.json").exists()
    printed = run(fusions(data, results))
    for name in ("SL", "pretrained", "SSL"):
        assert f"seed-7/models/{name} is done already" in printed
    return results


def test_a_study_from_one_command(study):
    names = {
        name + tuning
        for name in ("SL", "SSL", "oracle", "selection", "ensemble", *FUSIONS)
        for tuning in ("", "+MFT")
    }
    rows = rates_of(study)
    assert set(rows) == names | {"direct+FFT"}
    for rates in rows.values():
        for mode in ("offline", "streaming"):
            assert rates[mode]["tones"]["utterances"] == 4
    for tuning, mode in itertools.product(
        ("", "+MFT"), ("offline", "streaming")
    ):
        errors = {
            name: rows[name + tuning][mode]["tones"]["errors"]
            for name in ("SL", "SSL", "oracle", "selection")
        }
        assert errors["oracle"] <= min(errors["SL"], errors["SSL"])
    folder = study / "seed-7"
    parents = [weights(best_of(study, name).path) for name in ("SL", "SSL")]
    direct = weights(folder / "merge/direct/merged.safetensors")
    assert direct.keys() == parents[0].keys() == parents[1].keys()
    for name, merged in direct.items():
        mean = (parents[0][name] + parents[1][name]) / 2
        torch.testing.assert_close(merged, mean, rtol=0, atol=1e-6)
    # every training started from what it says
    (pretrained,) = pool_of(study, "pretrained")
    starts = {
        "SSL": weights(pretrained.path),
        "SL+MFT": parents[0],
        "direct+MFT": direct,
        "direct+FFT": direct,
        "aligned+MFT": weights(folder / "merge/aligned/merged.safetensors"),
    }
    for name, start in starts.items():
        base = weights(pool_of(study, name)[0].base)
        assert all(torch.equal(base[key], start[key]) for key in start), name
    first = weights(pool_of(study, "SL")[0].base)
    name = "Transformer.encoder.layers.0.convolution_module.conv.weight"
    assert not torch.equal(first[name], starts["SSL"][name])
    # parameters drawn at random differ, too, where no pretraining was
    assert not torch.equal(
        first["ctc_lin.w.weight"], parents[0]["ctc_lin.w.weight"]
    )
    other = weights(pool_of(study, "SSL")[0].base)
    assert not torch.equal(first["ctc_lin.w.weight"], other["ctc_lin.w.weight"])


def test_tables_and_pictures_of_a_study(study):
    text = (study / "results.md").read_text()
    assert "Tested offline:" in text and "Tested streaming:" in text
    assert "| direct+FFT |" in text and "| oracle | **" not in text
    assert "| aligned+MFT against SL+MFT, streaming |" in text
    assert "| training | made from | steps | minutes |" in text
    assert "| SSL | pretrained | 4 |" in text
    assert (study / "domains.png").stat().st_size > 5000
    results = json.loads((study / "results.json").read_text())
    pairs = results["comparisons"]["pairs"]
    assert len(pairs) == 2 * 2 * len(FUSIONS)
    assert {pair["mode"] for pair in pairs} == {"offline", "streaming"}
    for pair in pairs:
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert 0 <= pair["p"] <= pair["holm"] <= 1
    barriers = results["barriers"]["fusion"]["7"]
    assert set(barriers) == {
        "direct",
        "SL-aligned",
        "SL-by_activations",
        "SL-literally",
    }
    times = json.loads((study / "times.json").read_text())
    assert times["pretrained"]["7"]["seconds"] > 0
    # aligned by permutations, a model computes what it did before
    folder = study / "seed-7/landscapes/fusion"
    lines = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in barriers
    }
    losses = {
        name: [point["loss"] for point in line["points"]]
        for name, line in lines.items()
    }
    for end in (0, -1):
        direct = losses["direct"][end]
        for name in ("SL-aligned", "SL-by_activations", "SL-literally"):
            assert losses[name][end] == pytest.approx(direct, abs=1e-4)
    assert lines["SL-aligned"]["distance"] < lines["direct"]["distance"]
    for picture in ("between", "since_start", "plane"):
        path = folder / f"loss_{picture}.png"
        assert path.stat().st_size > 5000


def test_a_finished_study_does_nothing_again(study, data):
    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in study.rglob("*")
            if path.suffix in (".safetensors", ".jsonl", ".ckpt")
        }

    before, rates = files(), rates_of(study)
    printed = run(fusions(data, study))
    assert files() == before and rates_of(study) == rates
    assert printed.count("is done already") >= 10
    moderate = {"number_of_epochs": 1, "steps_per_epoch": 2, "lr": 0.1}
    changed = fusions(data, study, moderate=moderate)
    done = subprocess.run(changed, cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "models/direct+FFT/finished.json" not in said
    assert "models/SL+MFT/finished.json" in said
    assert "this was done with other settings (" in said
    assert "yaml.lr, " in said and "yaml.number_of_epochs" not in said


def test_a_broken_training_ends_where_it_would_have(train, data, tmp_path):
    class PowerCut(Exception):
        """Stands for whatever stops a training."""

    ends = []
    for name in ("whole", "broken"):
        settings = {"number_of_epochs": 3, "lr": 0.01, "warmup_steps": 1}
        run = prepared(train, data, tmp_path / name, **settings)
        if name == "broken":
            brain = run.brain
            start = brain.on_stage_start

            def cut(stage, epoch=None, start=start):
                if stage == train.sb.Stage.TRAIN and epoch == 2:
                    raise PowerCut
                start(stage, epoch)

            brain.on_stage_start = cut
            with pytest.raises(PowerCut):
                run.fit()
            run = prepared(train, data, tmp_path / name, **settings)
        run.fit()
        pool = read_pool(tmp_path / name / "expert/pool/expert")
        assert [candidate.epoch for candidate in pool] == [1, 2, 3]
        ends.append(weights(pool[-1].path))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"models": {"direct": {"of": ["SSL", "LS"]}}},
            "'direct': `of`: there is no model 'LS'",
        ),
        (
            {"models": {"direct+FFT": {"from": "SL+MFT"}}},
            r"'direct\+FFT': `from`: there is no model 'SL\+MFT'",
        ),
        (
            {"models": {"ensemble+MFT": {"of": ["SL+MFT", "SSL+FFT"]}}},
            r"'ensemble\+MFT': `of`: there is no model 'SSL\+FFT'",
        ),
        (
            {"models": {"direct": {"same_base": True}}},
            "'direct'.*different models.*SSL from pretrained, SL from SL",
        ),
        (
            {"models": {"SSL": {"with": {"number_of_epochs": 1, "epoch": 2}}}},
            "'SSL': `with`: hparams/train.yaml has no key `epoch`",
        ),
        ({"compare": [["SL", "LS"]]}, "`compare`: there is no model 'LS'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_it_begins(
    train, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.chdir(RECIPE)
    places = {"data_folder": "nowhere", "output_folder": str(tmp_path)}
    with open("hparams/otf.yaml") as file:
        load_hyperpyyaml(file, places)
    with open("hparams/otf.yaml") as file:
        with pytest.raises(ValueError, match=message):
            load_hyperpyyaml(file, {**places, **overrides})


def test_the_scale_of_the_features_is_of_the_domains_that_are_named(
    train, data, tmp_path
):
    pretrain = importlib.import_module("pretrain")
    found, runs = {}, {"train": train.build, "pretrain": pretrain.build}
    for first, domain in itertools.product(runs, ("tones", "others")):
        folder = tmp_path / f"{first}-{domain}"
        # whichever run comes first, and whatever it is trained on
        made = prepared(
            train,
            data,
            folder,
            first,
            runs[first],
            domains=["others"],
            normalizer_domains=[domain],
        )
        found[first, domain] = made.brain.modules.normalize.glob_mean
        assert sorted(path.name for path in folder.glob("normalizer*")) == [
            "normalizer"
        ]
    for domain in ("tones", "others"):
        assert torch.equal(found["train", domain], found["pretrain", domain])
    assert not torch.equal(found["train", "tones"], found["train", "others"])


def test_of_two_runs_that_measure_at_the_same_time_the_first_counts(
    train, data, tmp_path
):
    features = importlib.import_module("features")
    settings = {
        "data_folder": str(data),
        "results_folder": str(tmp_path),
        "domains": ["tones"],
        **SHAPE,
    }
    with open(RECIPE / "hparams/train.yaml") as file:
        hparams = load_hyperpyyaml(file, settings)
    folder = Path(hparams["normalizer_folder"])
    kept = []
    for _ in range(2):
        features.take_statistics(hparams, folder, ["tones"])
        kept.append(
            {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        )
    assert kept[0] == kept[1] and len(kept[0]) >= 2
    assert [path.name for path in tmp_path.glob("normalizer*")] == [
        "normalizer"
    ]
    # those of data that have changed are not taken for the scale of others
    path = data / "csv/tones_train.csv"
    before = path.read_text()
    features.load_statistics(hparams, folder, ["tones"])
    try:
        path.write_text("".join(before.splitlines(keepends=True)[:-1]))
        with pytest.raises(ValueError, match="changed since: .*tones_train"):
            features.load_statistics(hparams, folder, ["tones"])
    finally:
        path.write_text(before)
    (folder / "data.json").unlink()  # of a version that wrote none
    features.load_statistics(hparams, folder, ["tones"])


def test_one_infinite_chunk_is_offline(train, data, tmp_path):
    run = prepared(train, data, tmp_path)
    brain = run.brain
    loader = brain.make_dataloader(
        run.test_sets["tones"], train.sb.Stage.TEST, batch_size=2
    )
    brain.modules.eval()
    with torch.no_grad():
        for batch in loader:
            offline, _ = brain.compute_forward(batch, train.sb.Stage.TEST)
            brain.prepare_test("streaming")
            chunked, _ = brain.compute_forward(batch, train.sb.Stage.TEST)
            brain.hparams.test_chunks = DynChunkTrainConfig(1000)
            infinite, _ = brain.compute_forward(batch, train.sb.Stage.TEST)
            brain.hparams.test_chunks = DynChunkTrainConfig(4, 1)
            short, _ = brain.compute_forward(batch, train.sb.Stage.TEST)
            brain.hparams.test_chunks = DynChunkTrainConfig(16, 4)
            # selection sets are always heard as a whole
            valid, _ = brain.compute_forward(batch, train.sb.Stage.VALID)
            brain.prepare_test("offline")
            torch.testing.assert_close(infinite, offline)
            torch.testing.assert_close(valid, offline)
            assert (chunked - offline).abs().max() > 1e-3
            assert (short - chunked).abs().max() > 1e-3
    with pytest.raises(ValueError, match="'chunks'; expected offline or str"):
        brain.prepare_test("chunks")


def test_chunks_as_they_come_are_heard_as_masked_ones(train, data, tmp_path):
    run = prepared(train, data, tmp_path, num_encoder_layers=2)
    brain, speech = run.brain, run.test_sets["tones"][3]["sig"]
    encoder, chunks = brain.modules.encoder.eval(), DynChunkTrainConfig(8, 2)
    feats = brain.hparams.compute_features(speech[None])
    feats = brain.modules.CNN.eval()(brain.modules.normalize.eval()(feats))
    with torch.no_grad():
        masked = encoder(feats, dynchunktrain_config=chunks)
        context = encoder.make_streaming_context(chunks)
        heard = [
            encoder.forward_streaming(part, context)
            for part in feats.split(8, dim=1)
        ]
    assert len(heard) >= 4
    torch.testing.assert_close(
        torch.cat(heard, dim=1), masked, rtol=0, atol=1e-5
    )


def test_merge_stages_over_the_candidates_of_a_run(train, data, tmp_path):
    run = prepared(
        train, data, tmp_path, number_of_epochs=3, lr=0.01, warmup_steps=1
    )
    run.fit()
    brain, pool_folder = run.brain, tmp_path / "expert/pool/expert"
    pool = read_pool(pool_folder)
    assert [candidate.epoch for candidate in pool] == [1, 2, 3]
    train.check_units(pool, vars(brain.hparams))
    members = [weights(candidate.path) for candidate in pool]
    rates = {}
    for method in ("average", "ties"):
        stage = MergeStage(method, [pool_folder])
        result = brain.merge(stage)
        merged = weights(result.path)
        hparams = vars(brain.hparams)
        train.test_all(run, hparams, method)
        rates[method] = {
            path.parent.name.partition("_")[2]: json.loads(path.read_text())
            for path in tmp_path.glob(f"expert/{method}_*/wer.json")
        }
        for name, tensor in merged.items():
            # what was evaluated is the merge
            module, _, rest = name.partition(".")
            held = brain.module_named(module).state_dict()[rest]
            assert torch.equal(held, tensor), name
            if method == "average":
                mean = sum(member[name] for member in members) / 3
                torch.testing.assert_close(tensor, mean, rtol=0, atol=1e-6)
    assert rates["ties"].keys() == {"offline", "streaming"}
    for domains in rates["ties"].values():
        assert domains["tones"]["utterances"] == 4
    other = {**vars(brain.hparams), "characters": "AB"}
    with pytest.raises(ValueError, match="expert/epoch-0001.*`characters`"):
        train.check_units(pool, other)


def test_a_recogniser_starts_from_a_pretrained_encoder(train, data, tmp_path):
    pretrain = importlib.import_module("pretrain")
    run = prepared(
        train, data, tmp_path, "pretrain", pretrain.build, number_of_epochs=2
    )
    brain, pool_folder = run.brain, tmp_path / "pretrained/pool/pretrained"
    codebook = brain.modules.quantizer.CB.clone()
    before = {k: v.clone() for k, v in brain.modules.CNN.state_dict().items()}
    run.fit()
    assert torch.equal(brain.modules.quantizer.CB, codebook)
    (pretrained,) = read_pool(pool_folder)
    found = weights(pretrained.path)
    assert {name.partition(".")[0] for name in found} == {"CNN", "Transformer"}
    assert any(not torch.equal(found[f"CNN.{k}"], v) for k, v in before.items())

    overrides = {"start_from": str(pool_folder)}
    started = prepared(train, data, tmp_path, **overrides).brain
    fresh = prepared(train, data, tmp_path).brain
    for name, tensor in found.items():
        module, _, rest = name.partition(".")
        held = started.module_named(module).state_dict()[rest]
        assert torch.equal(held, tensor), name
    ctc = "w.weight"
    assert torch.equal(
        started.modules.ctc_lin.state_dict()[ctc],
        fresh.modules.ctc_lin.state_dict()[ctc],
    )
    with pytest.raises(ValueError, match="(?s)does not fit.*size mismatch"):
        prepared(train, data, tmp_path, **overrides, d_ffn=48)
    with pytest.raises(ValueError, match="16 mel bands, expected n_mels: 8"):
        prepared(train, data, tmp_path, n_mels=8)


def test_masked_frames_are_unknown_to_the_encoder(train, data, tmp_path):
    pretrain = importlib.import_module("pretrain")
    build = pretrain.build
    brain = prepared(train, data, tmp_path, "pretrain", build).brain
    brain.modules.eval()
    mask, seconds = torch.arange(40, 60), torch.arange(16000) / 16000
    wavs = 0.3 * torch.sin(2 * torch.pi * 880 * seconds).repeat(2, 1)
    wavs += 0.01 * torch.randn(2, 16000)
    other = wavs.clone()
    # in the middle of the mask, out of reach of the windows of its neighbours
    other[:, 45 * 160 : 55 * 160] = 0.01 * torch.randn(2, 1600)
    outcomes = []
    for heard in (wavs, other):
        torch.manual_seed(0)
        batch = (heard, torch.ones(2), mask)
        with torch.no_grad():
            outcomes.append(brain.compute_forward(batch, train.sb.Stage.VALID))
    (scores, targets), (other_scores, other_targets) = outcomes
    assert scores.shape == (2 * 5, 256) and targets.shape == (2 * 5,)
    torch.testing.assert_close(scores, other_scores)
    assert not torch.equal(targets, other_targets)


def test_wrong_characters_are_named(train):
    hparams = {"characters": " AB", "blank_index": 0, "output_neurons": 5}
    with pytest.raises(ValueError, match="`output_neurons`.*is 5, expected 4"):
        train.units_of(hparams)
    with pytest.raises(ValueError, match=r"'Ab'.*\['b'\].*`characters`"):
        train.tokens_of("Ab", ["", " ", "A", "B"])


def test_merge_stage_with_every_method(train, data, tmp_path):
    settings = {"number_of_epochs": 2, "lr": 0.01, "warmup_steps": 1}
    run = prepared(train, data, tmp_path, **settings)
    run.fit()
    brain, valid = run.brain, run.valid_sets["tones"]
    loader_kwargs = {"batch_size": 2}
    needs = {
        "layer_scaled": {"method": "ties", "first": 0.1, "last": 1.0},
        "restricted": {"method": "ties", "include": "attention"},
        "optimal_transport": {"cost": "activations"},
        "calibrated": {"method": "ties"},
        "boosted": {"method": "ties"},
    }
    for method in METHODS:
        made = create(method, **needs.get(method, {}))
        stage = MergeStage(
            made,
            candidates=[tmp_path / "expert/pool/expert"],
            folder=tmp_path / "merge",
            last=made.maximum_experts,
        )
        if stage.needs_statistics:
            train.collect_statistics(brain, stage, valid, loader_kwargs)
        result = brain.merge(stage, valid, loader_kwargs)
        merged = weights(result.path)
        assert merged.keys() == weights(stage.chosen()[0].path).keys()
        for name, tensor in merged.items():
            assert torch.isfinite(tensor).all(), (method, name)
    brain.use_weights(None)


def test_a_trained_model_aligned_to_another_hears_real_speech_alike(
    train, shared_speech, tmp_path, monkeypatch
):
    trained, logits = [], []
    for seed in (1, 2):
        run = prepared(
            train,
            shared_speech,
            tmp_path / "results",
            run_name=f"seed-{seed}",
            seed=seed,
            domains=["digits"],
            test_domains=["digits"],
            train_hours=0.02,
            number_of_epochs=1,
            steps_per_epoch=8,
            batch_size=4,
            select_fraction=0.1,
            test_fraction=0.1,
            lr=0.01,
            warmup_steps=1,
        )
        run.fit()
        folder = tmp_path / f"results/seed-{seed}"
        best = read_pool(folder / f"pool/seed-{seed}")[-1]
        start = weights(best.base)
        trained.append(
            {key: value.double() for key, value in weights(best.path).items()}
        )
        name = "Transformer.encoder.layers.0.ffn_module1.1.ffn.0.weight"
        assert (trained[-1][name] - start[name]).abs().max() > 1e-3
    own = align(trained[1], trained[0], heads=SHAPE["nhead"])
    distance = sum((own[k] - trained[0][k]).square().sum() for k in own)
    before = sum((trained[1][k] - trained[0][k]).square().sum() for k in own)
    assert distance < before
    brain = run.brain
    loader = brain.make_dataloader(
        run.test_sets["digits"], train.sb.Stage.TEST, batch_size=4
    )
    brain.modules.eval().double()
    # SpeechBrain's attention asks for float32, which would not do for 1e-9
    monkeypatch.setattr(
        torch.nn.functional,
        "softmax",
        lambda scores, dim=None, dtype=None: torch.softmax(scores, dim),
    )
    for module in brain.modules.modules():
        # relative positions are made in a type of their own
        if hasattr(module, "emb_dtype"):
            module.emb_dtype = torch.float64
    with torch.no_grad():
        batch = next(iter(loader))
        wavs, lengths = batch.sig
        features = brain.hparams.compute_features(wavs)
        features = brain.modules.normalize(features.double(), lengths, epoch=9)
        for state in (trained[1], own, trained[0]):
            for part, module in brain.hparams.pool.modules.items():
                tensors = {
                    key.removeprefix(f"{part}."): value
                    for key, value in state.items()
                    if key.startswith(f"{part}.")
                }
                module.load_state_dict(tensors)
            encoded = brain.modules.encoder(
                brain.modules.CNN(features), lengths
            )
            logits.append(brain.modules.ctc_lin(encoded))
    assert (logits[1] - logits[0]).abs().max() < 1e-9
    assert (logits[2] - logits[0]).abs().max() > 1e-3


def continual(data, results, **more):
    """The command line of a small study of continual learning."""
    own = {**SHAPE, "batch_size": 2, "cut_fraction": 0.5}
    arguments = {
        "data_folder": data,
        "output_folder": results,
        "domains": ["tones", "others"],
        "generalist_domains": ["tones", "others"],
        "test_domains": ["tones", "others"],
        "retention": ["others"],
        "epochs": 1,
        "steps_per_epoch": 2,
        "generalist_epochs": 2,
        "study": {"trainings": {"expert": {"with": own}}},
    }
    return command("aode", {**arguments, **more})


def test_domain_experts_of_a_generalist_from_scratch(data, tmp_path):
    results = tmp_path / "results"
    printed = run(continual(data, results))
    text = (results / "results.md").read_text()
    assert "| AoDE 3rd + generalist |" in text
    found = json.loads((results / "results.json").read_text())
    rows = rates_of(results, "1986")
    for row in rows.values():
        for rates in row["offline"].values():
            assert rates["utterances"] == 4
    oracle = rows["oracle-expert"]["offline"]
    for domain in ("tones", "others"):
        assert oracle[domain] == rows[domain]["offline"][domain]
    # all starts from the generalist, and it was trained
    generalist = best_of(results, "generalist", "1986")
    start, best = weights(generalist.base), weights(generalist.path)
    assert start.keys() == best.keys()
    assert not all(torch.equal(start[key], best[key]) for key in start)
    pools = [best_of(results, name, "1986") for name in ("tones", "others")]
    assert {one.base_digest for one in pools} == {generalist.digest}
    experts = [weights(one.path) for one in pools]
    merge = results / "seed-1986/merge"
    merged = weights(merge / "aode/merged.safetensors")
    with_it = weights(merge / "aode-generalist/merged.safetensors")
    for name, tensor in merged.items():
        total = experts[0][name] + experts[1][name]
        torch.testing.assert_close(tensor, total / 2, rtol=0, atol=1e-6)
        mean = (total + best[name]) / 3
        torch.testing.assert_close(with_it[name], mean, rtol=0, atol=1e-6)
    # it is what all are compared with, and what all have in common
    described = {row["name"]: row for row in found["rows"]}
    assert described["generalist"]["group"] == "generalist"
    assert described["generalist"]["trainings"] == []
    assert described["aode"]["trainings"] == ["others", "tones"]
    [header] = [line for line in text.splitlines() if "| forgetting" in line]
    column = header.split(" | ").index("forgetting<br>%")
    line = next(
        line for line in text.splitlines() if line.startswith("| generalist |")
    )
    assert line.split(" | ")[column] == "0.0"
    again = run(continual(data, results))
    trainings = printed.count("Going into epoch 1")
    assert again.count("is done already") == trainings == 11
    assert json.loads((results / "results.json").read_text()) == found


def test_one_model_from_a_pretrained_encoder_by_the_commands_of_the_readme(
    data, tmp_path
):
    own = {
        "data_folder": data,
        "results_folder": tmp_path,
        "domains": ["tones"],
        **SHAPE,
        **STEPS,
    }
    before = command("pretrain", own)
    before[1] = "pretrain.py"
    run(before)
    start = tmp_path / "pretrained/pool/pretrained"
    more = {"start_from": start, "number_of_epochs": 2, "run_name": "ssl"}
    printed = run(command("train", {**own, **more}))
    assert "from scratch: ctc_lin" in printed
    folder = tmp_path / "ssl"
    assert len(read_pool(folder / "pool/ssl")) == 2
    for name in ("expert", "average"):
        for mode in ("offline", "streaming"):
            assert f"{name}, {mode}, tones: WER " in printed
            tested = folder / f"{name}_{mode}"
            rates = json.loads((tested / "wer.json").read_text())
            assert rates["tones"]["utterances"] == 4
            errors = (tested / "tones.jsonl").read_text()
            assert errors.count("\n") == 4


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Strings of tones with pauses, two speakers, noise and a room."""
    folder = tmp_path_factory.mktemp("digits")
    draw = numpy.random.default_rng(1)
    (folder / "csv").mkdir()
    for name, signal in (
        ("noise/hum.wav", 0.1 * draw.standard_normal(32000)),
        ("rir/hall.wav", numpy.exp(-numpy.arange(800) / 100)),
    ):
        (folder / name).parent.mkdir()
        soundfile.write(folder / name, signal, 16000)
    words = ["ONE", "TWO", "SIX"]
    for split in ("train", "valid", "test"):
        rows = []
        for index in range(8):
            speaker = index % 2
            said = [words[i] for i in draw.integers(3, size=3)]
            parts = [numpy.zeros(1600)]
            for word in said:
                pitch = 300 * (1 + words.index(word)) + 60 * speaker
                times = numpy.arange(3200) / 16000
                parts.append(0.3 * numpy.cos(2 * numpy.pi * pitch * times))
                parts.append(numpy.zeros(1600))
            signal = numpy.concatenate(parts)
            name = f"{split}-{index}"
            soundfile.write(folder / f"{name}.wav", signal, 16000)
            rows.append(
                {
                    "ID": name,
                    "duration": len(signal) / 16000,
                    "wav": f"$data_root/{name}.wav",
                    "spk_id": "ab"[speaker],
                    "domain": "digits",
                    "wrd": " ".join(said),
                }
            )
        path = folder / "csv" / f"digits_{split}.csv"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_strings_are_composed_of_the_recordings_of_their_split(
    train, digits, tmp_path
):
    composing = importlib.import_module("compose_digits")

    def compose(folder, **options):
        return composing.compose_digits(
            str(digits),
            str(tmp_path / folder),
            {"both": None, "one": ["a"]},
            {"train": 6, "valid": 4, "test": 5},
            tested=["both"],
            **options,
        )

    def rows(folder, name):
        path = tmp_path / folder / "csv" / f"{name}.csv"
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    assert compose("first") == str(tmp_path / "first")
    compose("second")
    compose("clean", snr=(200, 200), room=0.0, digits=(3, 3))
    assert not (tmp_path / "first/csv/one_test.csv").exists()
    assert len(rows("first", "both_test")) == 5
    assert {row["spk_id"] for row in rows("first", "both_train")} == {"a", "b"}
    assert {row["spk_id"] for row in rows("first", "one_train")} == {"a"}
    for row in rows("first", "both_train"):
        where = row["wav"].replace("$data_root/", "")
        first, second = (
            (tmp_path / folder / where).read_bytes()
            for folder in ("first", "second")
        )
        assert first == second
        assert 2 <= len(row["wrd"].split()) <= 5
    # cut again, a clean string is made of the tones that were recorded
    checked = 0
    for row in rows("clean", "both_train"):
        where = row["wav"].replace("$data_root", str(tmp_path / "clean"))
        # some pauses are too short to be cut at
        parts = composing.cut(soundfile.read(where)[0], 3) or []
        checked += len(parts)
        for word, part in zip(row["wrd"].split(), parts):
            pitch = numpy.abs(numpy.fft.rfft(part)).argmax() * 16000 / len(part)
            wanted = 300 * (1 + ["ONE", "TWO", "SIX"].index(word))
            wanted += 60 * (row["spk_id"] == "b")
            assert abs(pitch - wanted) < 10
    assert checked >= 6
    with pytest.raises(ValueError, match="composed.json.*other settings"):
        compose("first", seed=7)
    with pytest.raises(ValueError, match="`groups`: one names c"):
        composing.compose_digits(
            str(digits), str(tmp_path / "x"), {"one": ["c"]}, {"train": 1}
        )


@pytest.fixture(scope="module")
def powered(digits, tmp_path_factory):
    """The folder of a small study with power."""
    results = tmp_path_factory.mktemp("power") / "results"
    arguments = {
        "data_folder": digits,
        "output_folder": results,
        "seeds": [7],
        "N": 1,
        "F": 1,
        "M": 3,
        "only": ["learned+F", "repaired", "weighted", "layered"],
        "composed": {
            "groups": {"everybody": None, "three": ["a"], "others": ["b"]},
            "utterances": {"train": 6, "valid": 4, "test": 4},
        },
        "first": "three",
        "second": "others",
        "study": {
            # of those that are aligned, only one is made here
            "landscapes": {"parents": {"aligned": ["B-learned"]}},
            "trainings": {
                "expert": {
                    "with": {
                        **{k: v for k, v in SHAPE.items() if k != "n_mels"},
                        **{k: v for k, v in STEPS.items() if "number" not in k},
                    }
                }
            },
        },
    }
    return results, run(command("power", arguments))


def test_a_study_with_guide_teachers_and_a_learned_map(powered):
    results, _ = powered
    folder = results / "seed-7"
    parents = {name: best_of(results, name) for name in ("A", "B")}
    finished = {
        name: json.loads((folder / f"models/{name}/finished.json").read_text())
        for name in ("A", "B", "learned+F")
    }
    assert "weights of its guide" not in finished["A"]["settings"]
    settings = finished["B"]["settings"]
    assert settings["weights of its guide"] == parents["A"].digest
    assert settings["yaml"]["domains"] == ["others"]
    settings = finished["learned+F"]["settings"]
    assert settings["weights of its teachers"] == [
        parents[name].digest for name in ("A", "B")
    ]
    assert settings["yaml"]["guide"] is settings["yaml"]["teachers"] is None
    # the mean is that of A and of B, moved by the map that was learned
    [path] = folder.glob("statistics/map-*.safetensors")
    found = read_learned_map(parents["B"].path, path)
    with open_weights(parents["B"].path) as source:
        moved = {name: one.clone() for name, one in found.apply(source).items()}
    first = weights(parents["A"].path)
    merged = weights(folder / "merge/learned/merged.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (first[name] + moved[name]) / 2)
    fixed = weights(folder / "repaired/repaired.safetensors")
    assert any(not torch.equal(fixed[name], merged[name]) for name in merged)
    # one weight, between the parents, who are among what is compared
    times = json.loads((results / "times.json").read_text())
    tried = [
        trial["parameters"]["scale"]
        for trial in times["weighted"]["7"]["trials"]
    ]
    assert tried == [0, 0.25, 0.5, 0.75, 1]
    layered = times["layered"]["7"]["trials"]
    assert set(layered[0]["parameters"].values()) == {0}
    assert "| B-learned | B, A | 3 |" in (results / "results.md").read_text()


def test_barriers_are_drawn_against_the_width(powered, tmp_path):
    results, _ = powered
    other = tmp_path / "wider"
    other.mkdir()
    shutil.copy(results / "results.json", other)
    printed = run([sys.executable, "draw_widths.py", str(results), str(other)])
    for measure in ("loss", "wer"):
        path = other / f"barriers_{measure}.png"
        assert path.stat().st_size > 5000 and str(path) in printed
    found = json.loads((results / "results.json").read_text())
    lines = found["barriers"]["parents"]["7"]
    assert set(lines) == {"direct", "B-learned"}
    found["barriers"] = {}
    del found["check"]
    (other / "results.json").write_text(json.dumps(found))
    with pytest.raises(AssertionError, match="has no barriers of 'parents'"):
        run([sys.executable, "draw_widths.py", str(results), str(other)])


def test_a_guide_and_teachers_change_a_training(train, data, tmp_path):
    run = prepared(train, data, tmp_path / "guide")
    run.fit()
    pool = tmp_path / "guide/expert/pool/expert"
    ends = {}
    for name, settings in (
        ("alone", {}),
        ("guided", {"guide": str(pool)}),
        ("taught", {"teachers": [str(pool), str(pool)]}),
    ):
        made = prepared(train, data, tmp_path / name, seed=5, **settings)
        before = [p.clone() for p in made.brain.modules.parameters()]
        heard = [
            len(models.models)
            for models in (made.brain.guides, made.brain.teachers)
            if models is not None
        ]
        assert heard == {"alone": [], "guided": [1], "taught": [2]}[name]
        batch = next(
            iter(
                made.brain.make_dataloader(made.train_set, train.sb.Stage.TRAIN)
            )
        )
        made.brain.compute_forward(batch, train.sb.Stage.TRAIN)
        # what guides and teachers hear is not masked
        clean = made.brain.hparams.compute_features(batch.sig[0])
        clean = made.brain.modules.normalize(clean, batch.sig[1], epoch=9)
        assert torch.equal(made.brain.heard[0], clean)
        made.fit()
        ends[name] = [p.clone() for p in made.brain.modules.parameters()]
        assert len(before) == len(ends[name])
    for name in ("guided", "taught"):
        assert any(
            not torch.equal(one, other)
            for one, other in zip(ends["alone"], ends[name])
        )
