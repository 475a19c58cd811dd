"""YAML in which all text is in quotes.

What goes into a card comes from files that anyone may have written. In quotes
it stays text: no tag, no reference, no end of the document, and no number
where HyperPyYAML takes "(1, 2)" for a tuple.

Example
-------
>>> print(quoted_yaml({"name": "!apply:f [1]\\n---", "count": 2}), end="")
name: "!apply:f [1]\\n---"
count: 2

Authors
 * The speechbrain_merge authors 2026
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

_PLAIN = "tag:yaml.org,2002:"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# These would be read as something else
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def quoted_yaml(content: Any, indent: int = 2) -> str:
    """Plain data as YAML, its text in double quotes and its keys too.

    Arguments
    ---------
    content : object
        Plain data, in which there may be nodes of YAML.
    indent : int
        Spaces by which what is inside goes to the right.

    Returns
    -------
    text : str
        ASCII, without a line that begins with what is not YAML.
    """
    return yaml.serialize(
        quoted_node(content),
        Dumper=yaml.SafeDumper,
        indent=indent,
        width=math.inf,
    )


def quoted_node(value: Any) -> yaml.Node:
    """Plain data as a node of YAML.

    Arguments
    ---------
    value : object
        Plain data; a node stays as it is.

    Returns
    -------
    node : yaml.Node
    """
    if isinstance(value, yaml.Node):
        return value
    if isinstance(value, Mapping):
        pairs = [(_key(key), quoted_node(each)) for key, each in value.items()]
        return yaml.MappingNode(f"{_PLAIN}map", pairs, flow_style=False)
    if isinstance(value, (list, tuple)):
        entries = [quoted_node(each) for each in value]
        return yaml.SequenceNode(f"{_PLAIN}seq", entries, flow_style=False)
    if isinstance(value, str):
        return yaml.ScalarNode(f"{_PLAIN}str", value, style='"')
    return yaml.representer.SafeRepresenter().represent_data(value)


def _key(key):
    """A key, without quotes where it is a plain word."""
    node = quoted_node(key)
    if (
        isinstance(key, str)
        and _KEY.fullmatch(key)
        and key.lower() not in _WORDS
    ):
        node.style = None
    return node
