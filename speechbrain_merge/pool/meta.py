"""The meta of a SpeechBrain checkpoint: metric, epoch, step.

`CKPT.yaml` is the first file that SpeechBrain writes into a checkpoint, so it
is there when a saving hook runs, although the hook gets only a path. Values
that recipes put there are not always plain: one NumPy number makes the whole
save folder unreadable for SpeechBrain itself since 1.1.1. Here such numbers are
read, without unpickling anything.

Example
-------
>>> folder = getfixture("tmp_path")
>>> _ = (folder / "CKPT.yaml").write_text("WER: 12.5\\nunixtime: 1.0\\n")
>>> _ = (folder / "counter.ckpt").write_text("3")
>>> meta = read_meta(folder)
>>> meta["WER"], read_progress(folder, meta)
(12.5, (3, None))

Authors
 * The speechbrain_merge authors 2026
"""

import re
from pathlib import Path
from typing import Optional

import numpy
import yaml

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import METAFNAME
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import is_finite
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.reading import read_text, read_yaml

logger = get_logger(__name__)

COUNTER_FILES = ("counter.ckpt", "epoch_counter.ckpt")
"""How recipes call the epoch counter among the recoverables."""

BRAIN_FILE = "brain.ckpt"


class _Unreadable:
    """Stands for a Python object in a meta file that is not a number."""


class _MetaLoader(yaml.SafeLoader):
    """YAML without code, which also knows NumPy's numbers."""


def _numpy_number(loader, node):
    dtype, data = loader.construct_sequence(node, deep=True)
    return numpy.frombuffer(data, dtype)[0].item()


def _numpy_dtype(loader, node):
    name = loader.construct_mapping(node, deep=True)["args"][0]
    # Plain numbers alone: a dtype may also describe structures of any size
    if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?[bfiu]\d", name):
        raise yaml.constructor.ConstructorError(
            None, None, f"expected the dtype of a number, got {shown(name)}"
        )
    return numpy.dtype(name)


def _unreadable(loader, suffix, node):
    del loader, suffix, node  # Not looked at: it may be anything
    return _Unreadable()


_PYTHON = "tag:yaml.org,2002:python/"
for _module in ("numpy.core", "numpy._core"):
    _MetaLoader.add_constructor(
        f"{_PYTHON}object/apply:{_module}.multiarray.scalar", _numpy_number
    )
_MetaLoader.add_constructor(f"{_PYTHON}object/apply:numpy.dtype", _numpy_dtype)
_MetaLoader.add_multi_constructor(_PYTHON, _unreadable)


def saved_with(path) -> Optional[float]:
    """The time of the checkpoint that a file lies in, as its meta says.

    A file of a checkpoint that holds it cannot be taken for that of another.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    float or None
        None for a file that lies in no checkpoint.
    """
    folder = Path(path).parent
    if not (folder / METAFNAME).is_file():
        return None
    return finite_number(read_meta(folder).get("unixtime"))


def check_saved_with(path, time: Optional[float]) -> None:
    """Refuses a file of a checkpoint that was saved with another one.

    Arguments
    ---------
    path : str or Path
        The file.
    time : float, optional
        What `saved_with` gave when it was saved. None for files of earlier
        versions, of which nothing is known.

    Raises
    ------
    RecordError
        Where it lies in another checkpoint.
    """
    if time is not None and saved_with(path) not in (None, time):
        raise RecordError(
            f"{path} was saved with another checkpoint than the {METAFNAME} "
            "beside it"
        )


def read_meta(folder) -> dict:
    """The meta of a checkpoint folder, as plain values.

    Arguments
    ---------
    folder : str or Path
        A `CKPT+…` folder.

    Returns
    -------
    dict
        Numbers, strings, truth values, None, and lists and dicts of them.

    Raises
    ------
    ValueError
        Where `CKPT.yaml` is missing or was not written to its end.
    """
    path = Path(folder) / METAFNAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {METAFNAME}")
    meta = _load_yaml(path)
    for key in [k for k, v in meta.items() if isinstance(v, _Unreadable)]:
        logger.warning(
            f"{path}: left out '{key}', which is a Python object and not a "
            "number. Save metas as float(...)."
        )
        del meta[key]
    return plain(meta)


def _load_yaml(path):
    found = read_yaml(path, _MetaLoader)
    if not isinstance(found, dict):
        raise RecordError(f"{path} is empty or not written to its end")
    return found


def read_progress(folder, meta: dict, ignored=()) -> tuple:
    """Epoch and optimizer step of a checkpoint, as far as they can be known.

    Arguments
    ---------
    folder : str or Path
        A `CKPT+…` folder.
    meta : dict
        Its meta.
    ignored : set of str
        Names of files that are not to be read.

    Returns
    -------
    epoch : int or None
        From the meta, else from the saved epoch counter.
    step : int or None
        From the meta, else the optimizer steps that the Brain saved.
    """
    epoch, step = _progress(meta.get("epoch")), _progress(meta.get("step"))
    for name in COUNTER_FILES:
        path = Path(folder) / name
        if epoch is None and path.is_file() and name not in ignored:
            epoch = _progress(_text_of(path))
    path = Path(folder) / BRAIN_FILE
    if step is None and path.is_file() and BRAIN_FILE not in ignored:
        brain = _load_yaml(path)
        # Older Brains saved `step` alone, which starts anew in each epoch
        step = _progress(brain.get("optimizer_step"))
    return epoch, step


def _progress(value):
    """A count of epochs or steps; None where the value is none.

    One below zero counts nothing, and a name made of it would be no
    candidate's.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    number = finite_number(value)
    if number is None or number != int(number) or not 0 <= number < 1e15:
        return None
    return int(number)


def _text_of(path):
    try:
        return read_text(path, 1000).strip()
    except RecordError:
        return None


def fresh_progress(folder, meta: dict) -> tuple:
    """As `read_progress`, for a checkpoint that is just being saved.

    A checkpoint with a name of its own is saved over an earlier one, whose
    counters may still lie there: only files newer than the meta count.

    Arguments
    ---------
    folder : str or Path
        A `CKPT+…` folder.
    meta : dict
        Its meta.

    Returns
    -------
    epoch : int or None
    step : int or None
    """
    folder = Path(folder)
    since = (folder / METAFNAME).stat().st_mtime_ns
    stale = {
        name
        for name in (*COUNTER_FILES, BRAIN_FILE)
        if (folder / name).is_file()
        and (folder / name).stat().st_mtime_ns < since
    }
    return read_progress(folder, meta, stale)


def is_intra_epoch(meta: dict) -> bool:
    """Whether SpeechBrain saved it by the clock or the step, for safety."""
    return bool(meta.get(INTRA_EPOCH_CKPT_FLAG))


def is_from_testing(meta: dict) -> bool:
    """Whether a recipe saved it after testing, with a made-up metric.

    Recipes that average checkpoints save the average in `on_stage_end` of the
    test stage, where the epoch is None, under a metric that wins always
    (WER −0.1, accuracy 1.1).

    Arguments
    ---------
    meta : dict
        The meta of a checkpoint.

    Returns
    -------
    bool

    Example
    -------
    >>> is_from_testing({"WER": -0.1, "epoch": None})
    True
    >>> is_from_testing({"WER": 4.5})
    False
    """
    return "epoch" in meta and meta["epoch"] is None


def plain(value):
    """The value as JSON can hold it; what is no number becomes its text.

    Arguments
    ---------
    value : any
        E.g. hyperparameters as a YAML file gives them.

    Returns
    -------
    any

    Example
    -------
    >>> plain({"lr": numpy.float64(0.5), "sizes": (1, 2), "model": max})
    {'lr': 0.5, 'sizes': [1, 2], 'model': '<built-in function max>'}
    """
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "item") and getattr(value, "size", None) in (1, None):
        value = value.item()  # a number of NumPy
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def finite_number(value) -> Optional[float]:
    """The value as a float, or None where it is no finite number.

    Arguments
    ---------
    value : any
        What a meta holds under the name of a metric.

    Returns
    -------
    float or None

    Example
    -------
    >>> finite_number(3), finite_number(float("nan")), finite_number("low")
    (3.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if is_finite(value) else None
