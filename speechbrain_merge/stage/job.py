"""A merge stage with nothing left to be looked up: one frozen job.

A ``MergeStage`` says in a YAML's words what to merge. ``resolve`` reads the
pools, finds the base, checks that the experts belong together, and makes a
``MergeJob`` of it: who takes part, by which method, from which base, under
which search, into which folder, and a fingerprint of all that decides the
outcome. The Brain then runs it (``speechbrain_merge.brain.mixin``).

The fingerprint of a job covers all that decides it: candidates, method, search,
base, selection data and the recipe's settings. A single trial of its search is
decided by less, the merge that was scored and how it was scored. So the trials
of all jobs in a folder share one journal, ``trials.jsonl`` beside their
folders, and a grown pool, another order, another rule of acceptance or another
search score only what is new.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional, Union

from speechbrain.utils.logger import get_logger
from speechbrain_merge.belonging import check_belonging
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.search import Journal
from speechbrain_merge.stage.content import decided_by, merge_content
from speechbrain_merge.stage.members import base_of, weighted, weights_of
from speechbrain_merge.stage.named_coefficients import with_coefficients
from speechbrain_merge.stage.result import MERGED, MergeResult
from speechbrain_merge.stage.running_mean import RunningMean
from speechbrain_merge.weights import digest, fold, open_weights

logger = get_logger(__name__)

JOURNAL = "trials.jsonl"
# What decides a job's result but not the score of a single trial
_OF_THE_JOB = ("method", "files", "candidates", "search", "racing")


@dataclasses.dataclass(frozen=True)
class MergeJob:
    """A merge stage with everything resolved.

    Arguments
    ---------
    name : str
        Of the stage.
    method : MergeMethod
        Without the members' weights.
    members : tuple of Candidate
        All that take part; a search may leave some out.
    base : Weights, Path or None
        What the experts were fine-tuned from, under their names.
    search : object or None
        A search of ``speechbrain_merge.search``.
    folder : Path
        Where results go.
    about : dict
        All that decides the outcome, as plain values for JSON.
    weights : dict or str, optional
        Name of each member to its weight, or the decay that gives them.
    racing : bool or float
        Whether a trial that has lost is stopped; a number, the probability
        that one wins which is stopped because it hardly will.
    workers : int
        Threads for merging.
    device : torch.device
        Where tensors are merged.
    dtype : torch.dtype, optional
        Of the merged weights.
    same_base : bool
        Whether experts that do not belong together are refused.
    left_out : tuple of str
        Runs that do not take part.
    base_name : str, optional
        How the stage names its base, where it does.
    """

    name: str
    method: MergeMethod
    members: tuple
    base: Any
    search: Any
    folder: Path
    about: Mapping
    weights: Union[Mapping, str, None] = None
    racing: Union[bool, float] = True
    workers: int = 1
    device: Any = "cpu"
    dtype: Any = None
    same_base: bool = True
    left_out: tuple = ()
    base_name: Optional[str] = None

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the outcome."""
        text = json.dumps(self.about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def output(self) -> Path:
        """The file of the merged weights."""
        return self.folder / MERGED

    @property
    def accept(self) -> str:
        """The search's rule: `"lt"` or `"le"`."""
        return getattr(self.search, "accept", "lt")

    def proposed(self, proposal=None) -> tuple:
        """The merge that a proposal of the search stands for.

        Arguments
        ---------
        proposal : list of Candidate, dict or None
            Of a search over candidates some of them, of one over coefficients
            their values. None merges all members by the method as it is.

        Returns
        -------
        method : MergeMethod
            With weights and coefficients.
        members : list of Candidate
            Those to be merged.
        """
        members, coefficients = list(self.members), None
        if proposal is not None and self.search.searches == "candidates":
            members = list(proposal)
        elif proposal is not None:
            coefficients = proposal
        method = self.method
        own = self.weights_for(members)
        if own is not None:
            method = weighted(method, own)
        if coefficients is not None:
            method = with_coefficients(method, coefficients, members)
        return method, members

    def weights_for(self, members) -> Optional[dict]:
        """The weights of some of the members, if any are given.

        Arguments
        ---------
        members : list of Candidate
            In any order.

        Returns
        -------
        dict or None
            Name of each to its weight. A decay goes along those that are there,
            in the order of their training.
        """
        if self.weights is None:
            return None
        if isinstance(self.weights, str):
            names = {member.name for member in members}
            there = [each for each in self.members if each.name in names]
            return weights_of(self.weights, there)
        return {each.name: self.weights[each.name] for each in members}

    def merge(
        self,
        proposal=None,
        output: Optional[Path] = None,
        progress: bool = False,
        trial: bool = False,
        running: Optional[RunningMean] = None,
    ) -> Any:
        """Merges what a proposal stands for.

        Arguments
        ---------
        proposal : list of Candidate, dict or None
            As for `proposed`.
        output : Path, optional
            The file to write. By default a state dict is given.
        progress : bool
            Whether to show a bar.
        trial : bool
            Whether this is one of many: then it is not asked again whether the
            members belong together, which `resolve` has asked for all.
        running : RunningMean, optional
            Keeps the sum of the members of a plain mean from one trial to the
            next.

        Returns
        -------
        merged : Path or dict
        """
        method, members = self.proposed(proposal)
        if running is not None and output is None and self.dtype is None:
            mean = running.of(method, members)
            if mean is not None:
                return mean
        return merge(
            method,
            members,
            self.base,
            output,
            workers=self.workers,
            device=self.device,
            progress=progress,
            hashes=None
            if output is None
            else [member.digest for member in members],
            dtype=self.dtype,
            same_base=self.same_base and not trial,
        )

    def run_search(self, score: Callable, progress: bool = True) -> Any:
        """Runs the search.

        Arguments
        ---------
        score : callable
            ``score(proposal, incumbent) -> Tally``.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        SearchResult, or the result of a search over coefficients
        """
        over = self.search.searches == "candidates"
        return self.search.run(
            *([list(self.members)] if over else []),
            score,
            self.journal(),
            progress=progress,
            racing=self.racing,
        )

    def found(self, outcome) -> Any:
        """The proposal that a search settled on, None without a search.

        Arguments
        ---------
        outcome : object
            What `run_search` gave, or None.

        Returns
        -------
        proposal : list of Candidate, dict or None
        """
        if outcome is None:
            return None
        over = self.search.searches == "candidates"
        return outcome.members if over else outcome.parameters

    def journal(self) -> Journal:
        """The journal of the search, which all jobs of the folder share.

        Returns
        -------
        Journal
            It knows a trial by its members' contents, the method as it was in
            this trial, and the part of `about` that decides its score.
        """
        shared = {
            name: value
            for name, value in self.about.items()
            if name not in (*_OF_THE_JOB, "base")
        }

        def content(proposal):
            method, members = self.proposed(proposal)
            found = merge_content(method, members)
            if method.needs_base or not method.needs_same_names:
                found["base"] = self.about["base"]
            return found

        return Journal(self.folder.parent / JOURNAL, shared, content=content)

    def result(self, path: Path, outcome=None) -> MergeResult:
        """The result of the job, made once its weights are written.

        Arguments
        ---------
        path : Path
            The merged weights.
        outcome : object, optional
            What `run_search` gave.

        Returns
        -------
        MergeResult
        """
        method, members = self.proposed(self.found(outcome))
        return MergeResult(
            path=path,
            name=self.name,
            candidates=[member.name for member in self.members],
            selected=[member.name for member in members],
            method={"name": method.name, **method.configuration()},
            value=None if outcome is None else outcome.tally.value,
            trials=[] if outcome is None else outcome.trials,
            savings={} if outcome is None else outcome.savings.to_dict(),
        )


def resolve(
    stage,
    folder: Union[Path, str],
    scored_with: Optional[Callable] = None,
    selection: Optional[str] = None,
) -> MergeJob:
    """Makes a job of a merge stage.

    Arguments
    ---------
    stage : MergeStage
        What is asked.
    folder : str or Path
        Where results go.
    scored_with : callable, optional
        ``scored_with(names) -> dict``: what the Brain knows of the rest that
        decides how weights with these names of tensors score, as plain values.
    selection : str, optional
        The key of the selection set. Needed by a search.

    Returns
    -------
    MergeJob

    Raises
    ------
    ValueError
        Where there are no candidates, they do not belong together, or there is
        no base and one is needed.
    """
    stage = stage.resolved()
    members = stage.chosen()
    _warn_of_copies(stage, members)
    # a search over candidates begins with one, all else merges them all
    one = getattr(stage.search, "searches", None) == "candidates"
    stage.method.check_experts(1 if one else len(members))
    base = base_of(stage, members)
    weights = stage.weights
    if weights is not None and not isinstance(weights, str):
        weights = weights_of(weights, members)
    job = MergeJob(
        name=stage.name,
        method=stage.method,
        members=tuple(members),
        base=base,
        search=stage.search,
        folder=Path(folder),
        about={},
        weights=weights,
        racing=stage.score.racing_rule,
        workers=stage.workers,
        device=stage.device,
        dtype=stage.dtype,
        same_base=stage.same_base,
        left_out=tuple(stage.left_out),
        base_name=str(stage.base)
        if isinstance(stage.base, (str, Path))
        else None,
    )
    method, _ = job.proposed()
    if stage.same_base:
        check_belonging(method, members, base)
    about = {
        **decided_by(method),
        "method": [method.name, fingerprint(method.configuration())],
        "candidates": [member.digest for member in members],
        "base": None if base is None else digest(base),
        "search": fingerprint(stage.search),
        "decode": stage.score.stage.name,
        "average": stage.score.average,
        "dtype": None if stage.dtype is None else str(stage.dtype),
    }
    if isinstance(job.racing, float):  # exact racing changes no outcome
        about["racing"] = job.racing
    if scored_with is not None:
        about |= scored_with(_names(method, members, base))
    if selection is not None:
        about["selection"] = selection
    return dataclasses.replace(job, about=about)


def _warn_of_copies(stage, members):
    """Says where members are the same weights under different names."""
    names: dict = {}
    for member in members:
        names.setdefault(member.digest, []).append(f"'{member.name}'")
    for same in names.values():
        if len(same) > 1:
            logger.warning(
                f"Merge stage '{stage.name}': {' and '.join(same)} are the "
                "same weights, which count so many times. Leave out all but "
                "one, unless that is meant."
            )


def _names(method, members, base):
    """Names of the merged tensors."""
    # a method that goes by other names than the candidates' has its base's
    target = members[0] if method.needs_same_names or base is None else base
    with open_weights(target) as weights, fold(weights) as folded:
        return folded.names()
