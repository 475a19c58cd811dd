"""The polynomials of Newton–Schulz steps, and what they do to a matrix.

A Newton–Schulz step replaces each singular value ``σ`` of a matrix by
``aσ + bσ³ + cσ⁵``. The classical coefficients, repeated, take every value above
zero to 1, which is the polar factor. The optimiser Muon, and after it
BoostedTSV-M, take steeper polynomials and stop after five steps, at values that
are only near 1.

Five steps are no polar factor. A matrix is divided by its Frobenius norm
first, so that many strong directions make all of them start low; and a
direction in which experts nearly coincide starts lower still. Of a direction
with ``σ/‖X‖_F`` of 1e-4, five steps make 0.05 (a polar factor: 1). What
experts share is damped so: the result is a regularised polar factor. The more
directions each expert keeps, the less there is to damp.

Example
-------
>>> polynomials_of("muon", 2)
[(3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315)]

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.parameters import check_number

# "quintic": five different steps, as used with Muon in modded-nanogpt and
# NVIDIA's emerging optimizers. "muon": the one step of Jordan et al., "Muon: An
# optimizer for hidden layers in neural networks" (2024). "classical": the
# Taylor polynomial of 1/√x, which converges.
POLYNOMIALS = {
    "quintic": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "muon": [(3.4445, -4.7750, 2.0315)],
    "classical": [(15 / 8, -5 / 4, 3 / 8)],
}


def polynomials_of(given, steps):
    """One polynomial a step.

    Arguments
    ---------
    given : str or list
        A name of ``POLYNOMIALS``, or a list of ``[a, b, c]``.
    steps : int
        How many steps; the last polynomial is repeated for those that have
        none.

    Returns
    -------
    polynomials : list of tuple
        ``(a, b, c)``, ``steps`` of them.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if isinstance(given, str):
        if given not in POLYNOMIALS:
            raise ValueError(
                f"`polynomials` must be one of {', '.join(POLYNOMIALS)} or a "
                f"list of [a, b, c]; got {given!r}."
            )
        given = POLYNOMIALS[given]
    right = isinstance(given, (list, tuple)) and len(given) > 0
    if not right or not all(
        isinstance(step, (list, tuple)) and len(step) == 3 for step in given
    ):
        raise ValueError(
            f"`polynomials` must be one of {', '.join(POLYNOMIALS)} or a list "
            f"of [a, b, c], one a step; got {given!r}."
        )
    for step in given:
        for coefficient in step:
            check_number(coefficient, "polynomials")
    given = [tuple(step) for step in given]
    return (given + given[-1:] * steps)[:steps]


# Added to the Frobenius norm, as in Muon: zero stays zero.
NORM_FLOOR = 1e-7


def newton_schulz_stretch(squares, polynomials):
    """What Newton–Schulz steps multiply each singular value by.

    Arguments
    ---------
    squares : torch.Tensor
        ``[n]``, squared singular values of the matrix.
    polynomials : list of tuple
        ``(a, b, c)`` for each step.

    Returns
    -------
    stretch : torch.Tensor
        ``[n]``: ``p(σ/‖X‖_F)/σ`` of the steps' composition ``p``.

    Example
    -------
    >>> import torch
    >>> squares = torch.tensor([4.0], dtype=torch.float64)
    >>> newton_schulz_stretch(squares, [(1.5, -0.5, 0.0)] * 9)
    tensor([0.5000], dtype=torch.float64)
    """
    start = 1 / (squares.sum().sqrt() + NORM_FLOOR)
    stretch = start.expand_as(squares)
    for a, b, c in polynomials:
        square = squares * stretch.square()
        stretch = stretch * (a + square * (b + c * square))
    return stretch
