"""Resuming from a complete checkpoint after a kill while one was being saved.

SpeechBrain writes a checkpoint in place, its ``CKPT.yaml`` first. If the
process is killed meanwhile, the incomplete checkpoint looks like the newest
one, and loading it fails at every later start. Here incomplete checkpoints are
recognised and skipped; they stay where they are.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import functools
import zipfile

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

ZIP = b"PK"


@contextlib.contextmanager
def whole_checkpoints(checkpointer):
    """In this context a checkpointer recovers from whole checkpoints alone.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer or None
        Of a Brain. A checkpoint that lacks what is not written last, such as
        one of another YAML, counts as complete; loading it fails as usual.

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
    ...     with whole_checkpoints(checkpointer):
    ...         found = checkpointer.recover_if_possible()
    0
    >>> found.path.name
    'CKPT+first'
    """
    if checkpointer is None:
        yield
        return

    def is_whole(checkpoint):
        reason = half_written(checkpoint, checkpointer)
        if reason:
            logger.warning(
                f"{checkpoint.path} is passed over: {reason}. A kill came "
                "while it was written; it may be deleted."
            )
        return not reason

    recover = checkpointer.recover_if_possible
    checkpointer.recover_if_possible = functools.partial(
        recover, ckpt_predicate=is_whole
    )
    try:
        yield
    finally:
        checkpointer.recover_if_possible = recover


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
    files, names = checkpoint.paramfiles, list(checkpointer.recoverables)
    last = "brain" if "brain" in names else names[-1]
    if last not in files and not checkpointer.allow_partial_load:
        return f"'{last}', which is written last, is missing"
    for path in files.values():
        with open(path, "rb") as file:
            start = file.read(len(ZIP))
        if not start:
            return f"{path.name} is empty"
        if start == ZIP and not zipfile.is_zipfile(path):
            return f"{path.name} breaks off"
    return ""
