"""Fusion by optimal transport: align, then merge.

OTF (Fu et al., "OTF: Optimal transport based fusion of supervised and
self-supervised learning models for automatic speech recognition", Interspeech
2023) averages a model and one that was aligned to it. Here all experts are
aligned to the first, or to the base, and merged by any method; the fused model
then wants a moderate fine-tuning.

Two things differ from the paper's equations, which shrink the weights and
break residual networks: plans are scaled to rows that sum to one, and whole
symmetry groups move together (``symmetry_map``).

Example
-------
>>> import torch
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "fc1.weight": ["hidden", "fixed"],
...         "fc2.weight": ["fixed", "hidden"],
...     },
... }
>>> first = {
...     "fc1.weight": torch.tensor([[1.0], [-1.0]]),
...     "fc2.weight": torch.tensor([[2.0, 3.0]]),
... }
>>> swapped = {
...     "fc1.weight": torch.tensor([[-1.0], [1.0]]),
...     "fc2.weight": torch.tensor([[3.0, 2.0]]),
... }
>>> OptimalTransport(architecture=mine)([first, swapped])
{'fc1.weight': tensor([[ 1.],
        [-1.]]), 'fc2.weight': tensor([[2., 3.]])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.average import Average
from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.expert_statistics import (
    check_models,
    check_statistics,
    open_statistics,
)
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.restricted import check_method
from speechbrain_merge.methods.transport.alignment import (
    check_options,
    find_alignment,
)
from speechbrain_merge.methods.transport.learned_map import read_learned_map
from speechbrain_merge.methods.transport.learning import check_learning
from speechbrain_merge.weights.mapping import Weights


@register("optimal_transport")
class OptimalTransport(MergeMethod):
    """Experts aligned to one of them, and then merged.

    Arguments
    ---------
    reg : float
        Strength of the entropy of soft maps, in units of the largest cost; 0
        is the exact plan.
    cost : "weights", "activations", "learned" or dict
        By what units are compared: weights; what they do on audio, which
        ``speechbrain_merge.brain.statistics.collect_statistics`` collects
        before the merge; or the ``unit_activations`` of each expert in their
        order, ``{"anchor": …, "experts": [None, …]}``. "learned" permutations
        are chosen by the loss of the mean, on transcribed speech; they are
        learned before the merge, at the same place.
    hard : bool
        Permutations, which leave each expert's outputs as they were, or soft
        maps.
    weight : float or list of float, optional
        The share of the first expert in the average, the others having equal
        parts of the rest; or a weight for each. Default: equal.
    method : MergeMethod, str or dict
        What merges the aligned experts; a method, its registered name, or the
        name and its parameters. ``weight`` is for the average only.
    anchor : str, optional
        "first": the experts are aligned to the first of them; "base": to the
        base, which is the default of methods on task vectors and the only
        thing that makes sense for them.
    architecture : str, Path or dict
        Registered name, symmetry map of your own, or "detect".
    heads : int, optional
        Number of attention heads, where the tensors do not tell.
    sweeps, distance, residual, heads_map, keep_norms, exact, inside
        As for ``find_alignment``. With ``exact=True, sweeps=0,
        distance="euclidean"`` the maps are as literally those of the paper's
        equation 1 as a network with residual streams allows.
    statistics : list or dict, optional
        Activations of each expert: files that ``collect_statistics`` wrote, or
        mappings, in the order of the experts or by their labels. Of learned
        permutations the maps, None for the anchor.
    learning : dict, optional
        With ``cost: learned``: how to learn, see
        ``speechbrain_merge.methods.transport.learning.check_learning``.

    Example
    -------
    >>> OptimalTransport(hard=False, reg=0.02).reg
    0.02
    """

    # made for models of different starts
    needs_same_base = False

    def __init__(
        self,
        reg=0.05,
        cost="weights",
        hard=True,
        weight=None,
        method="average",
        anchor=None,
        architecture="detect",
        heads=None,
        sweeps=None,
        distance=None,
        residual="together",
        heads_map="hard",
        keep_norms=False,
        statistics=None,
        exact=False,
        learning=None,
        inside="permutations",
    ):
        super().__init__()
        self.reg, self.cost, self.hard, self.weight = reg, cost, hard, weight
        self.architecture, self.heads, self.sweeps = architecture, heads, sweeps
        self.distance, self.residual = distance, residual
        self.heads_map, self.keep_norms = heads_map, keep_norms
        self.exact, self.inside = exact, inside
        check_options(
            hard, reg, sweeps, distance, residual, heads_map, exact, inside
        )
        check_statistics(statistics)
        self.statistics = statistics
        self.learning = learning
        if cost == "learned":
            check_learning(learning)
            if not hard:
                raise ValueError(
                    "Learned maps are permutations: give hard=True with "
                    "`cost: learned`."
                )
        elif learning is not None:
            raise ValueError("`learning` goes with `cost: learned` alone.")
        known = cost in ("weights", "activations", "learned")
        if not known and set(cost) != {"anchor", "experts"}:
            raise ValueError(
                '`cost` must be "weights", "activations", "learned", or {"anchor": '
                'activations, "experts": [activations or None, …]}, one an '
                "expert."
            )
        self.method = check_method(method)
        if weight is not None and not isinstance(self.method, Average):
            raise ValueError(
                "`weight` is the average's: give the method its own weights."
            )
        if isinstance(weight, (int, float)):
            check_number(weight, "weight", at_least=0, at_most=1)
        elif weight is not None:
            self.method = Average(weights=weight)
        check_choice(anchor, "anchor", (None, "first", "base"))
        if anchor == "first" and self.method.needs_base:
            raise ValueError(
                f"'{self.method.name}' works on task vectors: the experts "
                'have to be aligned to their base, anchor="base".'
            )
        self.anchor = anchor
        self.needs_base = anchor == "base" or self.method.needs_base
        if self.needs_base and cost in ("activations", "learned"):
            raise ValueError(
                f"`cost: {cost}` needs data of the experts, and here they "
                "are aligned to the base: give `cost: weights`, or a method "
                "that needs no base."
            )

    @property
    def statistics_kind(self):
        """Activations of a pass, or maps that are learned; or nothing."""
        return {"activations": "activations", "learned": "maps"}.get(
            self.cost if isinstance(self.cost, str) else ""
        )

    @property
    def statistics_options(self):
        """Options by which statistics know the units of a model."""
        return {"architecture": self.architecture, "heads": self.heads}

    @property
    def alignment_options(self):
        """Options with which ``align`` moves a model as this method does.

        All but the cost, which may be activations of the two models.
        """
        return {
            "architecture": self.architecture,
            "hard": self.hard,
            "reg": self.reg,
            "heads": self.heads,
            "sweeps": self.sweeps,
            "distance": self.distance,
            "residual": self.residual,
            "heads_map": self.heads_map,
            "keep_norms": self.keep_norms,
            "exact": self.exact,
            "inside": self.inside,
        }

    def check_experts(self, number):
        """Raises a ValueError when the method cannot merge so many experts."""
        self.method.check_experts(number)

    def prepare(self, experts, base):
        """Finds the maps, then prepares the method on aligned experts."""
        anchor = base if self.needs_base else experts[0]
        seen = None
        if self.cost == "activations":
            seen = open_statistics(
                self.statistics, self.labels, self.name, "activations"
            )
            check_models(seen, experts)
        alignments = [
            None
            if expert is anchor
            else self._found(index, expert, anchor, seen)
            for index, expert in enumerate(experts)
        ]
        method = self.method
        if isinstance(self.weight, (int, float)):
            others = max(len(experts) - 1, 1)
            rest = [(1 - self.weight) / others] * (len(experts) - 1)
            method = Average(weights=[self.weight, *rest])
        aligned = [
            _aligned(found, expert)
            for found, expert in zip(alignments, experts)
        ]
        return alignments, self.prepared_inner(method, aligned, base)

    def entry_pieces(self, name, experts, base=None):
        """Merges an entry of whatever type of the aligned experts.

        Running statistics are moved like weights, which the general road,
        being for all methods, cannot know.
        """
        alignments, method = self.found
        one = [
            _aligned(found, _only(name, expert))
            for found, expert in zip(alignments, experts)
        ]
        return method.entry_pieces(name, one, base)

    def merge_tensor(self, name, experts, base):
        """Merges one tensor of the experts, which are aligned here."""
        alignments, method = self.found
        aligned = [
            tensor if found is None else found.moved_tensor(name, tensor)
            for found, tensor in zip(alignments, experts)
        ]
        return method.merge_tensor(name, aligned, base)

    def configuration(self):
        """The parameters that made this method; activations by their name."""
        configuration = super().configuration()
        if configuration["cost"] not in ("weights", "learned"):
            configuration["cost"] = "activations"
        return configuration

    def _found(self, index, expert, anchor, seen):
        """The alignment of one expert: found here, or learned before."""
        if self.cost == "learned":
            where = self.labels[index]
            maps = self.statistics or {}
            if not isinstance(maps, dict):
                maps = dict(zip(self.labels, maps))
            if maps.get(where) is None:
                raise ValueError(
                    f"Merge method '{self.name}' has no learned map of "
                    f"'{where}': let `collect_statistics` of "
                    "speechbrain_merge.brain.statistics learn it."
                )
            found = read_learned_map(
                expert,
                maps[where],
                self.architecture,
                self.heads,
                anchor,
                where,
            )
            return found.turned(expert, anchor, self.inside)
        return find_alignment(
            expert,
            anchor,
            cost=self._cost(index, seen),
            progress=self.show_progress,
            device=self.device,
            **self.alignment_options,
        )

    def _cost(self, index, seen):
        """The cost that ``find_alignment`` takes for one expert."""
        if seen is not None:
            return {"anchor": seen[0], "source": seen[index]}
        if self.cost == "weights" or self.cost["experts"][index] is None:
            return "weights"
        return {
            "anchor": self.cost["anchor"],
            "source": self.cost["experts"][index],
        }


def _aligned(found, expert):
    """An expert, moved as it is read."""
    return expert if found is None else found.moved(expert)


def _only(name, expert):
    """One entry of open weights."""
    return Weights({name: expert.entry(name)}, expert.label)
