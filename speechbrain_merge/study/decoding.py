"""What decides how a model of a study is decoded, besides the text of the YAML.

A test is known by the weights, the rows of its set and the text of the YAML.
The text does not say what is in the files that it names: a tokenizer, the
labels of an encoder, a language model, a lexicon. So a test is also known by
the objects that the recipe made of them, as a search is
(``speechbrain_merge.brain.decisive``), and by the content of the files
themselves.

Plain values of the YAML are left out here: their text counts already, without
what differs between seeds and without the names of the sets that are tested,
so that a new set or seed leaves the tests of others as they are. Files of data
(keys that begin with ``train``, ``valid``, ``test`` or ``retention``) are left
out too, as a test set is known by its rows.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Mapping
from numbers import Number
from typing import Any

from speechbrain_merge.brain.decisive import decisive_settings

DATA = ("train", "valid", "test", "retention")
"""Beginnings of the keys of a YAML that name data."""


def decoding_of(brain, known) -> str:
    """A fingerprint of what a Brain decodes with, besides its YAML's text.

    Arguments
    ---------
    brain : speechbrain.Brain
        As the recipe prepares it.
    known : set of str
        The keys of the YAML, whose text is compared apart.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> import speechbrain as sb
    >>> words = getfixture("tmp_path") / "words.txt"
    >>> _ = words.write_text("one two")
    >>> def decoding(**hparams):
    ...     brain = sb.Brain(hparams=hparams, run_opts={"device": "cpu"})
    ...     return decoding_of(brain, hparams)
    >>> before = decoding(lexicon=str(words), test_domains=["a"])
    >>> before == decoding(lexicon=str(words), test_domains=["a", "b"])
    True
    >>> _ = words.write_text("one three")
    >>> before == decoding(lexicon=str(words), test_domains=["a"])
    False
    """

    def is_text(name, value):
        if name not in known:
            return False
        return _is_plain(value, files=not name.startswith(DATA))

    return decisive_settings(brain, leave_out=is_text)


def _is_plain(value: Any, files: bool) -> bool:
    """Whether a value is what its text says: no object, and no file."""
    if value is None or isinstance(value, Number):
        return True
    if isinstance(value, str):
        return not (files and os.path.isfile(value))
    if isinstance(value, (list, tuple)):
        return all(_is_plain(each, files) for each in value)
    if isinstance(value, Mapping):
        return all(_is_plain(each, files) for each in value.values())
    return False
