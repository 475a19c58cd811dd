"""Continual learning: the table of SpeechBrain's benchmark CL-MASR.

A study with ``continual`` measures all its sequences with the metrics of
``evaluation/continual.py``::

    continual:
        base: [en, zh-CN]          # tests of languages that are known before
        joint: joint               # the model trained on all: reference of IM
        single: "{domain}"         # of each domain the model trained on it: FWT

Each sequence (``study/sequences.py``) is tested after each domain on the base
sets and on the domains so far. A reference may also be a dict from domain to a
rate in % that was measured elsewhere, or be left out with its metric.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Optional, Union

from speechbrain_merge.evaluation import (
    CONTINUAL_METRICS,
    average_metrics,
    continual_metrics,
    rate_matrix,
)
from speechbrain_merge.report.tables import NOTHING
from speechbrain_merge.study.axes import DOMAIN
from speechbrain_merge.study.graph import check_known
from speechbrain_merge.study.sequences import sequence_of


@dataclasses.dataclass(frozen=True)
class Continual:
    """How the sequences of a study are measured.

    Arguments
    ---------
    base : list of str
        Test sets of what is known before the first domain.
    joint : str or dict, optional
        A model that was trained on all domains, or domain to rate in %.
    single : str or dict, optional
        A model with ``{domain}`` in its name that was trained on that domain,
        or domain to rate in %.
    """

    base: Sequence
    joint: Union[str, Mapping, None] = None
    single: Union[str, Mapping, None] = None

    def check(self, names: Sequence, domains: Sequence, tests: Sequence):
        """Raises where sets or models are named that there are not.

        Arguments
        ---------
        names : list of str
            The names of all models that are tested on every set.
        domains : list of str
            The domains of the study.
        tests : list of str
            Its test sets.
        """
        where = "`continual`"
        wrong = [
            name for name in self.base if name not in tests or name in domains
        ]
        if wrong or not self.base:
            raise ValueError(
                f"{where}: `base` is {list(self.base)}; expected tests of the "
                "study that are no domains of training, among "
                f"{', '.join(t for t in tests if t not in domains) or 'none'}."
            )
        missing = [name for name in domains if name not in tests]
        if missing:
            raise ValueError(
                f"{where}: there is no test set for the domains "
                f"{', '.join(missing)}."
            )
        for key in ("joint", "single"):
            given = getattr(self, key)
            if isinstance(given, str):
                for domain in domains:
                    name = given.replace(DOMAIN, domain)
                    check_known(name, names, f"{where}: `{key}`")
            elif given is not None and set(domains) - set(given):
                raise ValueError(
                    f"{where}: `{key}` has no rate for "
                    f"{', '.join(sorted(set(domains) - set(given)))}."
                )


def continual_results(
    continual: Continual,
    plan: Sequence,
    found: Mapping,
    seeds: Sequence,
    mode: str,
) -> Optional[dict]:
    """The metrics of all sequences, as plain data.

    Arguments
    ---------
    continual : Continual
        What is asked for.
    plan : list of Node
        The models.
    found : dict
        (Name, seed) to the counts of a model, and ("continual", name, seed) to
        those of a sequence: for the start and each model, set to counts.
    seeds : list of int
        The seeds.
    mode : str
        The mode of the tests.

    Returns
    -------
    dict
        ``base``, and ``sequences``: name, title, domains, and by seed the
        matrix of rates, the metrics after each domain, and their averages.
    """
    nodes, sequences = {node.name: node for node in plan}, []
    for node in plan:
        if ("continual", node.name, seeds[0]) not in found:
            continue
        domains = sequence_of(node, nodes).domains
        by_seed = {}
        for seed in seeds:
            tested = found["continual", node.name, seed]
            rates = [
                [counts[name]["wer"] for name in (*continual.base, *learned)]
                for counts, learned in zip(
                    tested, (domains[:k] for k in range(len(tested)))
                )
            ]
            matrix = rate_matrix(rates, len(continual.base))
            metrics = continual_metrics(
                matrix,
                **{
                    key: _references(
                        getattr(continual, key), domains, found, seed, mode
                    )
                    for key in ("joint", "single")
                },
            )
            by_seed[str(seed)] = {
                "matrix": matrix,
                "metrics": metrics,
                "averages": average_metrics(metrics),
            }
        sequences.append(
            {
                "name": node.name,
                "title": node.title,
                "domains": list(domains),
                "seeds": by_seed,
            }
        )
    return {"base": list(continual.base), "sequences": sequences}


def continual_rows(results: Mapping) -> tuple:
    """Header and cells of the benchmark's table.

    Arguments
    ---------
    results : dict
        With ``continual``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Means over the seeds, to two decimals.

    Example
    -------
    >>> averages = {"AWER": 50.0, "BWT": -1.5, "IM": None, "FWT": 0.25}
    >>> one = {"title": "AoDE", "seeds": {"0": {"averages": averages}}}
    >>> for line in continual_rows({"continual": {"sequences": [one]}}):
    ...     print(line)
    ['continual learning', 'Average AWER', 'Average BWT', 'Average IM', 'Average FWT']
    [['AoDE', '50.00', '-1.50', '–', '0.25']]
    """
    header = ["continual learning"]
    header += [f"Average {name}" for name in CONTINUAL_METRICS]
    rows = []
    for one in results["continual"]["sequences"]:
        cells = [one["title"]]
        for name in CONTINUAL_METRICS:
            values = [seed["averages"][name] for seed in one["seeds"].values()]
            if None in values:
                cells.append(NOTHING)
            else:
                cells.append(f"{round(statistics.fmean(values), 2) + 0:.2f}")
        rows.append(cells)
    return header, rows


def _references(given, domains, found, seed, mode):
    """The rate of a reference on each domain, or None."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return [float(given[domain]) for domain in domains]
    rows = [(given.replace(DOMAIN, domain), seed) for domain in domains]
    if not all(row in found for row in rows):
        return None  # `only` leaves them out
    return [
        found[row][mode][domain]["wer"] for row, domain in zip(rows, domains)
    ]
