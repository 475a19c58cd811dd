"""Results for the open ASR leaderboard of the Hugging Face Hub.

A benchmark of the Hub collects results from the models themselves: from YAML
files in their folder ``.eval_results``, a list of entries with the benchmark's
name, the task and the value [1]. The open ASR leaderboard is the benchmark
``hf-audio/open-asr-leaderboard``, and its tasks are the word error rates in
percent of its sets, as the models that are listed there have them [2].

A set counts only if it is the leaderboard's own: its audio, its references, and
both texts normalised as there. No name shows that. So nothing is written unless
a person says which set is which.

Example
-------
>>> counts = {"test-clean": {"errors": 30, "words": 1000}}
>>> results = {
...     "in_domain": [],
...     "test_domains": ["test-clean"],
...     "rows": [{"name": "ties", "sets": counts}],
... }
>>> sets = {"test-clean": "librispeech_clean_wer"}
>>> print(leaderboard_yaml(results, "ties", sets), end="")
- dataset:
    id: "hf-audio/open-asr-leaderboard"
    task_id: "librispeech_clean_wer"
  value: 3.0

References
----------
[1] https://huggingface.co/docs/hub/eval-results
[2] ``.eval_results/open_asr_leaderboard.yaml`` of ibm-granite/granite-speech-4.1-2b,
read in 2026.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from typing import Optional

from speechbrain_merge.evaluation import rate_of
from speechbrain_merge.report.quoted_yaml import quoted_yaml
from speechbrain_merge.report.results import check_results, row_of

FILE = ".eval_results/open_asr_leaderboard.yaml"
"""Where the Hub looks for it in the folder of a model."""

BENCHMARK = "hf-audio/open-asr-leaderboard"

TASKS = tuple(
    f"{name}_wer"
    for name in (
        "ami",
        "earnings22",
        "gigaspeech",
        "librispeech_clean",
        "librispeech_other",
        "spgispeech",
        "voxpopuli",
    )
)
"""The sets that the leaderboard's mean is taken over since May 2026."""


def leaderboard_yaml(
    results: Mapping, row: str, sets: Mapping, date: Optional[str] = None
) -> str:
    """The content of the file with a model's results.

    Arguments
    ---------
    results : dict
        See ``report/results.py``.
    row : str
        The name of the model's row.
    sets : dict
        Name of a test set to the task of the leaderboard that it is.
    date : str, optional
        When the model was tested, as ISO 8601 has it.

    Returns
    -------
    text : str
        YAML. With all sets of the leaderboard there is their mean too,
        ``mean_wer``: not weighted, as there.

    Raises
    ------
    ValueError
        For a set that was not tested, or a task that there is not.
    """
    check_results(results)
    counts = row_of(results, row)["sets"]
    rates = {}
    for name, task in sets.items():
        if task not in TASKS:
            raise ValueError(
                f"`leaderboard` has {task!r} for the set {name!r}: expected "
                f"one of {', '.join(TASKS)}"
            )
        if task in rates:
            raise ValueError(f"`leaderboard` has two sets for {task!r}")
        if name not in counts:
            raise ValueError(
                f"`leaderboard` names the set {name!r}, which was not tested. "
                f"The sets are {', '.join(counts)}"
            )
        rate = rate_of(counts[name])
        if rate is None:
            raise ValueError(f"the set {name!r} has no words")
        rates[task] = rate
    if set(rates) == set(TASKS):
        rates = {"mean_wer": sum(rates.values()) / len(rates), **rates}
    entries = []
    for task, rate in rates.items():
        entry: dict = {
            "dataset": {"id": BENCHMARK, "task_id": task},
            "value": round(rate, 2),
        }
        if date is not None:
            entry["date"] = date
        entries.append(entry)
    return quoted_yaml(entries)
