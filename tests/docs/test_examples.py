"""Every example on the site is run, or its page says why not.

Authors
 * The speechbrain_merge authors 2026
"""

import re

import pytest
from site_pages import CODE, DOCS, Examples, blocks_of, pages

import speechbrain_merge.methods as package
from speechbrain_merge.methods import available, registry
from speechbrain_merge.methods.registry import find

LISTED = re.compile(r"^\| \[[^]]*\]\((\w+\.md)\) \| `(.+?)` \| (.+) \|$", re.M)


def own_methods():
    """Names of the methods of this package."""
    return {
        name
        for name in available()
        if getattr(package, find(name).__name__, None) is find(name)
    }


@pytest.mark.parametrize("page", pages())
def test_examples_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # examples in docstrings may have registered methods of the same names
    own = {name: find(name) for name in own_methods()}
    monkeypatch.setattr(registry, "_METHODS", own)
    examples = Examples(tmp_path)
    for block in blocks_of(page):
        if "not run" not in block.comments:
            examples.run(block)


def test_what_is_not_run_is_listed():
    blocks = [block for page in pages() for block in blocks_of(page)]
    told = [
        (block.page, block.code.strip().split("\n")[0], reason.strip())
        for block in blocks
        for word, reason in block.comments.items()
        if word == "not run"
    ]
    listed = LISTED.findall((DOCS / "examples.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(told)
    code = [block for block in blocks if block.language in CODE]
    assert len(told) <= len(code) / 5, "few examples are not run"


def test_the_overview_names_every_method():
    text = (DOCS / "overview.md").read_text(encoding="utf-8")
    methods = text.partition("## Methods")[2].partition("\n## ")[0]
    assert own_methods() <= set(re.findall(r"`(\w+)`", methods))
