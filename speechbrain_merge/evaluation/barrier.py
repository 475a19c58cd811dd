r"""The barrier between two models: how much worse their averages are.

Along the line :math:`\theta(t) = (1 - t)\,\theta_A + t\,\theta_B` it is

.. math::
    \max_t \; L(\theta(t)) - \big[(1 - t)\, L(\theta_A) + t\, L(\theta_B)\big],

which is near zero between two fine-tunings of one base, high between models of
different initialisations, and lower again when the one was aligned to the
other (Entezari et al., ICLR 2022, arXiv 2110.06296).

Example
-------
>>> points = [
...     {"t": 0.0, "loss": 1.0},
...     {"t": 0.5, "loss": 4.0},
...     {"t": 1.0, "loss": 2.0},
... ]
>>> barrier(points)
2.5

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Mapping, Sequence


def barrier(points: Sequence[Mapping], measure: str = "loss") -> float:
    """How high the worst point between two models is above their chord.

    Arguments
    ---------
    points : list of dict
        Of a line, each with ``t`` and the measure; 0 and 1 must be among them,
        and what is beyond them does not count.
    measure : str
        ``"loss"``, or ``"wer"``.

    Returns
    -------
    float
        At least 0, as the models themselves count; infinite where a point in
        between has no finite loss (None).

    Raises
    ------
    ValueError
        Without a value of the two models, or of anything between them.

    Example
    -------
    >>> walked = [(0, 1.0), (0.25, 1.5), (0.5, 1.2), (1, 3.0), (2, 99.0)]
    >>> points = [{"t": t, "wer": wer} for t, wer in walked]
    >>> barrier(points, "wer")
    0.0
    >>> points[1]["wer"] = 2.0
    >>> barrier(points, "wer")
    0.5
    """
    values = {point["t"]: point[measure] for point in points}
    first, last = values.get(0), values.get(1)
    if first is None or last is None:
        raise ValueError(
            f"a barrier needs the {measure} of both models, at t=0 and t=1; "
            f"there are {len(values)} points, with {first} and {last} there"
        )
    heights = [
        math.inf if value is None else value - ((1 - t) * first + t * last)
        for t, value in values.items()
        if 0 < t < 1
    ]
    if not heights:
        raise ValueError("nothing was measured between the two models")
    return max(0.0, max(heights))
