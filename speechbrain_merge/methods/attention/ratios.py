"""How much of the source each layer takes.

One number for all layers (MAM), one for each layer or part of the model
(layer-wise MAM, and what L-MAM has learned), or a number to the power of an
exponent that grows with depth (SA-Merge, HSA-Merge).

Example
-------
>>> ratio_of(0.5, None, "encoder.layers.3.self_attn.q_proj.weight", {})
0.5
>>> depths = {"encoder": 12}
>>> name = "encoder.layers.5.self_attn.q_proj.weight"
>>> ratio_of(0.5, 2.0, name, depths)  # 0.5 ** (2 · 6 / 12)
0.5
>>> ratio_of(0.5, [1, 2, 3], name, depths)  # the second of three blocks
0.25

Authors
 * The speechbrain_merge authors 2026
"""

from numbers import Real

from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.weights import matches, part


def check_ratio(ratio):
    """Checks a ratio when a method is made.

    Arguments
    ---------
    ratio : float, list or dict
        A number; a list with one for each layer; or a mapping by ``parts`` or
        ``depth`` as in ``speechbrain_merge.methods.coefficients``, in which
        lists are by layer, too.

    Raises
    ------
    ValueError
        For another form, or a number that is not between 0 and 1.
    """
    check_coefficient(ratio, "ratio")

    def check_each(value):
        if isinstance(value, Real):
            check_number(value, "ratio", at_least=0, at_most=1)
        elif isinstance(value, dict):
            if "experts" in value:
                raise ValueError(
                    "`ratio` is the share of one of two models: give it by "
                    "layer, 'parts' or 'depth', not by 'experts'."
                )
            inner = value.get("parts", {"": value.get("depth")})
            for entry in [*inner.values(), value.get("default", 0)]:
                check_each(entry)
        else:
            for entry in value:
                check_each(entry)

    check_each(ratio)


def check_schedule(schedule):
    """Checks a schedule when a method is made.

    Arguments
    ---------
    schedule : None, float or list of float
        Exponents.

    Raises
    ------
    ValueError
        For anything else, or a negative one: the ratio would exceed 1.
    """
    if schedule is None:
        return
    listed = schedule if isinstance(schedule, (list, tuple)) else [schedule]
    if not listed:
        raise ValueError("`schedule` is an empty list: give None instead.")
    for exponent in listed:
        check_number(exponent, "schedule", at_least=0)


def ratio_of(ratio, schedule, name: str, depths: dict) -> float:
    """The ratio of one tensor.

    Arguments
    ---------
    ratio : float, list or dict
        A checked ratio.
    schedule : None, float or list of float
        A checked schedule. With a number α, layer i of L has ratio^(α(i+1)/L);
        with a list of n exponents, the layers are n blocks of equal depth,
        from first to last, and those of block b have ratio^α_b.
    name : str
        The tensor, which is in a layer.
    depths : dict
        Number of layers of each stack.

    Returns
    -------
    float
        0 to the power of 0 is 1, and 0 to the power of anything else is 0.

    Raises
    ------
    ValueError
        Where a list does not have the length that the model asks for.
    """
    where = part(name)
    depth = depths.get(where.stack, 0)
    ratio = _by_layer(ratio, name, where, depths)
    if schedule is None or where.layer is None:
        return ratio
    if isinstance(schedule, Real):
        return float(ratio ** (schedule * (where.layer + 1) / depth))
    if len(schedule) > depth:
        raise ValueError(
            f"`schedule` has {len(schedule)} exponents, and the "
            f"{where.stack or 'model'} has {depth} layers: give at most one "
            "for each."
        )
    return float(ratio ** schedule[where.layer * len(schedule) // depth])


def _by_layer(ratio, name, where, depths):
    if isinstance(ratio, (list, tuple)):
        depth = depths.get(where.stack, 0)
        if len(ratio) != depth:
            raise ValueError(
                f"`ratio` has {len(ratio)} numbers, and the "
                f"{where.stack or 'model'} has {depth} layers: give one for "
                "each layer, from first to last."
            )
        return float(ratio[where.layer])
    if isinstance(ratio, dict) and "parts" in ratio:
        for pattern, inner in ratio["parts"].items():
            if matches(name, pattern):
                return _by_layer(inner, name, where, depths)
        if ratio.get("default") is not None:
            return _by_layer(ratio["default"], name, where, depths)
    return resolve(ratio, name, 1, depths=depths)[0]
