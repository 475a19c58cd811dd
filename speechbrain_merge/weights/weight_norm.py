r"""Weight norm: fold it into plain weights, and take a plain weight apart again.

A weight-normed layer stores a direction v and a magnitude g instead of its
weight W = g v / ‖v‖ (the norm over all axes but one). Averaging g and v of two
models is not averaging W, and their task vectors mean little, so W is computed
before merging. wav2vec2, HuBERT and WavLM have such a layer: the positional
convolution.

Both ways in which torch stores it are known: ``weight_g`` and ``weight_v``
(`torch.nn.utils.weight_norm`), and ``parametrizations.weight.original0`` and
``original1`` (`torch.nn.utils.parametrizations.weight_norm`). The axis is read
from the shape of g.

`refold` goes back: a merged W becomes g = ‖W‖, v = W, so that it loads
strictly into a module that still is weight-normed.

Reference: T. Salimans, D. P. Kingma, "Weight Normalization", 2016,
https://arxiv.org/abs/1602.07868

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import fold
>>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
>>> plain = fold(layer)
>>> sorted(plain)
['bias', 'weight']
>>> torch.equal(plain["weight"], layer.weight)
True
>>> layer.load_state_dict(refold(plain, like=layer))
<All keys matched successfully>

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping

import torch

from speechbrain_merge.weights.dtypes import common_dtype
from speechbrain_merge.weights.mapping import Entry, Weights
from speechbrain_merge.weights.source import open_weights

# How a name continues for g and for v, where the plain name is
# <module>.<parameter>
_OLD_STYLE = re.compile(r"^(?P<plain>.+)_(?P<part>[gv])$")
_PARAMETRISED = re.compile(
    r"^(?P<module>(?:.+\.)?)parametrizations\.(?P<parameter>[^.]+)"
    r"\.original(?P<part>[01]?)$"
)


def weight_norm_pairs(shapes: Mapping, label: str) -> dict:
    """The weight-normed parameters of a model.

    Arguments
    ---------
    shapes : Mapping
        Name to shape, of all stored tensors.
    label : str
        What errors call the model.

    Returns
    -------
    dict
        Plain name to the names of its ``(g, v)``.

    Raises
    ------
    ValueError
        Where another parametrisation than weight norm is found, or half of
        one.

    Example
    -------
    >>> shapes = {"conv.weight_g": (4, 1, 1), "conv.weight_v": (4, 2, 3)}
    >>> weight_norm_pairs(shapes, "a model")
    {'conv.weight': ('conv.weight_g', 'conv.weight_v')}
    """
    pairs = {}
    for name, shape in shapes.items():
        old = _OLD_STYLE.match(name)
        new = _PARAMETRISED.match(name)
        if old and old["part"] == "v" and f"{old['plain']}_g" in shapes:
            g = f"{old['plain']}_g"
            # Other tensors may end in _g and _v without being a pair
            if norm_axis(shapes[g], shape) is not None:
                pairs[old["plain"]] = (g, name)
        elif new:
            stem = name[: len(name) - len(new["part"])]
            g, v = f"{stem}0", f"{stem}1"
            if (
                g not in shapes
                or v not in shapes
                or norm_axis(shapes[g], shapes[v]) is None
            ):
                raise ValueError(
                    f"{label}: '{name}' belongs to a parametrisation that is "
                    "not weight norm, or to half of one. Remove it first: "
                    "torch.nn.utils.parametrize.remove_parametrizations("
                    f"module, '{new['parameter']}')."
                )
            pairs[new["module"] + new["parameter"]] = (g, v)
    return pairs


def norm_axis(g_shape, v_shape):
    """The axis along which a weight has one magnitude per slice.

    Arguments
    ---------
    g_shape : tuple
        Shape of the magnitudes: ones but for one axis, or no axis at all.
    v_shape : tuple
        Shape of the direction, which is that of the weight.

    Returns
    -------
    int or None
        -1 where there is one magnitude for the whole weight; None where the
        shapes are not those of weight norm.

    Example
    -------
    >>> (
    ...     norm_axis((1, 1, 3), (8, 4, 3)),
    ...     norm_axis((), (8, 4)),
    ...     norm_axis((2,), (8, 4)),
    ... )
    (2, -1, None)
    """
    if g_shape == ():
        return -1
    for axis, size in enumerate(v_shape):
        ones = [1] * len(v_shape)
        ones[axis] = size
        if tuple(g_shape) == tuple(ones):
            return axis
    return None


def weight_norm_entry(g: Entry, v: Entry) -> Entry:
    """The entry of the plain weight, computed when it is read.

    Arguments
    ---------
    g : Entry
        The magnitudes.
    v : Entry
        The direction.

    Returns
    -------
    Entry
        Of v's shape and dtype; computed in at least float32.
    """
    axis = norm_axis(g.shape, v.shape)

    def read():
        magnitude, direction = g.read(), v.read()
        wide = common_dtype([direction.dtype, torch.float32])
        # The very function that the layer calls: the same bits as its weight
        weight = torch._weight_norm(
            direction.to(wide).contiguous(), magnitude.to(wide), axis
        )
        return weight.to(v.dtype)

    return Entry(v.shape, v.dtype, read)


def refold(weights, like) -> Weights:
    """Put plain weights into the names of a weight-normed model.

    Arguments
    ---------
    weights : any source of `open_weights`
        Plain weights, e.g. a merged state dict.
    like : any source of `open_weights`
        A module, state dict or file with the names and shapes to end up with,
        e.g. the module that the result is to be loaded into.

    Returns
    -------
    Weights
        Exactly the names of `like`, in its order. A weight-normed weight W
        has become g = ‖W‖ and v = W, whose effective weight equals W up to
        one rounding; a slice of zeros has g = 0.

    Raises
    ------
    ValueError
        Where a name is missing, or one is left over.
    """
    plain = open_weights(weights)
    with open_weights(like) as target:
        shapes = {name: target.shape(name) for name in target}
        pairs = weight_norm_pairs(shapes, target.label)
        target_label = target.label
        ties = target.tied
    part_of = {}
    for name, (g, v) in pairs.items():
        part_of[g] = (name, "g")
        part_of[v] = (name, "v")
    wanted = [part_of.get(name, (name, ""))[0] for name in shapes]
    missing = [name for name in wanted if name not in plain]
    left_over = [name for name in plain if name not in set(wanted)]
    if missing or left_over:
        raise ValueError(
            f"{plain.label} does not have the names of {target_label}: "
            f"{len(missing)} missing {missing[:5]}, {len(left_over)} left "
            f"over {left_over[:5]}"
        )
    entries = {}
    for name in shapes:
        source, part = part_of.get(name, (name, ""))
        entries[name] = plain.entry(source)
        if part:
            g, v = pairs[source]
            entries[name] = _part_entry(
                entries[name], part, norm_axis(shapes[g], shapes[v]), shapes[g]
            )
    return Weights(entries, plain.label, plain.metadata, ties, plain.close)


def _part_entry(weight, part, axis, g_shape):
    def read():
        values = weight.read()
        wide = common_dtype([values.dtype, torch.float32])
        norm = torch.norm_except_dim(values.to(wide), 2, axis)
        if part == "g":
            return norm.reshape(g_shape).to(weight.dtype)
        # 0 · 0 / 0 is NaN: with g = 0 any direction gives the slice of zeros
        return torch.where(norm == 0, torch.ones_like(values), values)

    shape = weight.shape if part == "v" else g_shape
    return Entry(shape, weight.dtype, read)
