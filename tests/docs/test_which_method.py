"""The decision guide says what the tables of the recipes say.

Authors
 * The speechbrain_merge authors 2026
"""

import re

from site_pages import DOCS

LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+)#[^)]*\)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
INTERVAL = re.compile(r"\[[^]]*\]")


def rows_of(readme, name):
    """The rows of a README's tables that begin with a name."""
    text = (DOCS / readme).read_text(encoding="utf-8")
    plain = re.sub(r"[*`]", "", text)
    return [
        line
        for line in plain.splitlines()
        if re.match(rf"\| {re.escape(name)}(?: \([^)]*\))? \|", line)
    ]


def test_every_figure_stands_in_the_row_that_is_named():
    text = (DOCS / "which_method.md").read_text(encoding="utf-8")
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
        numbers = NUMBER.findall(INTERVAL.sub("", cells[1]))
        assert numbers, line
        there = set(NUMBER.findall(" ".join(found)))
        assert set(numbers) <= there, (line, sorted(set(numbers) - there))
        for interval in INTERVAL.findall(cells[1]):
            pages = {readme for _, readme in links or LINK.findall(text)}
            texts = [(DOCS / page).read_text() for page in pages]
            bounds = NUMBER.findall(interval)
            pattern = r"\[.?" + r"[^\]]{1,4}".join(map(re.escape, bounds))
            assert any(re.search(pattern, text) for text in texts), line
        checked, last = checked + 1, found
    assert checked > 25
