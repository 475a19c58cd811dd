"""Weights as points on a sphere: a length and a direction.

Spherical methods take a tensor for a direction (a point on the unit sphere) and
a length, and average the two apart. Everything that they walk through lies in
the span of the experts, so that the cosines between the experts are all that
they need to know of a tensor: a method works on a handful of numbers, and the
tensors themselves are read twice, once for the cosines and once for the result.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.sphere import lengths_and_cosines
>>> lengths, cosines = lengths_and_cosines(
...     [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])]
... )
>>> lengths.tolist(), cosines[0, 1].item()
([5.0, 2.0], 0.8)

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.coefficients import resolve
from speechbrain_merge.methods.pieces import walk

# A mean of directions that is shorter than this has no direction: the experts
# point opposite ways and cancel.
CANCELLED = 1e-8


def lengths_and_cosines(tensors):
    """Length of each tensor and cosine of each pair, summed in float64.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Of one shape.

    Returns
    -------
    lengths : torch.Tensor
        ``[T]``, float64.
    cosines : torch.Tensor
        ``[T, T]``, float64. A tensor of zeros has cosine 0 with all others
        and 1 with itself.
    """
    products = inner_products([tensor.reshape(-1) for tensor in tensors])
    lengths = products.diagonal().sqrt()
    safe = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    cosines = (products / safe[:, None] / safe).clamp_(-1.0, 1.0)
    return lengths, cosines.fill_diagonal_(1.0)


def inner_products(flat):
    """Inner product of each pair of flat tensors.

    Arguments
    ---------
    flat : list of torch.Tensor
        ``T`` flat tensors of one length.

    Returns
    -------
    products : torch.Tensor
        ``[T, T]``, float64, on the CPU.
    """
    products = flat[0].new_zeros(len(flat), len(flat), dtype=torch.float64)
    for where in walk(flat):
        piece = torch.stack([tensor[where] for tensor in flat])
        piece = piece.to(torch.float64)
        products += piece @ piece.T
    return products.cpu()


def combination(tensors, coefficients):
    """``Σ c_t θ_t``, summed in float64.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Of one shape and type.
    coefficients : list of float
        One a tensor.

    Returns
    -------
    combination : torch.Tensor
        A new tensor of the same shape and type.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = torch.empty_like(flat[0])
    for where in walk(flat):
        total = flat[0][where].to(torch.float64) * coefficients[0]
        for tensor, coefficient in zip(flat[1:], coefficients[1:]):
            total.add_(tensor[where].to(torch.float64), alpha=coefficient)
        result[where] = total
    return result.reshape(tensors[0].shape)


def shares(weights, name, number, labels, depths):
    """The part that each expert has in a mean: not negative, summing to one.

    Arguments
    ---------
    weights : float, list, dict or None
        Any form of ``speechbrain_merge.methods.coefficients``; ``None`` for
        equal parts.
    name : str
        Name of the tensor.
    number : int
        How many experts there are.
    labels : list of str
        Their labels.
    depths : dict
        Layers of each stack.

    Returns
    -------
    shares : list of float

    Raises
    ------
    ValueError
        When a weight is negative or all are zero: a sphere has no mean with
        negative weights.
    """
    if weights is None:
        return [1.0 / number] * number
    resolved = resolve(weights, name, number, labels, depths)
    if min(resolved) < 0 or sum(resolved) <= 0:
        raise ValueError(
            f"The weights {resolved} for {name} must not be negative, and one "
            "at least must be above zero: they are parts of a mean of "
            "directions."
        )
    return [weight / sum(resolved) for weight in resolved]


def mean_direction(cosines, parts):
    """The direction ``norm(Σ a_t u_t)``, as coefficients of the directions.

    Arguments
    ---------
    cosines : torch.Tensor
        ``[T, T]``, of the unit vectors ``u_t``.
    parts : torch.Tensor
        ``[T]``, the ``a_t``.

    Returns
    -------
    direction : torch.Tensor or None
        ``[T]``; ``None`` where the directions cancel.
    """
    length = float((parts @ cosines @ parts).clamp_min(0.0).sqrt())
    return None if length < CANCELLED else parts / length


def on_ray(tensors, lengths, direction, parts):
    """The point in a direction, as far out as the experts are on average.

    Arguments
    ---------
    tensors : list of torch.Tensor
        The experts.
    lengths : torch.Tensor
        ``[T]``, their lengths.
    direction : torch.Tensor or None
        ``[T]``, coefficients of the unit vectors. ``None`` where these cancel
        and no direction is better than another: the plain weighted mean is
        then given.
    parts : list of float
        The part of each expert in the mean length.

    Returns
    -------
    point : torch.Tensor
    """
    if direction is None:
        return combination(tensors, parts)
    distance = sum(a * b for a, b in zip(parts, lengths.tolist()))
    return combination(
        tensors,
        [
            distance * along / length if length > 0 else 0.0
            for along, length in zip(direction.tolist(), lengths.tolist())
        ],
    )
