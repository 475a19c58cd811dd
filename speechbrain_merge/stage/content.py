"""A merge by its content, whatever its members are called.

Two trials are the same where the same weights are merged by the same method with
the same coefficients. Names of candidates say nothing of that, and neither does
an order that makes no difference.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.records.fingerprint_parts import OwnCode
from speechbrain_merge.records.own_functions import is_own


def merge_content(method, members) -> dict:
    """A merge by content: who goes in, and by which method.

    Arguments
    ---------
    method : MergeMethod
        With its parameters.
    members : list of Candidate
        What is merged.

    Returns
    -------
    dict
        Without names of candidates. The order of the members is left out where
        it makes no difference.

    Example
    -------
    >>> from speechbrain_merge.methods import Average
    >>> from speechbrain_merge.pool import Candidate
    >>> a = Candidate("a/1", "a", "a", known_digest="0c")
    >>> b = Candidate("b/1", "b", "b", known_digest="7f")
    >>> merge_content(Average(), [b, a]) == merge_content(Average(), [a, b])
    True
    >>> uneven = Average({"experts": {"a/1": 1, "b/1": 3}})
    >>> merge_content(uneven, [b, a]) == merge_content(uneven, [a, b])
    True
    >>> merge_content(Average([1, 3]), [b, a]) == merge_content(
    ...     Average([1, 3]), [a, b]
    ... )
    False
    >>> merge_content(Average("cosine"), [b, a]) == merge_content(
    ...     Average("cosine"), [a, b]
    ... )
    False
    """
    digests = [member.digest for member in members]
    known = {member.name: member.digest for member in members}
    settings = _by_digest(method.configuration(), known)
    if method.name == "average":
        if len(members) == 1:
            settings = {"weights": None}  # whatever its weight: itself
        if not _has_list(method.weights):
            digests.sort()  # it sums in float64, in any order
    return {
        **decided_by(method),
        "members": digests,
        "method": method.name,
        "parameters": fingerprint(settings),
    }


def decided_by(method) -> dict:
    """What decides what a method does, besides its name and parameters.

    Arguments
    ---------
    method : MergeMethod
        With its parameters.

    Returns
    -------
    dict
        ``files``: the hashes of statistics, maps, and what these include;
        ``code``: that of a method of the recipe, or of one within another. Empty
        for methods of packages that read no files.
    """
    found: dict = {}
    if codes := list(method.files().values()):
        found["files"] = codes
    kinds = dict.fromkeys(type(part) for part in method.modules())
    if own := tuple(kind for kind in kinds if is_own(kind)):
        found["code"] = fingerprint(OwnCode(own))
    return found


def _by_digest(value, known):
    """Coefficients of experts by their contents instead of their names."""
    if isinstance(value, dict):
        return {
            key: sorted(
                (
                    [known.get(name, name), _by_digest(each, known)]
                    for name, each in entry.items()
                ),
                key=str,
            )
            if key == "experts" and isinstance(entry, dict)
            else _by_digest(entry, known)
            for key, entry in value.items()
        }
    return value


def _has_list(value):
    if isinstance(value, dict):
        return any(
            _has_list(entry) for key, entry in value.items() if key != "depth"
        )
    # a name is that of a decay along the members
    return isinstance(value, (list, tuple, str))
