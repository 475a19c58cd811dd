"""The settings of a merge stage.

A ``MergeStage`` is plain data that a YAML builds: what to merge, how, and by
which measure to choose. ``speechbrain_merge.stage.job.resolve`` makes a
``MergeJob`` of it, in which nothing is left to be looked up.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Optional, Union

import torch

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.belonging import check_one_original
from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.methods.trajectory_weights import check_shape
from speechbrain_merge.pool import read_pool
from speechbrain_merge.records.paths import check_length
from speechbrain_merge.records.signing import Signer, signer_of
from speechbrain_merge.stage.members import (
    base_member,
    base_of,
    decay_of,
    unweighted,
    weighted,
    weights_of,
)
from speechbrain_merge.stage.merge_records import extended
from speechbrain_merge.stage.selection import Scoring, Selection, given_in_parts
from speechbrain_merge.weights import float_dtype


class MergeStage:
    """The settings: what to merge, how, and by which measure to choose.

    Arguments
    ---------
    method : MergeMethod or str
        The merge method, or its registered name.
    candidates : CheckpointPool, str, Path, Candidate or list
        Pools, SpeechBrain checkpoint folders, files or globs.
    base : str, Path, Candidate or Module, optional
        The model that the experts were fine-tuned from: file, folder or name
        on the hub. By default the weights that the pool kept from before
        training, when the method needs them.
    search : object, optional
        A search over candidates (``speechbrain_merge.search.GreedySearch``)
        or over coefficients (``GridSearch``). ``None`` merges all candidates.
    select : Selection or dict, optional
        Which candidates take part.
    score : Scoring or dict, optional
        How a merge is scored on the selection set.
    folder : str or Path, optional
        Where results go; by default ``merge`` in the recipe's output folder.
    name : str, optional
        Name of this stage's subfolder; by default the method's name.
    workers : int
        Threads for merging.
    device : str or torch.device
        Where tensors are merged: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, a
        GPU if there is one. What was merged on another is not merged again.
    with_base : bool, optional
        Whether the base is one more member, named `base`: the last candidate,
        which a search may leave out as any other. By default it is not, or,
        with `extends`, as it was. It is what the experts'
        pool kept unless `base` says otherwise: for experts that started from
        a merge (iterated averaging), that is not the first original.
    weights : dict or str, optional
        Weight of each member by the name of its run or its own, `base` for
        the base; see ``speechbrain_merge.stage.members``. For the checkpoints
        of one run also the name of a decay: "linear", "cosine" or
        "inverse_square_root"; see
        ``speechbrain_merge.methods.trajectory_weights``. By default the
        method's, which are equal ones.
    extends : str, optional
        Name of a merge recorded in the candidates' pool: its members take
        part as they were, with their weights, and of the runs that it neither
        had nor left out (or of `runs`) what the other settings choose. A
        method that goes on from its own merges (OPCM) takes the merge, which
        the pool keeps, in place of those members; under the stage's own
        `name`, there need not be one yet. See
        ``speechbrain_merge.stage.extending``.
    same_base : bool
        Whether experts that do not belong together are refused, unless the
        method is made for them: of different originals, with different
        vocabularies, with heads that were initialised apart. See
        ``speechbrain_merge.belonging``.
    dtype : str, optional
        Of the merged weights: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        By default that of the experts; where experts and base differ, the one
        that holds all.
    partial : bool
        Whether candidates may hold a part of the trained modules only; else
        that is refused, unless the pool says it is meant. See
        ``speechbrain_merge.pool.coverage``.
    sign : Signer, str or Path, optional
        Signs the merged weights with the private key in this file, or as the
        signer says. See ``speechbrain_merge.records.signing``.
    **flat : dict
        Instead of `select` and `score`, their entries: `per_run`, `last`,
        `best`, `metric`, `mode`, `runs`, `without`; `tracker`, `decode`,
        `average`, `racing`, `racing_error`. See ``speechbrain_merge.stage.selection``.

    Raises
    ------
    TypeError
        For an entry that a stage does not have.
    ValueError
        Where an argument has a value that is not allowed.

    Example
    -------
    >>> stage = MergeStage("average", ["save/pool"], per_run="best")
    >>> stage.name, stage.select.per_run, stage.score.tracker
    ('average', 'best', 'wer_metric')
    >>> again = MergeStage("average", ["save/pool"], select={"per_run": "best"})
    >>> again.select == stage.select
    True
    """

    def __init__(
        self,
        method: Union[MergeMethod, str],
        candidates: Any,
        base: Any = None,
        search: Any = None,
        select: Union[Selection, Mapping, None] = None,
        score: Union[Scoring, Mapping, None] = None,
        folder: Union[str, os.PathLike, None] = None,
        name: Optional[str] = None,
        workers: int = 1,
        device: Union[str, torch.device] = "cpu",
        with_base: Optional[bool] = None,
        weights: Union[Mapping, str, None] = None,
        extends: Optional[str] = None,
        same_base: bool = True,
        dtype: Union[str, torch.dtype, None] = None,
        partial: bool = False,
        sign: Union[Signer, str, os.PathLike, None] = None,
        **flat: Any,
    ):
        made = method if isinstance(method, MergeMethod) else create(method)
        if search is not None and not hasattr(search, "searches"):
            raise ValueError(
                f"`search` must come from speechbrain_merge.search, got "
                f"{type(search).__name__}."
            )
        decay = decay_of(made)
        if decay is not None and weights is None:
            # here the members are known, and so is their order
            made, weights = unweighted(made), decay
        if isinstance(weights, str):
            check_shape(weights)
            for option, given in (
                ("extends", extends),
                ("with_base", with_base),
            ):
                if given:
                    raise ValueError(
                        f"`weights: {weights}` weighs the checkpoints of one "
                        f"training, and does not go with `{option}`: give the "
                        "weight of each member."
                    )
        self.method = made
        self.candidates, self.base = candidates, base
        self.search, self.workers = search, workers
        self.device = device_of(device)
        self.select, self.score = given_in_parts(
            {"select": Selection, "score": Scoring},
            {"select": select, "score": score},
            flat,
        )
        if self.score.tracker is None:
            tracker = f"{self.select.metric.lower()}_metric"
            self.score = dataclasses.replace(self.score, tracker=tracker)
        self.folder, self.sign = folder, signer_of(sign)
        self.name = name or made.name
        check_length(self.name, "`name` of a merge stage")
        self.with_base, self.same_base = with_base, same_base
        self.extends = extends
        self.dtype, self.partial = float_dtype(dtype), partial
        self.left_out = self.select.left_out
        self.weights = (
            dict(weights) if isinstance(weights, Mapping) else weights
        )
        if weights is not None:
            weighted(made, {})  # raises where the method takes none

    @property
    def needs_statistics(self) -> list:
        """The methods that ``collect_statistics`` has to collect for first."""
        return [
            method
            for method in self.method.modules()
            if getattr(method, "statistics_kind", None) is not None
        ]

    def resolved(self) -> "MergeStage":
        """This stage with everything that a merge it extends has to add.

        Returns
        -------
        stage : MergeStage
            This one, where it extends none.
        """
        return self if self.extends is None else extended(self)

    def chosen(self) -> list:
        """The candidates that take part, read from where they lie.

        Under ``torchrun`` the main process reads them, and all get the same:
        other trainings may be writing into these pools. So all call this.

        Returns
        -------
        candidates : list of Candidate
            With `with_base` the base is the last.

        Raises
        ------
        ValueError
            When there is none, a run is missing, the experts come from
            different originals, or weights do not match.
        """
        return run_on_main(self._chosen)

    def _chosen(self) -> list:
        """`chosen`, of this process."""
        if self.extends is not None:
            return self.resolved().chosen()
        members = self.select.of(read_pool(self.candidates))
        method = self.method
        if method.needs_same_base and method.needs_same_names:
            check_one_original(members, self.same_base)
        if self.with_base:
            members.append(base_member(base_of(self, members), members))
        if self.weights is not None:
            weights_of(self.weights, members)
        return members
