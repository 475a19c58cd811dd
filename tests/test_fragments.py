"""The YAML fragments of the package, included as a recipe does."""

import inspect
import json
import re
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

import speechbrain_merge
from speechbrain_merge import MergeStage
from speechbrain_merge.methods import MergeMethod, available
from speechbrain_merge.methods.registry import find

FRAGMENTS = Path(speechbrain_merge.__file__).parent / "hparams"
POLICIES = ("mast", "mact", "smact", "aode", "continual")
METHODS = sorted(
    path.stem for path in FRAGMENTS.glob("*.yaml") if path.stem not in POLICIES
)


# Not those that tests register
REGISTERED = [
    name
    for name in available()
    if find(name).__module__.startswith("speechbrain_merge.")
]


def include(folder, name, *lines):
    """What a recipe gets that includes a fragment, changed by some lines."""
    recipe = folder / "train.yaml"
    recipe.write_text(
        "\n".join([f"part: !include:{FRAGMENTS / name}.yaml", *lines]) + "\n"
    )
    with open(recipe, encoding="utf-8") as stream:
        return load_hyperpyyaml(stream)["part"]


def test_every_method_has_one():
    assert METHODS == REGISTERED


def test_the_readme_says_what_each_is_for():
    text = (FRAGMENTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.yaml\) \|", text, re.MULTILINE)
    assert all(title == name for title, name in rows)
    assert sorted(name for _, name in rows) == sorted([*METHODS, *POLICIES])


def test_the_readme_says_which_need_a_base():
    text = (FRAGMENTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\((\w+)\.yaml\) \| (.*?) \|", text, re.MULTILINE)
    said = {name for name, base in rows if base.startswith("yes")}
    assert said == {name for name in METHODS if find(name).needs_base}


@pytest.mark.parametrize("name", METHODS)
def test_a_fragment_says_what_the_method_would_do_anyway(tmp_path, name):
    method = include(tmp_path, name)
    assert isinstance(method, MergeMethod) and type(method) is find(name)
    signature = inspect.signature(find(name).__init__).parameters
    text = (FRAGMENTS / f"{name}.yaml").read_text()
    parameters = list(signature.values())[1:]
    for parameter in parameters:
        written = f"\n{parameter.name}:" in text
        assert written, f"{name}: {parameter.name} is missing"
    if all(p.default is not inspect.Parameter.empty for p in parameters):
        if name != "restricted":  # which does nothing unless told where
            usual = find(name)().configuration()
            assert method.configuration() == json.loads(json.dumps(usual))


def test_a_recipe_changes_a_parameter(tmp_path):
    method = include(tmp_path, "ties", "    density: !ref <kept>", "kept: 0.7")
    assert method.density == 0.7 and method.scale == 1.0


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_stages_of_a_pool(tmp_path, name):
    with pytest.raises(ValueError, match="candidates.*PLACEHOLDER"):
        include(tmp_path, name)
    stage = include(
        tmp_path, name, "    candidates: [!ref <folder>]", "folder: save/pool"
    )
    assert isinstance(stage, MergeStage)
    assert stage.candidates == ["save/pool"]
    assert stage.select.per_run == ("all" if name == "mast" else "best")
    assert (stage.search is not None) == (name == "smact")
