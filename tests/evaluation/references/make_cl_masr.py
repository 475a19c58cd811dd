"""Stores what CL-MASR's own analysis of logs says of fixed rates.

    python tests/evaluation/references/make_cl_masr.py BENCHMARKS

with the path of a checkout of github.com/speechbrain/benchmarks (stored with
3560542). Draws rates, writes them as training logs of the benchmark have them,
runs its `benchmarks/CL_MASR/analyze_logs.py` on the folder as its README says,
with its default references (Whisper large-v2), and writes the rates and its
answers to cl_masr.json beside this file.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BASE = ["en", "zh-CN", "de", "es", "ru", "fr", "pt", "ja", "tr", "pl"]
NEW = ["rw", "eo", "kab", "lg", "mhr", "ckb", "ab", "kmr", "fy-NL", "ia"]
FILES = {
    "AWER": "average_wer.csv",
    "BWT": "backward_transfer.csv",
    "IM": "intransigence_measure.csv",
    "FWT": "forward_transfer.csv",
}


def draw(seed: int, base: list, new: list) -> list:
    """Rates of two decimals after 0, 1, … new languages."""
    random.seed(seed)
    return [
        [round(random.uniform(0, 150), 2) for _ in base + new[:k]]
        for k in range(len(new) + 1)
    ]


def write_log(path: Path, rates: list):
    """A log as SpeechBrain's FileTrainLogger writes it."""
    lines = [
        f"Epoch loaded: 2 - test loss: 1.00, test CER: 2.00, test WER: {rate}"
        for row in rates
        for rate in row
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def answers(folder: Path) -> dict:
    """Metric to run to the numbers that were written, as text."""
    found = {}
    for metric, file in FILES.items():
        with open(folder / file, newline="", encoding="utf-8") as rows:
            found[metric] = {
                # mean +- deviation over runs, of which there is one
                row[0]: [cell.partition(" +- ")[0] for cell in row[1:]]
                for row in list(csv.reader(rows))[1:]
            }
    return found


def main(benchmarks: Path):
    """Writes cl_masr.json."""
    script = benchmarks / "benchmarks/CL_MASR/analyze_logs.py"
    cases = {
        "whole": (BASE, NEW),
        "other": (BASE, NEW[::-1]),
        "short": (BASE[:1], NEW[:3]),
    }
    runs = {
        name: {"base": base, "new": new, "rates": draw(seed, base, new)}
        for seed, (name, (base, new)) in enumerate(cases.items())
    }
    for name, run in runs.items():
        # the script expects as many new languages in all logs of a folder
        with tempfile.TemporaryDirectory() as folder:
            log = f"{name}_base={','.join(run['base'])}_new="
            log += f"{','.join(run['new'])}.txt"
            write_log(Path(folder) / log, run["rates"])
            subprocess.run(
                [sys.executable, script, folder],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            found = answers(Path(folder))
            run["answers"] = {key: found[key][name] for key in found}
    text = script.read_text(encoding="utf-8")
    references = {}
    for key, option in {"joint": "--im_refs", "single": "--fwt_refs"}.items():
        after = text[text.index(f'"{option}"') :]
        literal = after[after.index("default='") + len("default='") :]
        references[key] = json.loads(literal[: literal.index("'")])
    stored = {"references": references, "runs": runs}
    (HERE / "cl_masr.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
