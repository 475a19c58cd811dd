"""Checks the drafts of docs/upstream on a checkout of SpeechBrain.

    python tests/upstream/check_drafts.py CHECKOUT [NAME ...]

with the path of a SpeechBrain checkout, and perhaps the names of a few drafts.
Each draft is applied by itself to a copy of the checkout. First its tests
alone: they must fail. Then all of it: its tests must pass, with all others of
the same files, with the examples in the docstrings of the modules that it
changes, and with ruff as the checkout sets it. Needs no network.

Run by hand: the checkout is no part of this repository.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
DRAFTS = ROOT / "docs" / "upstream"
COLLECTION = "collection"  # of a file that imports what is not there
SECTIONS = ("# ", "## What does this PR do?", "Before submitting")


def apply(checkout: Path, diff: Path, *options: str) -> None:
    """Applies a diff, or a part of it, or says why it does not fit."""
    done = subprocess.run(
        ["git", "apply", *options, str(diff)],
        cwd=checkout,
        # the copy is no part of the repository around it
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"does not apply: {done.stderr.strip()}")


def changed_files(diff: Path) -> list:
    """The Python files that a diff changes or adds."""
    text = diff.read_text(encoding="utf-8")
    return re.findall(r"^\+\+\+ b/(\S+\.py)$", text, re.MULTILINE)


def added_tests(diff: Path) -> set:
    """The names of the tests that a diff adds."""
    text = diff.read_text(encoding="utf-8")
    return set(re.findall(r"^\+\s*def (test_\w+)", text, re.MULTILINE))


def failing_tests(checkout: Path, files: list) -> set:
    """Runs the tests of some files; the names of those that fail."""
    report = checkout / "report.xml"
    report.unlink(missing_ok=True)
    done = python(
        checkout, "-m", "pytest", "-q", f"--junitxml={report}", *files
    )
    if not report.is_file():
        raise RuntimeError(f"tests do not run: {done.stdout[-500:]}")
    failed, number = set(), 0
    for case in ElementTree.parse(report).iter("testcase"):
        number += 1
        error = case.find("error")
        if error is not None and error.get("message") == "collection failure":
            failed.add(COLLECTION)
        elif error is not None or case.find("failure") is not None:
            failed.add(case.get("name").partition("[")[0])
    if done.returncode and not failed:
        raise RuntimeError(f"tests do not run: {done.stdout[-500:]}")
    if not number:
        raise RuntimeError(f"there are no tests in {', '.join(files)}")
    return failed


def python(checkout: Path, *arguments) -> subprocess.CompletedProcess:
    """Runs Python with the SpeechBrain of the checkout."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
    )


def check(draft: Path, checkout: Path) -> tuple:
    """Checks one draft; the checkout is as before afterwards.

    Arguments
    ---------
    draft : Path
        Its folder.
    checkout : Path
        A copy of SpeechBrain.

    Returns
    -------
    outcome : str
        "passed", or what is wrong.
    tests : int
        How many tests it adds.
    """
    diff, description = draft / "patch.diff", draft / "description.md"
    text = description.read_text(encoding="utf-8")
    missing = [each for each in SECTIONS if each not in text]
    if missing:
        return f"failed: {description.name} has no '{missing[0]}'", 0
    files, new = changed_files(diff), added_tests(diff)
    tests = [name for name in files if name.startswith("tests/")]
    try:
        apply(checkout, diff, "--check")
        apply(checkout, diff, "--include=tests/*")
        before = failing_tests(checkout, tests)
        apply(checkout, diff, "--exclude=tests/*")
    except RuntimeError as error:
        return f"failed: {error}", len(new)
    try:
        after = failing_tests(checkout, tests)
        problems = []
        if not before & (new | {COLLECTION}):
            problems.append("its tests pass without it")
        if after & new or after - before:
            names = sorted((after & new) | (after - before))
            problems.append(f"tests fail: {', '.join(names)}")
        modules = [name for name in files if name.startswith("speechbrain/")]
        if modules:
            done = python(
                checkout, "-m", "pytest", "-q", "--doctest-modules", *modules
            )
            if done.returncode:
                problems.append(f"examples fail: {done.stdout[-300:]}")
        ruff = Path(sys.executable).with_name("ruff")
        for command in (["check", "-q"], ["format", "--check", "-q"]):
            done = subprocess.run([ruff, *command, *files], cwd=checkout)
            if done.returncode:
                problems.append(f"ruff {command[0]}")
    except RuntimeError as error:
        problems = [str(error)]
    finally:
        apply(checkout, diff, "-R")
    return f"failed: {'; '.join(problems)}" if problems else "passed", len(new)


def main():
    """Checks the drafts that are asked for."""
    drafts = {path.parent.name: path.parent for path in DRAFTS.glob("*/*.diff")}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of SpeechBrain")
    parser.add_argument("names", nargs="*", choices=[[], *sorted(drafts)])
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp()).resolve()
    rows = [("draft", "tests it adds", "outcome"), ("---",) * 3]
    try:
        copy = work / "checkout"
        shutil.copytree(
            options.checkout.resolve(),
            copy,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git"),
        )
        for name in options.names or sorted(drafts):
            start = time.perf_counter()
            outcome, tests = check(drafts[name], copy)
            rows.append((name, str(tests), outcome))
            seconds = time.perf_counter() - start
            print(f"{name}: {outcome}, {seconds:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(work)
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
    sys.exit(any(row[2] != "passed" for row in rows[2:]))


if __name__ == "__main__":
    main()
