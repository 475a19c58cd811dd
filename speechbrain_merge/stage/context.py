"""What decides a merge stage's result, and what decides the score of a trial.

A stage's result is known again by all that decided it: candidates, method,
search, base, selection data and the recipe's settings. A single trial of its
search is decided by less, the merge that was scored and how it was scored. So
the trials of all stages in a folder share one journal, ``trials.jsonl`` beside
the stages' folders, and a grown pool, another order, another rule of acceptance
or another search score only what is new.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

from speechbrain_merge.belonging import check_belonging
from speechbrain_merge.pool.coverage import check_candidates
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.search import Journal
from speechbrain_merge.stage.decisive import decisive_settings
from speechbrain_merge.stage.named_coefficients import with_coefficients
from speechbrain_merge.weights import digest, fold, open_weights

JOURNAL = "trials.jsonl"
# What decides a stage's result but not the score of a single trial
_OF_THE_STAGE = ("method", "candidates", "search")


def stage_context(brain, stage, candidates, base) -> dict:
    """All that decides what a stage comes to, but the selection data.

    Arguments
    ---------
    brain : speechbrain.Brain
        That runs it.
    stage : MergeStage
        What is asked.
    candidates : list of Candidate
        Who takes part.
    base : Weights or Path, optional
        The base.

    Returns
    -------
    dict
        Plain values for JSON.

    Raises
    ------
    ValueError
        Where the candidates do not belong together, or hold a part of what is
        trained.
    """
    method = stage.method_for(candidates, candidates)
    if stage.same_base:
        check_belonging(method, candidates, base)
    # a method that goes by other names than the candidates' has its base's
    target = candidates[0] if method.needs_same_names or base is None else base
    with open_weights(target) as weights, fold(weights) as folded:
        names = folded.names()
    partial = stage.partial or any(pool.partial for pool in brain._pools())
    beside = check_candidates(
        brain, names, f"Merge stage '{stage.name}'", partial
    )
    return {
        "method": [method.name, fingerprint(method.configuration())],
        "candidates": [candidate.digest for candidate in candidates],
        "base": None if base is None else digest(base),
        "search": fingerprint(stage.search),
        "decode": stage.decode.name,
        "average": stage.average,
        "dtype": None if stage.dtype is None else str(stage.dtype),
        "hparams": decisive_settings(brain, names),
        # trained, but not merged: what the merge is scored with
        "beside": {name: digest(beside[name]) for name in sorted(beside)},
    }


def trial_journal(stage, candidates, folder, context) -> Journal:
    """The journal of a stage's search, which the folder's stages share.

    Arguments
    ---------
    stage : MergeStage
        With a search.
    candidates : list of Candidate
        Who takes part.
    folder : Path
        In which the stages have their folders.
    context : dict
        What `stage_context` gave, with the selection data.

    Returns
    -------
    Journal
        It knows a trial by its members' contents, the method as it was in this
        trial, and the part of the context that decides its score.
    """
    shared = {
        name: value
        for name, value in context.items()
        if name not in (*_OF_THE_STAGE, "base")
    }

    def content(proposal):
        if stage.search.searches == "candidates":
            members = list(proposal)
            method = stage.method_for(members, candidates)
        else:
            members = candidates
            method = stage.method_for(candidates, candidates)
            method = with_coefficients(method, proposal, candidates)
        about = merge_content(method, members)
        if method.needs_base or not method.needs_same_names:
            about["base"] = context["base"]
        return about

    return Journal(Path(folder) / JOURNAL, shared, content=content)


def merge_content(method, members) -> dict:
    """A merge by content: who goes in, and by which method.

    Arguments
    ---------
    method : MergeMethod
        With its parameters.
    members : list of Candidate
        What is merged.

    Returns
    -------
    dict
        Without names of candidates. The order of the members is left out where
        it makes no difference.

    Example
    -------
    >>> from speechbrain_merge.methods import Average
    >>> from speechbrain_merge.pool import Candidate
    >>> a = Candidate("a/1", "a", "a", known_digest="0c")
    >>> b = Candidate("b/1", "b", "b", known_digest="7f")
    >>> merge_content(Average(), [b, a]) == merge_content(Average(), [a, b])
    True
    >>> uneven = Average({"experts": {"a/1": 1, "b/1": 3}})
    >>> merge_content(uneven, [b, a]) == merge_content(uneven, [a, b])
    True
    >>> merge_content(Average([1, 3]), [b, a]) == merge_content(
    ...     Average([1, 3]), [a, b]
    ... )
    False
    """
    digests = [member.digest for member in members]
    known = {member.name: member.digest for member in members}
    settings = _by_digest(method.configuration(), known)
    if method.name == "average":
        if len(members) == 1:
            settings = {"weights": None}  # whatever its weight: itself
        if not _has_list(method.weights):
            digests.sort()  # it sums in float64, in any order
    return {
        "members": digests,
        "method": method.name,
        "parameters": fingerprint(settings),
    }


def _by_digest(value, known):
    """Coefficients of experts by their contents instead of their names."""
    if isinstance(value, dict):
        return {
            key: sorted(
                (
                    [known.get(name, name), _by_digest(each, known)]
                    for name, each in entry.items()
                ),
                key=str,
            )
            if key == "experts" and isinstance(entry, dict)
            else _by_digest(entry, known)
            for key, entry in value.items()
        }
    return value


def _has_list(value):
    if isinstance(value, dict):
        return any(
            _has_list(entry) for key, entry in value.items() if key != "depth"
        )
    return isinstance(value, (list, tuple))
