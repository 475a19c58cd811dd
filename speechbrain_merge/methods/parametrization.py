r"""Learnable attention merging in a live model, by parametrized weights.

In learnable attention merging (L-MAM; Sundar et al., ICASSP workshops 2024,
arXiv 2312.14378, eq. 3) a layer's projections to queries, keys and values are

    W_i = λ_i · W_i^source + (1 − λ_i) · W_i^target

while the model is trained: λ_i, one for the queries, keys and values of a
layer together, and the target's weights are learned, the source is frozen.
``parametrize_attention`` makes a model compute so, by
``torch.nn.utils.parametrize``, whatever its attention looks like: three
matrices or a fused one, of SpeechBrain or of Hugging Face.

What is where afterwards, for a matrix ``q_proj.weight``:

- ``q_proj.parametrizations.weight.original`` is the target's matrix, the very
  parameter that it was.
- ``q_proj.parametrizations.weight.0.ratio.value`` is what λ is computed from.
  The layer's first projection alone has it, so that it is one parameter, in
  optimizers, checkpoints and under DDP.
- The source is none of the module's parameters and buffers: it moves along with
  the module (``.to``), but is in no checkpoint, and DDP does not send it around
  before each step. A checkpoint holds a short hash of it in its place
  (``source_digest``), and is refused by a model that was given another source.
  So, to resume or to load, parametrize the model in the same way first.

A model's plain weights may be loaded as well, by its plain names: it then
computes with these alone, λ is 0. ``fold_attention`` makes it a plain model
again, and ``speechbrain_merge.weights.plain_state`` reads the plain weights
without changing the model; both are exactly what it computed with. At λ = 0
they are exactly the target's (only −0.0 may come out as 0.0).

Example
-------
>>> from speechbrain.nnet.attention import RelPosMHAXL
>>> target, source = (
...     torch.nn.ModuleDict({"mha_layer": RelPosMHAXL(4, 2)}) for _ in range(2)
... )
>>> layer = target["mha_layer"]
>>> before = layer.in_proj_weight.detach().clone()
>>> state = {f"layers.0.{k}": v for k, v in source.state_dict().items()}
>>> model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([target])})
>>> ratios = parametrize_attention(model, state, ratio=0.25)
>>> list(ratios)
['layers.0.attention']
>>> mixed = 0.75 * before + 0.25 * state["layers.0.mha_layer.in_proj_weight"]
>>> torch.allclose(layer.in_proj_weight, mixed)
True
>>> learned_ratio(model)
{'parts': {'layers.0.attention': 0.25}, 'default': 0.0}

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch
from torch.nn.utils import parametrize

from speechbrain_merge.methods.attention.pairs import (
    pair_attention,
    under_names_of,
)
from speechbrain_merge.methods.attention.ratios import ratio_of
from speechbrain_merge.methods.bounds import BOUNDS, bounded, value_of
from speechbrain_merge.methods.coefficients import check_coefficient
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import (
    depth,
    digest,
    fold,
    has_adapters,
    open_weights,
)
from speechbrain_merge.weights.adapters import factor_of
from speechbrain_merge.weights.dtypes import common_dtype

DIGEST_BYTES = 8


class SourceRatio(torch.nn.Module):
    """λ of one attention layer.

    Arguments
    ---------
    ratio : float
        λ to start from.
    lambda_param : str
        "free", "clamp" or "sigmoid"; see ``speechbrain_merge.methods.bounds``.
    place : str
        Which layer's it is, such as ``encoder.layers.3.attention``.
    like : torch.Tensor, optional
        Says the device, and the type where that is wider than float32.

    Example
    -------
    >>> ratio = SourceRatio(0.1, "clamp", "encoder.layers.3.attention")
    >>> ratio().item() == torch.tensor(0.1).item()
    True
    """

    def __init__(self, ratio, lambda_param, place, like=None):
        super().__init__()
        like = torch.zeros(()) if like is None else like
        self.place, self.lambda_param = place, lambda_param
        self.value = torch.nn.Parameter(
            torch.tensor(
                value_of(ratio, lambda_param),
                dtype=common_dtype([like.dtype, torch.float32]),
                device=like.device,
            )
        )

    def forward(self):
        """λ, a tensor of no dimension that gradients reach."""
        return bounded(self.value, self.lambda_param)

    def nothing(self):
        """The value at which λ is exactly 0."""
        nowhere = -torch.inf if self.lambda_param == "sigmoid" else 0.0
        return torch.full_like(self.value, nowhere)


class AttentionSource(torch.nn.Module):
    """The parametrisation: a target's matrix to the one it computes with.

    Arguments
    ---------
    source : torch.Tensor
        The source's matrix, arranged as the target's.
    ratio : SourceRatio
        λ of the layer.
    registers : bool
        Whether this is the one projection of its layer through which the
        model knows λ.
    """

    # For good, it can be replaced by what it computes
    foldable = True

    def __init__(self, source, ratio, registers):
        super().__init__()
        # Not a buffer: see the module's text
        self.source = source.detach().clone()
        # In a tuple, a module is not registered
        self._ratio = (ratio,)
        if registers:
            self.ratio = ratio
        hexadecimal = digest({"source": self.source})[: 2 * DIGEST_BYTES]
        self.register_buffer(
            "source_digest",
            torch.tensor(list(bytes.fromhex(hexadecimal)), dtype=torch.uint8),
        )

    def forward(self, target):
        """``λ · source + (1 − λ) · target``."""
        ratio = self._ratio[0]().to(target.dtype)
        return torch.lerp(target, self.source, ratio)

    def _apply(self, function, *arguments, **options):
        super()._apply(function, *arguments, **options)
        self.source = function(self.source)
        return self

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        given = state_dict.get(f"{prefix}source_digest")
        if given is not None and not torch.equal(
            given.cpu(), self.source_digest.cpu()
        ):
            errors.append(
                f"{prefix}: the checkpoint's attention was learned with "
                "another source than this model was given. Give "
                "`parametrize_attention` the same source, layers and "
                "layer_map as in that training."
            )
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )


def parametrize_attention(
    target: torch.nn.Module,
    source,
    ratio=0.1,
    lambda_param: str = "clamp",
    layers=None,
    include=None,
    layer_map=None,
    stack_map: Optional[dict] = None,
    number_of_heads: Optional[int] = None,
    same_heads: bool = True,
) -> dict:
    """Makes a model's attention a learnable mixture of its own and a source's.

    To be called when the target has the weights that its training starts from,
    and before the optimizer, DDP or a checkpointer see the model.

    Arguments
    ---------
    target : torch.nn.Module
        The model, changed in place.
    source : any source of ``open_weights``
        The model whose attention is taken; it may be of another kind.
    ratio : float, list or dict
        λ to start from, as for ``attention_merge``: a number, a list with one
        a layer, or a mapping by ``parts`` or ``depth``. The paper does not
        say; it finds 0.05 to 0.25 best without training.
    lambda_param : str
        "clamp" keeps λ in [0, 1], "sigmoid" within, "free" lets it go; see
        ``speechbrain_merge.methods.bounds``. The paper calls λ a gate and
        names no bound.
    layers, include, layer_map, stack_map, number_of_heads, same_heads : optional
        Which attention of the target takes, and which of the source's: as for
        ``speechbrain_merge.methods.pair_attention``.

    Returns
    -------
    dict
        Place, such as ``encoder.layers.3.attention``, to ``SourceRatio``.

    Raises
    ------
    IncompatibleWeights
        Where the two do not fit.
    ValueError
        For a ratio that cannot be, a target with LoRA or whose attention is
        parametrized already.
    """
    check_choice(lambda_param, "lambda_param", BOUNDS)
    check_coefficient(ratio, "ratio")
    _check_target(target)
    with open_weights(target) as taking, open_on_record(source) as whole:
        # LoRA is folded; weight norm is of no concern to attention
        giving = fold(whole) if any(map(factor_of, whole)) else whole
        pairs = pair_attention(
            taking,
            giving,
            include,
            layers,
            layer_map,
            stack_map,
            number_of_heads,
            same_heads,
        )
        depths = depth(taking.names())
        given = under_names_of(taking, giving, pairs)
        names, starts = {}, {}
        for taker, _ in pairs:
            place = str(taker.key).rpartition(".")[0]
            names[taker.name] = place
            start = ratio_of(ratio, None, taker.name, depths)
            value_of(start, lambda_param)  # raises before anything changes
            if starts.setdefault(place, start) != start:
                raise ValueError(
                    f"`ratio` has both {starts[place]} and {start} for "
                    f"{place}: queries, keys and values share one."
                )
        tensors = {name: given[name] for name in names}
    ratios = {}
    for name, place in names.items():
        path, _, weight = name.rpartition(".")
        owner = target.get_submodule(path)
        own = getattr(owner, weight)
        registers = place not in ratios
        if registers:
            ratios[place] = SourceRatio(
                starts[place], lambda_param, place, like=own
            )
        mixture = AttentionSource(
            tensors[name].to(own.device), ratios[place], registers
        )
        parametrize.register_parametrization(owner, weight, mixture)
        owner.register_load_state_dict_pre_hook(_take_plain)
    return ratios


def source_ratios(module: torch.nn.Module) -> dict:
    """All λ of a model, as modules.

    Arguments
    ---------
    module : torch.nn.Module
        After ``parametrize_attention``, or what contains such a model.

    Returns
    -------
    dict
        Place to ``SourceRatio``, in the order of the model. Empty for a plain
        model. Where a module contains several such models, their places have
        the models' names in front.
    """
    found = [
        (path, each)
        for path, each in module.named_modules()
        if isinstance(each, SourceRatio)
    ]
    places = [each.place for _, each in found]
    return {
        each.place if places.count(each.place) == 1 else path: each
        for path, each in found
    }


def learned_ratio(module: torch.nn.Module) -> dict:
    """λ of each layer as it is now, in the form that merge methods take.

    Arguments
    ---------
    module : torch.nn.Module
        After ``parametrize_attention``.

    Returns
    -------
    dict
        ``{"parts": {place: λ}, "default": 0.0}``: what ``attention_merge`` and
        ``learnable_attention_merge`` take as ``ratio``.
    """
    return {
        "parts": {
            place: float(ratio().detach())
            for place, ratio in source_ratios(module).items()
        },
        "default": 0.0,
    }


def fold_attention(module: torch.nn.Module) -> torch.nn.Module:
    """Makes a model plain again, with exactly the weights it computes with.

    Arguments
    ---------
    module : torch.nn.Module
        After ``parametrize_attention``; changed in place. The target's
        matrices are the same parameters as before, with other values.

    Returns
    -------
    torch.nn.Module
        The same.
    """
    for owner, name in list(_mixtures(module)):
        parametrize.remove_parametrizations(
            owner, name, leave_parametrized=True
        )
    return module


def _mixtures(module):
    """Yields (module, name of a weight of it that takes from a source)."""
    for owner in module.modules():
        if parametrize.is_parametrized(owner):
            for name, formulas in owner.parametrizations.items():
                if any(isinstance(each, AttentionSource) for each in formulas):
                    yield owner, name


def _check_target(target):
    if has_adapters(target):
        raise ValueError(
            "The target has LoRA, and learnable attention merging trains its "
            "attention in full: give the model without adapters."
        )
    if any(_mixtures(target)):
        raise ValueError(
            "The target's attention takes from a source already: call "
            "`fold_attention` first to take from another one."
        )


def _take_plain(owner, state_dict, prefix, *_):
    """Loads plain weights as the target's, and sets λ to 0."""
    for name, formulas in getattr(owner, "parametrizations", {}).items():
        if prefix + name not in state_dict:
            continue
        stem = f"{prefix}parametrizations.{name}."
        if f"{stem}original" in state_dict:
            continue
        state_dict[f"{stem}original"] = state_dict.pop(prefix + name)
        for index, mixture in enumerate(formulas):
            if isinstance(mixture, AttentionSource):
                state_dict[f"{stem}{index}.source_digest"] = (
                    mixture.source_digest
                )
                if hasattr(mixture, "ratio"):
                    state_dict[f"{stem}{index}.ratio.value"] = (
                        mixture.ratio.nothing()
                    )
