"""What a merge stage is asked to do, and what it came to.

A ``MergeStage`` is plain data that a YAML builds: what to merge, how, and by
which measure to choose. What it came to, a ``MergeResult``, is kept beside the
merged weights with a fingerprint of everything that decided it, so that the
same question is not worked out twice.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Optional

import speechbrain as sb
from speechbrain.utils.logger import get_logger

from speechbrain_merge.belonging import check_one_original
from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.stage.members import (
    base_member,
    base_of,
    weighted,
    weights_of,
)
from speechbrain_merge.stage.remembered import extended
from speechbrain_merge.weights import digest, float_dtype

logger = get_logger(__name__)


class MergeStage:
    """What to merge, how, and by which measure to choose.

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
    metric : str
        The entry of the checkpoints' meta by which single candidates are
        ranked.
    mode : str
        ``"min"`` or ``"max"``: which way the metric is better.
    per_run : str
        Which candidates of each run take part: ``"all"``, ``"best"`` or
        ``"last"``.
    last, best : int, optional
        Only so many of the last, or of the best.
    tracker : str, optional
        The Brain's attribute that holds the ``ErrorRateStats``; by default the
        metric's name in lower case with ``_metric``.
    decode : str
        ``"valid"`` scores candidates with the recipe's validation search,
        ``"test"`` with its test search.
    average : str
        Over several domains: ``"micro"`` pools errors, ``"macro"`` averages
        the domains' error rates.
    racing : bool
        Stop scoring a trial once it has lost. Never changes the outcome.
    folder : str or Path, optional
        Where results go; by default ``merge`` in the recipe's output folder.
    name : str, optional
        Name of this stage's subfolder; by default the method's name.
    workers : int
        Threads for merging.
    runs, without : list of str, optional
        Only these runs take part; these do not.
    with_base : bool, optional
        Whether the base is one more member, named `base`: the last candidate,
        which a search may leave out as any other. By default it is not, or,
        with `extends`, as it was. It is what the experts'
        pool kept unless `base` says otherwise: for experts that started from
        a merge (iterated averaging), that is not the first original.
    weights : dict, optional
        Weight of each member by the name of its run or its own, `base` for
        the base; see ``speechbrain_merge.stage.members``. By default the
        method's, which are equal ones.
    extends : str, optional
        Name of a merge that the candidates' pool remembers: its members take
        part as they were, with their weights, and of the runs that it neither
        had nor left out (or of `runs`) what the other settings choose. See
        ``speechbrain_merge.stage.remerging``.
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

    Example
    -------
    >>> MergeStage("average", candidates=["save/pool"], per_run="best").name
    'average'
    """

    def __init__(
        self,
        method,
        candidates,
        base=None,
        search=None,
        metric="WER",
        mode="min",
        per_run="all",
        last=None,
        best=None,
        tracker=None,
        decode="valid",
        average="micro",
        racing=True,
        folder=None,
        name=None,
        workers=1,
        runs=None,
        without=None,
        with_base=None,
        weights=None,
        extends=None,
        same_base=True,
        dtype=None,
        partial=False,
    ):
        if not isinstance(method, MergeMethod):
            method = create(method)
        if decode not in ("valid", "test"):
            raise ValueError(f"`decode` is 'valid' or 'test', got {decode!r}.")
        if search is not None and not hasattr(search, "searches"):
            raise ValueError(
                f"`search` must come from speechbrain_merge.search, got "
                f"{type(search).__name__}."
            )
        self.method, self.candidates, self.base = method, candidates, base
        self.search, self.metric, self.mode = search, metric, mode
        self.per_run, self.last, self.best = per_run, last, best
        self.tracker = tracker or f"{metric.lower()}_metric"
        self.decode = getattr(sb.Stage, decode.upper())
        self.average, self.racing, self.workers = average, racing, workers
        self.folder = folder
        self.name = name or method.name
        self.runs, self.without = runs, without
        self.with_base, self.same_base = with_base, same_base
        self.extends = extends
        self.dtype, self.partial = float_dtype(dtype), partial
        self.left_out = [without] if isinstance(without, str) else without or []
        self.weights = None if weights is None else dict(weights)
        if weights is not None:
            weighted(method, {})  # raises where the method takes none

    @property
    def needs_statistics(self):
        """The methods that ``collect_statistics`` has to collect for first."""
        return [
            method
            for method in self.method.modules()
            if getattr(method, "statistics_kind", None) is not None
        ]

    def resolved(self):
        """This stage with everything that a merge it extends has to add.

        Returns
        -------
        stage : MergeStage
            This one, where it extends none.
        """
        return self if self.extends is None else extended(self)

    def chosen(self):
        """The candidates that take part, read from where they lie.

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
        if self.extends is not None:
            return self.resolved().chosen()
        members = select(
            read_pool(self.candidates),
            per_run=self.per_run,
            last=self.last,
            best=self.best,
            metric=self.metric,
            mode=self.mode,
            runs=self.runs,
            without=self.without,
        )
        method = self.method
        if method.needs_same_base and method.needs_same_names:
            check_one_original(members, self.same_base)
        if self.with_base:
            members.append(base_member(base_of(self, members), members))
        if self.weights is not None:
            weights_of(self.weights, members)
        return members

    def method_for(self, members, all_members):
        """The method with the weights of these members.

        Arguments
        ---------
        members : list of Candidate
            What is merged.
        all_members : list of Candidate
            What `chosen` gave.

        Returns
        -------
        method : MergeMethod
        """
        if self.weights is None:
            return self.method
        weights = weights_of(self.weights, all_members)
        return weighted(
            self.method, {each.name: weights[each.name] for each in members}
        )


@dataclasses.dataclass
class MergeResult:
    """What a merge stage came to.

    Arguments
    ---------
    path : Path
        The merged weights.
    name : str
        Of the stage.
    candidates : list of str
        Names of all that took part.
    selected : list of str
        Names of those merged.
    method : dict
        The method's `name` and its parameters, as the search left them.
    value : float, optional
        Error rate on the selection set in percent, if it was scored.
    trials : list of dict
        Every trial of the search.
    savings : dict
        What racing saved.
    seconds : float
        Wall time of search and merge.
    reused : bool
        Whether an earlier result of the same content was found.
    """

    path: Path
    name: str
    candidates: list
    selected: list
    method: dict
    value: Optional[float] = None
    trials: list = dataclasses.field(default_factory=list)
    savings: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reused: bool = False

    @property
    def coefficients(self):
        """What a search over coefficients has found, or None."""
        best = [trial for trial in self.trials if trial["accepted"]]
        return best[-1].get("parameters") if best else None


def _fingerprint(context):
    """A hash of a stage's context."""
    text = json.dumps(context, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def known_result(folder, context):
    """An earlier result of the same content, if it is there and whole."""
    record = folder / "result.json"
    if not record.exists():
        return None
    stored = json.loads(record.read_text(encoding="utf-8"))
    path = folder / "merged.safetensors"
    if stored["context"] != _fingerprint(context) or not path.exists():
        return None
    if digest(path) != stored["digest"]:
        logger.warning(f"{path} is not what was merged: it is made again.")
        return None
    return MergeResult(**dict(stored["result"], path=path, reused=True))


def store_result(folder, result, context):
    """Writes down a result, whole or not at all."""
    stored = dataclasses.asdict(result)
    stored["path"] = result.path.name
    content = {
        "context": _fingerprint(context),
        "digest": digest(result.path),
        "result": stored,
    }
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, folder / "result.json")
