r"""Attention merging: the queries, keys and values of one model into another.

Attention learns how things in a sequence belong together, and that may be
worth something to a model of another modality: the attention matrices of BERT
in HuBERT, or of ViT in BEATs (Sundar et al., ICASSP workshops 2024, arXiv
2312.14378). For the projections to queries, keys and values of each chosen
layer i

    W_i = λ · W_i^source + (1 − λ) · W_i^target

and nothing else of the target changes: not its output projections, not its
feed-forward layers and norms, and not the biases of the projections unless
``merge_bias`` asks for it.

One primitive is four published methods:

- **MAM**: ``ratio`` λ over all layers.
- **layer-wise MAM**: with ``layers``, a block or any subset, or a ratio for
  each layer.
- **SA-Merge** (Shankar et al., ICASSP 2025, arXiv 2501.08468): two experts
  over one base, ``space="task_vectors"``. Attention is
  ``base + λ_i τ_1 + (1 − λ_i) τ_2`` with ``λ_i = λ^α_i``, everything else is
  that of the first expert. As the shares sum to one, the base cancels: this
  is MAM with the first expert as the target and 1 − λ_i as ratio, and
  computed so.
- **HSA-Merge** (Computer Speech & Language 2026): the same in the heads only
  that fine-tuning moved most, ``heads=0.6``.

Here λ is the share of the source in MAM and of the *first* expert in SA-Merge,
as in the papers. At λ = 0 with an exponent above 0, SA-Merge gives the second
expert's attention, which is the limit of the formula; the authors' script
treats 0 as "keep the first expert" instead.

Source and target need not be of one family, nor have a name in common: the
projections are matched by what they are. They must have as many heads.

Example
-------
>>> import torch
>>> target = {
...     "encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2),
...     "encoder.layers.0.fc1.weight": torch.zeros(1, 2),
... }
>>> source = {"encoder.layer.0.attention.self.query.weight": torch.ones(2, 2)}
>>> AttentionMerge(ratio=0.25)([source], base=target)
{'encoder.layers.0.self_attn.q_proj.weight': tensor([[0.2500, 0.2500],
        [0.2500, 0.2500]]), 'encoder.layers.0.fc1.weight': tensor([[0., 0.]])}

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import dataclass
from functools import partial
from typing import Optional

import torch

from speechbrain_merge.methods.attention.heads import check_heads, choose_heads
from speechbrain_merge.methods.attention.layers import (
    check_layer_map,
    check_layers,
    check_stack_map,
)
from speechbrain_merge.methods.attention.noise import (
    KINDS,
    SCOPES,
    STANDARD,
    drawn_like,
    moments,
    moments_of_model,
)
from speechbrain_merge.methods.attention.pairs import (
    pair_attention,
    under_names_of,
    with_biases,
)
from speechbrain_merge.methods.attention.ratios import (
    check_ratio,
    check_schedule,
    ratio_of,
)
from speechbrain_merge.methods.base import MergeMethod, is_finite, weighted_sum
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_switch,
    check_whole,
)
from speechbrain_merge.methods.registry import register
from speechbrain_merge.weights import (
    Weights,
    check_compatible,
    entry_of_pieces,
    fold,
    matches,
    part,
    widened,
)
from speechbrain_merge.weights.adapters import factor_of

SPACES = ("parameters", "task_vectors")

# By name of a tensor and by place in the model: the projections in it
Takers = dict[str, dict]


@dataclass(frozen=True)
class Found:
    """The findings of the first pass over a source and a target.

    Arguments
    ---------
    takers : dict
        Name of a tensor of the target to its projections that are merged.
    ratios : dict
        Name to λ.
    heads : dict
        Projection to the heads that are merged, where not all are.
    moments : dict
        "weight" and "bias" to the moments of noise that are those of all.
    """

    takers: dict
    ratios: dict
    heads: dict
    moments: dict


@register("attention_merge")
class AttentionMerge(MergeMethod):
    """MAM, layer-wise MAM, SA-Merge and HSA-Merge; see the module's text.

    Experts and base may be models of different kinds.

    Arguments
    ---------
    ratio : float, list or dict
        λ, from 0 to 1: the source's share (``space="parameters"``), or the
        first expert's (``"task_vectors"``). A number, a list with one for
        each layer, or a mapping by ``parts`` or ``depth``
        (``speechbrain_merge.methods.coefficients``).
    layers : list of int, str or dict, optional
        Which layers of the target, from 0: ``[12, 13]``, ``"12-19"``, or by
        stack, ``{"encoder": "4-11"}``. Default: all.
    schedule : float or list of float, optional
        Exponents α of the ratio. A number: layer i of L has λ^(α(i+1)/L)
        (HSA-Merge has 0.2). A list of n: the layers are n blocks, from first
        to last, and a layer in block b has λ^α_b (SA-Merge has three).
    heads : float or list of int, optional
        Only these heads: the share that moved most (HSA-Merge has 0.6), or
        their numbers. With one source, "moved" is its distance from the
        target. Default: all.
    space : str
        "parameters": one expert, the source, into the base, the target.
        "task_vectors": two experts of one base; all but their attention is
        the first one's.
    merge_bias : bool
        Whether biases of the projections are merged as well (SA-Merge's
        script does). A bias that the source does not have is zero; one that
        the target does not have stays out (Whisper has none for keys, where
        it would change nothing: it adds the same to all logits of a query).
    include : str or list of str, optional
        Which attention of the target, as patterns of
        ``speechbrain_merge.weights.matches``, e.g. ``encoder`` or
        ``["encoder", "decoder.attention"]``. Default: all, also
        cross-attention.
    layer_map : dict, list or "even", optional
        Layer of the target to layer of the source, where they have not the
        same number: see ``pair_attention``. Our extension.
    stack_map : dict, optional
        Stack of the target to stack of the source.
    number_of_heads : int, optional
        Where ``heads``, ``same_heads`` or the fused rows of SpeechBrain's
        `RoPEMHA` need it and nothing in the weights tells.
    same_heads : bool
        Whether a source with another number of heads is refused (the papers'
        have as many). False mixes rows, whatever heads they belong to.
    noise : str, optional
        Instead of the source normal noise, with the mean and variance of the
        ``"source"``, of the ``"target"``, or ``"standard"``: a control.
    noise_scope : str
        Mean and variance of each matrix ("tensor"), or of all ("global").
    seed : int
        Of the noise.

    Example
    -------
    >>> AttentionMerge(ratio=0.25, layers="12-19").layers  # LJSpeech's best
    '12-19'
    """

    needs_base = True
    needs_same_names = False
    piecewise = True

    def __init__(
        self,
        ratio=0.1,
        layers=None,
        schedule=None,
        heads=None,
        space="parameters",
        merge_bias=False,
        include=None,
        layer_map=None,
        stack_map=None,
        number_of_heads=None,
        noise=None,
        noise_scope="tensor",
        seed=0,
        same_heads=True,
    ):
        super().__init__()
        check_ratio(ratio)
        check_layers(layers)
        check_schedule(schedule)
        check_heads(heads)
        check_choice(space, "space", SPACES)
        check_switch(merge_bias, "merge_bias")
        check_switch(same_heads, "same_heads")
        if include is not None and not isinstance(include, (str, list, tuple)):
            raise ValueError(
                "`include` must be a pattern or a list of patterns, got "
                f"{include!r}."
            )
        for pattern in [include] if isinstance(include, str) else include or []:
            matches("", pattern)  # a misspelt pattern stops here
        check_layer_map(layer_map)
        check_stack_map(stack_map)
        if number_of_heads is not None:
            check_whole(number_of_heads, "number_of_heads", at_least=1)
        check_choice(noise, "noise", (None, *KINDS))
        check_choice(noise_scope, "noise_scope", SCOPES)
        check_whole(seed, "seed")
        if noise is not None and space == "task_vectors":
            raise ValueError(
                "`noise` takes the place of a source: it needs "
                "space='parameters'."
            )
        self.ratio, self.layers, self.schedule = ratio, layers, schedule
        self.heads, self.space, self.merge_bias = heads, space, merge_bias
        self.include, self.layer_map = include, layer_map
        self.stack_map, self.number_of_heads = stack_map, number_of_heads
        self.noise, self.noise_scope, self.seed = noise, noise_scope, seed
        self.same_heads = same_heads
        number = 2 if space == "task_vectors" else 1
        self.minimum_experts = self.maximum_experts = number
        # What belongs together in models under different names
        self._paired: Optional[Takers] = None

    def merged(
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
        """The merged model, each tensor of which is merged when it is read.

        Arguments and errors are those of ``MergeMethod.merged``, but that the
        models need no names in common.

        Returns
        -------
        merged : Weights
            With the names of the target: the base's, or those of the first
            expert in the space of task vectors. Its weight norm stays as it
            is; LoRA is folded.
        """
        self.check_experts(len(experts))
        if base is None:
            raise ValueError(
                f"Merge method '{self.name}' takes attention into a target, or "
                "into a base by task vectors: give `base`."
            )
        models = [widened(_without_lora(model)) for model in [*experts, base]]
        target = models[0] if self.space == "task_vectors" else models[-1]
        paired: Takers = {}
        views = []
        for model in models:
            if model is target:
                views.append(target)
                continue
            pairs = self._pairs(target, model)
            views.append(under_names_of(target, model, pairs))
            for taker, _ in pairs:
                paired.setdefault(taker.name, {})[taker.key] = taker
        method = self._copy()
        method._paired = paired
        method = method.prepared(
            views[:-1], views[-1], labels, workers, progress
        )
        return Weights(
            {
                name: entry_of_pieces(
                    target.shape(name),
                    target.dtype(name),
                    partial(method.entry_pieces, name, views[:-1], views[-1]),
                )
                for name in target.names()
            },
            label=f"merge by {self.name}",
            tied=target.tied,
        )

    def prepare(self, experts, base):
        """Finds what is merged, with which ratio, which heads, what noise."""
        target, source = self._roles(experts, base)
        paired = self._paired
        if paired is None:
            # inside another method, where all have the same names
            paired = {}
            for taker, _ in self._pairs(target, source):
                paired.setdefault(taker.name, {})[taker.key] = taker
        takers = {name: list(found.values()) for name, found in paired.items()}
        ratios = {
            name: ratio_of(self.ratio, self.schedule, name, self.depths)
            for name in takers
        }
        heads, together = {}, {}
        if self.heads is not None:
            heads = choose_heads(self, takers, experts, base)
        if self.noise in ("source", "target") and self.noise_scope == "global":
            model = source if self.noise == "source" else target
            together = moments_of_model(self, model, list(takers))
        return Found(takers, ratios, heads, together)

    def entry_pieces(self, name, experts, base=None):
        """Merges attention, and copies everything else of the target."""
        if name in self.found.takers:
            return super().entry_pieces(name, experts, base)
        kept = self._roles(experts, base)[0][name]
        if kept.is_floating_point() and not is_finite(kept):
            check_compatible(experts, base)
        return [kept.reshape(-1)]

    def merge_tensor(self, name, experts, base):
        """``λ · source + (1 − λ) · target`` in the chosen heads."""
        target, source = self._roles(experts, base)
        found = self.found
        if name not in found.takers:
            return target
        share, rest = found.ratios[name], 1 - found.ratios[name]
        if self.space == "task_vectors":
            share, rest = rest, share
        if share == 0:
            return target
        if self.noise is not None:
            source = self._noisy(name, source, target)
        # copied where nothing is to be computed, so that no bit changes
        merged = source
        if rest != 0:
            merged = weighted_sum([source, target], [share, rest])
        if self.heads is not None:
            merged = merged.clone()
            for taker in found.takers[name]:
                for head in range(taker.heads):
                    if head not in found.heads[taker.key]:
                        rows = taker.rows(head)
                        merged[rows] = target[rows]
        return merged

    def _roles(self, experts, base):
        """Which of the inputs is the target, and which the source."""
        if self.space == "task_vectors":
            return experts[0], experts[1]
        return base, experts[0]

    def _pairs(self, target, source):
        """The target's projections that are merged, with the source's."""
        pairs = pair_attention(
            target,
            source,
            self.include,
            self.layers,
            self.layer_map,
            self.stack_map,
            self.number_of_heads,
            self.same_heads,
        )
        if self.merge_bias:
            pairs += with_biases(pairs, target, source, self.number_of_heads)
        return pairs

    def _noisy(self, name, source, target):
        """The noise that takes the place of a tensor of the source."""
        made = torch.empty_like(target, memory_format=torch.contiguous_format)
        kind = part(name).kind
        for taker in self.found.takers[name]:
            model = target if self.noise == "target" else source
            like = self.found.moments.get(kind)
            if self.noise == "standard":
                like = STANDARD
            elif like is None:
                like = moments(taker.take(model))
            drawn = drawn_like(
                like, taker.take(target), self.seed, f"{taker.key}.{kind}"
            )
            made[taker.rows()] = drawn
        return made


def _without_lora(weights):
    """A model with LoRA folded, and weight norm as it is stored."""
    return fold(weights) if any(map(factor_of, weights)) else weights
