"""Which layers of a target are merged, and with which of the source.

The paper's models have the same number of layers, and layer i is merged with
layer i. Models of unequal depth need a map, which is our extension.

Example
-------
>>> listed_layers("12-14, 20")
[12, 13, 14, 20]

Authors
 * The speechbrain_merge authors 2026
"""

import re
from numbers import Integral

EVEN = "even"
STACKS = ("encoder", "decoder", "")


def source_layers(stack: str, depths, layers, layer_map) -> dict:
    """Which layer of the source each layer of the target takes from.

    Arguments
    ---------
    stack : str
        Of the target.
    depths : tuple of int
        Layers of the target's stack and of the source's.
    layers : list of int, str, dict or None
        Which layers of the target.
    layer_map : dict, list, "even" or None
        Which of the source.

    Returns
    -------
    dict
        Layer to layer, for those that are chosen.

    Raises
    ------
    ValueError
        Where the depths differ and there is no map, or a layer is not there.

    Example
    -------
    >>> source_layers("encoder", (12, 12), {"encoder": "4-5"}, None)
    {4: 4, 5: 5}
    >>> source_layers("encoder", (3, 6), None, "even")
    {0: 0, 1: 2, 2: 5}
    """
    depth, source_depth = depths
    given = by_stack(layers, stack)
    mapped = with_whole_keys(by_stack(layer_map, stack))
    if mapped is None:
        if depth != source_depth:
            raise ValueError(
                f"{depth} layers in the target, {source_depth} in the source. "
                "The same depth is needed, or a `layer_map`"
            )
        mapping = dict(zip(range(depth), range(depth)))
    elif mapped == EVEN:
        mapping = dict(enumerate(spread_evenly(depth, source_depth)))
    elif isinstance(mapped, dict):
        mapping = mapped
    else:
        mapping = dict(enumerate(mapped))
    if layers is not None and given is None:
        # given by stack, and not for this one
        return {}
    wanted = list(mapping) if given is None else listed_layers(given)
    for layer in wanted:
        if not 0 <= layer < depth:
            raise ValueError(
                f"there is no layer {layer} in the target: it has {depth}, "
                f"0 to {depth - 1}"
            )
        if layer not in mapping:
            raise ValueError(f"`layer_map` has nothing for layer {layer}")
        if not 0 <= mapping[layer] < source_depth:
            raise ValueError(
                f"there is no layer {mapping[layer]} in the source for layer "
                f"{layer}: it has {source_depth}, 0 to {source_depth - 1}"
            )
    return {layer: mapping[layer] for layer in wanted}


def listed_layers(layers, name: str = "layers") -> list:
    """Numbers of layers out of a list or a text such as "0,4-6".

    Arguments
    ---------
    layers : list of int, int or str
        What was given.
    name : str
        What the parameter is called.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        For anything else.

    Example
    -------
    >>> listed_layers("0,4-6")
    [0, 4, 5, 6]
    """
    if isinstance(layers, Integral) and not isinstance(layers, bool):
        layers = [layers]
    if isinstance(layers, str) and re.fullmatch(
        r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*", layers
    ):
        spans = [span.partition("-") for span in layers.split(",")]
        layers = [
            layer
            for first, _, last in spans
            for layer in range(int(first), int(last or first) + 1)
        ]
    whole = isinstance(layers, (list, tuple, range)) and all(
        isinstance(layer, Integral) and not isinstance(layer, bool)
        for layer in layers
    )
    if not whole or not layers or min(layers) < 0:
        raise ValueError(
            f"`{name}` must be numbers of layers from 0, as [12, 13] or "
            f"'12-19', or these by stack, as {{'encoder': '4-11'}}; got "
            f"{layers!r}."
        )
    return list(layers)


def spread_evenly(depth: int, source_depth: int) -> list:
    """For each layer the layer of a model that has another number of them.

    Arguments
    ---------
    depth : int
        Layers of the target.
    source_depth : int
        Layers of the source.

    Returns
    -------
    list of int
        First to first, last to last, halves to the lower one.

    Example
    -------
    >>> spread_evenly(4, 6), spread_evenly(12, 6)
    ([0, 2, 3, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    """
    steps = max(depth - 1, 1)
    # integers: no rounding decides a tie
    return [
        (2 * layer * (source_depth - 1) + steps - 1) // (2 * steps)
        for layer in range(depth)
    ]


def by_stack(value, stack: str):
    """The value for one stack: a common one, or the stack's own in a dict."""
    value = with_whole_keys(value)
    if isinstance(value, dict) and any(isinstance(key, str) for key in value):
        return value.get(stack)
    return value


def with_whole_keys(value):
    """A dict of layers as it was before JSON made text of its keys.

    Example
    -------
    >>> with_whole_keys({"0": 1, "2": 3})
    {0: 1, 2: 3}
    """
    if isinstance(value, dict) and all(
        isinstance(key, str) and key.isdecimal() for key in value
    ):
        return {int(key): entry for key, entry in value.items()}
    return value


def check_layers(layers):
    """Raises a ValueError unless this is a form that ``layers`` takes."""
    if layers is None:
        return
    by_stacks = isinstance(layers, dict)
    stacks = list(layers) if by_stacks else []
    if by_stacks and not (stacks and set(stacks) <= set(STACKS)):
        raise ValueError(
            f"`layers` by stack has keys of {STACKS}; got {layers!r}."
        )
    for form in layers.values() if by_stacks else [layers]:
        listed_layers(form)


def check_stack_map(stack_map):
    """Raises a ValueError unless this is None or maps stacks to stacks."""
    fits = stack_map is None or (
        isinstance(stack_map, dict)
        and all(each in STACKS for pair in stack_map.items() for each in pair)
    )
    if not fits:
        raise ValueError(
            "`stack_map` must map a stack of the target to one of the source, "
            f"as {{'encoder': 'decoder'}}; got {stack_map!r}."
        )


def check_layer_map(layer_map):
    """Raises a ValueError unless this is a form that ``layer_map`` takes."""
    forms = [with_whole_keys(layer_map)]
    if isinstance(forms[0], dict) and any(
        isinstance(key, str) for key in forms[0]
    ):
        forms = list(map(with_whole_keys, forms[0].values()))
    for form in forms:
        if form is None or form == EVEN:
            continue
        try:
            if isinstance(form, dict):
                listed_layers(list(form), "layer_map")
                form = list(form.values())
            listed_layers(list(form), "layer_map")
        except (TypeError, ValueError):
            raise ValueError(
                "`layer_map` must be a dict from layer of the target to layer "
                "of the source, a list of the source's layers, 'even', or "
                f"these by stack; got {layer_map!r}."
            ) from None
