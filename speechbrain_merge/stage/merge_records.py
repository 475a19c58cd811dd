"""The record that a merge stage leaves in its pools, and how it is extended.

`remember_merge` writes down what a stage merged. `extended` reads such a record
and adds the runs that are new in the pool: these are the members of the next
merge. `speechbrain_merge.stage.extending` shows an example.

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import dataclasses
import os
from numbers import Real
from pathlib import Path

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.pool import Candidate, read_pool, select
from speechbrain_merge.pool.merges import (
    Member,
    MergeRecord,
    check_last,
    find_merge,
    forget,
    keep,
    of_name,
    pools_of,
    read_merges,
    remember,
    time_of_merge,
)
from speechbrain_merge.stage.members import BASE
from speechbrain_merge.stage.selection import Selection
from speechbrain_merge.weights import ChangedContent, digest
from speechbrain_merge.weights.verification import what_changed

SO_FAR = "merged so far"
"""The tag of a member that stands for those that it was merged of."""


def extended(stage):
    """A stage with the members of an earlier merge, and with what is new.

    Arguments
    ---------
    stage : MergeStage
        With `extends`.

    Returns
    -------
    MergeStage
        The same without `extends`: its candidates are the members, and its
        weights and its base those of the earlier merge where the stage has
        none of its own.

    Raises
    ------
    ValueError
        Where there is no such merge, one of its members is gone, or a run that
        is named is not there.
    """
    candidates, record = run_on_main(_read, args=[stage])
    if stage.method.goes_on:
        return _going_on(stage, candidates, record)
    select(candidates, without=stage.left_out)  # raises for unknown runs
    members = record.find_members(candidates, stage.left_out)
    old = {*record.runs, *(member.run for member in members)}
    new = [
        candidate
        for candidate in candidates
        if candidate.run not in {*old, *stage.left_out}
        and (stage.select.runs or candidate.run not in record.left_out)
    ]
    if new or stage.select.runs:
        new = dataclasses.replace(stage.select, without=None).of(new)
    again = {candidate.run for candidate in new}
    result = copy.copy(stage)
    result.extends = None
    result.select = Selection(
        metric=stage.select.metric, mode=stage.select.mode
    )
    result.candidates = [*members, *new]
    result.left_out = [
        run
        for run in dict.fromkeys([*record.left_out, *stage.left_out])
        if run not in again
    ]
    if stage.with_base is None:
        result.with_base = record.with_base
    if stage.base is None and record.base is not None:
        if not os.path.exists(record.base):
            # A name in a file is not looked up on a hub: anyone may have
            # written the file, and anyone may have put a model there
            raise ValueError(
                f"merge '{record.name}' had the base {record.base!r}, which is "
                "not on this machine. Give it to the merge stage as `base`."
            )
        _check_base(record)
        result.base = record.base
    if record.weights is not None:
        names = {member.name for member in members}
        if result.with_base:
            names.add(BASE)
        given = stage.weights or {}
        runs = {each.name: each.run for each in members}
        kept = {
            name: weight
            for name, weight in record.weights.items()
            if name in names and runs.get(name) not in given
        }
        result.weights = {**kept, **given}
    return result


def _read(stage):
    """The candidates, and the record of the merge that is extended."""
    candidates = read_pool(stage.candidates)
    pools = pools_of(candidates)
    known = {each.name for pool in pools for each in read_merges(pool)}
    if stage.method.goes_on and stage.name == stage.extends not in known:
        return candidates, None  # the first of its name
    return candidates, find_merge(pools, stage.extends)


def _going_on(stage, candidates, record):
    """A stage whose first member is the earlier merge, in place of its own."""
    result = copy.copy(stage)
    result.extends = None
    if record is None:
        return result
    removed = [run for run in stage.left_out if run in record.runs]
    if removed:
        raise ValueError(
            f"merge '{record.name}' goes on from itself, and "
            f"{', '.join(removed)} cannot be taken out of it again: merge the "
            "other experts anew, without `extends`."
        )
    kept = [
        pool / record.kept
        for pool in pools_of(candidates)
        if record.kept is not None and (pool / record.kept).is_file()
    ]
    if not kept:
        raise ValueError(
            f"merge '{record.name}' is to go on, and the pool does not hold "
            f"its weights ({record.kept}): merge all experts anew, without "
            "`extends`, or put the file back."
        )
    new = [
        candidate
        for candidate in candidates
        if candidate.run not in record.runs
    ]
    if new or stage.select.runs:
        new = stage.select.of(new)
    merged = {member.digest: member.name for member in record.members}
    twice = [each for each in new if each.digest in merged]
    if twice:
        raise ValueError(
            f"'{twice[0].name}' is in merge '{record.name}' already, as "
            f"'{merged[twice[0].digest]}': it would be merged twice. Leave its "
            f"run out (`without: [{twice[0].run}]`)."
        )
    bases = [
        candidate.base
        for candidate in candidates
        if candidate.base_digest == record.base_digest is not None
    ]
    before = Candidate(
        record.name,
        kept[0],
        record.name,
        known_digest=record.digest,
        base=bases[0] if bases else None,
        base_digest=record.base_digest,
        tags=(SO_FAR,),
    )
    result.candidates = [before, *new]
    result.select = Selection(
        metric=stage.select.metric, mode=stage.select.mode
    )
    result.left_out = []
    parameters = {**stage.method.configuration(), "previous": "recorded"}
    result.method = type(stage.method)(**parameters)
    return result


def remember_merge(job, result):
    """Writes a merge into the pools that its members come from.

    Arguments
    ---------
    job : MergeJob
        What was asked for.
    result : MergeResult
        Its outcome.
    """
    by_name = {member.name: member for member in job.members}
    members = [by_name[name] for name in result.selected]
    pools = pools_of(members)
    if not pools:
        return
    weights = job.weights_for(members)
    if job.method.goes_on:
        _remember_and_keep(job, result, members, pools)
        return
    shares = _shares(result.method, members)
    record = MergeRecord(
        result.name,
        result.method,
        tuple(
            Member(member.name, member.run, member.digest, share)
            for member, share in zip(members, shares)
        ),
        weights,
        any(member.name == BASE for member in members),
        job.left_out,
        job.base_name,
        str(result.path),
        digest(result.path),
        result.value,
        base_digest=_content_of(job.base_name),
        time=time_of_merge(pools),
    )
    for pool in pools:
        remember(pool, record)


def _content_of(base):
    """The digest of a base that was given; None where there is none."""
    there = base is not None and os.path.exists(base)
    return digest(Path(base)) if there else None


def _check_base(record):
    """Refuses to go on from another base than the merge had."""
    found = _content_of(record.base)
    if record.base_digest not in (None, found):
        label = f"the base {record.base} of merge '{record.name}'"
        raise ChangedContent(what_changed(label, found, record.base_digest))


def _remember_and_keep(job, result, members, pools):
    """Writes down a merge that the next one goes on from, and keeps it.

    Its members are those that it was made of from the first merge on, which
    the pool says that it went on from. Once it is on record, what was kept of
    the merge before is removed.
    """
    content = digest(result.path)
    bases = {member.base_digest for member in members}
    base_digest = bases.pop() if len(bases) == 1 else None
    begun: tuple = ()
    before = None
    if members[0].tags == (SO_FAR,):
        first, *members = members
        home, before = Path(first.path).absolute().parent, first.digest
        begun = _last(home, result.name, before).members
        pools = list(dict.fromkeys([home, *pools]))
    record = MergeRecord(
        result.name,
        result.method,
        (*begun, *(Member(e.name, e.run, e.digest) for e in members)),
        base=job.base_name,
        path=str(result.path),
        digest=content,
        value=result.value,
        base_digest=base_digest,
        time=time_of_merge(pools),
    )
    for pool in pools:
        earlier = of_name(read_merges(pool), result.name)
        here = dataclasses.replace(
            record, kept=keep(pool, result.path, result.name, content)
        )
        if not remember(pool, here, before if pool == pools[0] else None):
            continue  # what the pool says last still needs its weights
        for each in earlier:
            if each.kept != here.kept:
                forget(pool, each)


def _last(pool, name, content):
    """The last merge of a name in a pool, if it is the one expected."""
    last = of_name(read_merges(pool), name)
    check_last(pool, last[-1] if last else None, name, content)
    return last[-1]


def _shares(method, members):
    """The share of each member in an average; None for other methods."""
    weights = method.get("weights")
    if isinstance(weights, dict) and list(weights) == ["experts"]:
        weights = [weights["experts"].get(each.name) for each in members]
    if method["name"] != "average":
        return [None] * len(members)
    if weights is None:
        weights = [1.0] * len(members)
    if not all(isinstance(weight, Real) for weight in weights):
        return [None] * len(members)
    return [weight / sum(weights) for weight in weights]
