r"""The metrics of CL-MASR, SpeechBrain's benchmark of continual learning.

A recogniser that knows some base languages learns new ones, one after the
other [1]. After each of them it is tested on the base languages and on those
that it has learned so far. The rates make a triangular matrix: R\ :sub:`kj` is
the rate in % after k new languages, on the base languages (j = 0, the mean of
their rates) or on the j-th new language. For each k,

.. math::
    \text{AWER}_k &= \frac{1}{k+1} \sum_{j=0}^{k} R_{kj} \\
    \text{BWT}_k &= \frac{1}{k} \sum_{j=0}^{k-1} (R_{jj} - R_{kj}) \\
    \text{IM}_k &= R_{kk} - \text{joint}_k \\
    \text{FWT}_k &= \text{single}_k - R_{kk}

with the rate on the k-th language of a model that was trained on all languages
at once (joint), and of one that was trained on that language alone (single).
AWER, the average word error rate, and the intransigence measure IM are better
when lower; backward and forward transfer, BWT and FWT, when higher. BWT below 0
is forgetting [2]. The benchmark's number of each is the mean over k.

Every number is rounded to two decimals, and means are of what was rounded, as
in the benchmark's ``analyze_logs.py``.

Example
-------
Two base languages and two new ones:

>>> matrix = rate_matrix(
...     [[10.0, 20.0], [30.0, 40.0, 50.0], [35.0, 45.0, 70.0, 60.0]], base=2
... )
>>> matrix
[[15.0], [35.0, 50.0], [40.0, 70.0, 60.0]]
>>> metrics = continual_metrics(matrix, joint=[55, 50], single=[45, 61])
>>> metrics["BWT"], metrics["IM"]
([-20.0, -22.5], [-5.0, 10.0])
>>> average_metrics(metrics)
{'AWER': 38.06, 'BWT': -21.25, 'IM': 2.5, 'FWT': -2.0}

References
----------
[1] L. Della Libera, P. Mousavi, S. Zaiem, C. Subakan, M. Ravanelli, "CL-MASR: A
Continual Learning Benchmark for Multilingual ASR", IEEE/ACM TASLP 32, 2024.
[2] D. Lopez-Paz, M. Ranzato, "Gradient Episodic Memory for Continual
Learning", NeurIPS 2017.
[3] A. Chaudhry, P. K. Dokania, T. Ajanthan, P. H. S. Torr, "Riemannian Walk for
Incremental Learning", ECCV 2018 (the intransigence measure).

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

CONTINUAL_METRICS = ("AWER", "BWT", "IM", "FWT")
"""The metrics, in the order of the benchmark's table."""


def rate_matrix(rates: Sequence[Sequence], base: int) -> list:
    """The triangular matrix of a sequence of tests.

    Arguments
    ---------
    rates : sequence of sequence of float
        Row k: the rates in % after k new languages, of each base language and
        then of the new languages so far. Row 0 is the model that begins.
    base : int
        How many base languages there are.

    Returns
    -------
    list of list of float
        Row k with k + 1 rates, the mean of the base languages the first.

    Raises
    ------
    ValueError
        Where a row does not have as many rates as there are languages.

    Example
    -------
    >>> rate_matrix([[1.0], [2.0, 3.0, 4.0]], base=1)
    Traceback (most recent call last):
    ...
    ValueError: after 1 of the new languages there are 2 rates to expect (1 of base languages), and there are 3
    """
    if base < 1:
        raise ValueError(f"base is {base}: expected at least one base language")
    matrix = []
    for k, row in enumerate(rates):
        if len(row) != base + k:
            raise ValueError(
                f"after {k} of the new languages there are {base + k} rates "
                f"to expect ({base} of base languages), and there are "
                f"{len(row)}"
            )
        matrix.append([float(np.mean(row[:base])), *map(float, row[base:])])
    return matrix


def continual_metrics(
    matrix: Sequence[Sequence],
    joint: Optional[Sequence] = None,
    single: Optional[Sequence] = None,
) -> dict:
    """AWER, BWT, IM and FWT after each new language.

    Arguments
    ---------
    matrix : sequence of sequence of float
        Of ``rate_matrix``, in %.
    joint : sequence of float, optional
        For each new language, in their order, the rate in % of a model that
        was trained on all languages at once.
    single : sequence of float, optional
        The same of models that were trained on that language alone.

    Returns
    -------
    dict
        Metric to list of float, in points of the rate: AWER for k = 0, 1, …,
        the others for k = 1, 2, … IM is None without `joint`, and FWT without
        `single`.

    Raises
    ------
    ValueError
        Where the matrix is not triangular, has no new language, or where there
        is not one reference for each.
    """
    if len(matrix) < 2 or [len(row) for row in matrix] != list(
        range(1, len(matrix) + 1)
    ):
        raise ValueError(
            "expected a triangular matrix of at least two rows, row k of k + 1 "
            f"rates, and got rows of {[len(row) for row in matrix]}"
        )
    # In parts of one, as the benchmark has it: percentages as they are would
    # now and then round the other way
    parts = [np.asarray(row, dtype=float) / 100 for row in matrix]
    learned = np.array([row[-1] for row in parts])
    awer = [float(np.round(row.sum() / len(row) * 100, 2)) for row in parts]
    bwt = [
        float(np.round(100 * (learned[:k] - parts[k][:k]).mean(), 2))
        for k in range(1, len(parts))
    ]
    found = {"AWER": awer, "BWT": bwt, "IM": None, "FWT": None}
    own = learned[1:] * 100
    if joint is not None:
        found["IM"] = np.round(own - _references(joint, own), 2).tolist()
    if single is not None:
        found["FWT"] = np.round(_references(single, own) - own, 2).tolist()
    return found


def average_metrics(metrics: Mapping) -> dict:
    """The mean of each metric over the new languages.

    Arguments
    ---------
    metrics : dict
        Of ``continual_metrics``.

    Returns
    -------
    dict
        Metric to float, rounded to two decimals, or None.
    """
    return {
        name: None
        if metrics[name] is None
        else round(float(np.mean(metrics[name])), 2) + 0.0
        for name in CONTINUAL_METRICS
    }


def _references(given, own):
    """References as an array, one for each new language."""
    if len(given) != len(own):
        raise ValueError(
            f"expected a reference for each of the {len(own)} new languages, "
            f"and got {len(given)}"
        )
    return np.asarray(given, dtype=float)
