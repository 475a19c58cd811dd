"""The checks against a checkout of SpeechBrain, on small trees."""

import csv
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "upstream/check_consistency.py"
COLUMNS = ["Task", "Script_file", "Hparam_file"]


@pytest.fixture(scope="module")
def kit():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def table(*yamls):
    lines = [f"ASR,train.py,{yaml}" for yaml in yamls]
    return "\n".join([",".join(COLUMNS), *lines]) + "\n"


@pytest.fixture
def trees(tmp_path):
    """A repository of ours and a checkout, both with a recipe for one corpus."""
    ours, checkout = tmp_path / "ours", tmp_path / "checkout"
    own = "recipes/Corpus/merging/hparams/own.yaml"
    write(
        ours,
        {
            own: "a: 1\n",
            "recipes/Corpus/merging/corpus_prepare.py": "# ours\n",
            "recipes/Other/train.py": "# ours\n",
            "recipes/ruff.toml": "# no recipe\n",
            "recipes/Corpus/merging/results/log.txt": "left over\n",
            ".gitignore": "results\n",
            "tests/recipes/Corpus.csv": table(own),
            "tests/recipes/Other.csv": table("recipes/Other/a.yaml"),
            "tests/recipes/test_x.py": "# no table\n",
        },
    )
    (ours / "recipes/Other/corpus_prepare.py").symlink_to(
        "../Corpus/merging/corpus_prepare.py"
    )
    subprocess.run(["git", "init", "-q", ours], check=True)
    theirs = "recipes/Corpus/training/hparams/theirs.yaml"
    write(
        checkout, {theirs: "b: 1\n", "tests/recipes/Corpus.csv": table(theirs)}
    )
    return ours, checkout


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_recipes_and_rows_are_added_and_nothing_is_replaced(kit, trees):
    ours, checkout = trees
    before = snapshot(checkout)
    added = {str(path) for path in kit.add_recipes(ours, checkout)}
    after = snapshot(checkout)
    assert added == {
        "recipes/Corpus/merging/corpus_prepare.py",
        "recipes/Corpus/merging/hparams/own.yaml",
        "recipes/Other/corpus_prepare.py",
        "recipes/Other/train.py",
    }
    assert (checkout / "recipes/Other/corpus_prepare.py").is_symlink()
    new = {"tests/recipes/Corpus.csv", "tests/recipes/Other.csv"}
    assert set(after) == set(before) | added | new
    theirs = "recipes/Corpus/training/hparams/theirs.yaml"
    assert after[theirs] == before[theirs]
    with open(checkout / "tests/recipes/Corpus.csv", newline="") as file:
        listed = [row["Hparam_file"] for row in csv.DictReader(file)]
    assert listed == [theirs, "recipes/Corpus/merging/hparams/own.yaml"]


@pytest.mark.parametrize(
    "name, text, told",
    [
        (
            "recipes/Corpus/merging/corpus_prepare.py",
            "# theirs\n",
            "recipes/Corpus/merging/corpus_prepare.py",
        ),
        (
            "tests/recipes/Other.csv",
            table("recipes/Other/a.yaml"),
            "Other.csv, row of recipes/Other/a.yaml",
        ),
        ("tests/recipes/Other.csv", "Task,Hparam_file\n", "Other.csv with the"),
    ],
)
def test_a_collision_is_named_and_nothing_is_written(
    kit, trees, name, text, told
):
    ours, checkout = trees
    write(checkout, {name: text})
    before = snapshot(checkout)
    with pytest.raises(kit.Collision, match=told):
        kit.add_recipes(ours, checkout)
    assert snapshot(checkout) == before


def test_what_the_small_hooks_find(kit, tmp_path):
    write(
        tmp_path,
        {
            "good.py": '"""A module."""\n',
            "empty.py": "",
            "blanks.yaml": "a: 1 \n",
            "no_end.py": "a = 1",
            "ends.py": "a = 1\n\n",
            "extra_requirements.txt": "torch\npot\n",
            "large.png": "x" * (1024 * 1024 + 1),
        },
    )
    (tmp_path / "windows.py").write_bytes(b"a = 1\r\n")
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.iterdir())
    assert kit.whitespace(tmp_path, files) == [
        "blanks.yaml has blanks at the end of a line",
        "ends.py does not end in one newline",
        "extra_requirements.txt is not sorted",
        "large.png has more than 1024 kB",
        "no_end.py does not end in one newline",
        "windows.py has carriage returns",
    ]


def test_linters_of_other_versions_are_told(kit, tmp_path):
    hooks = (
        "  - repo: https://github.com/astral-sh/ruff-pre-commit\n"
        "    rev: v0.0.1  # old\n"
        "  - repo: https://github.com/adrienverge/yamllint\n"
        "    rev: v1.35.1\n"
        "  - repo: https://github.com/codespell-project/codespell\n"
        "    rev: v2.3.0\n"
    )
    (tmp_path / ".pre-commit-config.yaml").write_text(hooks)
    [problem] = kit.check_tools(tmp_path)
    assert problem.startswith("ruff ") and problem.endswith("ask for 0.0.1")


DRAFTS = SCRIPT.parents[2] / "docs/upstream"


@pytest.mark.parametrize(
    "draft", sorted(DRAFTS.glob("[0-9]*")), ids=lambda path: path.name
)
def test_a_draft_has_a_patch_with_tests_and_a_description(draft):
    assert {path.name for path in draft.iterdir()} == {
        "patch.diff",
        "description.md",
    }
    patch = (draft / "patch.diff").read_text(encoding="utf-8")
    changed = re.findall(r"^\+\+\+ b/(\S+)$", patch, re.MULTILINE)
    assert any(name.startswith("tests/") for name in changed)
    assert re.search(r"^\+\s*def test_\w+", patch, re.MULTILINE)
    description = (draft / "description.md").read_text(encoding="utf-8")
    for part in ("# ", "## What does this PR do?", "Breaking changes"):
        assert part in description
    listed = (DRAFTS / "README.md").read_text(encoding="utf-8")
    assert f"({draft.name}/description.md)" in listed
