"""SpeechBrain's saves, where a process trains one model after another.

Authors
 * The speechbrain_merge authors 2026
"""

import inspect

from speechbrain.utils.checkpoints import Checkpointer


def forget_earlier_saves() -> None:
    """Lets saves begin as in a process that has not saved anything yet.

    ``Checkpointer.save_and_keep_only`` adds to a list that is the default value
    of ``importance_keys``, at each call with ``keep_recent=True``. So each save
    looks at all checkpoints twice for each save before it, by whatever
    training; and a later training that asks for ``keep_recent=False`` keeps
    recent checkpoints all the same. A SpeechBrain without such a list is left
    as it is.

    Example
    -------
    >>> checkpointer = Checkpointer(getfixture("tmp_path") / "save")
    >>> for _ in range(2):
    ...     checkpointer.save_and_keep_only(keep_recent=True)
    >>> forget_earlier_saves()
    >>> checkpointer.save_and_keep_only(num_to_keep=0)
    >>> checkpointer.list_checkpoints()
    []
    """
    save = inspect.signature(Checkpointer.save_and_keep_only)
    remembered = save.parameters["importance_keys"].default
    if isinstance(remembered, list):
        remembered.clear()
