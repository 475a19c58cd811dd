r"""Where models lie: distances between weights, and the plane through three.

Three models span a plane. With the first as the origin and the second on the
x axis, a point of the plane is

.. math::
    \theta(x, y) = \theta_0 + x \, \hat{u} + y \, \hat{v},
    \qquad \hat{u} = \frac{\theta_1 - \theta_0}{\|\theta_1 - \theta_0\|},
    \qquad \hat{v} \perp \hat{u},

and so the distances in a picture of it are those between the weights (Garipov
et al., NeurIPS 2018, arXiv 1802.10026). The same point is a weighted average of
the three models, :math:`\sum_i w_i \theta_i` with :math:`\sum_i w_i = 1`, of
which outside of their triangle some weights are negative: so any method that
averages can go there, and no direction has to be stored.

Models are read a tensor at a time, and inner products summed in float64.

Example
-------
>>> import torch
>>> models = [
...     {"w": torch.tensor(w)} for w in ([0.0, 0.0], [3.0, 0.0], [3.0, 4.0])
... ]
>>> plane = WeightPlane(squared_distances(models))
>>> plane.positions
[(0.0, 0.0), (3.0, 0.0), (3.0, 4.0)]
>>> plane.weights_at(1.5, 2.0)
[0.5, 0.0, 0.5]

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack

from tqdm import tqdm

from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import check_compatible, fold

# Of three models that lie this close to a line, as a part of their distances,
# the rest is rounding
FLAT = 1e-6


def squared_distances(models: Sequence, progress: bool = False) -> list:
    """Squared Euclidean distances between the weights of models.

    All floating-point entries count once each, weight norm as the weights that
    it makes; names that share a tensor count as one.

    Arguments
    ---------
    models : sequence
        Anything that ``open_weights`` opens.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    list of list of float
        [models][models].

    Raises
    ------
    IncompatibleWeights
        When they are not models of the same kind.

    Example
    -------
    >>> import torch
    >>> squared_distances([{"w": torch.zeros(4)}, {"w": torch.ones(4)}])
    [[0.0, 4.0], [4.0, 0.0]]
    """
    number = len(models)
    pairs = [(i, j) for i in range(number) for j in range(i)]
    sums = dict.fromkeys(pairs, 0.0)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(fold(open_on_record(model))) for model in models
        ]
        check_compatible(opened, finite=False)
        first = opened[0]
        names = [
            name
            for name in first.names()
            if first.dtype(name).is_floating_point and name not in first.tied
        ]
        for name in tqdm(names, desc="distances", disable=not progress):
            tensors = [model[name] for model in opened]
            for i, j in pairs:
                difference = tensors[i].double() - tensors[j].double()
                sums[i, j] += float(difference.square().sum())
    return [
        [sums.get((max(i, j), min(i, j)), 0.0) for j in range(number)]
        for i in range(number)
    ]


class WeightPlane:
    """The plane through three models, in coordinates that keep distances.

    Arguments
    ---------
    squares : list of list of float
        Squared distances between the three, see ``squared_distances``.

    Raises
    ------
    ValueError
        Where there are not three models, or they lie on one line.

    Example
    -------
    >>> plane = WeightPlane([[0, 4, 1], [4, 0, 5], [1, 5, 0]])
    >>> plane.positions
    [(0.0, 0.0), (2.0, 0.0), (0.0, 1.0)]
    """

    def __init__(self, squares):
        if len(squares) != 3:
            raise ValueError(
                f"a plane goes through 3 models, not {len(squares)}"
            )
        self._length = math.sqrt(squares[0][1])
        far = math.sqrt(squares[0][2])
        along = height = 0.0
        if self._length:
            # the law of cosines
            both = squares[0][1] + squares[0][2] - squares[1][2]
            along = both / (2 * self._length)
            height = math.sqrt(max(0.0, far**2 - along**2))
        if height <= FLAT * max(self._length, far):
            raise ValueError(
                "the three models lie on one line, so that many planes go "
                "through them: draw the line between two, or choose another "
                "(the mean of two models is on their line)"
            )
        self._along, self._height = along, height

    @property
    def positions(self) -> list:
        """(x, y) of each model."""
        return [
            (0.0, 0.0),
            (self._length, 0.0),
            (self._along, self._height),
        ]

    def weights_at(self, x: float, y: float) -> list:
        """How much of each model is in a point of the plane.

        Arguments
        ---------
        x : float
            Along the line from the first model to the second.
        y : float
            Away from that line, towards the third.

        Returns
        -------
        list of float
            One a model; their sum is 1.
        """
        third = y / self._height
        second = (x - third * self._along) / self._length
        return [1 - second - third, second, third]

    def grid(self, points: int, margin: float) -> tuple:
        """Coordinates that cover the triangle of the models and more.

        Arguments
        ---------
        points : int
            Along each axis.
        margin : float
            How far to go beyond the models on every side, as a part of their
            extent along the axis.

        Returns
        -------
        x : list of float
        y : list of float

        Example
        -------
        >>> plane = WeightPlane([[0, 4, 1], [4, 0, 5], [1, 5, 0]])
        >>> plane.grid(3, 0.5)
        ([-1.0, 1.0, 3.0], [-0.5, 0.5, 1.5])
        """
        axes = []
        for values in zip(*self.positions):
            low, high = min(values), max(values)
            extra = margin * (high - low)
            axes.append(evenly(low - extra, high + extra, points))
        return tuple(axes)


def evenly(low: float, high: float, points: int) -> list:
    """Numbers from one to another, both among them to the bit.

    Example
    -------
    >>> evenly(0.0, 1.0, 5)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2, got {points}")
    steps = points - 1
    return [(low * (steps - i) + high * i) / steps for i in range(points)]
