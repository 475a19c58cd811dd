"""The line of the log that says which weights are evaluated.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger
from speechbrain_merge.engine import provenance
from speechbrain_merge.pool import Candidate
from speechbrain_merge.pool.on_record import RESULT
from speechbrain_merge.stage.result import read_result

logger = get_logger(__name__)

SHOWN = 20  # members of a merge that are named


def described(source):
    """Describes a source of weights in words.

    Arguments
    ---------
    source : Candidate, str, Path, Mapping, Module or None
        As for ``use_weights``.

    Returns
    -------
    description : dict
        ``evaluated`` and what is known of its error rate, as text.

    Example
    -------
    >>> described(Candidate("run/epoch-0002", "a", "run", meta={"WER": 7.5}))
    {'evaluated': 'candidate run/epoch-0002', 'dev WER': '7.5'}
    >>> described(None)
    {'evaluated': "the recipe's own choice of weights"}
    """
    if source is None:
        return {"evaluated": "the recipe's own choice of weights"}
    if isinstance(source, Candidate):
        found = {"evaluated": f"candidate {source.name}"}
        if source.score is not None:
            found[f"dev {source.metric}"] = f"{source.score:.4g}"
        return found
    if not isinstance(source, (str, Path)):
        kind = "weights in memory" if isinstance(source, Mapping) else "a model"
        return {"evaluated": kind}
    path = Path(source)
    record = path.parent / RESULT
    if record.is_file():
        result = read_result(record)["result"]
        if result["path"] == path.name:
            return _of_stage(result)
    try:
        record = provenance(path)
    except ValueError:  # not a file of a merge
        return {"evaluated": str(path)}
    labels = [each.get("label") for each in record.get("sources") or []]
    return {"evaluated": f"merge {path} ({record['method']}) {_of(labels)}"}


def _of_stage(result):
    method = result["method"]["name"]
    found = {
        "evaluated": f"merge '{result['name']}' ({method}) "
        f"{_of(result['selected'])}"
    }
    if result.get("value") is None:
        found["dev error rate"] = "not measured, merged without a search"
    else:
        found["dev error rate"] = f"{result['value']:.2f} %"
    return found


def _of(members):
    more = len(members) - SHOWN
    named = " + ".join(map(str, members[:SHOWN]))
    return f"of {named}" + (f" and {more} more" if more > 0 else "")


def log_evaluated(brain):
    """Writes what is evaluated to the log and to the recipe's train log.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Where ``hparams.train_logger`` is a
        ``FileTrainLogger`` (as in most recipes), the line goes there too;
        other loggers take numbers alone.
    """
    said = described(brain.promised)
    line = ", ".join(f"{key}: {value}" for key, value in said.items())
    logger.info(line)
    train_logger = getattr(brain.hparams, "train_logger", None)
    if isinstance(train_logger, FileTrainLogger) and if_main_process():
        # Not by `log_stats`, in which all processes wait for each other: one
        # of them may have no batch to evaluate
        with open(train_logger.save_file, "a", encoding="utf-8") as file:
            print(line, file=file)
