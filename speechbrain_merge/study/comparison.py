"""Which differences between the models of a study are significant.

Two tests are made of each pair that the YAML names: the matched-pair test of
NIST (MAPSSWE) on the errors of all sets, with those of all seeds in a segment
of an utterance added up, and a paired
bootstrap of the difference of the mean error rates, drawn in blocks: all
utterances of a speaker, of all seeds, go together (in sets of fewer than five
speakers, an utterance of all seeds). So trainings that hear the same speech are
not taken for more speech. In each column of a table
the best model is compared with the next best. All p-values of a study's pairs,
and all of a table's columns, are corrected by Holm's method.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Optional

from speechbrain_merge.evaluation import (
    holm,
    macro_bootstrap,
    mapsswe,
    rate_of,
    read_scores,
)
from speechbrain_merge.study.compared import Compared
from speechbrain_merge.study.testing import scores_of


def compare_models(results: Mapping, study, speakers: Mapping) -> dict:
    """The tests of a study's pairs, and of the best of each column.

    Arguments
    ---------
    results : dict
        With ``rows``, ``modes``, ``seeds`` and ``tests``.
    study : Study
        Its ``compare`` and ``reference`` name the pairs.
    speakers : dict
        Set to a dict from utterance to speaker, where known.

    Returns
    -------
    dict
        ``pairs``: a list of dicts with the ``names``, the ``mode``, the sets
        that were asked for as ``on``, if not all, the
        ``difference`` of the mean error rates with its interval ``low`` and
        ``high``, and the p-value of MAPSSWE, ``p``, and corrected, ``holm``.
        ``best``: mode to set to the ``name`` of its best row and whether it is
        ``significant`` against the ``next``.
    """
    scores = Scores(study.folder, results, speakers)
    rows = {row["name"]: row for row in results["rows"]}
    pairs = [
        pair for pair in study.compare if {pair.first, pair.second} <= set(rows)
    ]
    if study.reference in rows:
        referred = [
            Compared(study.reference, name)
            for name in rows
            if name != study.reference
        ]
        pairs += [pair for pair in referred if pair not in pairs]
    found = [
        compare_pair(scores, rows[first], rows[second], mode, sets)
        for first, second, sets in pairs
        for mode in results["modes"]
        if scores.common(rows[first], rows[second], among=sets)
    ]
    for entry, corrected in zip(found, holm([e["p"] for e in found])):
        entry["holm"] = corrected
    return {"pairs": found, "best": best_of_columns(scores, rows, results)}


FEWEST_SPEAKERS = 5
"""With fewer speakers in a set, its blocks are utterances: drawing one or two
speakers again and again would show no spread."""


class Scores:
    """The errors of each utterance, by row, set and mode, of all seeds.

    Arguments
    ---------
    folder : Path
        The study's folder.
    results : dict
        See ``study/results.py``.
    speakers : dict
        Set to a dict from utterance to speaker.
    """

    def __init__(self, folder, results: Mapping, speakers: Mapping):
        self.folder, self.results = folder, results
        self.speakers = speakers
        self._read = lru_cache(maxsize=256)(read_scores)

    def common(self, *rows: Mapping, among: Optional[Iterable] = None) -> list:
        """The sets, perhaps among some, that all of some rows were tested on."""
        seed, mode = str(self.results["seeds"][0]), self.results["modes"][0]
        return [
            name
            for name in self.results["tests"]
            if among is None or name in among
            if all(name in row["sets"][seed][mode] for row in rows)
        ]

    def of(self, row: Mapping, mode: str, name: str) -> list:
        """The scores of a row on a set; ids say of which seed."""
        found = []
        for seed in self.results["seeds"]:
            counts = row["sets"][str(seed)][mode][name]
            found += [
                dataclasses.replace(score, id=f"{score.id}@{seed}")
                for score in scores_of(self.folder, counts, self._read)
            ]
        return found

    def blocks(self, names: Iterable) -> dict:
        """The block of each utterance of some sets: speaker, or itself."""
        blocks = {}
        seed, mode = str(self.results["seeds"][0]), self.results["modes"][0]
        for name in names:
            known = self.speakers.get(name, {})
            if len(set(known.values())) < FEWEST_SPEAKERS:
                known = {}  # each utterance by itself
            for row in self.results["rows"]:
                if name in row["sets"][seed][mode]:
                    for score in self.of(row, mode, name):
                        utterance = _utterance(score)
                        block = known.get(utterance, utterance)
                        blocks[score.id] = f"{name} {block}"
                    break
        return blocks

    def weights_differ(self, first: Mapping, second: Mapping, mode, name):
        """Whether two rows are of different scores at all."""
        return any(
            first["sets"][str(s)][mode][name]["scores"]
            != second["sets"][str(s)][mode][name]["scores"]
            for s in self.results["seeds"]
        )


def compare_pair(
    scores: Scores,
    first: Mapping,
    second: Mapping,
    mode: str,
    sets: Optional[Sequence] = None,
) -> dict:
    """Two rows on all sets that both were tested on, or some of them.

    Arguments
    ---------
    scores : Scores
        The errors.
    first, second : dict
        Rows; the first is the baseline.
    mode : str
        The mode.
    sets : list of str, optional
        The sets that are asked for; by default all.

    Returns
    -------
    dict
        See ``compare_models``.
    """
    names = scores.common(first, second, among=sets)
    asked = {} if sets is None else {"on": names}
    before = {name: scores.of(first, mode, name) for name in names}
    after = {name: scores.of(second, mode, name) for name in names}
    drawn = macro_bootstrap(before, after, scores.blocks(names))
    matched = _matched(_labelled(before), _labelled(after))
    return {
        "names": [first["name"], second["name"]],
        "titles": [first["title"], second["title"]],
        "mode": mode,
        "sets": names,
        **asked,
        "difference": drawn.difference,
        "low": drawn.low,
        "high": drawn.high,
        "blocks": drawn.units,
        "segments": matched.segments,
        "p": matched.p_value,
    }


def best_of_columns(scores: Scores, rows: Mapping, results: Mapping) -> dict:
    """The best row of each set, and whether it is better than the next.

    Arguments
    ---------
    scores : Scores
        The errors.
    rows : dict
        Name to row.
    results : dict
        See ``study/results.py``.

    Returns
    -------
    dict
        See ``compare_models``.
    """
    best, entries = {}, []
    for mode in results["modes"]:
        best[mode] = {}
        for name in results["tests"]:
            ranked = _ranked(rows.values(), results, mode, name)
            if not ranked:
                continue
            entry = {"name": ranked[0]["name"], "p": 1.0, "next": None}
            rivals = [
                row
                for row in ranked[1:]
                if scores.weights_differ(ranked[0], row, mode, name)
            ]
            if rivals:
                entry["next"] = rivals[0]["name"]
                entry["p"] = _matched(
                    scores.of(rivals[0], mode, name),
                    scores.of(ranked[0], mode, name),
                ).p_value
            best[mode][name] = entry
            entries.append(entry)
    for entry, corrected in zip(entries, holm([e["p"] for e in entries])):
        entry["holm"] = corrected
        entry["significant"] = corrected < 0.05
    return best


def _ranked(rows, results, mode, name):
    """Rows that were tested on a set, the best first; bounds left out."""
    seeds = [str(seed) for seed in results["seeds"]]

    def rate(row):
        counts = [row["sets"][seed][mode][name] for seed in seeds]
        return rate_of(
            {
                "errors": sum(each["errors"] for each in counts),
                "words": sum(each["words"] for each in counts),
            }
        )

    tested = [
        row
        for row in rows
        if not row.get("bound")
        and name in row["sets"][seeds[0]][mode]
        and rate(row) is not None
    ]
    return sorted(tested, key=rate)


def _matched(first, second):
    """MAPSSWE, in which the scores of all seeds of an utterance are one."""
    utterances = {score.id: _utterance(score) for score in first}
    return mapsswe(first, second, utterances=utterances)


def _utterance(score):
    """The utterance of a score, whose id says of which seed it is."""
    return score.id.rpartition("@")[0]


def _labelled(by_set):
    """Scores of several sets in one list; ids say of which set."""
    return [
        dataclasses.replace(score, id=f"{name} {score.id}")
        for name, scores in by_set.items()
        for score in scores
    ]
