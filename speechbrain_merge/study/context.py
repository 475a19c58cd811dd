"""The context in which one entry of a study's YAML is read.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Mapping, Sequence

from speechbrain_merge.study.axes import names_of
from speechbrain_merge.study.graph import check_known


@dataclasses.dataclass
class Context:
    """The context of an entry: its name, the axes, the models above it.

    Arguments
    ---------
    name : str
        The model's name.
    domains : list of str
        All domains.
    draws : list of dict
        All draws.
    trainings : list of str
        The study's trainings.
    planned : dict
        Name to Node of all models above.
    drawn : dict
        Overrides that were drawn for this model.
    """

    name: str
    domains: Sequence
    draws: Sequence
    trainings: Sequence
    planned: Mapping
    drawn: Mapping

    def where(self, key: str) -> str:
        """How a message names a key of this model."""
        return f"Model '{self.name}': `{key}`"

    def names(self, value) -> list:
        """Names with ``{each}`` and ``{draws}`` filled in."""
        return names_of(value, self.domains, self.draws)

    def model(self, name: str, key: str, weights: bool = True) -> str:
        """The name of a model above this one."""
        check_known(name, self.planned, self.where(key))
        node = self.planned[name]
        if weights and not node.has_weights:
            raise ValueError(
                f"{self.where(key)}: '{name}' ({node.kind}) has no weights of "
                "its own."
            )
        return name

    def training(self, specification) -> str:
        """The training that an entry asks for."""
        if not self.trainings:
            raise ValueError(
                f"Model '{self.name}' is trained, and the study has no "
                "`trainings`."
            )
        name = specification.get("training", self.trainings[0])
        if name not in self.trainings:
            raise ValueError(
                f"{self.where('training')}: there is no training '{name}'. "
                f"There are: {', '.join(self.trainings)}."
            )
        return name
