r"""What the weights of several models tell before they are merged.

Models that pull the same way, or that do not touch each other, merge well;
models that pull against each other do not. With the base :math:`\theta_0`, the
task vectors :math:`\tau = \theta - \theta_0` are compared, pair by pair and part
by part:

- **cosine**: :math:`\langle\tau_a,\tau_b\rangle / \|\tau_a\|\|\tau_b\|`.
  Task vectors of different tasks are nearly orthogonal [1].
- **sign conflicts**: of the entries that both models moved, the share that they
  moved in opposite directions [2].
- **subspace overlap**: :math:`\|U_a^\top U_b\|_F^2 / \min(k_a, k_b)`, for each
  matrix of a layer, with the fewest singular directions that hold 90 % of the
  energy; the mean of left and right [3]. Random subspaces have
  :math:`\max(k_a, k_b)/n`, which is given as chance.
- **barrier risk**: :math:`\|\theta_a-\theta_b\|^2 / 8\|\theta_0\|^2`. A barrier
  is how far the loss between two models rises above the straight line between
  their losses [4]. Where the curvature of the loss along the way is at most β, it
  is at most :math:`\beta\|\theta_a-\theta_b\|^2/8`, the error of linear
  interpolation. What β is, weights do not tell: the number ranks pairs of models
  of one base by their risk, and is no loss.

And for each model and layer:

- **norm**: :math:`\|\tau\| / \|\theta_0\|`.
- **effective rank**: :math:`\exp(-\sum_i p_i \ln p_i)` with
  :math:`p_i = \sigma_i/\sum\sigma` [5], in the mean of the layer's matrices, and
  how much of the energy the strongest directions hold.

Without a base, cosines and distances are those of the weights themselves, and
the rest is left out. Sums are in float64. Tensors are read one at a time and in
pieces, so that what is in memory does not depend on the size of the models, but
for one matrix of a layer and its strongest directions for each model.
Directions that are no stronger than the rounding of stored weights do not count.

Example
-------
>>> base = {"encoder.layers.0.fc1.weight": torch.zeros(4, 4)}
>>> one, two = torch.zeros(4, 4), torch.zeros(4, 4)
>>> one[0, 0] = two[1, 1] = 1.0
>>> models = [{"encoder.layers.0.fc1.weight": each} for each in (one, two)]
>>> found = compare_models(models, base, ["one", "two"], progress=False)
>>> found["pairs"]["cosine"]["all"]
[[1.0, 0.0], [0.0, 1.0]]
>>> found["models"][0]["effective_rank"]
[1.0]

References
----------
[1] G. Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023,
arXiv:2212.04089.
[2] P. Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv:2306.01708.
[3] E. J. Hu et al., "LoRA", ICLR 2022, arXiv:2106.09685, equation 4.
[4] J. Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
Hypothesis", ICML 2020, arXiv:1912.05671.
[5] O. Roy, M. Vetterli, "The Effective Rank", EUSIPCO 2007.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Optional

import torch
from tqdm import tqdm

from speechbrain_merge.methods.factorization import decompose
from speechbrain_merge.methods.rounding import noise_of, stored_type
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.report.comparison_warnings import (
    source_warnings,
    value_warnings,
)
from speechbrain_merge.weights import Weights, fold, part, renamed
from speechbrain_merge.weights.mapped import release

ENERGY = 0.9
"""Of a task vector, in the directions whose overlap is looked at."""

GRID = 41
"""Points of the curves of energy over rank."""

_PIECE = 1 << 20
# A decomposition of a larger matrix takes minutes
_WIDEST = 4096


def compare_models(
    models: Sequence,
    base: Any = None,
    labels: Optional[Sequence[str]] = None,
    progress: bool = True,
) -> dict:
    """Compares models that might be merged.

    Arguments
    ---------
    models : list
        Two or more of what ``open_weights`` opens: files, folders, candidates
        of a pool, state dicts. Names are matched as far as only their
        prefixes differ.
    base : object, optional
        What they were fine-tuned from.
    labels : list of str, optional
        What they are called; by default their numbers.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    found : dict
        Plain data. ``parts``: names of the layers and of what is outside of
        them. ``pairs``: measure to part to a row of numbers for each model,
        where the part "all" is the whole model. ``models``: for each its
        ``label``, ``norm`` (over the base's, of the whole model), and
        ``norms``, ``effective_rank`` and ``rank_share`` by part, ``energy`` at
        ``GRID`` shares of the rank. ``chance``: the overlap of random
        subspaces. ``warnings``: sentences. Numbers that do not exist are None.

    Raises
    ------
    ValueError
        Where they are fewer than two, or have no tensor in common.
    """
    if len(models) < 2:
        raise ValueError(f"expected two models or more, got {len(models)}.")
    labels = [str(label) for label in labels or range(len(models))]
    if len(labels) != len(models):
        raise ValueError(f"{len(labels)} labels for {len(models)} models.")
    with ExitStack() as stack:
        opened = [stack.enter_context(fold(open_on_record(models[0])))]
        others = models[1:] if base is None else [*models[1:], base]
        for source in others:
            weights = stack.enter_context(fold(open_on_record(source)))
            opened.append(_same_names(weights, opened[0]))
        names = _shared(opened)
        if not names:
            raise ValueError(
                f"{opened[0].label} and {opened[1].label} have no tensor in "
                "common: they are not the same kind of model."
            )
        titles = labels if base is None else [*labels, "the base"]
        warnings = source_warnings(models, opened, titles, base is not None)
        measuring = _Measuring(len(models), base is not None)
        for name in tqdm(names, desc="compare", disable=not progress):
            tensors = [each[name] for each in opened]
            odd = measuring.add(name, tensors)
            for tensor in tensors:
                release(tensor)
            if odd is not None:
                warnings.append(
                    f"{titles[odd]} has values that are NaN or infinite in "
                    f"'{name}', which is left out."
                )
    found = measuring.found(labels)
    found["base"] = base is not None
    found["warnings"] = warnings + value_warnings(found)
    return found


def _same_names(weights, like):
    """Under the names of the first model, as far as it can be done."""
    try:
        return renamed(weights, like)
    except ValueError:
        if set(weights.names()) & set(like.names()):
            return weights  # what is shared can be compared
        raise


def _shared(opened: Sequence[Weights]) -> list[str]:
    """Floating-point tensors that all have, in one shape, ties once."""
    first = opened[0]
    return [
        name
        for name in first.names()
        if name not in first.tied
        and math.prod(first.shape(name))
        and all(
            name in each
            and each.shape(name) == first.shape(name)
            and each.dtype(name).is_floating_point
            for each in opened
        )
    ]


def part_of(name: str) -> str:
    """The part that a tensor counts in: a layer, or a role outside layers.

    Arguments
    ---------
    name : str
        Of the tensor.

    Returns
    -------
    str

    Example
    -------
    >>> part_of("model.encoder.layers.3.fc1.bias"), part_of("proj_out.weight")
    ('encoder.layers.3', 'output')
    """
    found = part(name)
    if found.layer is not None:
        words = [found.stack, "layers", str(found.layer)]
    else:
        words = [found.stack, found.role]
    return ".".join(word for word in words if word)


class _Measuring:
    """Sums over tensors, by part.

    Arguments
    ---------
    count : int
        Of models.
    based : bool
        Whether the last tensor of each list is the base's.
    """

    def __init__(self, count, based):
        self.count, self.based = count, based
        self.sums: dict = {}  # part to sums over its tensors
        self.ranks: dict = {}  # part to a row for each matrix
        self.overlaps: dict = {}
        self.energy = torch.zeros(count, GRID, dtype=torch.float64)
        self.curves = torch.zeros(count, dtype=torch.float64)
        self.chance: list = []

    def add(self, name, tensors):
        """Counts a tensor; the number of a model whose values are not finite."""
        sums = self._summed(tensors)
        bad = ~torch.isfinite(sums["finite"])
        if bad.any():
            return int(bad.nonzero()[0])
        where = part_of(name)
        for key in (where, "all"):
            known = self.sums.get(key)
            self.sums[key] = (
                {word: sums[word] + known[word] for word in sums}
                if known
                else dict(sums)
            )
        matrix = tensors[0].dim() >= 2 and part(name).layer is not None
        if self.based and matrix:
            self._decompose(where, [each.flatten(1) for each in tensors])
        return None

    def _summed(self, tensors):
        """Sums over one tensor, in pieces."""
        flat = [each.reshape(-1) for each in tensors]
        square = (self.count, self.count)
        sums = {
            word: torch.zeros(size, dtype=torch.float64)
            for word, size in (
                ("gram", square),
                ("moved", square),
                ("signs", square),
                ("anchor", ()),
                ("finite", (len(tensors),)),
            )
        }
        step = max(1, _PIECE // len(tensors))
        for start in range(0, len(flat[0]), step):
            piece = torch.stack(
                [each[start : start + step].to(torch.float64) for each in flat]
            )
            sums["finite"] += (piece * 0).sum(1)
            if self.based:
                sums["anchor"] += piece[-1] @ piece[-1]
                piece = piece[:-1] - piece[-1]
            signs = piece.sign()
            moved = signs.abs()
            sums["gram"] += piece @ piece.T
            sums["moved"] += moved @ moved.T
            sums["signs"] += signs @ signs.T
        return sums

    def _decompose(self, where, matrices):
        """Spectra and overlaps of one matrix of a layer."""
        rows, columns = matrices[0].shape
        full = min(rows, columns)
        if full < 2 or full > _WIDEST:
            return
        base = matrices[-1].to(torch.float64)
        base_info = stored_type(matrices[-1])
        ranks, bases = [], []
        for number, matrix in enumerate(matrices[:-1]):
            expert = matrix.to(torch.float64)
            noise = noise_of([expert], base, [stored_type(matrix)], base_info)
            found = decompose(expert - base, noise.of(0))
            if not len(found.values):
                ranks.append(None)
                bases.append(None)
                continue
            energy = (
                found.values.square().cumsum(0) / found.values.square().sum()
            )
            self._curve(number, energy, full)
            shares = found.values / found.values.sum()
            ranks.append(float((-(shares * shares.log()).sum()).exp()))
            kept = int((energy < ENERGY * (1 - 1e-12)).sum()) + 1
            bases.append((found.left[:, :kept], found.right[:, :kept]))
        self.ranks.setdefault(where, []).append((full, ranks))
        for one in range(self.count):
            for two in range(self.count):
                if bases[one] is not None and bases[two] is not None:
                    self._overlap(where, one, two, bases, matrices[0].shape)

    def _curve(self, number, energy, full):
        """Adds the energy of the strongest directions over their share."""
        rank = torch.arange(GRID, dtype=torch.float64) / (GRID - 1) * full
        known = torch.cat([torch.zeros(1, dtype=torch.float64), energy])
        low = rank.floor().long().clamp(max=len(known) - 1)
        high = (low + 1).clamp(max=len(known) - 1)
        self.energy[number] += known[low] + (rank - low) * (
            known[high] - known[low]
        )
        self.curves[number] += 1

    def _overlap(self, where, one, two, bases, shape):
        """Adds how far the strongest directions of two models are the same."""
        kept = [each[0].shape[1] for each in (bases[one], bases[two])]
        shared = [
            float((a.T @ b).square().sum()) / min(kept)
            for a, b in zip(bases[one], bases[two])
        ]
        if one != two:
            self.chance.append(sum(max(kept) / size for size in shape) / 2)
        for key in (where, "all"):
            known = self.overlaps.setdefault(key, {})
            known.setdefault((one, two), []).append(sum(shared) / 2)

    def found(self, labels) -> dict:
        """The measures, see ``compare_models``."""
        parts = [name for name in self.sums if name != "all"]
        pairs: dict = {"cosine": {}}
        if self.based:
            pairs.update(sign_conflicts={}, overlap={})
        pairs["barrier_risk"] = {}
        for name in ("all", *parts):
            sums = self.sums.get(name)
            if sums is None:
                continue
            gram, squares = sums["gram"], sums["gram"].diagonal()
            pairs["cosine"][name] = self._table(
                lambda a, b: _cosine(gram, squares, a, b)
            )
            pairs["barrier_risk"][name] = self._table(
                lambda a, b: self._bound(sums, gram, squares, a, b)
            )
            if self.based:
                pairs["sign_conflicts"][name] = self._table(
                    lambda a, b: _ratio(
                        float(sums["moved"][a, b] - sums["signs"][a, b]) / 2,
                        float(sums["moved"][a, b]),
                    )
                )
                known = self.overlaps.get(name, {})
                pairs["overlap"][name] = self._table(
                    lambda a, b: _mean(known.get((a, b)))
                )
        return {
            "parts": parts,
            "pairs": pairs,
            "models": [
                self._model(number, label, parts)
                for number, label in enumerate(labels)
            ],
            "chance": _mean(self.chance),
        }

    def _table(self, cell):
        """A number for each pair of models."""
        numbers = range(self.count)
        return [[cell(a, b) for b in numbers] for a in numbers]

    def _bound(self, sums, gram, squares, a, b):
        """A pair's barrier risk, over the base's norm or the pair's own."""
        # rounding may make the square of a zero slightly negative
        apart = max(0.0, float(squares[a] + squares[b] - 2 * gram[a, b]))
        if a == b:
            apart = 0.0
        own = (float(squares[a]) + float(squares[b])) / 2
        return _ratio(apart, 8 * (float(sums["anchor"]) if self.based else own))

    def _model(self, number, label, parts):
        """What is known of one model by itself."""

        def norm(name):
            sums = self.sums.get(name)
            if sums is None:
                return None
            own = float(sums["gram"][number, number]) ** 0.5
            if not self.based:
                return own
            return _ratio(own, float(sums["anchor"]) ** 0.5)

        def rank(name, shared):
            return _mean(
                [
                    ranks[number] / (full if shared else 1)
                    for full, ranks in self.ranks.get(name, ())
                    if ranks[number] is not None
                ]
            )

        curves = float(self.curves[number])
        return {
            "label": label,
            "norm": norm("all"),
            "norms": [norm(name) for name in parts],
            "effective_rank": [rank(name, False) for name in parts],
            "rank_share": [rank(name, True) for name in parts],
            "energy": (self.energy[number] / curves).tolist()
            if curves
            else None,
        }


def _cosine(gram, squares, a, b):
    """Between −1 and 1; exactly 1 of a model with itself."""
    length = float((squares[a] * squares[b]).sqrt())
    if not length:
        return None
    return max(-1.0, min(1.0, float(gram[a, b]) / length))


def _ratio(above, below):
    return above / below if below else None


def _mean(values):
    return sum(values) / len(values) if values else None
