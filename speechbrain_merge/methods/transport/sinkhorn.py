"""Permutations that are learned as soft maps of units.

Sinkhorn re-basin (Peña et al., CVPR 2023, arXiv 2212.12042) has a score for
each pair of units, and softens the permutation: ``P = Sinkhorn(X / τ)``, whose
rows and columns sum to 1, mixes the units of the source; the gradient reaches X
through it. Heads are mixed as heads, by the sums of what their inner maps match.
What is kept is the permutation of the largest score, a symmetry again.

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.transport.learner import Learner
from speechbrain_merge.methods.transport.moves import move_tensor

ROUNDS = 20
SHARPNESS = 1.0


class SinkhornRebasin(Learner):
    """Scores of pairs of units, of which Sinkhorn's algorithm makes soft maps.

    Memory: a matrix (units × units) of each space, with Adam's two moments.

    Arguments
    ---------
    source, anchor, architecture, heads, start, learning_rate, share
        As for ``StraightThrough``; scores start at 1 where ``start`` puts a
        unit, and at 0 elsewhere.
    temperature : float
        τ: the smaller, the nearer to a permutation.
    """

    def __init__(self, *models, temperature: float = 0.3, **options):
        check_number(temperature, "temperature", above=0)
        self.temperature = temperature
        super().__init__(*models, **options)

    def _prepare(self):
        for name in self.matching.free():
            size = self.symmetry.spaces[name].size
            scores = torch.zeros(size, size)
            scores[torch.arange(size), self.start[name]] = SHARPNESS
            self.learned[name] = torch.nn.Parameter(scores)
        self._project()

    def _maps(self):
        """The soft maps, from which gradients go back to the scores."""
        maps = {}
        for unit in self.matching.units:
            blocks = self.symmetry.spaces[unit[0]].blocks
            if not blocks:
                (name,) = unit
                maps[name] = _sinkhorn(self.learned[name] / self.temperature)
                continue
            number = self.symmetry.blocks[blocks].number
            fixed = self.symmetry.blocks[blocks].fixed_inside
            inner, outer = {}, torch.zeros(number, number)
            for name in unit:
                scores = self.learned[name]
                grid = scores.unflatten(1, (number, -1))
                grid = grid.unflatten(0, (number, -1)).transpose(1, 2)
                if name in fixed:
                    inner[name] = torch.eye(grid.shape[-1]).expand(grid.shape)
                else:
                    inner[name] = _sinkhorn(grid / self.temperature)
                outer = outer + (inner[name] * grid).mean((-2, -1)) * len(
                    inner[name][0, 0]
                )
            if self.symmetry.blocks[blocks].fixed_order:
                shares = torch.eye(number)
            else:
                shares = _sinkhorn(outer / len(unit) / self.temperature)
            for name in unit:
                whole = shares[:, :, None, None] * inner[name]
                size = self.symmetry.spaces[name].size
                maps[name] = whole.transpose(1, 2).reshape(size, size)
        return maps

    def _project(self):
        """The permutation of the largest scores."""
        with torch.no_grad():
            for unit in self.matching.units:
                costs = {name: -self.learned[name].detach() for name in unit}
                blocks = self.symmetry.spaces[unit[0]].blocks
                if blocks:
                    found = self.matching.match_blocks(
                        self.symmetry.blocks[blocks], costs
                    )
                else:
                    (name,) = unit
                    found = {name: self.matching.solver(costs[name])}
                self.matching.transports.update(found)

    def _backward(self, gradients):
        """From the gradient of the midpoint to that of the scores."""
        maps = self._maps()
        total = torch.zeros(())
        for name in self.names:
            if name in gradients:
                moved = move_tensor(
                    self.source[name].float(), self.symmetry.pieces[name], maps
                )
                slope = gradients[name].detach().to("cpu", torch.float32)
                total = total + self.share * (moved * slope).sum()
        if total.requires_grad:
            total.backward()


def _sinkhorn(scores):
    """Scores as a matrix whose rows and columns sum to 1 nearly."""
    logs = scores
    for _ in range(ROUNDS):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()
