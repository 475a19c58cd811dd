"""Patterns stand for what `glob` finds, and for no more than so many names."""

import glob
import os

import pytest

from speechbrain_merge.command.plan import Plan
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.patterns import Patterns


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two runs, hidden things, and links that lead nowhere or to themselves."""
    monkeypatch.chdir(tmp_path)
    for run in ("run-1", "run-2"):
        for step in ("a", "b"):
            (tmp_path / run / "save" / step).mkdir(parents=True)
            (tmp_path / run / "save" / step / "m.pt").touch()
    (tmp_path / ".hidden" / "save").mkdir(parents=True)
    (tmp_path / "run-1" / ".m.pt").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("else")
    (tmp_path / "[x]").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        ".*",
        "./*",
        "*/",
        "run-?/save/*/m.pt",
        "run-[!2]/s*/a",
        "run-1//save/*",
        "*/.m*",
        "**",
        "**/",
        "**/m.pt",
        "run-*/**/a/*",
        "./**/save",
        "[[]x]*",
        "none*/x",
        "../*/run-1/save/b/*",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pattern_stands_for_what_glob_finds(tree, pattern, absolute):
    if absolute:
        pattern = f"{tree}/{pattern}"
    found = Patterns().matching(pattern)
    expected = glob.glob(pattern, recursive=True)
    root = {f"{tree}/"} if absolute and pattern.endswith("**") else set()
    assert {*map(os.path.normpath, found)} == {
        *map(os.path.normpath, {*expected} - root)
    }
    assert found == sorted(found) and (found or "none" in pattern)


def test_all_patterns_of_a_plan_together_are_bounded(tree, monkeypatch):
    with pytest.raises(
        ValueError, match=r"'/\*/\*/\*\*/\*' stands for too much"
    ):
        Patterns(100).matching("/*/*/**/*")
    monkeypatch.setattr(Patterns.__init__, "__defaults__", (20,))
    experts = ["run-1/save/*/m.pt", "run-*/save/*/m.pt", "**/m.pt"]
    for each in experts[:2]:
        assert Patterns().matching(each)
    stage = {"method": "average", "output": "o.safetensors"}
    Plan({"one": {**stage, "experts": experts[:2]}})
    with pytest.raises(ValueError, match="stage 'one': the pattern '..?/m.pt"):
        Plan({"one": {**stage, "experts": experts}})
    with pytest.raises(ValueError, match="Name the folder more closely"):
        read_pool("**/*.pt")
