"""The hash of a recipe's code: what changes it, and what does not."""

import os
import subprocess
import sys

import pytest

RECIPE = """\
import re

LETTERS = ("a", "b")
PATTERN = re.compile("a+")


def helper(text, *, least=1):
    return [word for word in text.split() if word in {"one", "two", "three"}]


class Brain:
    def words(self, text):
        # a comment
        return helper(text), LETTERS, PATTERN.sub("", text), __name__, __file__

    def fit(self):
        return 1


from speechbrain_merge.records.own_code import own_code

if __name__ == "__main__":
    print(own_code([Brain], ["fit"]))
"""
CHANGES = {
    "a comment": ("# a comment", "# another\n        "),
    "training": ("return 1", "return 2"),
    "a method": ("helper(text),", "helper(text + text),"),
    "a function": ('"three"', '"four"'),
    "a default": ("least=1", "least=2"),
    "a constant": ('("a", "b")', '("a", "c")'),
    "a pattern": ('"a+"', '"b+"'),
}


def hash_of(folder, text, seed):
    """As a new process computes it, with an order of sets of its own."""
    folder.mkdir()
    (folder / "train.py").write_text(text)
    done = subprocess.run(
        [sys.executable, folder / "train.py"],
        env={
            **os.environ,
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The hash of the recipe as it is."""
    return hash_of(tmp_path_factory.mktemp("before") / "a", RECIPE, 1)


def test_processes_and_folders_make_no_difference(before, tmp_path):
    assert hash_of(tmp_path / "moved", RECIPE, 2) == before != ""


@pytest.mark.parametrize("change", CHANGES)
def test_what_counts(before, tmp_path, change):
    after = hash_of(tmp_path / "b", RECIPE.replace(*CHANGES[change]), 3)
    assert (after == before) == (change in ("a comment", "training"))
