"""The members of a merge: their original, and the weight of each.

The members of a merge are experts, and perhaps the original that they were
fine-tuned from as one more of them ("with original" in Plantinga et al.,
"Average of Domain Experts": of T experts and the original each weighs
1 / (T + 1)). Weights are given by name: of a run, of a candidate, and `base`
for the original, so that they do not depend on any order::

    merge_stage: !new:speechbrain_merge.MergeStage
        method: average
        candidates: [!ref <pool_folder>]
        per_run: best
        with_base: True
        weights: {child_l2: 4/8, digits: 1/8, read: 1/8, telephony: 1/8,
            base: 1/8}

The checkpoints of one training can be weighed as a decay of its learning rate
would have weighed them, by the decay's name::

        weights: cosine

Weights of one model and its fine-tunings lie close together, and so does their
mean to all of them. Those of unrelated models do not, and their mean is noise.
Pools keep the digest of the original. Experts of different originals are not
merged unless that is asked for (``speechbrain_merge.belonging``).

Example
-------
>>> from speechbrain_merge.pool import Candidate
>>> members = [
...     Candidate("digits/epoch-0002", "a.safetensors", "digits"),
...     Candidate("read/epoch-0004", "b.safetensors", "read"),
...     Candidate("base", "base.safetensors", "base"),
... ]
>>> weights_of({"digits": "4/8", "read": "3/8", "base": 0.125}, members)
{'digits/epoch-0002': 0.5, 'read/epoch-0004': 0.375, 'base': 0.125}

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from collections import Counter

from speechbrain_merge.methods.trajectory_weights import trajectory_weights
from speechbrain_merge.pool import Candidate
from speechbrain_merge.pool.candidate import BASE
from speechbrain_merge.records.errors import shown
from speechbrain_merge.records.reading import parse_number
from speechbrain_merge.weights import (
    digest,
    fold,
    local_source,
    open_weights,
    renamed,
)


def base_of(stage, members):
    """The base of a merge stage, with the members' names; or None.

    Arguments
    ---------
    stage : MergeStage
        Its own `base` counts before what the experts' pools kept.
    members : list of Candidate
        What is merged.

    Returns
    -------
    base : Weights, Path or None
        None where the stage does not need it.

    Raises
    ------
    ValueError
        Where it is needed and not to be found.
    """
    if members[-1].name == BASE:
        return members[-1].path
    if stage.base is not None:
        base = local_source(stage.base)
        if not stage.method.needs_same_names:
            return open_weights(base)
        return renamed(fold(base), fold(members[0]))
    if not (stage.method.needs_base or stage.with_base):
        return None
    bases = {expert.base_digest for expert in members}
    if len(bases) > 1 or None in bases:
        needs = "`with_base`" if stage.with_base else "the method"
        raise ValueError(
            f"Merge stage '{stage.name}': {needs} needs the base of the "
            "experts, and "
            + (
                "not every expert's pool kept one"
                if None in bases
                else "they were fine-tuned from different ones"
            )
            + ": give `base`."
        )
    return members[0].base


def base_member(base, experts) -> Candidate:
    """The original as one more member.

    Arguments
    ---------
    base : Weights or Path
        What `base_of` gave.
    experts : list of Candidate
        The other members.

    Returns
    -------
    Candidate
        Named `base`, as its run.

    Raises
    ------
    ValueError
        Where an expert has this name already.
    """
    for expert in experts:
        if BASE in (expert.run, expert.name):
            raise ValueError(
                f"`with_base` adds the original as '{BASE}', and a run of "
                f"that name is there already ({expert.path}): give the run "
                "another name."
            )
    # What a pool kept it knows; a base given for this stage may be another
    known = experts[0].base_digest if base == experts[0].base else None
    return Candidate(BASE, base, BASE, known_digest=known or digest(base))


def weights_of(weights, members) -> dict:
    """The weight of each member.

    Arguments
    ---------
    weights : dict or str
        Name of a run or of a candidate to a number, or to a fraction as text
        ("4/8"). Candidates of one run share its weight equally. They need not
        sum to one. Or the name of a decay, for candidates of one run; see
        ``speechbrain_merge.methods.trajectory_weights``.
    members : list of Candidate
        What is merged, of one run in the order of its training.

    Returns
    -------
    dict
        Name of each member to its weight.

    Raises
    ------
    ValueError
        When the names do not match, or a weight is no number; names both
        lists. When a decay is to go along several runs.

    Example
    -------
    >>> weights_of({"digits": 1}, [Candidate("read/1", "a", "read")])
    Traceback (most recent call last):
    ...
    ValueError: `weights` do not match the members of the merge:
      weights without a member: digits
      members without a weight: read/1
    Name each run (read) or each candidate once.
    """
    if isinstance(weights, str):
        runs = list(dict.fromkeys(member.run for member in members))
        if len(runs) > 1:
            raise ValueError(
                f"`weights: {weights}` weighs the checkpoints of one training, "
                f"and these are of {', '.join(runs)}: name one of them with "
                "`runs`, or merge the checkpoints of each first."
            )
        decayed = trajectory_weights(weights, len(members))
        return dict(zip((member.name for member in members), decayed))
    shares = Counter(member.run for member in members)
    names = {member.name for member in members}
    strangers = [
        key for key in weights if key not in shares and key not in names
    ]
    found, missing, doubled = {}, [], []
    for member in members:
        # The base's name is its run's as well
        keys = [k for k in {member.name: 0, member.run: 0} if k in weights]
        if len(keys) == 1:
            share = 1 if keys[0] == member.name else shares[member.run]
            found[member.name] = number(weights[keys[0]], keys[0]) / share
        else:
            (doubled if keys else missing).append(member.name)
    problems = [
        f"  {what}: {', '.join(map(str, which))}\n"
        for what, which in (
            ("weights without a member", strangers),
            ("members without a weight", missing),
            ("weighed by candidate and by run", doubled),
        )
        if which
    ]
    if problems:
        raise ValueError(
            "`weights` do not match the members of the merge:\n"
            f"{''.join(problems)}Name each run ({', '.join(shares)}) or each "
            "candidate once."
        )
    return found


def number(value, name) -> float:
    """A weight as a number.

    Arguments
    ---------
    value : int, float or str
        "4/8" is 0.5.
    name : str
        Whose it is.

    Returns
    -------
    float
    """
    try:
        return parse_number(value, "a weight")
    except ValueError:
        raise ValueError(
            f"the weight of '{name}' is {shown(value)}: expected a number, or "
            "a fraction such as 4/8"
        ) from None


def weighted(method, weights):
    """The same merge method with weights by the names of the members.

    Arguments
    ---------
    method : MergeMethod
        One with a parameter `weights`, or a wrapper around one.
    weights : dict
        What `weights_of` gave.

    Returns
    -------
    MergeMethod

    Raises
    ------
    ValueError
        When the method takes no weights, or has its own.

    Example
    -------
    >>> from speechbrain_merge.methods import Average
    >>> weighted(Average(), {"digits/1": 0.75, "read/3": 0.25})
    Average(weights={'experts': {'digits/1': 0.75, 'read/3': 0.25}})
    """
    parameters = inspect.signature(type(method)).parameters
    if "weights" in parameters:
        if method.weights is not None:
            raise ValueError(
                f"method '{method.name}' has weights of its own, "
                f"{method.weights!r}, and the merge stage gives others: keep "
                "one of them"
            )
        changed = {"weights": {"experts": weights}}
    elif "method" in parameters:
        changed = {"method": weighted(method.method, weights)}
    else:
        raise ValueError(
            f"method '{method.name}' takes no `weights`, as 'average' and "
            f"'karcher' do; it takes {', '.join(parameters) or 'nothing'}"
        )
    return type(method)(**{**method.configuration(), **changed})


def decay_of(method):
    """The decay by which a method weighs checkpoints, or None.

    Arguments
    ---------
    method : MergeMethod
        One with a parameter `weights`, or a wrapper around one.

    Returns
    -------
    str or None

    Example
    -------
    >>> from speechbrain_merge.methods import Average
    >>> decay_of(Average("cosine")), decay_of(Average())
    ('cosine', None)
    """
    while method is not None:
        weights = getattr(method, "weights", None)
        if isinstance(weights, str):
            return weights
        method = getattr(method, "method", None)
    return None


def unweighted(method):
    """The same merge method without weights: the way back from `weighted`.

    Arguments
    ---------
    method : MergeMethod
        As for `weighted`.

    Returns
    -------
    MergeMethod
    """
    parameters = inspect.signature(type(method)).parameters
    changed = {"weights": None}
    if "weights" not in parameters:
        changed = {"method": unweighted(method.method)}
    return type(method)(**{**method.configuration(), **changed})
