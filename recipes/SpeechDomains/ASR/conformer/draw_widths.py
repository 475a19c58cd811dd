#!/usr/bin/env python3
"""Draws the barriers between the parents of `power.yaml` against their width.

For each width the study runs into a folder of its own:

    for width in 64 128 256; do
        python train.py hparams/power.yaml --data_folder DATA --width $width \\
            --output_folder results/power-$width
    done
    python draw_widths.py results/power-64 results/power-128 results/power-256

writes `barriers_loss.png` and `barriers_wer.png` into the last folder.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
from pathlib import Path

from speechbrain_merge.report import plot_barriers
from speechbrain_merge.study.results import read_results


def widths(folders):
    """Title to the barriers between the parents in each study.

    Arguments
    ---------
    folders : list of Path
        Of studies, each of one width.

    Returns
    -------
    dict
    """
    found = {}
    for folder in folders:
        barriers = read_results(folder / "results.json").get("barriers", {})
        if "parents" not in barriers:
            raise ValueError(
                f"{folder / 'results.json'} has no barriers of 'parents'; "
                "expected a study by hparams/power.yaml that has made A and B "
                "and all that is aligned to A."
            )
        found[folder.name] = barriers["parents"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    barriers = widths(arguments.folders)
    for measure in ("loss", "wer"):
        path = arguments.folders[-1] / f"barriers_{measure}.png"
        print(f"Written: {plot_barriers(barriers, path, measure)}")
