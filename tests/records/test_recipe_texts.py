"""The text of a recipe, and the packages that it builds on.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import speechbrain as sb
from speechbrain_merge.brain.decisive import decisive_settings
from speechbrain_merge.records import packages
from speechbrain_merge.records.recipe_texts import texts_of

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
COMPUTED = (
    "import importlib\ndef f(n):\n    return importlib.import_module(n)\n"
)
# Of the recipe: its text, and the file that another version of it has
FILES = {
    "a module": ("import part", "part.py"),
    "a name of a module": ("from part import f", "part.py"),
    "a module within a function": ("def f():\n    import part", "part.py"),
    "a module under a condition": ("if f:\n    import part", "part.py"),
    "a module of a package": ("from folder import part", "folder/part.py"),
    "the package above it": ("import folder.part", "folder/__init__.py"),
    "all names of a module": ("from part import *", "part.py"),
    "a module of a module": ("import other", "part.py"),
    "a module on a path that is added": (
        "import sys\ndef f():\n    sys.path.insert(0, 'plugins')\n    import one",
        "plugins/one.py",
    ),
    "a package on a path that is added": (
        "import sys\ndef f():\n    sys.path.insert(0, 'plugins')\n"
        "    import deep",
        "folder/deep/__init__.py",
    ),
    "an extension": ("def f():\n    import fast", f"fast{SUFFIX}"),
    "a computed name": (COMPUTED, "plugin.py"),
    "a computed name in a folder": (COMPUTED, "plugins/one.py"),
    "a computed name in a package": (COMPUTED, "folder/deep/one.py"),
    "an extension of a computed name": (COMPUTED, f"fast{SUFFIX}"),
}
NONE = {
    "for types alone": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import part",
        "part.py",
    ),
    "not imported": ("import other", "third.py"),
    "evaluation of a model": ("def f(m):\n    m.eval()", "third.py"),
    "the copy in an experiment": (COMPUTED, "results/train.py"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a recipe is."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("folder/deep", "plugins", "results"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "folder/__init__.py").touch()
    (tmp_path / "folder/deep/__init__.py").touch()
    (tmp_path / "results/env.log").touch()
    (tmp_path / "other.py").write_text("import part\n")
    return tmp_path


@pytest.mark.parametrize("name", [*FILES, *NONE])
def test_files_that_a_text_reaches(folder, name):
    text, file = {**FILES, **NONE}[name]
    (folder / "train_texts.py").write_text(text + "\n")
    found = []
    for content in ("a = 1\n", "a = 1\n", "a = 2\n"):
        (folder / file).write_text(content)
        importlib.invalidate_caches()
        found.append(texts_of(["train_texts"]).digests)
    assert found[0] == found[1]
    assert (found[1] != found[2]) == (name in FILES)


def test_folders_that_cannot_be_read(folder, monkeypatch):
    """A folder of another user beside the script ended a training."""

    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    (folder / "train_texts.py").write_text(COMPUTED)
    importlib.invalidate_caches()
    monkeypatch.setattr(os, "scandir", refused)
    assert len(texts_of(["train_texts"]).digests) == 1


def test_packages_that_a_text_imports(folder):
    (folder / "train_texts.py").write_text(
        "import torch.nn, json\ndef f():\n    from transformers import x\n"
    )
    importlib.invalidate_caches()
    found = texts_of(["train_texts"]).packages
    assert {"torch", "json", "transformers"} <= found


@pytest.mark.parametrize("doc", [False, True])
def test_a_docstring_counts_where_the_text_reads_it(folder, doc):
    found = []
    for word in ("one", "two"):
        (folder / "train_texts.py").write_text(
            f"def f():\n    'Says {word}.'\n    return {'f.__doc__' if doc else 1}"
        )
        importlib.invalidate_caches()
        found.append(texts_of(["train_texts"]).digests)
    assert (found[0] != found[1]) == doc


C = """\
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast", "%s", -1};
PyMODINIT_FUNC PyInit_fast(void) { return PyModule_Create(&module); }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler")
def test_an_extension_that_was_built_anew(tmp_path):
    """It counts as it was loaded, also where it is replaced meanwhile."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        pytest.skip("no headers of Python")
    script = (
        "import sys, os, fast\n"
        "from speechbrain_merge.records.recipe_texts import texts_of\n"
        "print(texts_of(['fast']).digests)\n"
        f"os.rename('other', 'fast{SUFFIX}')\n"
        "print(texts_of(['fast']).digests)\n"
    )
    (tmp_path / "train.py").write_text(script)
    for word, name in (("one", f"fast{SUFFIX}"), ("two", "other")):
        (tmp_path / "fast.c").write_text(C % word)
        build = ["cc", "-shared", "-fPIC", f"-I{header.parent}", "fast.c"]
        subprocess.run([*build, "-o", name], cwd=tmp_path, check=True)
    one = run(tmp_path, "train.py")
    assert one[0] == one[1] != "[]"
    shutil.copy(tmp_path / f"fast{SUFFIX}", tmp_path / "other")
    assert run(tmp_path, "train.py")[0] != one[0]


SETTINGS = """\
import speechbrain as sb
from speechbrain_merge.brain.decisive import decisive_settings
print(decisive_settings(sb.Brain(run_opts={"device": "cpu"})))
"""


def run(folder, script):
    """What a script prints."""
    places = [str(folder), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_another_version_of_a_package_is_another_recipe(tmp_path, monkeypatch):
    """As after `pip install --upgrade`, of what the recipe imports or needs."""
    brain = sb.Brain(run_opts={"device": "cpu"})

    def settings_with(name):
        record = tmp_path / name / f"{name}-99.0.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Name: {name}\nVersion: 99.0\n")
        (record / "top_level.txt").write_text(name)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / name)
            forget_packages()
            found = decisive_settings(brain)
        forget_packages()
        return found

    before = decisive_settings(brain)
    # SpeechBrain requires the second
    assert settings_with("speechbrain") != before
    assert settings_with("sentencepiece") != before
    assert settings_with("of_nobody") == before == decisive_settings(brain)


def forget_packages():
    """As a new process begins."""
    for each in vars(packages).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()


def test_the_script_that_runs_counts(tmp_path):
    """Whatever class the Brain is of: the script may give it anything."""
    (tmp_path / "train.py").write_text(SETTINGS)
    before = run(tmp_path, "train.py")
    (tmp_path / "train.py").write_text(SETTINGS + "# the end\n")
    assert run(tmp_path, "train.py") == before
    (tmp_path / "train.py").write_text(SETTINGS + "print()\n")
    assert run(tmp_path, "train.py")[0] != before[0]


def test_a_speechbrain_that_is_edited_in_place(tmp_path):
    """As by `pip install -e`: it keeps its version."""
    (tmp_path / "train.py").write_text(SETTINGS)
    shutil.copytree(
        Path(sb.__file__).parent,
        tmp_path / "speechbrain",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    before = run(tmp_path, "train.py")
    with open(tmp_path / "speechbrain/decoders/ctc.py", "a") as file:
        file.write("\nBLANK = 1\n")
    assert run(tmp_path, "train.py") != before
