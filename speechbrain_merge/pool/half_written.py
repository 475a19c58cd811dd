"""Resuming from a complete checkpoint after a kill while one was being saved.

SpeechBrain writes a checkpoint in place, its ``CKPT.yaml`` first. If the
process is killed meanwhile, the incomplete checkpoint looks like the newest
one, and loading it fails at every later start; and if ``CKPT.yaml`` itself was
being written, no checkpoint of the folder can be listed any more. Here
incomplete checkpoints are recognised and skipped; they stay where they are.

Its files are written one after the other, in the order in which recoverables
were added, and what a Brain adds itself in ``fit`` (optimizer, dataloader) would
come after the Brain. So the Brain is moved to the end: a checkpoint that has it
has all others.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import re

import torch
import yaml

import speechbrain as sb
from speechbrain.utils.checkpoints import METAFNAME
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.meta import finite_number
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.own_functions import is_own
from speechbrain_merge.records.reading import parse_yaml, read_text
from speechbrain_merge.weights.damage import damage_of

logger = get_logger(__name__)

META_LIMIT = 1 << 20

_LAST_OF_BRAIN = re.compile(r"^step: .*\n\Z", re.MULTILINE)
"""The last line that ``Brain._save`` writes."""


def pass_over_remains(checkpointer):
    """From now on a checkpointer lists only checkpoints that are whole.

    It recovers from these alone, averages them alone, and counts them alone
    where it keeps so many. Others stay where they are. It also writes the
    Brain last, so that remains can be told. What cannot be loaded for any other
    reason is named with its file.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer or None
        Of a Brain. Done once for each. A checkpoint that lacks what is not
        written last, such as one of another YAML, counts as whole; loading it
        fails as usual.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> import torch
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> modules = {
    ...     "model": torch.nn.Linear(1, 1),
    ...     "last": torch.nn.Linear(1, 1),
    ... }
    >>> with TemporaryDirectory() as folder:
    ...     checkpointer = Checkpointer(folder, modules)
    ...     first = checkpointer.save_checkpoint(name="first")
    ...     second = checkpointer.save_checkpoint(name="second")
    ...     second.paramfiles["last"].write_bytes(b"")
    ...     pass_over_remains(checkpointer)
    ...     found = checkpointer.recover_if_possible()
    0
    >>> found.path.name
    'CKPT+first'
    """
    if checkpointer is None or hasattr(checkpointer, "passed_over"):
        return
    checkpointer.passed_over = {}  # folder to the reason
    _write_brain_last(checkpointer)
    _name_what_does_not_load(checkpointer)
    folders, checkpoints = (
        checkpointer._list_checkpoint_dirs,
        checkpointer.list_checkpoints,
    )

    def is_whole(folder, reason):
        if reason and folder not in checkpointer.passed_over:
            checkpointer.passed_over[folder] = reason
            logger.warning(
                f"{folder} is passed over: {reason}. A kill came while it was "
                "written, or it was saved by another script."
            )
        return not reason

    # one empty CKPT.yaml would end the listing of all
    checkpointer._list_checkpoint_dirs = lambda: [
        folder for folder in folders() if is_whole(folder, torn_meta(folder))
    ]
    checkpointer.list_checkpoints = lambda: [
        each
        for each in checkpoints()
        if is_whole(each.path, half_written(each, checkpointer))
    ]


def _write_brain_last(checkpointer):
    """Keeps the Brain the last of the recoverables, whatever is added."""
    adding = checkpointer.add_recoverable

    @functools.wraps(adding)
    def add(*arguments, **options):
        adding(*arguments, **options)
        move()

    def move():
        recoverables = checkpointer.recoverables
        if "brain" in recoverables:
            recoverables["brain"] = recoverables.pop("brain")

    checkpointer.add_recoverable = add
    move()


def _name_what_does_not_load(checkpointer):
    """Names the file in the errors of loading a checkpoint.

    SpeechBrain opens one file after the other, and of a damaged one pickle, or
    torch, says what it stumbled over alone.
    """
    loading = checkpointer._call_load_hooks

    def load(checkpoint):
        files = _AskedFor(checkpoint.paramfiles)
        try:
            loading(checkpoint._replace(paramfiles=files))
        except Exception as error:
            # Whatever comes of damaged bytes, in whatever loads them
            path, found = files.last, str(error)
            if path is None or path.name in found:
                raise
            raise ValueError(
                f"{path} cannot be loaded ({type(error).__name__}: "
                f"{_short(error)}): it is damaged, or of another model. Copy it "
                f"again, or move {path.parent} away, so that an earlier "
                "checkpoint is loaded."
            ) from error

    checkpointer._call_load_hooks = load


class _AskedFor(dict):
    """Files by recoverable, which knows the one that was asked for last."""

    last = None

    def __getitem__(self, name):
        self.last = super().__getitem__(name)
        return self.last


def has_whole_checkpoint(checkpointer) -> bool:
    """Whether there is a checkpoint that a training can go on from.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer
        Of a Brain.

    Returns
    -------
    bool
    """
    pass_over_remains(checkpointer)
    return bool(checkpointer.list_checkpoints())


def written_last(checkpointer) -> str:
    """The last of the recoverables that every checkpoint has.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer
        Of a Brain.

    Returns
    -------
    str
    """
    names = list(checkpointer.recoverables)
    return "brain" if "brain" in names else names[-1]


def torn_meta(folder) -> str:
    """Why the ``CKPT.yaml`` of a checkpoint was not written to its end.

    Arguments
    ---------
    folder : Path
        A checkpoint.

    Returns
    -------
    str
        Empty where it was; also for metas with Python objects in them, which
        are whole, and which SpeechBrain itself refuses.
    """
    try:
        text = read_text(folder / METAFNAME, META_LIMIT)
        events = list(yaml.parse(text))
    except (RecordError, OSError, yaml.YAMLError, RecursionError) as error:
        return f"its {METAFNAME} cannot be read ({_short(error)})"
    keys = [each.value for each in events if isinstance(each, yaml.ScalarEvent)]
    if "unixtime" not in keys[:-1]:
        return f"its {METAFNAME} has no time"
    time = keys[keys.index("unixtime") + 1]
    try:
        known = finite_number(parse_yaml(time, METAFNAME)) is not None
    except RecordError:
        known = False
    return "" if known else f"the time in its {METAFNAME} is no number"


def _short(error):
    return " ".join(str(error).split())[:200]


def half_written(checkpoint, checkpointer):
    """Why a checkpoint is not whole.

    Arguments
    ---------
    checkpoint : speechbrain.utils.checkpoints.Checkpoint
        Its files.
    checkpointer : speechbrain.utils.checkpoints.Checkpointer
        It writes its recoverables in order; the Brain is the last of those that
        every checkpoint has, unless a part of them is enough to load.

    Returns
    -------
    str
        Empty for a whole one.
    """
    files, last = checkpoint.paramfiles, written_last(checkpointer)
    if last not in files and not checkpointer.allow_partial_load:
        return f"'{last}', which is written last, is missing"
    known = checkpointer.recoverables
    damaged = (
        damage_of(path)
        for name, path in files.items()
        if not _may_save_anything(known.get(name))
    )
    reason = next(filter(None, damaged), "")
    return reason or _torn_brain(files, checkpointer)


def _may_save_anything(recoverable):
    """Whether a recoverable is of a recipe's class, with a saver of its own."""
    usual = (torch.nn.Module, torch.optim.Optimizer)
    return not isinstance(recoverable, usual) and is_own(type(recoverable))


def _torn_brain(files, checkpointer):
    """Why the file of a Brain breaks off; its keys are written in order."""
    brain = checkpointer.recoverables.get("brain")
    if "brain" not in files or type(brain)._save is not sb.Brain._save:
        return ""
    try:
        text = read_text(files["brain"], META_LIMIT)
    except RecordError as error:
        return _short(error)
    whole = _LAST_OF_BRAIN.search(text) is not None
    return "" if whole else f"{files['brain'].name} breaks off"
