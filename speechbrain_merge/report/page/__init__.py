"""One HTML file that shows results, and needs nothing else to be opened.

The data are JSON inside the file, and a script makes tables and pictures of them.
``frame.html``, ``page.css`` and ``shared.js`` are those of every page;
``study.html`` and ``study.js`` show a study with its transcripts and its family
tree, ``comparison.html`` and ``comparison.js`` what models are like before they
are merged. Text from models and transcripts is never HTML: it is put
into the page as text, and a content security policy lets no script run but the
page's own.

Authors
 * The speechbrain_merge authors 2026
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.records.reading import read_bytes

FOLDER = Path(__file__).parent


PAGES = ("study", "comparison")


def render_page(title: str, data: Mapping, page: str = "study") -> str:
    """The page as text.

    Arguments
    ---------
    title : str
        What it is about.
    data : dict
        What is shown: see ``speechbrain_merge.study.page`` and
        ``speechbrain_merge.report.comparison_page``, which make it.
    page : str
        Which page: one of ``PAGES``.

    Returns
    -------
    page : str
        HTML.

    Example
    -------
    >>> page = render_page("A study", {"summary": "</script><b>"})
    >>> "</script><b>" in page
    False
    """
    script = "\n".join(
        _read(name).strip() for name in ("shared.js", f"{page}.js")
    )
    digest = hashlib.sha256(script.encode()).digest()
    parts = {
        "BODY": _read(f"{page}.html").strip(),
        "TITLE": html.escape(title),
        "STYLE": _read("page.css").strip(),
        "SCRIPT_HASH": base64.b64encode(digest).decode(),
        "SCRIPT": script,
        "DATA": embedded_json(data),
    }
    pieces = re.split(r"@([A-Z_]+)@", _read("frame.html"))
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def embedded_json(data: Mapping) -> str:
    """JSON that can stand inside a ``script`` element.

    Arguments
    ---------
    data : dict
        Plain data.

    Returns
    -------
    text : str
        No text in it can end the element or start a comment.

    Example
    -------
    >>> embedded_json({"a": "</script><!--"})
    '{"a":"\\\\u003c/script>\\\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (
        text.replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def data_address(path: Path) -> str:
    """A picture as an address that holds the picture itself.

    Arguments
    ---------
    path : Path
        A PNG file.

    Returns
    -------
    address : str
    """
    encoded = base64.b64encode(read_bytes(path)).decode()
    return f"data:image/png;base64,{encoded}"


def _read(name):
    """One of the files beside this one."""
    return (FOLDER / name).read_text(encoding="utf-8")
