"""``comparison.html``: models before they are merged, as one page.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.records.folders import refuse_other_kind, whole_folder
from speechbrain_merge.report.comparison_plots import (
    LAYERS,
    PAIRS,
    plot_comparison,
)
from speechbrain_merge.report.page import data_address, render_page

NUMBERS = "comparison.json"
"""The file with all that the page shows."""

_NOTES = {
    "cosine": "1: the same direction; 0: at right angles, as task vectors of "
    "different tasks nearly are; below 0: against each other.",
    "sign_conflicts": "The share of the entries that both models moved, and in "
    "opposite directions. Chance is 0.5.",
    "overlap": "How far the directions with 90 % of the energy are the same, in "
    "the mean over the matrices: 0 none, 1 all.",
    "barrier_risk": "‖a − b‖² / 8‖base‖². Times the largest curvature of the "
    "loss between two models it bounds the barrier between them. It ranks "
    "pairs, and is no loss.",
}
_TERMS = (
    (
        "Cosine",
        "Of two task vectors, which are what training added to the base "
        "(Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023).",
    ),
    (
        "Sign conflicts",
        "What TIES elects between (Yadav et al., TIES-Merging, NeurIPS 2023).",
    ),
    (
        "Overlap of subspaces",
        "‖UᵀV‖² / min(k, l) for the k and l strongest singular directions, the "
        "mean of left and right (Hu et al., LoRA, ICLR 2022, equation 4).",
    ),
    (
        "Barrier risk",
        "The bound on the error of linear interpolation, without the curvature, "
        "which weights do not tell. A barrier is how far the loss on the way "
        "between two models rises above that of its ends (Frankle et al., "
        "Linear Mode Connectivity, ICML 2020). To measure it, models have to "
        "be evaluated.",
    ),
    (
        "Effective rank",
        "The exponential of the entropy of the singular values (Roy and "
        "Vetterli, The Effective Rank, EUSIPCO 2007).",
    ),
)


def write_comparison(found: Mapping, folder, title: str = "Comparison") -> Path:
    """Writes the page, its pictures, and its numbers as JSON.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    folder : str or Path
        The folder to write. One that is there is replaced if nothing else is
        in it than an earlier comparison.
    title : str
        Of the page.

    Returns
    -------
    path : Path
        ``comparison.html``.

    Raises
    ------
    FileExistsError
        Where something is in the folder that no comparison wrote.
    """
    folder = Path(folder)
    refuse_other_kind(folder, NUMBERS, "a comparison")
    with whole_folder(folder) as building:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (building / NUMBERS).write_text(text + "\n", "utf-8")
        pictures = plot_comparison(found, building)
        data = comparison_data(found, pictures)
        page = render_page(title, data, "comparison")
        (building / "comparison.html").write_text(page, "utf-8")
    return folder / "comparison.html"


def comparison_data(found: Mapping, pictures=()) -> dict:
    """What the page shows, as plain data.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    pictures : list of Path
        PNG files.

    Returns
    -------
    data : dict
    """
    based = found["base"]
    what = "Task vectors" if based else "Weights, without a base,"
    notes = dict(_NOTES)
    if not based:
        notes["cosine"] = "Of the weights themselves: give a base for more."
        notes["barrier_risk"] = notes["barrier_risk"].replace(
            "8‖base‖²", "4(‖a‖² + ‖b‖²)"
        )
    if found["chance"] is not None:
        notes["overlap"] += f" Random directions: {found['chance']:.3f}."
    titles = {**PAIRS, **LAYERS}
    if not based:
        titles["cosine"] = "cosine of the weights"
        titles["norms"] = "norm of the weights"
    layers = {
        name: {
            "title": titles[name],
            "note": "",
            "values": [model[name] for model in found["models"]],
        }
        for name in LAYERS
        if any(v is not None for m in found["models"] for v in m[name])
    }
    return {
        "summary": f"{what} of {len(found['models'])} models, compared in "
        f"{len(found['parts'])} parts.",
        "labels": [model["label"] for model in found["models"]],
        "parts": found["parts"],
        "pairs": found["pairs"],
        "measures": {
            name: {
                "title": titles[name],
                "note": notes[name],
                "risk": name in ("sign_conflicts", "barrier_risk"),
                "scale": _largest(found["pairs"][name])
                if name == "barrier_risk"
                else 1.0,
            }
            for name in found["pairs"]
        },
        "layers": layers,
        "warnings": found["warnings"],
        "pictures": [
            {
                "title": titles.get(path.stem, path.stem),
                "source": data_address(path),
            }
            for path in pictures
        ],
        "terms": _TERMS,
    }


def _largest(parts) -> float:
    """The largest number of a measure over the whole model."""
    known = [v for row in parts.get("all", ()) for v in row if v is not None]
    return max(known, default=1.0) or 1.0
