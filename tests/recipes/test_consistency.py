"""Recipes are complete, as SpeechBrain's own consistency tests ask."""

import csv
import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest
from listed_recipes import COLUMNS, ROOT, TABLES, checks_of, rows

from speechbrain.utils.run_opts import RunOptions


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_table_has_the_columns_of_speechbrain_s(table):
    with open(table, newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == COLUMNS
    for row in rows(table):
        assert None not in row and None not in row.values(), row
        assert row["Dataset"] == table.stem


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_every_yaml_of_a_corpus_is_in_its_table(table):
    # a YAML of its folder, in whichever subfolder: upstream's test looks there
    listed = {row["Hparam_file"] for row in rows(table)}
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "recipes" / table.stem).rglob("hparams/**/*.yaml")
        if "results" not in path.parts
    }
    assert found - listed == set(), f"add rows to {table.name}"
    assert listed - found == set(), f"{table.name} lists what is not there"


def test_every_corpus_has_a_table():
    folders = {
        path.name
        for path in (ROOT / "recipes").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    assert folders == {table.stem for table in TABLES}


def test_every_listed_file_exists():
    for row in rows():
        for column in ("Script_file", "Data_prep_file", "Readme_file"):
            assert (ROOT / row[column]).is_file(), row[column]
        assert row["test_debug_flags"]
        files, values = checks_of(row["test_debug_checks"])
        assert files or values


def test_links_are_to_data_preparation_alone():
    links = [p for p in (ROOT / "recipes").rglob("*") if p.is_symlink()]
    for link in links:
        assert link.name.endswith("_prepare.py"), link
        target = link.resolve()
        assert target.is_file() and target.name == link.name, link
        assert (ROOT / "recipes") in target.parents, link


def test_every_variable_of_a_yaml_is_used():
    """By the script itself, or by a reference further down in the YAML.

    As SpeechBrain's tests/utils/check_yaml.py has it: what only another module
    of the recipe reads does not count, nor does a reference further up.
    """
    for row in rows():
        yaml = (ROOT / row["Hparam_file"]).read_text()
        script = (ROOT / row["Script_file"]).read_text()
        for key in re.finditer(
            r"^([A-Za-z]\w*):(.*)", yaml, flags=re.MULTILINE
        ):
            name, value = key.groups()
            uses = (
                f'["{name}"]',
                f'.get("{name}"',
                f"hparams.{name}",
                f"modules.{name}",
            )
            # options that the Brain reads itself
            own = name in RunOptions().as_dict()
            referred = f"<{name}>" in yaml[key.end() :]
            made = "!apply" in value  # for what it does
            assert (
                own or referred or made or any(use in script for use in uses)
            ), f"{row['Hparam_file']}: nothing uses {name}"


def test_readmes_name_every_yaml():
    for row in rows():
        readme = (ROOT / row["Readme_file"]).read_text()
        assert Path(row["Hparam_file"]).name in readme, row["Hparam_file"]


MODULES = sorted(
    path
    for folder in (ROOT / "recipes").rglob("hparams")
    for path in folder.parent.glob("*.py")
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_examples_in_recipes_run(path, monkeypatch):
    for name, known in list(sys.modules.items()):
        # another recipe's module may have the same name
        file = vars(known).get("__file__") or ""
        if file.startswith(str(ROOT / "recipes")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(path.parent))
    module = importlib.import_module(path.stem)
    failed, _ = doctest.testmod(module)
    assert failed == 0
    assert module.__doc__ and "Authors" in module.__doc__
