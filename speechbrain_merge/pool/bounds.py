"""Which candidates a run keeps: so many of the newest, and of the best.

A candidate goes when the bounds do not keep it, and when it was trained again:
when its training, resumed from an earlier checkpoint, came by its place once
more. That is where a folder was trained on from, and a folder may be a backup
that lies in the place of another training. So a candidate that was trained
again is deleted where its checkpoint lies here as well, and set aside elsewhere.

Example
-------
>>> records = [
...     {"name": f"epoch-000{epoch}", "meta": {"WER": rate}}
...     for epoch, rate in [(1, 30.0), (2, 20.0), (3, 25.0)]
... ]
>>> kept, replaced = Bounds(last=1, best=1).choose(records)
>>> sorted(kept), replaced
(['epoch-0002', 'epoch-0003'], set())

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from speechbrain_merge.pool.candidate import Candidate, rank
from speechbrain_merge.pool.copied_training import was_saved_in
from speechbrain_merge.pool.run_folder import RunFolder


@dataclass(frozen=True)
class Bounds:
    """How many candidates a run keeps. Given neither number, all are kept.

    Arguments
    ---------
    last : int, optional
        Keep so many of the newest.
    best : int, optional
        Keep so many of the best.
    metric : str
        Entry of their metas that tells the best.
    mode : str
        "min" where lower is better, else "max".
    """

    last: Optional[int] = None
    best: Optional[int] = None
    metric: str = "WER"
    mode: str = "min"

    def choose(self, records: Sequence[dict]) -> tuple[set, set]:
        """Which candidates are kept, and which were trained again.

        Arguments
        ---------
        records : list of dict
            Candidates as the manifest has them, in the order as collected.
            The later of two with one slot, or one number of saves in one
            training, was trained again.

        Returns
        -------
        kept : set of str
            Names.
        replaced : set of str
            Names of those that were trained again, later in the list.
        """
        newest = {
            key: record["name"] for record in records for key in _places(record)
        }
        current = [
            record
            for record in records
            if all(newest[key] == record["name"] for key in _places(record))
        ]
        kept = {record["name"] for record in current}
        replaced = {record["name"] for record in records} - kept
        if self.last is not None or self.best is not None:
            candidates = [
                Candidate(record["name"], Path(), "", meta=record["meta"])
                for record in current
            ]
            ranked = rank(candidates, self.metric, self.mode)
            latest = candidates[-self.last :] if self.last else []
            chosen = [*ranked[: self.best or 0], *latest]
            kept = {candidate.name for candidate in chosen}
        return kept, replaced

    def enforce(
        self, run: RunFolder, checkpoints: Path, passed: Optional[dict] = None
    ) -> None:
        """Takes out of a run what is not kept, and what was trained again.

        Arguments
        ---------
        run : RunFolder
            A run that this process alone writes.
        checkpoints : Path
            Where its training saves its checkpoints.
        passed : dict, optional
            Weights that are not stored, and come after all others: those whose
            place they take were trained again all the same.
        """
        records = list(run.read().candidates.values())
        later = [] if passed is None else [passed]
        replaced = self.choose([*records, *later])[1]
        current = [each for each in records if each["name"] not in replaced]
        there = run.those_there(current)
        # one whose file is gone takes no place, and goes where it has none
        gone = {each["name"] for each in current}
        gone -= {each["name"] for each in there}
        kept = self.choose(there)[0] | (gone & self.choose(current)[0])
        for record in records:
            if record["name"] not in replaced:
                if record["name"] not in kept:
                    run.remove(record, "not among those to keep")
            elif was_saved_in(checkpoints, record):
                run.remove(record, "trained again")
            else:
                run.set_aside(
                    record,
                    "was trained again, and its checkpoint "
                    f"{record['checkpoint']} is not in {checkpoints} any more, "
                    "so that it may be of a training that is elsewhere now",
                )


def _places(record):
    """What tells that a candidate was trained again: its epoch and step, and
    which save of its training it was. With other batches, steps are others."""
    places = [record.get("slot", record["name"])]
    if record.get("lineage") and record.get("saves") is not None:
        places.append((record["lineage"], record["saves"]))
    return places
