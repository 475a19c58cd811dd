"""The kinds of models of a study: frozen nodes that name their parents.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

ORIGINAL = "original"
"""The model that experts are trained from unless they say otherwise."""

GENERALIST = "generalist"
"""The group of what experts are trained from: the original, or a training."""

SCRATCH = "scratch"
"""A training that starts from this has the initial weights of its own seed."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One model of a study.

    Arguments
    ---------
    name : str
        Its name, which is also the name of its folder.
    title : str
        Its name in tables and pictures.
    group : str
        The models that it is shown with: "generalist", "expert", "merge" …
    row : bool
        Whether tables and pictures show it.
    tests : tuple of str, optional
        The sets that it is tested on. None: all of the study.
    test_with : dict
        Settings of its tests that differ from those of the study's modes.
    """

    name: str
    title: str
    group: str
    row: bool = True
    tests: Optional[tuple] = None
    test_with: Mapping = dataclasses.field(default_factory=dict)

    kind = "node"
    has_weights = True

    @property
    def parents(self) -> tuple:
        """The names of the models that must be made before this one."""
        return ()

    @property
    def origin(self) -> Optional[str]:
        """The name of the model that this one was fine-tuned from, if any."""
        return None


@dataclasses.dataclass(frozen=True)
class Original(Node):
    """The weights that the recipe's modules have before any training."""

    kind = "original"


@dataclasses.dataclass(frozen=True)
class Given(Node):
    """Weights that exist already: a file, a folder, a pool, or a hub name.

    Arguments
    ---------
    weights : str
        Where they are.
    """

    weights: str = ""

    kind = "load"


@dataclasses.dataclass(frozen=True)
class Train(Node):
    """A training of the recipe.

    Arguments
    ---------
    training : str
        Which of the study's trainings.
    start : str
        The model that it starts from: a node, "original" or "scratch".
    domains : tuple of str
        The domains that it is trained on.
    settings : dict
        Overrides of the training's YAML, for this model alone.
    seed_offset : int
        What is added to the study's seed. Two trainings from scratch that are
        to differ need different offsets.
    stages : tuple of str
        Where domains are trained in turn: the models after each domain, this
        one the last.
    guide : str, optional
        The model whose CTC spikes guide those of this one.
    teachers : tuple of str
        The models whose mean posterior this one learns.
    """

    training: str = ""
    start: str = ORIGINAL
    domains: tuple = ()
    settings: Mapping = dataclasses.field(default_factory=dict)
    seed_offset: int = 0
    stages: tuple = ()
    guide: Optional[str] = None
    teachers: tuple = ()

    kind = "train"

    @property
    def parents(self) -> tuple:
        """The start, models of earlier domains, the guide and teachers."""
        starts = () if self.start == SCRATCH else (self.start,)
        before = tuple(name for name in self.stages if name != self.name)
        guides = () if self.guide is None else (self.guide,)
        return _once((*starts, *before, *guides, *self.teachers))

    @property
    def origin(self) -> Optional[str]:
        """The start."""
        return self.start


@dataclasses.dataclass(frozen=True)
class Merge(Node):
    """A merge of other models.

    Arguments
    ---------
    method : MergeMethod
        The merge method.
    members : tuple of str
        The models that are merged.
    from_runs : bool
        Whether the members are the candidates of the members' trainings,
        rather than the best candidate of each.
    chosen : dict
        With `from_runs`: which candidates of each run (``last``, ``best``,
        ``per_run``).
    base : str, optional
        The base, for methods that need one.
    options : dict
        More arguments of ``MergeStage``: ``search``, ``average``, ``racing``…
    select_on : tuple of str
        The domains whose selection sets a search uses.
    layers_of : dict, optional
        A similarity node and how its layers become a search.
    stages : tuple of str
        Where domains are added one by one: the models after each domain, this
        one the last.
    """

    method: Any = None
    members: tuple = ()
    from_runs: bool = False
    chosen: Mapping = dataclasses.field(default_factory=dict)
    base: Optional[str] = None
    options: Mapping = dataclasses.field(default_factory=dict)
    select_on: tuple = ()
    layers_of: Optional[Mapping] = None
    stages: tuple = ()

    kind = "merge"

    @property
    def parents(self) -> tuple:
        """Members, base, a similarity that proposes layers, earlier stages."""
        more = [self.base] if self.base else []
        more += [self.layers_of["similarity"]] if self.layers_of else []
        more += [name for name in self.stages if name != self.name]
        return _once((*self.members, *more))


@dataclasses.dataclass(frozen=True)
class Align(Node):
    """A model whose units are permuted to match those of another model.

    It computes what it computed before.

    Arguments
    ---------
    source : str
        The model that is aligned.
    anchor : str
        The model that it is aligned to.
    method : MergeMethod
        An ``OptimalTransport`` with the options of the alignment.
    device : str
        Where the distances between units are computed.
    """

    source: str = ""
    anchor: str = ""
    method: Any = None
    device: str = "cpu"

    kind = "align"

    @property
    def parents(self) -> tuple:
        """The two models."""
        return _once((self.source, self.anchor))


@dataclasses.dataclass(frozen=True)
class Repair(Node):
    """A merge whose units vary as much as those of the models it is made of.

    Arguments
    ---------
    merged : str
        The merge.
    members : tuple of str
        The models that it is made of, aligned.
    weights : tuple of float
        The share of each; empty for equal ones.
    """

    merged: str = ""
    members: tuple = ()
    weights: tuple = ()

    kind = "repair"

    @property
    def parents(self) -> tuple:
        """The merge and its members."""
        return _once((self.merged, *self.members))


@dataclasses.dataclass(frozen=True)
class ByDomain(Node):
    """For each domain the model of that domain: the oracle of the domain.

    Arguments
    ---------
    experts : dict
        Domain to model.
    otherwise : str, optional
        The model for every other test set.
    """

    experts: Mapping = dataclasses.field(default_factory=dict)
    otherwise: Optional[str] = None

    kind = "by_domain"
    has_weights = False

    @property
    def parents(self) -> tuple:
        """All experts."""
        more = [self.otherwise] if self.otherwise else []
        return _once((*self.experts.values(), *more))

    def model_for(self, domain: str) -> str:
        """The model that is tested on a set.

        Arguments
        ---------
        domain : str
            A test set.

        Returns
        -------
        str
        """
        name = self.experts.get(domain, self.otherwise)
        if name is None:
            raise ValueError(
                f"Model '{self.name}' has no model for the test set "
                f"'{domain}': name one with `otherwise`, or leave the set out "
                "with `tests`."
            )
        return name


@dataclasses.dataclass(frozen=True)
class Combine(Node):
    """Several models that decode side by side; nothing is merged.

    Arguments
    ---------
    how : str
        "oracle", "selection" or "ensemble".
    members : tuple of str
        The models.
    """

    how: str = "ensemble"
    members: tuple = ()

    kind = "combine"
    has_weights = False

    @property
    def parents(self) -> tuple:
        """The models that are combined."""
        return _once(self.members)


@dataclasses.dataclass(frozen=True)
class Similarity(Node):
    """How alike the layers of two models are on the data of a domain.

    Arguments
    ---------
    measure : callable
        Called with the ``Run``, whose Brain holds the weights of `of`, and the
        domain; returns a list of ``LayerDistances``.
    of : str
        The model.
    domain : str
        The domain.
    """

    measure: Any = None
    of: str = ""
    domain: str = ""

    kind = "similarity"
    has_weights = False

    @property
    def parents(self) -> tuple:
        """The model."""
        return (self.of,)


def _once(names):
    """Names without repetition, in their order."""
    return tuple(dict.fromkeys(names))
