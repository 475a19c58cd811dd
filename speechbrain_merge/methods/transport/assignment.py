"""From a matrix of costs to a map of units: hard, or soft.

*Hard* is an assignment (scipy), *soft* is Sinkhorn's plan (POT), and POT's
exact plan lies between: for equal masses it is an assignment too.

A plan between two times ``n`` equal masses has rows and columns that sum to
``1/n``, and so has to be scaled by ``n`` to be a map that keeps constants: the
literal ``1/m`` of the OTF paper's equations shrinks a layer by its width. A
plan whose rows or columns do not sum to what they must is an error: POT's
Sinkhorn gives an empty plan, and no more than a warning, where its regularisation
is too small for the numbers.

Example
-------
>>> import torch
>>> cost = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
>>> Assignment()(cost)
tensor([1, 0])
>>> Sinkhorn(reg=0.01)(cost).round(decimals=3)
tensor([[0., 1.],
        [1., 0.]], dtype=torch.float64)

Authors
 * The speechbrain_merge authors 2026
"""

import warnings

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

# How far the sums of a plan's rows and columns may be from 1
TOLERANCE = 1e-4

# Below this size the search takes less time than its preparation
WORTHWHILE = 256
# Largest cost over regularisation: float32 holds exp(-75)
SHARPNESS, ROUNDS = 75, 20


class Assignment:
    """The permutation of least cost.

    What is added to a whole row or column changes no assignment, but near the
    right numbers (the dual potentials) the search for it has little left to do.
    A few rounds of Sinkhorn's algorithm give them nearly, for the price of a
    few products with a vector: scipy is 2 to 3 times faster on what remains.
    """

    hard = True

    def __call__(self, cost):
        """The order for a square matrix of costs (anchor × source)."""
        # numpy, as threads would cost more than they bring for such sizes
        cost = cost.to(torch.float64, copy=True).numpy()
        if len(cost) >= WORTHWHILE:
            _reduce(cost)
        _, columns = linear_sum_assignment(cost)
        return torch.from_numpy(columns).long()


def _reduce(cost):
    """Takes near-optimal potentials of rows and columns away, in place."""
    _take_minima(cost)
    reg = cost.max() / SHARPNESS
    if reg == 0:
        return
    kernel = cost.astype(np.float32)
    kernel /= -np.float32(reg)
    np.exp(kernel, out=kernel)
    columns = np.ones(len(cost), np.float32)
    for _ in range(ROUNDS):
        rows = 1 / np.einsum("ij,j->i", kernel, columns).clip(1e-30)
        columns = 1 / np.einsum("ij,i->j", kernel, rows).clip(1e-30)
    cost -= reg * np.log(rows.astype(np.float64))[:, None]
    cost -= reg * np.log(columns.astype(np.float64))
    _take_minima(cost)


def _take_minima(cost):
    """Takes from costs the least of each row, then of each column, in place."""
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0, keepdims=True)


class ExactPlan:
    """POT's exact plan (``ot.emd``), as a permutation.

    Slower than ``Assignment``, with the same result; it is here for parity
    with the implementations that use it.
    """

    hard = True

    def __call__(self, cost):
        """The order for a square matrix of costs (anchor × source)."""
        number = len(cost)
        with warnings.catch_warnings():
            # a plan that is not whole is an error below
            warnings.simplefilter("ignore")
            plan = _pot().emd([], [], cost.double().numpy(), numItermax=10**8)
        plan = check_plan(torch.from_numpy(plan) * number)
        order = plan.argmax(dim=1)
        if len(order.unique()) != number:
            raise ValueError(
                "POT's exact plan is no permutation; use hard=True."
            )
        return order


class Sinkhorn:
    """The plan of least cost minus ``reg`` times its entropy.

    Arguments
    ---------
    reg : float
        In units of the largest cost, so that it means the same for all layers.
    """

    hard = False

    def __init__(self, reg):
        self.reg = reg

    def __call__(self, cost):
        """The matrix, rows and columns of which sum to 1 (anchor × source)."""
        ot = _pot()
        cost = cost.double()
        cost = cost - cost.min()
        cost = (cost / cost.max().clamp(min=1e-300)).numpy()
        number = len(cost)
        plan = None
        # The logarithmic form is safe and slow: only where the plain one fails
        for method in ("sinkhorn", "sinkhorn_log"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = ot.sinkhorn(
                    [],
                    [],
                    cost,
                    self.reg,
                    method=method,
                    numItermax=20000,
                    stopThr=1e-10,
                )
            plan = torch.from_numpy(plan) * number
            if _error(plan) <= TOLERANCE:
                return plan
        return check_plan(plan)


def check_plan(plan):
    """The plan, if it is one.

    Arguments
    ---------
    plan : torch.Tensor
        Scaled such that its rows and columns should each sum to 1.

    Returns
    -------
    plan : torch.Tensor

    Raises
    ------
    ValueError
        Where they do not.

    Example
    -------
    >>> check_plan(torch.zeros(2, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: A transport plan has rows or columns that sum to 1 up to 1...
    """
    error = _error(plan)
    if not error <= TOLERANCE:
        raise ValueError(
            "A transport plan has rows or columns that sum to 1 up to "
            f"{error:.2g} only: it did not converge. Give a larger `reg`, or "
            "hard maps."
        )
    return plan


def _error(plan):
    """The largest distance of a row's or a column's sum from 1."""
    if not torch.isfinite(plan).all():
        return float("inf")
    sums = torch.cat([plan.sum(0), plan.sum(1)])
    return float((sums - 1).abs().max())


def _pot():
    """POT, or how to get it."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "Soft maps and exact plans need POT: pip install "
            "'speechbrain_merge[transport]'. Hard maps do not."
        ) from error
    return ot
