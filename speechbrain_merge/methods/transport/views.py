"""Where the units of a space can be seen while a model runs.

A *view* is one place that shows what the units of a space do:

- the outputs of a linear layer or convolution, before any nonlinearity, and of
  a norm that lies on a residual stream;
- queries, keys and values: where they are one fused matrix, or matrices that
  are handed to a function without being called, nothing gives them out. They
  are computed from what the attention is given;
- the input of attention's output projection: what its heads give out.

``linear_pos`` of attention with relative positions is one view of the keys. It
does not depend on the speech, and has the same weight as the other views.

Example
-------
>>> from speechbrain.nnet.attention import RelPosMHAXL
>>> from speechbrain_merge.methods.transport import symmetry
>>> model = torch.nn.ModuleDict({"mha_layer": RelPosMHAXL(4, 2)})
>>> row = ["query_key", "fixed"]
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "in_proj_weight": {"interleaved": [row, row, ["value", "fixed"]]},
...         "out_proj.weight": ["fixed", "value"],
...         "linear_pos.weight": row,
...         "pos_bias_u": {"flat": ["query_key"]},
...         "pos_bias_v": {"flat": ["query_key"]},
...     },
...     "fixed": ["out_proj.bias"],
...     "blocks": {"heads": {"spaces": ["query_key", "value"]}},
... }
>>> for view in views_of(model, symmetry(model, mine)):
...     print(view.place, view.space)
mha_layer.query query_key
mha_layer.key query_key
mha_layer.value value
mha_layer.out_proj.input value
mha_layer.linear_pos query_key

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from dataclasses import dataclass
from typing import Optional

import torch

from speechbrain_merge.methods.transport.spaces import Symmetry

LINEAR = (torch.nn.Linear,)
CHANNELS_FIRST = (torch.nn.Conv1d, torch.nn.Conv2d)
WRITERS = (*LINEAR, *CHANNELS_FIRST, torch.nn.LayerNorm)
# What attention is given, and the layers that make projections of it
GIVEN = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


@dataclass(frozen=True)
class View:
    """One place where a space is seen.

    Arguments
    ---------
    place : str
        Path of the module, and what of it is seen.
    space : str
        The space.
    module : torch.nn.Module
        Whose input or output is seen.
    given : str
        The argument of the module that is seen; empty for its output.
    weight : str
        Name of the module's weight by which the argument is projected first;
        empty where it is seen as it is.
    rows : torch.Tensor, optional
        The rows of that weight; ``None`` for all.
    instead : str
        The view that takes the place of this one where it is seen.
    """

    place: str
    space: str
    module: torch.nn.Module
    given: str = ""
    weight: str = ""
    rows: Optional[torch.Tensor] = None
    instead: str = ""

    @property
    def channels_first(self) -> bool:
        """Whether units are the second axis, and not the last."""
        return not self.given and isinstance(self.module, CHANNELS_FIRST)

    def projected(self, frames: torch.Tensor) -> torch.Tensor:
        """The activations of the units on some frames of the output.

        Arguments
        ---------
        frames : torch.Tensor
            (frames, width). A bias would only be taken off again later.

        Returns
        -------
        torch.Tensor
            (frames, units).
        """
        if not self.weight:
            return frames
        path, _, name = self.weight.rpartition(".")
        weight = getattr(self.module.get_submodule(path), name)
        weight = weight if self.rows is None else weight[self.rows]
        return frames.to(weight.dtype) @ weight.T


def views_of(model: torch.nn.Module, found: Symmetry) -> list[View]:
    """All views of a model.

    Arguments
    ---------
    model : torch.nn.Module
        The model.
    found : Symmetry
        Of the model.

    Returns
    -------
    list of View
    """
    views = []
    for path, module in model.named_modules():
        views += _attention(found, path, module)
        pieces = found.pieces.get(_join(path, "weight"), [])
        if len(pieces) != 1 or pieces[0].rows is not None:
            continue
        rows, columns = pieces[0].axes[0], pieces[0].axes[-1]
        if isinstance(module, LINEAR) and _heads_lie_in(found, columns):
            views.append(
                View(_join(path, "input"), columns, module, given="input")
            )
        if isinstance(module, WRITERS) and rows is not None:
            views.append(View(path, rows, module))
    return views


def argument(
    module: torch.nn.Module, name: str, args: tuple, kwargs: dict
) -> torch.Tensor:
    """One argument of a module's call, by its name or its place.

    Arguments
    ---------
    module : torch.nn.Module
        Whose ``forward`` is called.
    name : str
        What the argument is called; the first where none is.
    args, kwargs : tuple, dict
        Of the call.

    Returns
    -------
    torch.Tensor
    """
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    known = given.arguments
    return known[name] if name in known else next(iter(known.values()))


def _attention(found, path, module):
    """Views of queries, keys and values, which no layer returns."""
    fused = found.pieces.get(_join(path, "in_proj_weight"), [])
    if len(fused) == len(GIVEN):
        return [
            View(
                _join(path, given),
                piece.axes[0],
                module,
                given,
                "in_proj_weight",
                piece.rows,
            )
            for given, piece in zip(GIVEN, fused)
        ]
    views = []
    for given, layer in GIVEN.items():
        pieces = found.pieces.get(_join(path, f"{layer}.weight"), [])
        # only what attends to itself is given all three alike
        if len(pieces) == 1 and "key_value_states" not in _parameters(module):
            views.append(
                View(
                    _join(path, given),
                    pieces[0].axes[0],
                    module,
                    given,
                    f"{layer}.weight",
                    instead=_join(path, layer),
                )
            )
    return views


def _heads_lie_in(found, space):
    """Whether a space consists of attention heads."""
    blocks = found.blocks.get(found.spaces[space].blocks) if space else None
    return blocks is not None and len(blocks.spaces) > 1


def _parameters(module):
    return inspect.signature(module.forward).parameters


def _join(path, name):
    return f"{path}.{name}" if path else name
