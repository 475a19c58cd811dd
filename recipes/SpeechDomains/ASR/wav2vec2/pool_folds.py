#!/usr/bin/env python3
"""The tables of a cross-fitted study: the halves of all folds put together.

``hparams/cross_fit.yaml`` tests each half of a domain by itself, since each has
a λ of its own. This puts the halves of a domain together again, of one fold or
of both, and makes the tests that a study makes on what it has then: paired
bootstrap by speaker (by utterance, where a domain has fewer than five), MAPSSWE
with the errors of all seeds of a segment added up, and Holm's correction for
all pairs and domains.

> python pool_folds.py results/cross_fit-1 results/cross_fit-2

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import csv
from pathlib import Path

from speechbrain_merge.evaluation import holm, mapsswe, paired_bootstrap
from speechbrain_merge.study.comparison import FEWEST_SPEAKERS, Scores
from speechbrain_merge.study.results import read_results


def pool_folds(folders: list) -> str:
    """Rates and differences of each domain, of all folds together.

    Arguments
    ---------
    folders : list of str
        Of studies by ``hparams/cross_fit.yaml``, with the same models.

    Returns
    -------
    str
        Two tables in Markdown.

    Raises
    ------
    ValueError
        Where two studies tested the same utterance, or not the same models.
    """
    scores, speakers, pairs = {}, {}, []
    for folder in map(Path, folders):
        results = read_results(folder / "results.json")
        read = Scores(folder, results, {})
        [mode] = results["modes"]
        for test in results["tests"]:
            speakers.update(_speakers(folder, test))
        for row in results["rows"]:
            for test in row["sets"][str(results["seeds"][0])][mode]:
                domain = test.rpartition("-")[0]
                name = row["name"].removesuffix(f"-{domain}")
                own = scores.setdefault(domain, {}).setdefault(name, {})
                for score in read.of(row, mode, test):
                    if score.id in own:
                        raise ValueError(
                            f"{score.id} was tested in {folder} and in a "
                            "folder before it: expected other folds, not the "
                            "same once more."
                        )
                    own[score.id] = score
        for pair in results["comparisons"]["pairs"]:
            for domain in scores:
                names = [n.removesuffix(f"-{domain}") for n in pair["names"]]
                both = all(name in scores[domain] for name in names)
                if both and (domain, *names) not in pairs:
                    pairs.append((domain, *names))
    return _rates(scores) + "\n" + _differences(scores, speakers, pairs)


def _rates(scores):
    """Error rates by model and domain."""
    names = list(dict.fromkeys(n for own in scores.values() for n in own))
    heads = []
    for domain, own in scores.items():
        first = list(next(iter(own.values())).values())
        utterances = len({score.id.rpartition("@")[0] for score in first})
        words = sum(score.words for score in first) * utterances // len(first)
        heads.append(f"{domain} ({utterances} utterances, {words} words)")
    lines = [_line(["WER %", *heads]), _line(["---", *["---:"] * len(heads)])]
    for name in names:
        cells = [
            _rate(own[name].values()) if name in own else ""
            for own in scores.values()
        ]
        lines.append(_line([f"`{name}`", *cells]))
    return "\n".join(lines) + "\n"


def _differences(scores, speakers, pairs):
    """What is told apart, by domain."""
    found = []
    for domain, first, second in pairs:
        before, after = scores[domain][first], scores[domain][second]
        if set(before) != set(after):
            raise ValueError(
                f"{first} and {second} were not tested on the same utterances "
                f"of {domain}: run each of the studies to its end."
            )
        utterances = {name: name.rpartition("@")[0] for name in before}
        blocks = {n: speakers[utterances[n]] for n in before}
        if len(set(blocks.values())) < FEWEST_SPEAKERS:
            blocks = utterances
        drawn = paired_bootstrap(
            list(before.values()), list(after.values()), blocks
        )
        matched = mapsswe(
            list(before.values()), list(after.values()), utterances=utterances
        )
        found.append((domain, first, second, drawn, matched))
    corrected = holm([matched.p_value for *_, matched in found])
    head = ["difference", "domain", "points", "95 % interval", "blocks"]
    head += ["MAPSSWE p", "after Holm"]
    lines = [_line(head), _line(["---", "---", *["---:"] * 5])]
    for (domain, first, second, drawn, matched), p in zip(found, corrected):
        lines.append(
            _line(
                [
                    f"`{second}` against `{first}`",
                    domain,
                    f"{drawn.difference:+.1f}",
                    f"[{drawn.low:+.1f}, {drawn.high:+.1f}]",
                    f"{drawn.units}",
                    f"{matched.p_value:.2g}",
                    f"{p:.2g}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _speakers(folder, test):
    """Utterance to speaker of a test set."""
    path = folder / "splits" / "csv" / f"{test}_test.csv"
    with open(path, newline="", encoding="utf-8") as file:
        return {row["ID"]: row["spk_id"] for row in csv.DictReader(file)}


def _rate(scores):
    """Word error rate of some utterances."""
    scores = list(scores)
    errors = sum(score.errors for score in scores)
    return f"{100 * errors / sum(score.words for score in scores):.1f}"


def _line(cells):
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", help="studies, one a fold")
    print(pool_folds(parser.parse_args().folders))
