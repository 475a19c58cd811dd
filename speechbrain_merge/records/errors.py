"""The error of a record that cannot be used, and how it shows a value.

Authors
 * The speechbrain_merge authors 2026
"""

LONGEST_SHOWN = 80


class RecordError(ValueError):
    """A file that was read does not hold what it should.

    The message names the file and the entry, what was expected and what there
    is. It is a ValueError, so that callers need not know of this room.

    Example
    -------
    >>> raise RecordError("a.json, key 'epoch': expected a number, got 'x'")
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: a.json, key 'epoch': expected a number, got 'x'
    """


def shown(value) -> str:
    """A value as an error message shows it: on one line, and not too long.

    Arguments
    ---------
    value : object
        Plain data, perhaps very large.

    Returns
    -------
    str

    Example
    -------
    >>> shown("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…' (1000 characters)"
    >>> shown({"a": 1}), shown(3), shown([1, 2])
    ('a mapping with 1 entries', '3', 'a list of 2')
    """
    if isinstance(value, str):
        if len(value) <= LONGEST_SHOWN:
            return repr(value)
        return f"{value[:71]!r}"[:-1] + f"…' ({len(value)} characters)"
    if isinstance(value, dict):
        return f"a mapping with {len(value)} entries"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 1 << 256:
        return "a huge number"
    return repr(value)[:LONGEST_SHOWN]


def printable(text: str) -> str:
    r"""Text of a stranger as it may be shown in a terminal.

    Arguments
    ---------
    text : str
        Any text, of several lines perhaps.

    Returns
    -------
    str
        With escapes in the place of control characters, which could move the
        cursor or hide what stands there, of those that turn the direction of
        writing, and of what cannot be written as UTF-8.

    Example
    -------
    >>> printable("ties\x1b[2J\u202e")
    'ties\\x1b[2J\\u202e'
    """
    return "".join(
        each
        if each.isprintable() or each == "\n"
        else each.encode("unicode_escape").decode()
        for each in text
    )
