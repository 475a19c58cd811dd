"""Aligning one model to another, such that it computes what it did before.

Two models that were trained from different starts keep the same things in
different places, and their average recognises nothing. ``align`` finds which
unit of the source is most like which unit of the anchor, space by space, and
moves the source's. With hard maps that is a symmetry of the network: the
aligned model gives the outputs of the source, and lies as near to the anchor as
was found. Soft maps mix units, and are no symmetry; they are those of Imfeld et
al., ICLR 2024, and of the Sinkhorn variant of Singh and Jaggi, NeurIPS 2020.

The OTF paper (Fu et al., Interspeech 2023) has no entropy in its equation 1:
with equal masses its optimum is a permutation. To be as literal as a network
with residual streams allows, ask for ``exact=True, sweeps=0,
distance="euclidean"``: the exact linear programme, one pass from the features
to the labels, and distances that are not squared. The defaults of hard maps
find the same kind of map with less distance between the models.

Where soft maps meet:

- A residual stream has one map, for all that write and read it
  (``residual="together"``: by the sum of all costs; ``"mean"``: the mean of the
  maps by each tensor alone, Imfeld's averaging at joins). ``"hard"`` gives it a
  permutation, as mixing a stream shrinks its variance in all layers at once;
  ``"identity"`` leaves it as it is. A space is a stream where a norm or an
  output lies on it and more than two matrices write or read it.
- Heads move whole (``heads_map="hard"``, soft maps inside), or are mixed as
  well (``"soft"``): a head that is a mixture attends where none of them did.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.transport import align
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "fc1.weight": ["hidden", "fixed"],
...         "fc2.weight": ["fixed", "hidden"],
...     },
... }
>>> anchor = {"fc1.weight": torch.randn(4, 3), "fc2.weight": torch.randn(2, 4)}
>>> order = torch.tensor([2, 0, 3, 1])
>>> source = {
...     "fc1.weight": anchor["fc1.weight"][order],
...     "fc2.weight": anchor["fc2.weight"][:, order],
... }
>>> aligned = align(source, anchor, architecture=mine)
>>> all(torch.equal(aligned[name], anchor[name]) for name in anchor)
True

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Optional, Union

import torch
from tqdm import tqdm

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_switch,
    check_whole,
)
from speechbrain_merge.methods.transport.assignment import (
    Assignment,
    ExactPlan,
    Sinkhorn,
)
from speechbrain_merge.methods.transport.diagnostic import measure
from speechbrain_merge.methods.transport.head_maps import (
    INSIDE,
    find_head_maps,
    turn_tensor,
    turned_weights,
)
from speechbrain_merge.methods.transport.matching import Matching
from speechbrain_merge.methods.transport.moves import move_tensor, moved_weights
from speechbrain_merge.methods.transport.outputs import check_same_outputs
from speechbrain_merge.methods.transport.symmetry import (
    NO_READER,
    Symmetry,
    symmetry,
)
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import (
    Weights,
    agreed_heads,
    check_compatible,
    fold,
    open_weights,
)

logger = get_logger(__name__)

RESIDUALS = ("together", "mean", "hard", "identity")
MOST_SWEEPS = 100


@dataclass(frozen=True)
class Alignment:
    """The maps that align one model to another.

    Arguments
    ---------
    symmetry : Symmetry
        Of both models.
    transports : dict
        Name of a space to an order or a matrix (see ``moves``). Spaces without
        stay as they are.
    sweeps : int
        How often all maps were looked at after the first pass.
    keep_norms : bool
        Whether rows are scaled to the lengths that they had.
    groups : list of dict
        For each space what ``diagnostic.measure`` says.
    head_maps : dict
        Of ``head_maps``: what turns heads inside, after the transports.
    """

    symmetry: Symmetry
    transports: dict
    sweeps: int = 0
    keep_norms: bool = False
    groups: list = field(default_factory=list)
    head_maps: dict = field(default_factory=dict)

    def apply(self, source):
        """The source, aligned, each tensor when it is read.

        Arguments
        ---------
        source : any source of ``open_weights``
            The model. Weight norm and LoRA are folded.

        Returns
        -------
        Weights
        """
        return self.moved(fold(source))

    def moved(self, weights: Weights) -> Weights:
        """Plain open weights, aligned, each tensor when it is read.

        Arguments
        ---------
        weights : Weights
            Folded.

        Returns
        -------
        Weights
        """
        moved = moved_weights(
            weights, self.symmetry, self.transports, self.keep_norms
        )
        if not self.head_maps:
            return moved
        return turned_weights(moved, self.symmetry, self.head_maps)

    def moved_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """One tensor of the source, aligned.

        Arguments
        ---------
        name : str
            Its name.
        tensor : torch.Tensor
            As stored.

        Returns
        -------
        torch.Tensor
        """
        pieces = self.symmetry.pieces.get(name)
        if pieces is None:
            return tensor
        moved = move_tensor(tensor, pieces, self.transports, self.keep_norms)
        return turn_tensor(moved, pieces, self.head_maps)

    def turned(self, source, anchor, inside: str) -> "Alignment":
        """This alignment with maps inside heads, which it has not yet.

        Arguments
        ---------
        source, anchor : any source of ``open_weights``
            The two models.
        inside : str
            "permutations", "rotations" or "invertible".

        Returns
        -------
        Alignment
        """
        with open_on_record(source) as first, open_on_record(anchor) as second:
            maps = find_head_maps(
                self.symmetry, self.apply(first), fold(second), inside
            )
        return replace(self, head_maps=maps)


def align(
    source,
    anchor,
    architecture="detect",
    hard: bool = True,
    cost: Union[str, Mapping] = "weights",
    reg: float = 0.05,
    **options,
) -> dict:
    """A model with its units moved to where those of another are.

    Arguments
    ---------
    source : any source of ``open_weights``
        The model to be aligned.
    anchor : any source of ``open_weights``
        The model to align to.
    architecture : str, Path or dict
        A registered name, a map of your own, or "detect".
    hard : bool
        Permutations, after which the model computes what it did before;
        otherwise soft maps.
    cost : "weights" or dict
        By what units are compared: all weights that write or read them, or
        the activations that ``unit_activations`` gave, as
        ``{"anchor": …, "source": …}``; spaces without any go by weights.
    reg : float
        Strength of Sinkhorn's entropy, in units of the largest cost; 0 is
        POT's exact plan.
    **options
        Of ``find_alignment``.

    Returns
    -------
    dict
        The aligned state, folded: names as in the source but for weight norm
        and LoRA.

    Raises
    ------
    UnsupportedArchitecture
        Where no map fits the models.
    IncompatibleWeights
        Where they differ in names, shapes or labels; names the tensors.
    """
    with open_weights(source) as weights:
        found = find_alignment(
            source, anchor, architecture, hard, cost, reg, **options
        )
        aligned = found.apply(weights)
        made = {
            name: aligned[name].clone()
            for name in aligned.names()
            if name not in aligned.tied
        }
        return {name: made[aligned.tied.get(name, name)] for name in aligned}


def find_alignment(
    source,
    anchor,
    architecture="detect",
    hard: bool = True,
    cost: Union[str, Mapping] = "weights",
    reg: float = 0.05,
    heads: Optional[int] = None,
    sweeps: Optional[int] = None,
    distance: Optional[str] = None,
    residual: str = "together",
    heads_map: str = "hard",
    keep_norms: bool = False,
    exact: bool = False,
    inside: str = "permutations",
    progress: bool = False,
    device: Union[str, torch.device] = "cpu",
) -> Alignment:
    """The maps by which ``align`` moves, with a diagnostic for each space.

    Arguments
    ---------
    source, anchor, architecture, hard, cost, reg
        As for ``align``.
    heads : int, optional
        Number of attention heads, where neither the tensors nor the sources
        tell. It must be the number that these tell, where they do.
    sweeps : int, optional
        How often maps are looked at again after the first pass in sequence. 0
        is the paper's single pass. Default: until none changes for hard maps,
        0 for soft ones.
    distance : str, optional
        "squared" or "euclidean" distances as cost; the paper has Euclidean
        ones. Default: squared for hard maps (then each step brings the models
        nearer), Euclidean for soft ones.
    residual : str
        What soft maps do to residual streams, see above.
    heads_map : str
        "hard" or "soft": what soft maps do to whole heads.
    keep_norms : bool
        Whether soft maps leave rows as long as they were on average.
    exact : bool
        Hard maps by the exact linear programme, as in the paper
        (``ot.emd``), rather than by assignment. The result is the same but
        for ties; it takes longer.
    inside : str
        How heads may be moved inside by hard maps: by permutations alone, or
        turned after that by "rotations" or "invertible" maps, which leave the
        model's outputs as they were, too (``head_maps``).
    progress : bool
        Whether to show a bar.
    device : str or torch.device
        Where the distances between units are computed: ``"cpu"``, ``"cuda"``,
        ``"cuda:1"``, or ``"auto"``, a GPU if there is one. Assignments and
        plans are found on the CPU. On a GPU distances are in float64: where
        two maps cost the same, another may be found than on the CPU.

    Returns
    -------
    Alignment
    """
    device = device_of(device)
    check_options(
        hard, reg, sweeps, distance, residual, heads_map, exact, inside
    )
    _check_cost(cost)
    with open_on_record(source) as first, open_on_record(anchor) as second:
        folded, target = fold(first), fold(second)
        check_same_outputs(folded, target)
        check_compatible([target, folded])
        found = symmetry(
            folded, architecture, agreed_heads(heads, folded, target)
        )
        _warn_of_outputs(found, folded.label)
        solver: Union[ExactPlan, Assignment, Sinkhorn]
        if exact or (not hard and reg == 0):
            solver = ExactPlan()
        else:
            solver = Assignment() if hard else Sinkhorn(reg)
        streams = [] if hard else residual_streams(found)
        solvers = {}
        if residual == "hard":
            solvers = {name: Assignment() for name in streams}
        matching = Matching(
            found if residual != "identity" else _pinned(found, streams),
            folded,
            target,
            solver,
            solver if heads_map == "soft" or hard else Assignment(),
            squared=(distance or ("squared" if hard else "euclidean"))
            == "squared",
            activations=_paired(cost),
            solvers=solvers,
            apart=tuple(streams) if residual == "mean" else (),
            device=device,
        )
        bar = tqdm(
            desc="align",
            total=len(matching.units),
            disable=not progress,
            unit="groups",
        )
        with bar:
            matching.in_sequence(lambda unit: bar.update())
            if sweeps is None:
                sweeps = MOST_SWEEPS if hard else 0
            done = matching.iterate(sweeps, lambda unit: bar.update())
        groups = measure(found, folded, target, matching.transports)
        made = Alignment(
            found, matching.transports, done, keep_norms and not hard, groups
        )
        return made.turned(folded, target, inside)


def residual_streams(found: Symmetry) -> list[str]:
    """The spaces that many layers write and read.

    Arguments
    ---------
    found : Symmetry
        Of a model.

    Returns
    -------
    list of str
        Spaces that lie in more than two matrices each as rows and columns.
    """
    streams = []
    for name, space in found.spaces.items():
        places = [
            axis
            for piece, axis in found.pieces_of(name)
            if sum(size > 1 for size in piece.shape) > 1
        ]
        written = sum(axis == 0 for axis in places)
        if not space.pinned and min(written, len(places) - written) >= 2:
            streams.append(name)
    return streams


def _pinned(found, streams):
    """A symmetry with some spaces pinned."""
    spaces = dict(found.spaces)
    for name in streams:
        spaces[name] = replace(spaces[name], pinned="residual='identity'")
    return replace(found, spaces=spaces)


def _warn_of_outputs(found, label):
    """Warns of spaces that cannot move since a file has no output layer."""
    names = [
        name
        for name, space in found.spaces.items()
        if space.pinned == NO_READER
    ]
    if names:
        logger.warning(
            f"{label}: {', '.join(names)} cannot be aligned, since no output "
            "layer in it is known to read them: they are what the model gives "
            "away. Give the encoder together with its output layer, named "
            "ctc_lin, seq_lin or lm_head, to align them as well."
        )


def _paired(cost):
    """Name of a space to the activations of anchor and source."""
    if isinstance(cost, str):
        return {}
    return {
        name: (cost["anchor"][name], cost["source"][name])
        for name in cost["anchor"]
        if name in cost["source"]
    }


def check_options(
    hard,
    reg,
    sweeps,
    distance,
    residual,
    heads_map,
    exact=False,
    inside="permutations",
):
    """Raises a ValueError for an option that `find_alignment` does not know."""
    check_switch(hard, "hard")
    check_switch(exact, "exact")
    if exact and not hard:
        raise ValueError(
            "`exact` maps are permutations: give hard=True with it. For soft "
            "maps, reg=0 is the exact plan."
        )
    check_number(reg, "reg", at_least=0)
    if sweeps is not None:
        check_whole(sweeps, "sweeps")
    check_choice(distance, "distance", (None, "squared", "euclidean"))
    check_choice(residual, "residual", RESIDUALS)
    check_choice(heads_map, "heads_map", ("hard", "soft"))
    check_choice(inside, "inside", INSIDE)
    if inside != "permutations" and not hard:
        raise ValueError(
            f"`inside: {inside}` follows hard maps: give hard=True with it."
        )


def _check_cost(cost):
    if isinstance(cost, str) and cost == "weights":
        return
    if not isinstance(cost, Mapping) or set(cost) != {"anchor", "source"}:
        raise ValueError(
            '`cost` must be "weights", or the activations of both models as '
            f'{{"anchor": …, "source": …}}, got {cost!r}.'
        )
