"""Error rates of any weights, by a recipe's ``build``, from a shell."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from averaging_recipe import Recording, trained
from tiny_models import tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import merge
from speechbrain_merge.brain.domains import evaluate_set
from speechbrain_merge.cli import main
from speechbrain_merge.command.evaluating import import_build
from speechbrain_merge.weights import write_weights

RECIPE = """\
import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import MergeMixin, Run


class ASR(MergeMixin, TinyCTC):
    pass


def build(hparams_file, overrides, run_opts):
    with open(hparams_file, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, overrides)
    print("the recipe prints what it likes")
    brain = tiny_ctc_brain(hparams["output_folder"], brain_class=ASR)
    tests = {
        name: tiny_ctc_data(hparams["utterances"], seed=50, shift=shift)
        for name, shift in (("near", 0.0), ("far", 1.0))
    }
    return Run(brain, lambda: None, test_sets=tests)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    build(hparams_file, overrides, run_opts).fit()
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A recipe, its training, and the average of its checkpoints."""
    folder = tmp_path_factory.mktemp("recipe")
    brain = trained(folder, Recording)
    (folder / "train.py").write_text(RECIPE)
    (folder / "train.yaml").write_text("output_folder: .\nutterances: 8\n")
    merge(
        "average",
        brain.pool.candidates(),
        output=folder / "m.safetensors",
        progress=False,
    )
    return folder


@pytest.fixture
def recipe(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    return run_folder


COMMAND = ("evaluate", "train.py", "train.yaml", "--weights", "m.safetensors")


def test_the_rates_are_those_of_the_brain(recipe, capsys):
    assert main([*COMMAND, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["sets"]) == ["near", "far"]
    brain = tiny_ctc_brain(recipe, brain_class=Recording)
    brain.evaluated = []
    brain.use_weights(recipe / "m.safetensors")
    for name, shift in (("near", 0.0), ("far", 1.0)):
        scores = evaluate_set(brain, tiny_ctc_data(8, seed=50, shift=shift))
        counts = found["sets"][name]
        assert counts["errors"] == sum(score.errors for score in scores)
        assert counts["utterances"] == 8
        assert counts["wer"] == pytest.approx(
            100 * counts["errors"] / counts["words"]
        )
        assert counts["low"] <= counts["wer"] <= counts["high"]


def test_one_set_with_overrides(recipe, capsys):
    assert main([*COMMAND, "--set", "far", "--utterances", "3"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("far ")
    assert lines[1].split()[-1] == "3"
    # what a recipe prints is no result
    assert "the recipe prints" in printed.err


@pytest.mark.parametrize(
    "change, words",
    [
        (("def build(", "def prepare("), "has no function `build`"),
        (('if __name__ == "__main__":', "if True:"), "line 27: would read the"),
        (("def build(", "def build(("), "line 14: not Python"),
        (("ASR(MergeMixin, TinyCTC)", "ASR(TinyCTC)"), "without MergeMixin"),
        (("    return Run", "    return brain; Run"), "`build` gives a ASR"),
    ],
)
def test_recipes_that_cannot_be_used(
    recipe, tmp_path, capsys, monkeypatch, change, words
):
    (tmp_path / "train.py").write_text(RECIPE.replace(*change))
    command = list(COMMAND)
    command[1] = str(tmp_path / "train.py")
    assert main(command) == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("speechbrain-merge evaluate: ")
    assert words in last, last
    assert printed.out == ""


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("train.py", "gone.py", "gone.py is not there"),
        ("train.yaml", "gone.yaml", "gone.yaml is not there"),
        ("m.safetensors", "gone.safetensors", "gone.safetensors"),
        ("m.safetensors", "other.safetensors", "other.safetensors"),
    ],
)
def test_wrong_files(recipe, capsys, old, new, words):
    write_weights(Path("other.safetensors"), {"model.x": torch.ones(1)})
    command = [new if word == old else word for word in COMMAND]
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [one for one in lines if one.startswith("speechbrain-merge")]
    assert words in line and "--traceback" not in line


@pytest.mark.parametrize("there", [False, True])
def test_a_wrong_set_leaves_no_folder(recipe, capsys, there):
    """Nothing of the recipe's output; what was there before stays."""
    folder = Path("results", "deep")
    if there:
        folder.parent.mkdir()
    before = sorted(recipe.rglob("*"))
    more = ["--output_folder", str(folder)]
    assert main([*COMMAND, *more, "--set", "nowhere"]) == 2
    assert "train.py has: near, far." in capsys.readouterr().err
    assert sorted(recipe.rglob("*")) == before
    # which its `build` makes before it knows the sets
    build = import_build(Path("train.py"))
    build("train.yaml", {"output_folder": str(folder)}, {})
    assert folder.is_dir()
    shutil.rmtree("results")


@pytest.mark.parametrize("place", ["results/other", "results/deep"])
def test_a_wrong_set_deletes_nothing_of_others(recipe, tmp_path, capsys, place):
    """A training begins beside it, or in the same folder, before the fault."""
    checkpoint = f"{place}/save/CKPT+1/model.ckpt"
    at_once = (
        "    from pathlib import Path\n"
        f"    file = Path({checkpoint!r})\n"
        "    file.parent.mkdir(parents=True)\n"
        "    file.write_text('hours of work')\n"
        f"    Path({place!r}, 'empty').mkdir()\n"
        "    return Run"
    )
    (tmp_path / "train.py").write_text(
        RECIPE.replace("    return Run", at_once)
    )
    command = list(COMMAND)
    command[1] = str(tmp_path / "train.py")
    more = ["--output_folder", "results/deep", "--set", "nowhere"]
    assert main([*command, *more]) == 2
    assert "train.py has: near, far." in capsys.readouterr().err
    left = [path for path in recipe.rglob("results/**/*") if path.is_file()]
    assert left == [recipe / checkpoint]
    assert Path(place, "empty").is_dir()
    # its own are gone, where nothing is in them
    assert Path("results/deep").exists() == (place == "results/deep")
    shutil.rmtree("results")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--output_folder", "-1"], "YAML reads '-1' as int"),
        (["--output_folder", "1e400"], "as float"),
        (["--output_folder", "[a, b]"], "as seq"),
        (["--output_folder", "--"], "is not plain YAML"),
        (["--output_folder", "a\nb"], "is not plain YAML"),
        (["--", "3"], "a value without a key"),
    ],
)
def test_values_that_no_recipe_can_read(recipe, capsys, more, words):
    before = sorted(recipe.iterdir())
    assert main([*COMMAND, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("speechbrain-merge evaluate: ") and words in line
    assert "train.yaml" in line and "Write " in line
    assert "--traceback" not in line and sorted(recipe.iterdir()) == before


def test_wrong_options(recipe, capsys):
    assert main([*COMMAND, "--set", "nowhere"]) == 2
    assert "train.py has: near, far." in capsys.readouterr().err
    assert main([*COMMAND, "--no_such_key", "3"]) == 2
    assert "no_such_key" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND[:3]])
    assert stop.value.code == 2


def test_another_candidate_in_the_place_of_one_is_refused(
    recipe, tmp_path, capsys
):
    """Its error rate would be told as that of the one on record."""
    shutil.copytree(recipe / "pool", tmp_path / "pool")
    first, *_, last = sorted((tmp_path / "pool/run").glob("epoch*"))
    command = [*COMMAND[:3], "--weights", str(first)]
    assert main(command) == 0
    shutil.copyfile(last, first)
    capsys.readouterr()
    assert main(command) == 2
    assert "damaged or replaced" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["InputNormalization", "GlobalNorm"])
def test_features_without_statistics_are_refused(
    recipe, tmp_path, capsys, kind
):
    """A folder without the checkpoints of the training has none to load."""
    text = RECIPE.replace(
        "    tests = {",
        "    from speechbrain.processing.features import GlobalNorm\n"
        "    brain.modules['normalize'] = GlobalNorm()\n    tests = {",
    )
    if kind == "InputNormalization":
        text = RECIPE
    (tmp_path / "train.py").write_text(text)
    command = [COMMAND[0], str(tmp_path / "train.py"), *COMMAND[2:]]
    elsewhere = ["--output_folder", str(tmp_path / "elsewhere")]
    assert main([*command, *elsewhere]) == 2
    assert f"'normalize' ({kind}) has no statistics" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content",
    [
        ("CKPT.yaml", b"WER: 7"),
        ("brain.ckpt", bytes(100)),
        ("normalizer.ckpt", bytes(range(255, 0, -1))),
        ("counter.ckpt", b"seven"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    recipe, tmp_path, monkeypatch, capsys, name, content
):
    """Its error was that of whatever stumbled over the damage, or later."""
    shutil.copytree(recipe, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for folder in Path("save").glob("CKPT*"):
        (folder / name).write_bytes(content)
    capsys.readouterr()
    assert main(COMMAND) == 2
    (line,) = [
        each
        for each in capsys.readouterr().err.splitlines()
        if each.startswith("speechbrain-merge evaluate: ")
    ]
    assert name in line and "save/CKPT+" in line and "again" in line
    assert "--traceback" not in line
