"""Permutations that are learned through the one nearest to free weights.

The third method of Git Re-Basin (Ainsworth, Hayase and Srinivasa, ICLR 2023,
arXiv 2209.04836, section 3.3). With anchor A, source B and free weights Θ̃ that
start from A,

    π   = argmin over the symmetries of ‖π(B) − Θ̃‖²     (weight matching)
    g   = ∇ loss at (1 − s) A + s π(B)
    Θ̃   ← Adam(Θ̃, g)

so that π is a symmetry in each step, and the gradient goes straight through
it to Θ̃. The share s is 1/2.

Example
-------
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "fc1.weight": ["hidden", "fixed"],
...         "fc2.weight": ["fixed", "hidden"],
...     },
... }
>>> anchor = {"fc1.weight": torch.eye(2), "fc2.weight": torch.ones(1, 2)}
>>> source = {
...     "fc1.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
...     "fc2.weight": torch.ones(1, 2),
... }
>>> learner = StraightThrough(source, anchor, architecture=mine)
>>> learner.midpoint()["fc1.weight"]
tensor([[0.5000, 0.5000],
        [0.5000, 0.5000]])
>>> learner.update({"fc1.weight": torch.ones(2, 2)})  # of some loss
>>> learner.transports()
{'hidden': tensor([1, 0])}
>>> learner.midpoint()["fc1.weight"]
tensor([[1., 0.],
        [0., 1.]])

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.transport.learner import Learner
from speechbrain_merge.weights import open_weights

# Of weight matching in each step; it starts from the last map
SWEEPS = 20


class StraightThrough(Learner):
    """Weights Θ̃ that are trained through the permutation nearest to them.

    Memory: Θ̃ with Adam's two moments, in float32.

    Arguments
    ---------
    source, anchor, architecture, heads, start, learning_rate, share
        The two models, how to read them, and how to learn: Θ̃ starts from the
        anchor, the first map is ``start``.
    """

    def _prepare(self):
        """Θ̃, and what looks for the map that brings the source nearest."""
        self.learned = {
            name: torch.nn.Parameter(self.anchor[name].float().clone())
            for name in self.names
        }
        target = {name: self.anchor[name] for name in self.anchor.names()}
        target.update(
            {name: tensor.detach() for name, tensor in self.learned.items()}
        )
        self.matching = self._matching(open_weights(target))
        self.matching.transports = dict(self.start)

    def _maps(self):
        return self.matching.transports

    def _project(self):
        """The symmetry that brings the source nearest to Θ̃."""
        self.matching.iterate(SWEEPS)

    def _backward(self, gradients):
        """The gradient at the midpoint is that of Θ̃."""
        for name, tensor in self.learned.items():
            if name in gradients:
                tensor.grad = gradients[name].detach().to("cpu", torch.float32)
