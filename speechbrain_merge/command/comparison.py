r"""How two experts differ, part by part.

Which layers did fine-tuning change, and do two experts pull the same way?
With a base, the task vectors :math:`\tau = \theta - \theta_0` are compared;
without, the weights themselves. For each part of the model:

- the cosine of the two,
- their relative distance :math:`2 \|a - b\| / (\|a\| + \|b\|)`: 0 where they
  are equal, 2 where they are opposite,
- with a base, sign conflicts: the share of entries that both experts moved,
  and in opposite directions (what TIES elects between).

Sums are in float64, a tensor at a time. More than two models are compared pair by
pair, and drawn, by ``speechbrain_merge.report.comparison``.

Example
-------
>>> base = {"encoder.layers.0.fc1.weight": torch.zeros(4)}
>>> one = {"encoder.layers.0.fc1.weight": torch.tensor([1.0, 1.0, 0.0, 2.0])}
>>> two = {"encoder.layers.0.fc1.weight": torch.tensor([1.0, -1.0, 3.0, 0.0])}
>>> for row in compare(one, two, base):
...     print(row.part, row.entries, round(row.cosine, 2), row.conflicts)
encoder.feed_forward 4 0.0 0.5
all 4 0.0 0.5

Authors
 * The speechbrain_merge authors 2026
"""

import math
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Optional

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.command.tables import number_cell, print_table
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.errors import printable
from speechbrain_merge.report.comparison import compare_models
from speechbrain_merge.report.comparison_page import write_comparison
from speechbrain_merge.weights import check_compatible, fold, part, renamed

logger = get_logger(__name__)


@dataclass(frozen=True)
class PartDifference:
    """How two experts differ in one part.

    Arguments
    ---------
    part : str
        Stack and role, e.g. "encoder.attention"; "all" for the whole model.
    entries : int
        Number of weights.
    cosine : float, optional
        Between -1 and 1; None where one of the two is zero, or not finite.
    distance : float, optional
        Between 0 and 2; None where both are zero, or one is not finite.
    conflicts : float, optional
        Between 0 and 1; None without a base, or where no entry was moved by
        both.
    """

    part: str
    entries: int
    cosine: Optional[float]
    distance: Optional[float]
    conflicts: Optional[float]


def compare(first, second, base=None, layers: bool = False) -> list:
    """Compares two models, or two experts of a base.

    Arguments
    ---------
    first, second : object
        Anything that ``open_weights`` opens; weight norm is folded, and names
        are matched as far as only their prefixes differ.
    base : object, optional
        The model that both were fine-tuned from.
    layers : bool
        A row for each layer, instead of one for all layers of a stack.

    Returns
    -------
    rows : list of PartDifference
        In the order of the first model; the last one is the whole model.

    Raises
    ------
    ValueError
        When they are not models of the same kind.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(fold(open_on_record(first)))]
        for source in (second,) if base is None else (second, base):
            other = stack.enter_context(fold(open_on_record(source)))
            models.append(renamed(other, models[0]))
        check_compatible(models, finite=False, same_dtype=False)
        sums = {}
        for name in models[0].names():
            floats = models[0].dtype(name).is_floating_point
            if not floats or name in models[0].tied:
                continue
            vectors = [model[name].double().flatten() for model in models]
            for model, vector in zip(models, vectors):
                if not torch.isfinite(vector).all():
                    logger.warning(
                        f"{model.label}: '{printable(name)}' is not finite "
                        "(NaN or infinite). Its part of the model has neither "
                        "a cosine nor a distance, and nor has the whole."
                    )
            if base is not None:
                anchor = vectors.pop()
                vectors = [vector - anchor for vector in vectors]
            counted = _sums(*vectors)
            for row in (_row(name, layers), "all"):
                sums[row] = sums.get(row, 0) + counted
    sums["all"] = sums.pop("all", torch.zeros(6, dtype=torch.float64))
    return [
        _difference(row, found.tolist(), base is not None)
        for row, found in sums.items()
    ]


def _row(name, layers):
    """The row that a tensor counts in."""
    found = part(name)
    layer = (
        f"layers.{found.layer}" if layers and found.layer is not None else ""
    )
    return ".".join(word for word in (found.stack, layer, found.role) if word)


def _sums(a, b):
    """Sums over the tensors of a part."""
    moved = (a != 0) & (b != 0)
    conflicts = moved & (a.sign() != b.sign())
    return torch.stack(
        [
            torch.tensor(float(a.numel()), dtype=torch.float64),
            a @ b,
            a @ a,
            b @ b,
            moved.sum().double(),
            conflicts.sum().double(),
        ]
    )


def _difference(row, found, based):
    """The row of a table from its sums."""
    entries, product, square_a, square_b, moved, conflicts = found
    norm_a, norm_b = square_a**0.5, square_b**0.5
    cosine = distance = None
    if not math.isfinite(product + square_a + square_b):
        return PartDifference(row, int(entries), None, None, None)
    if norm_a and norm_b:
        cosine = max(-1.0, min(1.0, product / (norm_a * norm_b)))
    if norm_a or norm_b:
        # rounding may make the square of a zero slightly negative
        square = max(0.0, square_a + square_b - 2 * product)
        distance = 2 * square**0.5 / (norm_a + norm_b)
    share = conflicts / moved if based and moved else None
    return PartDifference(row, int(entries), cosine, distance, share)


def run(options) -> dict:
    """How models differ; draws it, where there is a folder for it."""
    if options.output is None and not options.more:
        return _two(options)
    given = [options.first, options.second, *options.more]
    models = [each for source in given for each in read_pool(source)]
    labels = [model.name for model in models]
    if len(set(labels)) < len(labels):
        labels = [str(model.path) for model in models]
    found = compare_models(
        models, options.base, labels, progress=sys.stderr.isatty()
    )
    page = None
    if options.output is not None:
        page = str(write_comparison(found, options.output, "Before a merge"))
    return {**found, "labels": labels, "page": page}


def show(found):
    """Prints how models differ."""
    if "pairs" not in found:
        _show_two(found)
        return
    for warning in found["warnings"]:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    labels = found["labels"]
    for name, parts in found["pairs"].items():
        if "all" in parts:
            form = "{:.2e}" if name == "barrier_risk" else "{:.4f}"
            rows = [
                [
                    f"{number} {label}",
                    *(number_cell(value, form) for value in row),
                ]
                for number, (label, row) in enumerate(
                    zip(labels, parts["all"]), start=1
                )
            ]
            numbers = [str(number + 1) for number in range(len(labels))]
            print_table([name.replace("_", " "), *numbers], rows)
            print()
    if found["page"] is not None:
        print(found["page"])


def _two(options) -> dict:
    """How two models differ, part by part."""
    rows = compare(options.first, options.second, options.base, options.layers)
    return {
        "of": "task vectors" if options.base else "weights",
        "parts": [asdict(row) for row in rows],
    }


def _show_two(found):
    """Prints how two models differ."""
    print_table(
        [
            f"part ({found['of']})",
            "weights",
            "cosine",
            "distance",
            "sign conflicts",
        ],
        [
            [
                row["part"],
                row["entries"],
                number_cell(row["cosine"], "{:.4f}"),
                number_cell(row["distance"], "{:.4f}"),
                number_cell(row["conflicts"], "{:.1%}"),
            ]
            for row in found["parts"]
        ],
    )
