"""The site builds, without a warning and without a network.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from site_pages import DOCS, ROOT
from warm_python import python

import speechbrain_merge


class Links(HTMLParser):
    """The targets of a page's links and pictures."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Notes where a tag leads."""
        for key, value in attrs:
            if value and (tag, key) in (("a", "href"), ("img", "src")):
                self.found.append(value)


def test_the_site(tmp_path):
    site = tmp_path / "site"
    done = subprocess.run(
        [python(), "-m", "sphinx", "-q", "-W", "--keep-going"]
        + ["-d", str(tmp_path / "doctrees"), str(DOCS), str(site)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = "".join(
        page.read_text(encoding="utf-8")
        for page in (site / "reference").glob("*.html")
    )
    package = Path(speechbrain_merge.__file__).parent
    for path in package.rglob("*.py"):
        if path.stem != "__init__":
            parts = path.relative_to(package.parent).with_suffix("").parts
            assert f'id="module-{".".join(parts)}"' in reference, path
    for readme in ROOT.glob("recipes/**/README.md"):
        title = re.search("^# (.*)", readme.read_text(encoding="utf-8"))[1]
        pages = (site / "recipes").glob("*.html")
        assert any(
            title.partition(",")[0].replace("'", "’") in page.read_text()
            for page in pages
        ), title
    for page in site.rglob("*.html"):
        for link in Links(page).found:
            path = re.split("[#?]", link)[0]
            if path and not re.match(r"\w+:", path):
                assert (page.parent / path).exists(), (page.name, link)
