"""The decision guide and the claims say what the tables of the recipes say.

Authors
 * The speechbrain_merge authors 2026
"""

import re

import pytest
from site_pages import DOCS

LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+)#[^)]*\)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SIGNED = r"-?\d+(?:\.\d+)?"
# an interval, and the difference that it belongs to where that stands before it
INTERVAL = re.compile(rf"(?:({SIGNED}) )?\[({SIGNED}), ({SIGNED})\]")


def plain(text):
    """Text with one kind of minus, and without other marks."""
    return re.sub(r"[*`+]", "", text.replace("−", "-"))


def rows_of(readme, name):
    """The rows of a README's tables that begin with a name."""
    text = (DOCS / readme).read_text(encoding="utf-8")
    return [
        line
        for line in plain(text).splitlines()
        if re.match(rf"\| {re.escape(plain(name))}(?: \([^)]*\))? \|", line)
    ]


def is_said(found, text):
    """Whether a page says an interval, in a table or a sentence."""
    difference, *bounds = found.groups()
    before = rf"(?<![\d.-]){difference}[\s|]{{1,3}}" if difference else ""
    inside = r",\s".join(map(re.escape, bounds))
    return re.search(rf"{before}\[{inside}\]", plain(text)) is not None


@pytest.mark.parametrize(
    "page, at_least", [("which_method.md", 25), ("claims.md", 20)]
)
def test_every_figure_stands_in_the_row_that_is_named(page, at_least):
    text = (DOCS / page).read_text(encoding="utf-8")
    checked, last = 0, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        links = LINK.findall(cells[-1])
        if len(cells) != 3 or not (links or "the same" in cells[-1]):
            continue
        found = last if "the same" in cells[-1] else []
        for name, readme in links:
            rows = rows_of(readme, name)
            assert rows, f"{readme} has no row {name}"
            found = [*found, *rows]
        figures = plain(cells[1])
        numbers = NUMBER.findall(INTERVAL.sub("", figures))
        assert numbers or INTERVAL.search(figures), line
        there = set(NUMBER.findall(" ".join(found)))
        assert set(numbers) <= there, (line, sorted(set(numbers) - there))
        for interval in INTERVAL.finditer(figures):
            pages = {readme for _, readme in links or LINK.findall(text)}
            texts = [(DOCS / readme).read_text("utf-8") for readme in pages]
            assert any(is_said(interval, text) for text in texts), line
        checked, last = checked + 1, found
    assert checked > at_least
