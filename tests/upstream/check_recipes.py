"""Checks the diffs of docs/ on SpeechBrain's own recipes.

    python tests/upstream/check_recipes.py CHECKOUT [NAME ...]

with the path of a SpeechBrain checkout, and perhaps the names of a few of the
recipes in `upstream_recipes.py`. Each diff is applied to a copy of the recipe,
which then runs as it is: its own script, YAML, hooks and data preparation, with
tiny models and on miniature data. Compared are, tensor by tensor, the weights
with which each test batch is really evaluated and the merged file. Needs no
network.

Run by hand: the recipes are no part of this repository.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

import torch  # noqa: E402
from miniature import Miniature, build  # noqa: E402
from upstream_recipes import EPOCHS, RECIPES, Recipe  # noqa: E402

from speechbrain_merge.pool import read_pool  # noqa: E402
from speechbrain_merge.weights import open_weights  # noqa: E402

COLUMNS = {
    "recipe": "recipe",
    "lines": "lines + / −",
    "override": "overrides `on_evaluate_start`",
    "merged": "candidates merged",
    "differed": "tensors the hook had replaced",
    "equal": "tensors as merged, each test batch",
    "batches": "test batches",
    "checkpoints": "checkpoints after testing",
    "outcome": "outcome",
}


def arguments(recipe: Recipe, mini: Miniature, known: str, output: Path):
    """Overrides as arguments, of those keys that the recipe's YAML has."""
    places = {
        "output": output,
        "data": mini.data,
        "models": mini.models,
        "pieces": mini.pieces,
        "labels": mini.letters + 1,  # the blank
        "train": mini.tables["train-clean-100"],
        "dev": mini.tables["dev-clean"],
        "test_clean": mini.tables["test-clean"],
        "test_other": mini.tables["test-other"],
    }
    found = []
    for key, value in recipe.overrides.items():
        for name, place in places.items():
            value = str(value).replace(f"{{{name}}}", str(place))
        if re.search(rf"^{key}:", known, re.MULTILINE):
            found += [f"--{key}", value]
    return found


def copied(checkout: Path, recipe: Recipe, work: Path) -> Path:
    """A copy of the recipe with its diff applied."""
    folder = work / "tree" / "recipes" / recipe.folder
    # links of a recipe point to files of its data set's folder
    shutil.copytree(checkout / "recipes" / recipe.folder, folder)
    subprocess.run(
        ["git", "apply", str(ROOT / recipe.diff)],
        cwd=work / "tree",
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(work)},
        check=True,
    )
    hparams = folder / "hparams" / recipe.hparams
    text = hparams.read_text(encoding="utf-8")
    for old, new in recipe.edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    hparams.write_text(text, encoding="utf-8")
    return folder


def environment() -> dict:
    """The environment of a recipe: this package, and no network."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE.parent)]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def changed_lines(diff: str) -> tuple:
    """How many lines a diff adds and removes."""
    text = (ROOT / diff).read_text(encoding="utf-8")
    return tuple(
        len(re.findall(rf"^[{sign}](?![{sign}])", text, re.MULTILINE))
        for sign in "+-"
    )


def run(checkout: Path, name: str, mini: Miniature, work: Path) -> dict:
    """Runs a recipe and compares; a row of the table."""
    recipe, output = RECIPES[name], work / "results"
    work.mkdir()
    folder = copied(checkout, recipe, work)
    added, removed = changed_lines(recipe.diff)
    known = (folder / "hparams" / recipe.hparams).read_text(encoding="utf-8")
    start = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, HERE / "recorder.py", work / "record.pt"),
            *(recipe.script, f"hparams/{recipe.hparams}"),
            *arguments(recipe, mini, known, output),
            *("--device=cpu", "--noprogressbar"),
        ],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    (work / "log.txt").write_text(log, encoding="utf-8")
    script = (folder / recipe.script).read_text(encoding="utf-8")
    row = {
        "recipe": f"{recipe.folder}/{recipe.script} `{recipe.hparams}`",
        "lines": f"{added} / {removed}",
        "override": "yes" if "def on_evaluate_start" in script else "no",
    }
    if done.returncode != 0:
        last = log.strip().splitlines()[-1]
        return {**row, "outcome": f"failed: {last}"}
    row.update(compared(output, work / "record.pt", log))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if added > 12 or removed > 2:
        row["outcome"] = "failed: too many lines"
    return row


def compared(output: Path, record: Path, log: str) -> dict:
    """What was evaluated beside what was merged."""
    stage = output / "merge" / "average"
    result = json.loads((stage / "result.json").read_text())["result"]
    records = torch.load(record)
    equal, problems, counts = [], [], []
    with open_weights(stage / "merged.safetensors") as merged:
        for each in records:
            same = [
                name
                for name in merged
                if torch.equal(merged[name], each["state"][name])
            ]
            equal.append(f"{len(same)} of {len(merged)}")
            if len(same) != len(merged):
                problems.append("other weights evaluated")
            if not each["steady"] or not each["in_use"]:
                problems.append("weights changed between batches")
    differed = re.findall(r"\((.*) differed\)", log)
    for names in differed:
        more = re.search(r" and (\d+) more$", names)
        counts.append(3 + int(more[1]) if more else len(names.split(", ")))
    checkpoints = sorted((output / "save").glob("CKPT*"))
    made_up = [
        each
        for each in checkpoints
        if re.search(
            r"^(ACC: 1\.1|WER: -0\.1)", (each / "CKPT.yaml").read_text(), re.M
        )
    ]
    if made_up:
        problems.append("a checkpoint of the test stage was saved")
    candidates = read_pool(output / "pool")
    if len(candidates) != EPOCHS:
        problems.append(f"{len(candidates)} candidates in the pool")
    said = (output / "train_log.txt").read_text().count("evaluated: merge")
    if said != len(records):
        problems.append("train_log.txt does not say what was evaluated")
    return {
        "merged": f"{len(result['selected'])} of {len(candidates)}",
        "differed": ", ".join(map(str, counts)) or "none",
        "equal": ", ".join(equal),
        "batches": ", ".join(str(each["batches"]) for each in records),
        "checkpoints": f"{len(checkpoints)}, all of the training",
        "outcome": f"failed: {'; '.join(problems)}" if problems else "passed",
    }


def table(rows: list, columns: dict = COLUMNS) -> str:
    """The rows as Markdown."""
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[row.get(key, "") for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main():
    """Checks the recipes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of SpeechBrain")
    parser.add_argument("names", nargs="*", choices=[[], *RECIPES])
    parser.add_argument(
        "--speech", type=Path, default=ROOT.parent / "shared" / "speech"
    )
    parser.add_argument("--keep", type=Path, help="folder to leave it all in")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    try:
        mini = build(work, options.speech)
        rows = [
            run(options.checkout.resolve(), name, mini, work / name)
            for name in options.names or RECIPES
        ]
    finally:
        if options.keep is None:
            shutil.rmtree(work)
    print(table(rows))
    sys.exit(any(row["outcome"] != "passed" for row in rows))


if __name__ == "__main__":
    main()
