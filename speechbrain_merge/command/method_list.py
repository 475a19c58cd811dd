"""``speechbrain-merge methods``: the methods there are, or one in full.

Authors
 * The speechbrain_merge authors 2026
"""

import inspect

from speechbrain_merge.command.tables import print_table
from speechbrain_merge.methods import available
from speechbrain_merge.methods.registry import find
from speechbrain_merge.report.citations import citation


def run(options) -> dict:
    """The methods with what they need, or one in full."""
    if options.name is not None:
        method = find(options.name)
        return {
            **describe(options.name),
            "signature": f"{options.name}{inspect.signature(method)}",
            "text": inspect.getdoc(method) or "",
        }
    return {"methods": [describe(name) for name in available()]}


def describe(name: str) -> dict:
    """What a method needs, its parameters and its paper.

    Arguments
    ---------
    name : str
        One of ``available()``.

    Returns
    -------
    dict
        ``name``, ``summary``, ``needs_base``, ``statistics`` (which ones of
        each expert, or None), ``minimum_experts``, ``maximum_experts`` (or
        None), ``wraps_method``, ``parameters`` (name to default, None where
        there is none) and ``paper``.

    Example
    -------
    >>> describe("slerp")["maximum_experts"], describe("fisher")["statistics"]
    (2, 'fisher')
    >>> needs(describe("layer_scaled"))
    'base, method'
    """
    method = find(name)
    parameters = inspect.signature(method).parameters
    kind = method.statistics_kind
    if isinstance(kind, property):
        # It depends on the parameters, whose defaults decide here
        kind = method().statistics_kind if _has_defaults(parameters) else None
    inside = parameters.get("method")
    return {
        "name": name,
        "summary": (inspect.getdoc(method) or "").partition("\n")[0],
        "needs_base": method.needs_base,
        "statistics": kind,
        "minimum_experts": method.minimum_experts,
        "maximum_experts": method.maximum_experts,
        "wraps_method": inside is not None,
        "parameters": {
            each.name: {"required": True}
            if each.default is each.empty
            else {"default": _plain(each.default)}
            for each in parameters.values()
        },
        "paper": citation(name),
    }


def needs(described: dict) -> str:
    """What a method needs besides experts, in a few words.

    Arguments
    ---------
    described : dict
        From ``describe``.

    Returns
    -------
    str
    """
    words = []
    low, high = described["minimum_experts"], described["maximum_experts"]
    if low == high:
        words.append(f"{low} expert{'s' if low > 1 else ''}")
    elif low > 1:
        words.append(f"{low} or more experts")
    if described["needs_base"]:
        words.append("base")
    if described["statistics"]:
        words.append(f"statistics ({described['statistics']})")
    if described["parameters"].get("method", {}).get("required"):
        words.append("method")
    return ", ".join(words)


def show(found):
    """Prints the methods, or one in full."""
    if "methods" not in found:
        print(f"{found['signature']}\n")
        print(f"Needs: {needs(found) or 'experts'}")
        if found["paper"]:
            print(f"Paper: {found['paper']}")
        print(f"\n{found['text']}")
        return
    print_table(
        ["method", "needs", "parameters", ""],
        [
            [
                each["name"],
                needs(each),
                _few(each["parameters"]),
                each["summary"],
            ]
            for each in found["methods"]
        ],
    )
    print(
        "\n`speechbrain-merge methods NAME` explains one, with its parameters "
        "and its paper."
    )


def _few(parameters):
    """The first parameters, of which there may be a dozen."""
    names = list(parameters)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _has_defaults(parameters):
    """Whether all parameters may be left out."""
    return all(each.default is not each.empty for each in parameters.values())


def _plain(value):
    """A default as JSON has it."""
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else repr(value)
