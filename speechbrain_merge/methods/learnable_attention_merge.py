r"""Learnable attention merging (L-MAM): how much of another's attention, learned.

As `attention_merge`, this takes the queries, keys and values of a source into
a target, but with one λ for each layer that training finds, together with the
target's weights, while the source stays as it is (Sundar et al., ICASSP
workshops 2024, arXiv 2312.14378, eq. 3)::

    W_i = λ_i · W_i^source + (1 − λ_i) · W_i^target,   i a layer

In a recipe's YAML, λ with a learning rate of its own (the paper trains with
1e-5, at which λ would hardly move in its two epochs)::

    attention: !new:speechbrain_merge.methods.LearnableAttentionMerge
        ratio: 0.1
    opt_class: !name:speechbrain_merge.methods.ratio_optimizer
        modules: !ref <modules>
        optimizer: !name:torch.optim.AdamW
            lr: 0.00001
        lambda_learning_rate: 0.001

and in its ``train.py``, before the Brain is made::

    hparams["attention"].attach(hparams["wav2vec2"], hparams["source"])

That is all: checkpoints, resuming and pools work as usual
(``speechbrain_merge.methods.parametrization`` says how), and ::

    fold_attention(hparams["wav2vec2"])

after training makes it a plain model, for export.

As a merge method, it is given λ, and merges weights as `attention_merge` does
with the same.

Example
-------
>>> import torch
>>> names = [f"encoder.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
>>> target = {name: torch.zeros(1, 2) for name in names}
>>> source = {name: torch.ones(1, 2) for name in names}
>>> method = LearnableAttentionMerge(ratio=[0.25, 0.5])
>>> [tensor.tolist() for tensor in method([source], base=target).values()]
[[[0.25, 0.25]], [[0.5, 0.5]]]

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.attention.merge import AttentionMerge
from speechbrain_merge.methods.attention.ratios import check_ratio
from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.bounds import BOUNDS
from speechbrain_merge.methods.coefficients import check_coefficient
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.methods.parametrization import (
    learned_ratio,
    parametrize_attention,
)
from speechbrain_merge.methods.registry import register


@register("learnable_attention_merge")
class LearnableAttentionMerge(MergeMethod):
    """L-MAM; see the module's text.

    Arguments
    ---------
    ratio : float, list or dict
        λ to start from, or as it was learned (``learned_ratio``): a number, a
        list with one a layer, or a mapping by ``parts`` or ``depth``. At 0,
        training starts from the very target, and λ has a gradient.
    lambda_param : str
        "clamp" keeps λ in [0, 1], "sigmoid" within, "free" lets it go; see
        ``speechbrain_merge.methods.bounds``.
    layers, include, layer_map, stack_map, number_of_heads, same_heads : optional
        Which attention of the target takes, and which of the source's: as for
        ``AttentionMerge``.

    Example
    -------
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(
    ...     vocab_size=8,
    ...     hidden_size=4,
    ...     num_hidden_layers=2,
    ...     num_attention_heads=2,
    ...     intermediate_size=4,
    ... )
    >>> target, source = BertModel(config), BertModel(config)
    >>> method = LearnableAttentionMerge(ratio=0.0)
    >>> ratios = method.attach(target, source)
    >>> target(torch.tensor([[1, 2]])).pooler_output.sum().backward()
    >>> bool(ratios["encoder.layers.1.attention"].value.grad != 0)
    True
    """

    needs_base = True
    needs_same_names = False
    minimum_experts = maximum_experts = 1

    def __init__(
        self,
        ratio=0.1,
        lambda_param="clamp",
        layers=None,
        include=None,
        layer_map=None,
        stack_map=None,
        number_of_heads=None,
        same_heads=True,
    ):
        super().__init__()
        check_choice(lambda_param, "lambda_param", BOUNDS)
        if lambda_param == "free":
            check_coefficient(ratio, "ratio")
        else:
            check_ratio(ratio)
        self.ratio, self.lambda_param = ratio, lambda_param
        self.layers, self.include = layers, include
        self.layer_map, self.stack_map = layer_map, stack_map
        self.number_of_heads = number_of_heads
        self.same_heads = same_heads
        self._fixed = AttentionMerge(0.0, **self._chosen())
        # Its own check asks for a share, which a free λ need not be
        self._fixed.ratio = ratio

    def attach(self, target, source):
        """Lets a model learn with λ; see ``parametrize_attention``.

        Arguments
        ---------
        target : torch.nn.Module
            Changed in place, before an optimizer or checkpointer knows it.
        source : any source of ``open_weights``
            The model whose attention is taken.

        Returns
        -------
        dict
            Place, such as ``encoder.layers.3.attention``, to its λ.
        """
        return parametrize_attention(
            target, source, self.ratio, self.lambda_param, **self._chosen()
        )

    def learned(self, target):
        """The method that merges source and target as a model has learned to.

        Arguments
        ---------
        target : torch.nn.Module
            That ``attach`` changed and training taught.

        Returns
        -------
        method : LearnableAttentionMerge
            With λ as it is now.
        """
        return LearnableAttentionMerge(
            learned_ratio(target), self.lambda_param, **self._chosen()
        )

    def merged(
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
        """The merged model, as ``AttentionMerge`` makes it with these λ."""
        self.check_experts(len(experts))
        if base is None:
            raise ValueError(
                f"Merge method '{self.name}' takes attention into a target: "
                "give `base`."
            )
        method = self._fixed.using(self.device)
        return method.merged(experts, base, labels, workers, progress)

    def prepare(self, experts, base):
        """What is merged with these λ, inside another method."""
        return self.prepared_inner(self._fixed, experts, base)

    def merge_tensor(self, name, experts, base):
        """``λ · source + (1 − λ) · target``."""
        return self.found.merge_tensor(name, experts, base)

    def _chosen(self):
        """The parameters that say which layers."""
        return {
            "layers": self.layers,
            "include": self.include,
            "layer_map": self.layer_map,
            "stack_map": self.stack_map,
            "number_of_heads": self.number_of_heads,
            "same_heads": self.same_heads,
        }
