"""Studies of the engine give the numbers that recipes had before it.

``stored/KIND.json`` was written when every recipe had a study engine of its
own. The same material, models and settings must give the same error counts,
row by row, and every search must choose the same.

Convolutions round otherwise on other processors, and a Conformer that was
trained from scratch hears other words then: the engine of before and this one
do alike. So its counts may differ by as many errors as two processors do.
"""

import json
import subprocess
from pathlib import Path

import pytest
from study.kinds import KINDS, STORED
from warm_python import python

ROOT = Path(__file__).resolve().parents[2]
ROUNDED = {"conformer_aode": 2, "conformer_otf": 15}
"""Errors by which two processors differ at most, by kind."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_error_counts_are_those_of_before(kind, tmp_path):
    before = json.loads((STORED / f"{kind}.json").read_text())
    places = KINDS[kind].material(tmp_path / "material")
    places["results"] = str(tmp_path / "results")
    done = subprocess.run(
        [python(), *KINDS[kind].command(places)],
        cwd=ROOT / KINDS[kind].recipe,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "results/results.json").read_text())
    rows = {
        name: row
        for row in results["rows"]
        for name in (row["title"], row["name"])
    }
    found = {
        title: {
            f"{mode}/{name}" if len(results["modes"]) > 1 else name: {
                key: counts[key] for key in ("errors", "words")
            }
            for modes in row["sets"].values()
            for mode, sets in modes.items()
            for name, counts in sets.items()
        }
        for title, row in rows.items()
    }
    for name, counts in before["rows"].items():
        # what all came from, trained from scratch, was called the original
        name = name if name in found else name.replace("original", "generalist")
        if name in before.get("changed", {}):
            assert found[name].keys() == counts.keys()  # and the file says why
            continue
        assert found.get(name, {}).keys() == counts.keys(), name
        for where, count in counts.items():
            one = found[name][where]
            assert one["words"] == count["words"], (name, where)
            difference = abs(one["errors"] - count["errors"])
            assert difference <= ROUNDED.get(kind, 0), (name, where, count, one)
    for name, merge in before.get("merges", {}).items():
        about = next(
            row["about"]
            for row in (*results["rows"], *results["models"].values())
            if row["name"] in (name, name.removesuffix("-esc50"))
        )
        chosen = next(iter(about.values()))
        for key, value in merge.items():
            found = chosen[key]
            if key == "selected":
                found, value = map(_runs, (found, value))
            assert found == value, (name, key)


def _runs(members):
    """The trainings that the members of a merge are from."""
    return [member.split("/")[0] for member in members]
