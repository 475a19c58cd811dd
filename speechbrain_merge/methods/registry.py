"""Merge methods by name.

A recipe names a method in YAML (``!new:speechbrain_merge.methods.Average``) or
as a word on a command line (``average``). The registry is what turns the word
into the method. Another package adds its own methods with the decorator
``register`` for a class, or ``merge_method`` for a plain function. They are
known when that package is imported, or, without anybody importing it, through
the entry-point group ``speechbrain_merge.methods``.

Example
-------
>>> from speechbrain_merge.methods import available, create
>>> "average" in available()
True
>>> create("average", weights=[3, 1])
Average(weights=[3, 1])

Authors
 * The speechbrain_merge authors 2026
"""

import difflib
import inspect
import sys
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any, Callable, TypeVar

ENTRY_POINT_GROUP = "speechbrain_merge.methods"

if TYPE_CHECKING:
    from speechbrain_merge.methods.base import MergeMethod

Method = TypeVar("Method", bound="type[MergeMethod]")

_METHODS: "dict[str, type[MergeMethod]]" = {}
_DISCOVERED: list[bool] = []


def register(name: str) -> Callable[[Method], Method]:
    """Makes a ``MergeMethod`` available under a name.

    Arguments
    ---------
    name : str
        The word that ``create`` and the command line will know it by.

    Returns
    -------
    decorator : callable
        Takes the class and gives it back, registered.

    Raises
    ------
    ValueError
        When another class already has this name.

    Example
    -------
    >>> import torch
    >>> from speechbrain_merge.methods import MergeMethod, create, register
    >>> @register("first_expert")
    ... class FirstExpert(MergeMethod):
    ...     "Gives the first expert back."
    ...
    ...     def merge_tensor(self, name, experts, base):
    ...         return experts[0]
    >>> create("first_expert")([{"w": torch.ones(1)}, {"w": torch.zeros(1)}])
    {'w': tensor([1.])}
    """

    def decorator(cls: Method) -> Method:
        """Stores the class under the name."""
        known = _METHODS.get(name)
        if known is not None and _origin(known) != _origin(cls):
            raise ValueError(
                f"Merge method '{name}' is already registered by "
                f"{known.__module__}.{known.__qualname__}; choose another name."
            )
        cls.name = name
        _METHODS[name] = cls
        return cls

    return decorator


def _origin(cls: type) -> tuple[str, str]:
    """Where a class is written; a script has several names as a module."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) or cls.__module__
    return file, cls.__qualname__


def available() -> list[str]:
    """The names of all methods, those of other packages included.

    Returns
    -------
    names : list of str
        Sorted.
    """
    if not _DISCOVERED:
        _DISCOVERED.append(True)
        # Not `entry_points(group=...)`, which Python 3.9 does not have
        for distribution in distributions():
            for entry in distribution.entry_points:
                if entry.group == ENTRY_POINT_GROUP:
                    entry.load()
    return sorted(_METHODS)


def find(name: str) -> "type[MergeMethod]":
    """The class of a method.

    Arguments
    ---------
    name : str
        One of ``available()``.

    Returns
    -------
    cls : type

    Raises
    ------
    ValueError
        For a name that does not exist; the message lists those that do.
    """
    if not isinstance(name, str):
        raise ValueError(
            "A merge method is named by a word, such as 'average', got "
            f"{name!r}."
        )
    if name not in available():
        close = difflib.get_close_matches(name, available(), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"There is no merge method '{name}'.{hint} "
            f"Available: {', '.join(available())}."
        )
    return _METHODS[name]


def create(name: str, /, **parameters: Any) -> "MergeMethod":
    """Makes a method from its name and parameters.

    Arguments
    ---------
    name : str
        One of ``available()``.
    **parameters : dict
        The parameters of the method's class.

    Returns
    -------
    method : MergeMethod

    Raises
    ------
    ValueError
        For a name or a parameter that does not exist, and for a parameter
        that is missing; the message lists those that there are.

    Example
    -------
    >>> create("layer_scaled", method="ties", first=0.5)
    Traceback (most recent call last):
    ...
    ValueError: Merge method 'layer_scaled' needs 'last' as well; it takes: method, first, last.
    """
    cls = find(name)
    signature = inspect.signature(cls).parameters
    known = list(signature)
    unknown = [parameter for parameter in parameters if parameter not in known]
    if unknown:
        raise ValueError(
            f"Merge method '{name}' has no parameter "
            f"{', '.join(repr(word) for word in unknown)}; "
            f"it takes: {', '.join(known) or 'none'}."
        )
    missing = [
        parameter
        for parameter, given in signature.items()
        if given.default is given.empty
        and given.kind in (given.POSITIONAL_OR_KEYWORD, given.KEYWORD_ONLY)
        and parameter not in parameters
    ]
    if missing:
        raise ValueError(
            f"Merge method '{name}' needs "
            f"{', '.join(repr(word) for word in missing)}"
            f"{' as well' if parameters else ''}; "
            f"it takes: {', '.join(known)}."
        )
    return cls(**parameters)
