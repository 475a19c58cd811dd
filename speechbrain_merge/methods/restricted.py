"""Any method, on some parts of the model only.

The encoder may need another merge than the decoder, and embeddings none at
all. ``Restricted`` merges the chosen tensors by a method, and does something
plain with the others. Restrictions nest: what is plain for one may be another
restriction's method.

A method that looks at the whole model first (TIES for its threshold) sees only
the chosen part.

A tensor that has several names, such as an embedding that is also the output
layer, is one tensor still. It is included if any of its names is, and excluded
if any of its names is.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Restricted, TaskArithmetic
>>> base = {
...     "encoder.norm.bias": torch.zeros(1),
...     "decoder.norm.bias": torch.zeros(1),
... }
>>> experts = [{name: torch.ones(1) for name in base} for _ in range(2)]
>>> Restricted(TaskArithmetic(), include="encoder", otherwise="base")(
...     experts, base
... )
{'encoder.norm.bias': tensor([2.]), 'decoder.norm.bias': tensor([0.])}

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Union

from speechbrain_merge.methods.base import MergeMethod, mean
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.methods.registry import create, register
from speechbrain_merge.weights import Weights, common_ties, matches


@register("restricted")
class Restricted(MergeMethod):
    """A method for the tensors that match; others are averaged or copied.

    Arguments
    ---------
    method : MergeMethod or str
        A method, or a registered name.
    include : str or list of str, optional
        Patterns (``speechbrain_merge.weights.matches``), such as ``encoder``,
        ``decoder.attention``, ``encoder.layers.0-3`` or a glob on the name; a
        tensor that matches any is merged by the method. Default: all. Of tied
        tensors one name is enough.
    exclude : str or list of str, optional
        Tensors that match any of these are not, included or not. Of tied
        tensors, too, one name is enough.
    otherwise : str
        How the others are made: the ``"average"`` of the experts, the
        ``"base"``'s, or the ``"first"`` expert's.

    Example
    -------
    >>> import torch
    >>> experts = [
    ...     {
    ...         "layer.weight": torch.full((1,), value),
    ...         "layer.bias": torch.full((1,), value),
    ...     }
    ...     for value in (0.0, 3.0)
    ... ]
    >>> Restricted("extreme", exclude="*.bias")(experts)
    {'layer.weight': tensor([3.]), 'layer.bias': tensor([1.5000])}
    """

    def __init__(
        self,
        method: Union[MergeMethod, str, dict],
        include: Union[str, list[str], None] = None,
        exclude: Union[str, list[str], None] = None,
        otherwise: str = "average",
    ):
        super().__init__()
        check_choice(otherwise, "otherwise", ("average", "base", "first"))
        for patterns, name in ((include, "include"), (exclude, "exclude")):
            if patterns is not None:
                _check_patterns(patterns, name)
        if include is None and exclude is None:
            raise ValueError(
                "Restricted to nothing: give patterns to `include`, `exclude` "
                "or both."
            )
        self.method = check_method(method)
        self.include, self.exclude = include, exclude
        self.otherwise = otherwise
        self.needs_base = self.method.needs_base or otherwise == "base"

    @property
    def on_device(self):
        """Whether the method that it wraps computes on a GPU."""
        return self.method.on_device

    def check_experts(self, number: int) -> None:
        """Raises a ValueError when the method cannot merge so many experts."""
        self.method.check_experts(number)

    def prepare(self, experts, base):
        """The names that are chosen, and the method, prepared for these."""
        names = experts[0].names()
        ties = common_ties(experts)
        together = {name: [name] for name in names if name not in ties}
        for alias, kept in ties.items():
            together[kept].append(alias)
        chosen = {
            name
            for same in together.values()
            if self.chooses(*same)
            for name in same
        }
        if not chosen:
            raise ValueError(
                f"No tensor matches include={self.include!r}, "
                f"exclude={self.exclude!r}. Names are like {names[:5]}."
            )
        method = self.prepared_inner(
            self.method,
            [_part(expert, chosen) for expert in experts],
            None if base is None else _part(base, chosen),
        )
        return chosen, method

    def chooses(self, *names: str) -> bool:
        """Whether a tensor is merged by the method.

        Arguments
        ---------
        *names : str
            Name of the tensor, or all names of a tied one.

        Returns
        -------
        chosen : bool
        """

        def match(patterns):
            return any(_matches_any(name, patterns) for name in names)

        included = self.include is None or match(self.include)
        excluded = self.exclude is not None and match(self.exclude)
        return included and not excluded

    def merge_tensor(self, name, experts, base):
        """Merges one tensor by the method or plainly."""
        chosen, method = self.found
        if name in chosen:
            return method.merge_tensor(name, experts, base)
        if self.otherwise == "average":
            return mean(experts)
        return base if self.otherwise == "base" else experts[0]


def check_method(method: Union[MergeMethod, str, dict]) -> MergeMethod:
    """A method that was given as such or by its registered name.

    Arguments
    ---------
    method : MergeMethod, str or dict
        What was given; a dict has the name as ``method``, and the parameters
        beside it or, as ``configuration`` gives them, as ``parameters``.

    Returns
    -------
    method : MergeMethod

    Raises
    ------
    ValueError
        When it is none of these.
    """
    if isinstance(method, str):
        return create(method)
    if isinstance(method, dict) and isinstance(method.get("method"), str):
        known = ("method", "parameters")
        beside = {key: method[key] for key in method if key not in known}
        return create(method["method"], **beside, **method.get(known[1], {}))
    if not isinstance(method, MergeMethod):
        raise ValueError(
            "`method` must be a merge method or its registered name, got "
            f"{method!r}."
        )
    return method


def _part(weights, chosen):
    """The chosen part of open weights."""
    return Weights(
        {
            name: weights.entry(name)
            for name in weights.names()
            if name in chosen
        },
        weights.label,
        tied={
            alias: kept
            for alias, kept in weights.tied.items()
            if alias in chosen and kept in chosen
        },
    )


def _check_patterns(patterns, name):
    """Raises a ValueError unless these are words."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    right = isinstance(listed, (list, tuple)) and len(listed) > 0
    if not right or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(
            f"`{name}` must be a pattern or a list of patterns, got "
            f"{patterns!r}."
        )
    for pattern in listed:
        matches("", pattern)  # raises where a pattern has an unknown word


def _matches_any(name, patterns):
    """Whether a name matches a pattern or any of several."""
    if isinstance(patterns, str):
        return matches(name, patterns)
    return any(matches(name, pattern) for pattern in patterns)
