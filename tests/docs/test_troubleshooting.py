"""The messages on the page of troubleshooting are those of the package.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from site_pages import DOCS

import speechbrain_merge

PACKAGE = Path(speechbrain_merge.__file__).parent
QUOTED = [
    message
    for line in re.findall(
        r"^- (`.*`)\\$",
        (DOCS / "troubleshooting.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    for message in re.findall("`([^`]+)`", line)
]


@cache
def texts():
    """Every string of the package; what is filled in reads `…`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.Constant)):
                found.add(text_of(node).replace("`", ""))
    return found


def text_of(node) -> str:
    """The text of a string as it is written down, `…` for the rest."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def is_written(message) -> bool:
    """Whether some text of the package has all parts, in this order."""
    parts = [part for part in message.split("…") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("message", QUOTED)
def test_the_package_says(message):
    assert is_written(message)


def test_what_it_does_not_say_is_found():
    assert len(QUOTED) > 30
    assert not is_written("the experts were fine-tuned from the same originals")
