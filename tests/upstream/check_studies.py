"""Checks the studies of docs/ in SpeechBrain's own recipe.

    python tests/upstream/check_studies.py CHECKOUT

with the path of a SpeechBrain checkout. The files of
`docs/librispeech_ctc_study` are put beside LibriSpeech's CTC recipe, with its
diff applied, and both studies run as they are, on miniature data and with a
tiny model. Then the weights of each merge are compared, tensor by tensor, with
the mean of its members, which is computed here. Each study runs twice: the
second time it must find everything done. Needs no network.

Run by hand: the recipe is no part of this repository.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from check_recipes import HERE, ROOT, arguments, copied, environment, table
from miniature import Miniature, build
from upstream_recipes import EPOCHS, RECIPES

from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import open_weights

STUDY = ROOT / "docs" / "librispeech_ctc_study"
SCRIPT = "study_with_wav2vec.py"
RECIPE = RECIPES["ctc_wav2vec2"]
# Models so small all have the same error rate: they are merged all the same
STUDIES = {"aode": [], "smact": ["--accept", "le"]}
COLUMNS = {
    "study": "study",
    "rows": "WER % on test-clean, test-other",
    "members": "merged",
    "equal": "tensors that are the mean of the members'",
    "again": "second run",
    "outcome": "outcome",
}


def settings(mini: Miniature, folder: Path, output: Path) -> list:
    """What makes the recipe small, as an argument of a study."""
    known = (folder / "hparams" / RECIPE.hparams).read_text(encoding="utf-8")
    pairs = iter(arguments(RECIPE, mini, known, output))
    small = {
        key[2:]: yaml.safe_load(str(value)) for key, value in zip(*[pairs] * 2)
    }
    for key in ("output_folder", "train_splits"):
        del small[key]  # what a study sets itself
    # all of LibriSpeech's characters, and the blank
    small["output_neurons"] = 29
    return ["--settings", json.dumps(small), "--data_folder", mini.data]


def run(name: str, mini: Miniature, folder: Path, output: Path) -> dict:
    """Runs a study twice and compares; a row of the table."""
    row, seconds, results = {"study": f"`{name}.yaml`"}, [], []
    output.mkdir()
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(
            [
                *(sys.executable, HERE / "recorder.py", output / "record.pt"),
                *(SCRIPT, f"{name}.yaml"),
                *("--output_folder", output, *STUDIES[name]),
                *settings(mini, folder, output),
                *("--device=cpu", "--noprogressbar"),
            ],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        log = done.stdout + done.stderr
        (output / f"log-{len(seconds)}.txt").write_text(log, encoding="utf-8")
        if done.returncode != 0:
            last = log.strip().splitlines()[-1]
            return {**row, "outcome": f"failed: {last}"}
        seconds.append(time.perf_counter() - start)
        results.append((output / "results.json").read_bytes())
        if len(seconds) == 1:
            records = torch.load(output / "record.pt")
            (output / "record.pt").unlink()
    print(f"{name}: {seconds[0]:.0f} s, {seconds[1]:.0f} s", file=sys.stderr)
    row.update(compared(name, output, mini, records))
    row["again"] = "nothing done, the same bytes"
    problems = row.pop("problems")
    if results[0] != results[1]:
        row["again"] = "other results"
        problems.append("results.json changed")
    if (output / "record.pt").exists():
        problems.append("something was tested again")
    row["outcome"] = f"failed: {'; '.join(problems)}" if problems else "passed"
    return row


def compared(name: str, output: Path, mini: Miniature, records: list) -> dict:
    """The rows of a study, and its merge beside the mean of the members."""
    results = json.loads((output / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    problems, rates = [], []
    words = {
        test: sum(len(text.split()) for text in transcripts(mini, test))
        for test in results["tests"]
    }
    for row in rows.values():
        counts = row["sets"]["1986"]["usual"]
        if {test: counts[test]["words"] for test in counts} != words:
            problems.append(f"{row['name']} was not tested on every word")
        found = ", ".join(f"{counts[test]['wer']:.1f}" for test in words)
        rates.append(f"{row['name']} {found}")
    seed = output / "seed-1986"
    about = rows[name]["about"]["1986"]
    if name == "aode":
        expected = ["train-clean-100", "train-other-500"]
        members = [best_of(seed / "models" / expert) for expert in expected]
        if about["selected"] != expected:
            problems.append(f"merged were {about['selected']}")
    else:
        expected = ["best"]
        pool = {each.name: each for each in candidates_of(seed / "models/best")}
        members = [pool[each] for each in about["selected"]]
        if len(pool) != EPOCHS or len(about["candidates"]) != EPOCHS:
            problems.append(f"{len(about['candidates'])} candidates")
        trials = [each["candidate"] for each in about["trials"]]
        if not trials or set(trials) - set(pool):
            problems.append(f"tried were {trials}")
    if list(rows) != ["original", *expected, name]:
        problems.append(f"rows are {', '.join(rows)}")
    merged = seed / "merge" / name / "merged.safetensors"
    if len(records) != len(rows) * len(words):
        problems.append(f"{len(records)} sets were tested")
    # models are tested in the order of the YAML: the merge is the last
    with open_weights(merged) as weights:
        for record in records[-len(words) :]:
            if not all(
                weights[each].equal(record["state"][each]) for each in weights
            ):
                problems.append("other weights were tested")
    equal, total, moved = mean_of(members, merged)
    if equal != total:
        problems.append("the merge is not the mean of its members")
    if not moved:
        problems.append("the members are all the same")
    return {
        "rows": "; ".join(rates),
        "members": f"{len(members)}: {', '.join(about['selected'])}",
        "equal": f"{equal} of {total}",
        "problems": problems,
    }


def transcripts(mini: Miniature, split: str) -> list:
    """The transcripts of a split, as LibriSpeech's files have them."""
    lines = (mini.data / split / "1/2/1-2.trans.txt").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines]


def candidates_of(model: Path) -> list:
    """The candidates of a training of a study."""
    [manifest] = model.glob("pool/**/manifest.jsonl")
    return read_pool(manifest.parent)


def best_of(model: Path):
    """The candidate with the lowest word error rate."""
    [best] = select(candidates_of(model), per_run="best", metric="WER")
    return best


def mean_of(members: list, path: Path) -> tuple:
    """How many tensors of a file are the mean of the members' tensors.

    Returns
    -------
    equal : int
    total : int
    moved : int
        How many tensors are not the same in all members.
    """
    states, merged = [plain(each.path) for each in members], plain(path)
    if any(set(state) != set(merged) for state in states):
        return 0, len(merged), 0
    equal = moved = 0
    for name, found in merged.items():
        tensors = [state[name] for state in states]
        mean = sum(tensors) / len(tensors)
        error = (found - mean).abs().max() / mean.abs().max()
        # float32; a layer with weight norm sums up its 65536 squares in it
        equal += bool(
            error <= (2**-16 if name.endswith(".original") else 2**-22)
        )
        moved += not all(each.equal(tensors[0]) for each in tensors)
    return equal, len(merged), moved


def plain(path: Path) -> dict:
    """All tensors of a file; weight norm as the layer itself computes it."""
    with open_weights(path) as weights:
        state = {each: weights[each].clone() for each in weights}
    for name in [each for each in state if each.endswith(".original0")]:
        stem, size = name.removesuffix("0"), state.pop(name)
        direction = state.pop(f"{stem}1")
        state[stem] = torch._weight_norm(direction, size, 2)
    return {name: tensor.double() for name, tensor in state.items()}


def main():
    """Runs both studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of SpeechBrain")
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
        folder = copied(options.checkout.resolve(), RECIPE, work)
        for file in STUDY.iterdir():
            if file.suffix in (".py", ".yaml"):
                shutil.copy(file, folder)
        rows = [run(name, mini, folder, work / name) for name in STUDIES]
    finally:
        if options.keep is None:
            shutil.rmtree(work)
    print(table(rows, COLUMNS))
    sys.exit(any(row["outcome"] != "passed" for row in rows))


if __name__ == "__main__":
    main()
