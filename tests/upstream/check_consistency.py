"""Runs SpeechBrain's own consistency tests and linters on our recipes.

    python tests/upstream/check_consistency.py CHECKOUT

with the path of a SpeechBrain checkout. Our recipes and the rows of
tests/recipes/*.csv are put into a copy of it. There, its own tests of recipes
run (tests/consistency), its check of docstrings, and the hooks of its
.pre-commit-config.yaml on our recipes and on the package, with its settings.
Nothing of SpeechBrain may be overwritten: a file or a row of a table that it
has already is a failure which names it. Needs no network; the checks that do
are listed with the reason why they are left out.

Run by hand: the checkout is no part of this repository.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = "tests/recipes"
PACKAGE = "speechbrain_merge"
LEFT_OUT = {
    "tests/utils/check_url.py": "requests every URL: needs network",
    "tests/utils/check_HF_repo.py": "downloads and runs the model cards of "
    "HF_repo: needs network; none of our rows has one",
    "tests/utils/recipe_tests.py": "runs every recipe on a GPU before a "
    "release; ours run in `make test`",
}


class Collision(Exception):
    """Something of ours has the place of something of SpeechBrain's."""


def own_files(folder: str, root: Path = ROOT) -> list:
    """The files of a folder that belong to this repository.

    Arguments
    ---------
    folder : str
        Relative to the root.
    root : Path
        A git work tree.

    Returns
    -------
    list of Path
        Relative to the root, sorted; links are not followed.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run(
        [*command, "--exclude-standard", folder],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = {Path(each) for each in listed.stdout.split("\0") if each}
    return sorted(path for path in paths if os.path.lexists(root / path))


def recipe_files(root: Path = ROOT) -> list:
    """The files of our recipes; what lies in recipes/ itself is not one."""
    return [path for path in own_files("recipes", root) if len(path.parts) > 2]


def add_recipes(root: Path, checkout: Path) -> list:
    """Puts our recipes and their rows into a checkout.

    Arguments
    ---------
    root : Path
        This repository.
    checkout : Path
        Of SpeechBrain; a copy that may be written to.

    Returns
    -------
    list of Path
        What was added, relative to the checkout.

    Raises
    ------
    Collision
        Where something is there already. Nothing is written then.
    """
    files = recipe_files(root)
    taken = [str(path) for path in files if os.path.lexists(checkout / path)]
    tables = {}
    for table in sorted((root / TABLES).glob("*.csv")):
        known, columns = read_table(checkout / TABLES / table.name)
        rows, own_columns = read_table(table)
        if columns and columns != own_columns:
            taken.append(f"{TABLES}/{table.name} with the columns {columns}")
        listed = {row["Hparam_file"] for row in known}
        taken += [
            f"{TABLES}/{table.name}, row of {row['Hparam_file']}"
            for row in rows
            if row["Hparam_file"] in listed
        ]
        tables[table.name] = own_columns, known + rows
    if taken:
        raise Collision(
            f"{checkout} has these already, and nothing there may be replaced; "
            "give ours other names: " + ", ".join(taken)
        )
    for path in files:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, checkout / path, follow_symlinks=False)
    for name, (columns, rows) in tables.items():
        with open(
            checkout / TABLES / name, "w", newline="", encoding="utf-8"
        ) as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return files


def read_table(path: Path) -> tuple:
    """Rows and columns of a table of recipes; none where there is no file."""
    if not path.is_file():
        return [], []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        return list(reader), list(reader.fieldnames)


class Report:
    """Collects what each check found."""

    def __init__(self):
        self.rows = []

    def add(self, check: str, problems: list, scope: str):
        """One check: passed where it found no problems."""
        outcome = f"failed: {len(problems)}" if problems else "passed"
        self.rows.append((check, scope, outcome))
        for problem in problems:
            print(f"{check}: {problem}", file=sys.stderr)

    def run(self, check: str, command: list, folder: Path, scope: str):
        """A command: passed where its exit status is 0."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            # SpeechBrain is imported from the checkout
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
        )
        lines = (done.stdout + done.stderr).splitlines()
        found = [each.strip() for each in lines if "ERROR:" in each]
        problems = (found or lines) if done.returncode else []
        self.add(check, problems, scope)

    def table(self) -> str:
        """All checks as Markdown."""
        rows = [("check", "of", "outcome"), ("---",) * 3, *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)

    @property
    def failed(self) -> bool:
        """Whether anything was found."""
        return any(not row[2].startswith(("pass", "left")) for row in self.rows)


def check_tools(checkout: Path) -> list:
    """Whether the linters here have the versions that the hooks ask for."""
    hooks = (checkout / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    problems = []
    for tool, repository in {
        "ruff": "ruff-pre-commit",
        "yamllint": "yamllint",
        "codespell": "codespell",
    }.items():
        wanted = re.search(rf"{repository}\n\s*rev: v?([\w.]+)", hooks)
        done = subprocess.run(
            [program(tool), "--version"], capture_output=True, text=True
        )
        found = re.search(r"\d+(\.\d+)+", done.stdout)
        if not wanted or not found or wanted[1] != found[0]:
            problems.append(
                f"{tool} {found and found[0]} is installed, and the hooks ask "
                f"for {wanted and wanted[1]}"
            )
    return problems


def program(name: str) -> str:
    """A program of the environment that runs this."""
    return str(Path(sys.executable).with_name(name))


def lint(report: Report, folder: Path, files: list, scope: str):
    """The hooks of SpeechBrain's .pre-commit-config.yaml on some files."""
    python = [path for path in files if path.suffix == ".py"]
    yaml = [path for path in files if path.suffix in (".yaml", ".yml")]
    command = [program("ruff"), "check", "-q", "--output-format=concise"]
    report.run("ruff", [*command, *python], folder, scope)
    report.run(
        "ruff-format",
        [program("ruff"), "format", "--check", *python],
        folder,
        scope,
    )
    report.run("yamllint", [program("yamllint"), *yaml], folder, scope)
    report.run(
        "codespell",
        [
            program("codespell"),
            "--ignore-words=.dict-speechbrain.txt",
            "--skip=*.ipynb",
            "--ignore-regex='base64,.*?=='",
            *files,
        ],
        folder,
        scope,
    )
    report.add("whitespace, ends, sizes", whitespace(folder, files), scope)


def whitespace(folder: Path, files: list) -> list:
    """Trailing blanks, last lines, line endings, order and size of files."""
    problems = []
    for path in files:
        if (folder / path).is_symlink():
            continue
        content = (folder / path).read_bytes()
        if len(content) > 1024 * 1024:
            problems.append(f"{path} has more than 1024 kB")
        if b"\0" in content:
            continue
        if re.search(rb"[ \t]+\r?$", content, re.MULTILINE):
            problems.append(f"{path} has blanks at the end of a line")
        if path.suffix == ".py" and b"\r" in content:
            problems.append(f"{path} has carriage returns")
        if path.suffix == ".py" and not re.fullmatch(
            rb"|(.*[^\n])?\n", content, re.DOTALL
        ):
            problems.append(f"{path} does not end in one newline")
        if path.name.endswith("requirements.txt"):
            lines = content.decode().splitlines()
            if lines != sorted(lines, key=str.lower):
                problems.append(f"{path} is not sorted")
    return problems


def check(checkout: Path, work: Path) -> Report:
    """All checks, on a copy of the checkout.

    Arguments
    ---------
    checkout : Path
        Of SpeechBrain; it is only read.
    work : Path
        An empty folder.

    Returns
    -------
    Report
    """
    report, copy = Report(), work / "checkout"
    shutil.copytree(
        checkout, copy, symlinks=True, ignore=shutil.ignore_patterns(".git")
    )
    try:
        files = add_recipes(ROOT, copy)
    except Collision as error:
        report.add("nothing is overwritten", [str(error)], "recipes")
        return report
    report.add("nothing is overwritten", [], f"{len(files)} files of recipes")
    for test in sorted(copy.glob("tests/consistency/test_*.py")):
        place = test.relative_to(copy)
        if "def test_" not in test.read_text(encoding="utf-8"):
            continue  # a library
        command = [sys.executable, "-m", "pytest", "-q", "-s", place]
        report.run(str(place), command, copy, "SpeechBrain and our recipes")
    report.add("versions of the linters", check_tools(copy), "")
    lint(report, copy, files, "recipes")

    # The package by itself: for recipes it is a third party's
    package = work / "package"
    package.mkdir()
    for name in "pyproject.toml", ".yamllint.yaml", ".dict-speechbrain.txt":
        shutil.copy(copy / name, package)
    files = own_files(PACKAGE)
    for path in files:
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, package / path)
    lint(report, package, files, "package")
    for name, reason in LEFT_OUT.items():
        report.rows.append((name, "", f"left out: {reason}"))
    return report


def main():
    """Checks this repository against a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of SpeechBrain")
    parser.add_argument("--keep", type=Path, help="folder to leave it all in")
    options = parser.parse_args()
    if not (options.checkout / "tests" / "consistency").is_dir():
        parser.error(
            f"{options.checkout} is no checkout of SpeechBrain: it has no "
            "tests/consistency (git clone -b develop "
            "https://github.com/speechbrain/speechbrain)"
        )
    work = options.keep or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    try:
        report = check(options.checkout.resolve(), work.resolve())
    finally:
        if options.keep is None:
            shutil.rmtree(work)
    print(report.table())
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
