"""What a seventh attack found in studies, each as the attack did it.

A study of two experts and their average, of a real recipe in small, is made
once; each test changes a copy of it.
"""

import json
import logging
import shutil
from pathlib import Path

import killed_stages
import pytest
import torch
from killed_stages import ASR, STUDY_YAML
from safetensors.torch import load_file

from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain_merge.pool import read_pool
from speechbrain_merge.records.ownership import ChangedFolder
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.study import Study
from speechbrain_merge.study.launch import planned_jobs
from speechbrain_merge.weights import ChangedContent

MODELS = {
    "a": {"train": "a"},
    "b": {"train": "b"},
    "mean": {"merge": "average", "of": ["a", "b"]},
}
HOME = Path("results/seed-0/models/a")


def study(models=None, build=None, epochs=2, rate=None, **options):
    """Runs the study in the working directory."""
    settings = {"number_of_epochs": epochs}
    if rate is not None:
        settings["lr"] = rate
    return Study(
        "results",
        models or MODELS,
        {"expert": {"hparams": "train.yaml", "with": settings}},
        domains=["a", "b"],
        checkpoint="last",
        **{"tests": ["a"], **options},
    ).run(build or killed_stages.build, {"noprogressbar": True})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study that is done."""
    folder = tmp_path_factory.mktemp("study")
    killed_stages.study_yaml(folder)
    (folder / "words.txt").write_text("one two")
    yaml = STUDY_YAML + "lexicon: words.txt\n"
    (folder / "train.yaml").write_text(yaml)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study()
    return folder


@pytest.fixture
def done(made, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def selected(name="a"):
    """The candidate that stands for a training."""
    record = Path("results/seed-0/models", name, "finished.json")
    pool = json.loads(record.read_text())["outcome"]["pool"]
    return read_pool(Path("results", pool))[-1]


def swap():
    """Another model's file in the place of a candidate of `a`."""
    shutil.copyfile(selected("b").path, selected("a").path)


def is_mean(*files):
    """Whether the average is that of these files."""
    merged = load_file("results/seed-0/merge/mean/merged.safetensors")
    parts = [load_file(file) for file in files]
    return all(
        torch.allclose(tensor, sum(part[name] for part in parts) / len(parts))
        for name, tensor in merged.items()
        if tensor.is_floating_point()
    )


class Kill(BaseException):
    """Ends a training as a kill would."""


def test_lost_checkpoints_do_not_mix_trainings(done, monkeypatch):
    """The candidates of the attempt that was killed stay out."""
    shutil.rmtree(HOME)
    ends = ASR.on_stage_end

    def dies(self, stage, loss, epoch=None):
        ends(self, stage, loss, epoch)
        if stage.name == "VALID" and epoch == 2:
            raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(ASR, "on_stage_end", dies)
        study(epochs=3, only=["a"])
    shutil.rmtree(HOME / "save")
    study(epochs=3, only=["a"])
    assert {path.name for path in (HOME / "pool").iterdir()} == {"a", "a-2"}
    assert selected().epoch == 3 and selected().run == "a-2"


def test_a_training_without_its_record_is_done_anew(done):
    """Its settings are not known: what it left is of no use."""
    before = selected().digest
    (HOME / "finished.json").unlink()
    study(only=["mean"])
    assert selected().run == "a-2" and selected().digest == before
    # with another learning rate
    shutil.rmtree(HOME.with_name("b"))
    (HOME / "finished.json").unlink()
    study(only=["mean"], rate=0.3)
    assert selected().run == "a-3" and selected().digest != before
    assert is_mean(selected().path, selected("b").path)


def test_checkpoints_without_a_record_are_refused(done):
    """Training would go on from them with any settings."""
    shutil.rmtree(HOME)
    study(keep_checkpoints=True)
    (HOME / "finished.json").unlink()
    with pytest.raises(ValueError, match="delete .*models/a to train"):
        study(rate=0.3, only=["a"])
    shutil.rmtree(HOME)
    study(rate=0.3, only=["a"])
    assert selected().epoch == 2


@pytest.mark.parametrize("text", ["{", "", "{}"])
def test_a_damaged_record_says_what_to_do(done, text):
    (HOME / "finished.json").write_text(text)
    with pytest.raises(ValueError, match=r"finished\.json") as raised:
        study()
    assert f"Delete {HOME} to train it again." in str(raised.value)


def test_what_an_earlier_version_took_for_a_training(done, caplog):
    """It wrote the name of the run that was asked for."""
    (HOME / "finished.json").unlink()
    study(only=["a"])
    record = json.loads((HOME / "finished.json").read_text())
    assert record["outcome"].pop("run") == "a-2" and record.pop("check")
    record["outcome"]["pool"] = "seed-0/models/a/pool/a"
    (HOME / "finished.json").write_text(json.dumps(record))
    for path in (HOME / "pool/a").glob("epoch-*"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        study(exports=["a"])
    assert "collected in the run 'a-2'" in caplog.text
    assert Path("results/exported/a/model.ckpt").is_file()


def decoding(read):
    """The recipe, which decodes with something that it reads."""

    def build(*given):
        run = killed_stages.build(*given)
        run.brain.tokenizer = read(Path("words.txt"))
        return run

    return build


def labels(path):
    """A label encoder, as recipes make theirs."""
    encoder = CTCTextEncoder()
    encoder.update_from_iterable(path.read_text().split(), False)
    return encoder


def scores():
    """The files of all tests."""
    return {path.name for path in Path("results/scores").glob("*.json")}


@pytest.mark.parametrize("build", [None, decoding(labels)])
def test_a_changed_file_of_decoding_is_noticed(done, build):
    options = {"build": build, "only": ["a"]}
    study(**options)
    before = scores()
    study(**options)
    assert scores() == before
    # both models that are tested: the original as well
    Path("words.txt").write_text("one three")
    study(**options)
    assert len(scores()) == len(before) + 2
    Path("words.txt").write_text("one two")
    study(**options)
    assert len(scores()) == len(before) + 2


def test_new_tests_and_seeds_leave_the_old(done):
    """The same original is tested once for all seeds."""
    before = scores()
    study(tests=["a", "b"], seeds=[0, 1], only=["original"])
    new = scores() - before
    assert before <= scores() and [name[0] for name in new] == ["b"]


def test_a_model_of_one_seed_is_made_and_not_in_the_table(done, caplog):
    """`--only "[a, b@1]"`: the rows of a table are those of every seed."""
    results = study(seeds=[0, 1], only=["a", "b@1"])
    rows = [row["name"] for row in results["rows"]]
    assert "a" in rows and "b" not in rows
    assert Path("results/seed-1/models/b/finished.json").is_file()
    assert "b: made for some of the seeds 0, 1 only" in caplog.text


def test_tests_of_an_earlier_version_are_decoded_again(done, caplog):
    """They do not say what was in the files that decoding read."""
    from speechbrain_merge.study import testing

    for record in Path("results/scores").glob("*.json"):
        found = json.loads(record.read_text())
        assert found["settings"].pop("decoding")
        stem = testing._stem("a", found["settings"])
        for path in Path("results/scores").glob(f"{record.stem}.*"):
            path.rename(path.with_name(stem + path.suffix))
    before = scores()
    with caplog.at_level(logging.INFO):
        study()
    assert caplog.text.count("an earlier version tested are decoded") == 1
    assert len(scores()) == 2 * len(before)


def test_a_replaced_candidate_is_not_exported(done):
    swap()
    study()  # nothing reads it
    with pytest.raises(ChangedContent, match="a .*pool/a/epoch-0002"):
        study(exports=["a"])
    assert not Path("results/exported/a").exists()


def test_a_replaced_candidate_starts_no_training(done):
    swap()
    with pytest.raises(ChangedContent, match="on record"):
        study({**MODELS, "next": {"train": "b", "from": "a"}})
    left = Path("results/seed-0/models/next")
    assert not list(left.rglob("*.safetensors"))


def test_a_replaced_candidate_is_not_walked_to(done):
    swap()
    with pytest.raises(ChangedContent, match="on record"):
        study(landscapes={"way": {"between": ["a", "b"]}})


@pytest.mark.parametrize(
    "way, names",
    [
        ({"points": 2}, "landscapes.way.points"),
        ({"points": "11"}, "landscapes.way.points"),
        ({"plane_points": 1}, "landscapes.way.plane_points"),
        ({"between": ["a", "a"]}, "`between`"),
        ({"between": ["a", "both"]}, "no weights of its own"),
        ({"between": ["a", "mean"], "from_start": True}, "`from_start`"),
        ({"aligned": ["b"]}, "`aligned`"),
    ],
)
def test_a_landscape_that_cannot_be_walked(done, way, names):
    """Before anything is trained, and not when all is."""
    models = {
        **MODELS,
        "mean": {"merge": "average", "of": ["a", "b"]},
        "both": {"combine": "ensemble", "of": ["a", "b"]},
    }
    way = {"between": ["a", "b"], **way}
    before = sorted(Path("results").rglob("*"))
    with pytest.raises(ValueError, match=names):
        study(models, landscapes={"way": way})
    with pytest.raises(ValueError, match="`exports` names 'both'"):
        study(models, exports=["both"])
    assert sorted(Path("results").rglob("*")) == before


def test_a_replaced_candidate_repairs_nothing(done):
    swap()
    with pytest.raises(ChangedContent, match="on record"):
        study({**MODELS, "repaired": {"repair": "mean", "of": ["a", "b"]}})


@pytest.mark.parametrize("lost", ["", "model.ckpt"])
def test_an_export_that_was_lost_is_made_again(done, lost):
    study(exports=["mean"])
    place = Path("results/exported/mean")
    written = sorted(path.name for path in place.iterdir())
    assert "model.ckpt" in written
    (place / lost).unlink() if lost else shutil.rmtree(place)
    study(exports=["mean"])
    assert sorted(path.name for path in place.iterdir()) == written


def test_an_export_that_was_edited_is_noticed(done):
    """The study said nothing, and its record told of another model."""
    study(exports=["mean"])
    place = Path("results/exported/mean")
    (place / "README.md").write_text("# My model\n")
    (place / "notes.txt").write_text("mine")
    study(exports=["mean"])  # a card is there to be edited
    content = bytearray((place / "model.ckpt").read_bytes())
    content[-1] ^= 16
    (place / "model.ckpt").write_bytes(content)
    with pytest.raises(ChangedFolder, match="model.ckpt has the SHA-256"):
        study(exports=["mean"])
    assert (place / "model.ckpt").read_bytes() == content
    study()  # which does not say what it is
    shutil.rmtree(place)
    study(exports=["mean"])
    assert (place / "model.ckpt").read_bytes() != content


def test_an_export_of_an_earlier_version_is_taken_as_it_is(done):
    study(exports=["mean"])
    record = Path("results/exported/mean.json")
    told = json.loads(record.read_text())
    assert told["outcome"].pop("contents") and told.pop("check")
    record.write_text(json.dumps(told))
    study(exports=["mean"])
    assert "contents" not in json.loads(record.read_text())["outcome"]


def test_what_is_combined_is_done_when_its_models_are(done, capsys):
    """A combination has no file of its own: it was done from the start."""
    models = {
        **MODELS,
        "next": {"train": "b", "from": "a"},
        "made": {"combine": "ensemble", "of": ["a", "b"]},
        "later": {"combine": "ensemble", "of": ["a", "next"]},
        "oracle": {"oracle": "{domain}", "otherwise": "next"},
    }
    study(models, plan=True)
    table, _, said = capsys.readouterr().out.rpartition("\n\n")
    rows = {line.split()[0]: line for line in table.splitlines() if line}
    for name in ("a", "b", "mean", "made"):
        assert " done " in rows[name], name
    for name in ("next", "later", "oracle"):
        assert " to do " in rows[name], name
    # a combination takes no time to make, unknown or not
    assert said.startswith("3 of 8 models are left: about")
    assert "none is done yet" not in said
    trainings = {"expert": {"hparams": "train.yaml"}}
    asked = Study("results", models, trainings, domains=["a", "b"])
    assert planned_jobs(asked) == {
        "next@0": [],
        "made@0": [],
        "later@0": ["next@0"],
    }


def test_a_card_tells_the_results_as_they_are_now(done, caplog):
    """With another test set it kept the table that it had."""
    card = Path("results/exported/mean/README.md")
    study(exports=["mean"])
    assert "| b<br>" not in card.read_text()
    study(exports=["mean"], tests=["a", "b"])
    told = card.read_text()
    assert "| a<br>" in told and "| b<br>" in told
    times = {path: path.stat().st_mtime_ns for path in card.parent.iterdir()}
    study(exports=["mean"], tests=["a", "b"])
    assert times == {path: path.stat().st_mtime_ns for path in times}

    card.write_text(told + "\nUsed by us since May.\n")
    with caplog.at_level(logging.WARNING):
        study(exports=["mean"], tests=["a", "b"])
        assert "was edited" not in caplog.text
        study(exports=["mean"], tests=["b"])
    assert "mean/README.md was edited since it was written" in caplog.text
    assert card.read_text().endswith("Used by us since May.\n")


def test_what_build_gives_is_looked_at_before_anything_is_trained(
    made, tmp_path, monkeypatch
):
    """Selection sets, test sets, and what the Brain can do."""

    def other(*given):
        run = killed_stages.build(*given)
        run.valid_sets = {"dev": run.valid_sets["a"]}
        return run

    models = {
        **{name: {"train": name} for name in "ab"},
        "soup": {
            "merge": "average",
            "of": ["a", "b"],
            "search": GreedySearch(),
        },
    }
    shutil.copy(made / "train.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="'soup'.*`build` gives dev.*`select_on`"
    ):
        study(models, other)
    with pytest.raises(ValueError, match="`tests` of the study names c"):
        study(tests=["c"])
    models["soup"] = {"combine": "ensemble", "of": ["a", "b"]}
    monkeypatch.delattr(ASR, "words_of", raising=False)
    with pytest.raises(ValueError, match="Models can be combined where"):
        study(models)
    assert not list(Path("results").rglob("CKPT+*"))


def test_runs_of_one_name_are_told_apart_by_their_models(done):
    shutil.rmtree("results")

    def build(hparams_file, overrides, run_opts):
        return killed_stages.build(
            hparams_file, {**overrides, "run_name": "run"}, run_opts
        )

    models = {
        **{name: {"train": name} for name in "ab"},
        "soup": {
            "merge": "average",
            "of": {"runs": ["a", "b"]},
            "search": GreedySearch(),
        },
    }
    results = study(models, build)
    [row] = [each for each in results["rows"] if each["name"] == "soup"]
    [about] = row["about"].values()
    assert {each.partition("/")[0] for each in about["candidates"]} == {
        "a",
        "b",
    }
