"""The hash of a recipe's code: what changes it, and what does not."""

import importlib
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
    assert (after == before) == (change == "a comment")


COUNTING = """
seen = 0
BEAM = int("8")


class Recogniser:
    width = 4
    visits = 0

    def decode(self):
        global seen
        seen += 1
        type(self).visits += 1
        return BEAM * self.width


def counted(limit):
    calls, found = [], 0

    def call():
        nonlocal found
        found += 1
        calls.append(found)
        return limit

    return call
"""


def test_a_counter_is_no_setting(tmp_path, monkeypatch):
    """A search that was stopped found other code, and scored all again."""
    (tmp_path / "counting_recipe.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    from speechbrain_merge.records.own_code import own_code

    recipe = importlib.import_module("counting_recipe")
    try:
        before = own_code([recipe.Recogniser])
        recipe.Recogniser().decode()
        assert (recipe.seen, recipe.Recogniser.visits) == (1, 1)
        assert own_code([recipe.Recogniser]) == before
        recipe.Recogniser.width = 5
        assert own_code([recipe.Recogniser]) != before
        recipe.Recogniser.width, recipe.BEAM = 4, 9
        assert own_code([recipe.Recogniser]) != before
        call = recipe.counted(3)
        before = own_code([call])
        assert call() == 3 and own_code([call]) == before
        assert own_code([recipe.counted(4)]) != before
    finally:
        sys.modules.pop("counting_recipe")


SCRIPT = """\
import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.records.fingerprint_parts import OwnCode


def helper(hparams):
    return hparams["tokenizer"]


BRAINS
if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(hparams_file) as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        hparams["output_folder"], hparams_file, overrides
    )
    tokenizer = hparams["tokenizer"]
    for number in range(NUMBER):
        brain = globals()[f"Brain{number}"]
        print("hash", fingerprint(OwnCode((brain,), ())))
"""
BRAIN = """\
class Brain{number}:
    def words(self, text):
        return {expression}


"""
READ = {
    "tokenizer(text)": False,
    "helper(hparams)": False,
    "'tokenizer' in hparams": False,
    "tokenizer(text, hparams)": True,
    "tokenizer(text, **hparams)": True,
    "tokenizer(text + hparams['seed'])": True,
    "hparams.get(text)": True,
}


@pytest.mark.parametrize("brains", [READ, {"text + overrides": True}])
def test_the_command_line_counts_by_what_the_yaml_makes_of_it(tmp_path, brains):
    """But where a Brain reads it, or takes all hyperparameters."""
    (tmp_path / "train.yaml").write_text(
        "output_folder: !PLACEHOLDER\nseed: 1\ntokenizer: !name:str\n"
    )
    classes = "".join(
        BRAIN.format(number=number, expression=expression)
        for number, expression in enumerate(brains)
    )
    text = SCRIPT.replace("BRAINS\n", classes)
    text = text.replace("NUMBER", str(len(brains)))
    (tmp_path / "train.py").write_text(text)
    found = []
    for number in (1, 2):
        line = [
            sys.executable,
            "train.py",
            "train.yaml",
            f"--seed={number}",
            f"--output_folder={tmp_path / 'results' / str(number)}",
        ]
        done = subprocess.run(
            line,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
        found.append([each for each in lines if each.startswith("hash")])
    changed = [one != other for one, other in zip(*found)]
    assert changed == list(brains.values())
