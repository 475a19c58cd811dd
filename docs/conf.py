"""Settings of the documentation site; `make docs` builds it.

Pages are Markdown. The reference is made of the docstrings, a page for each
room of the package. The READMEs of the recipes are pages as well: links between
files of the repository become links between pages.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGE = ROOT / "speechbrain_merge"
sys.path.insert(0, str(ROOT))

project = "speechbrain_merge"
author = "The speechbrain_merge authors"
copyright = "2026, The speechbrain_merge authors"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Drafts for SpeechBrain are descriptions of pull requests, not pages
exclude_patterns = ["_build", "**/results", "upstream"]

# Links to headings, and lists of terms
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

# The tutorial is shown with the outputs that it has; a test executes it
nb_execution_mode = "off"

autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False
add_module_names = False
# `name` in a docstring is code
default_role = "literal"

html_theme = "furo"
html_title = "speechbrain_merge"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_copy_source = False


def write_pages(app):
    """Writes the pages that are made of what lies elsewhere."""
    folder = Path(app.srcdir)
    rooms = {
        f"reference/{name}.rst": text for name, text in reference().items()
    }
    recipes = {
        page: linked(readme.read_text(encoding="utf-8"), readme, page)
        for readme, page in PLACES.items()
    }
    for section, pages, title in (
        ("reference", rooms, "Reference"),
        ("recipes", recipes, "Recipes"),
    ):
        listed = [
            f"   {Path(page).stem}"
            for page in sorted(pages)
            if page.startswith(section)
        ]
        text = f"{title}\n{'=' * len(title)}\n\n.. toctree::\n"
        pages[f"{section}/index.rst"] = text + "\n" + "\n".join(listed) + "\n"
    for page, text in {**rooms, **recipes}.items():
        path = folder / page
        path.parent.mkdir(exist_ok=True)
        # what is as it was is not built again
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def reference():
    """The pages of the reference: one a room, its modules on it."""
    pages = {}
    for init in sorted(PACKAGE.rglob("__init__.py")):
        room = ".".join(init.parent.relative_to(ROOT).parts)
        text = f"{room}\n{'=' * len(room)}\n\n.. automodule:: {room}\n"
        for path in sorted(init.parent.glob("*.py")):
            if path == init:
                continue
            module = f"{room}.{path.stem}"
            title = module.removeprefix("speechbrain_merge.")
            text += f"\n{title}\n{'-' * len(title)}\n"
            text += f"\n.. automodule:: {module}\n"
        pages[room] = text
    return pages


def places():
    """Files outside docs/ that have a page on the site, and which."""
    found = {
        path: "recipes/" + "-".join(path.relative_to(ROOT).parts[1:-1]) + ".md"
        for path in sorted(ROOT.glob("recipes/**/README.md"))
    }
    for folder in (ROOT / "hparams", PACKAGE / "hparams"):
        if (folder / "README.md").exists():
            found[folder / "README.md"] = "fragments.md"
    found[ROOT / "SECURITY.md"] = "security.md"
    return found


PLACES = places()
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def linked(text, source, page):
    """A page with its links to files turned to where they lead on the site.

    Arguments
    ---------
    text : str
        Markdown.
    source : Path
        The file that it comes from.
    page : str
        Where it is shown, from the folder of the site's sources.

    Returns
    -------
    str
    """
    here = (DOCS / page).parent

    def turned(link):
        target = (source.parent / link[1]).resolve()
        shown = DOCS / PLACES[target] if target in PLACES else target
        return f"]({os.path.relpath(shown, here)}{link[2] or ''})"

    return LINK.sub(turned, text)


def turn_links(app, name, content):
    """Called by Sphinx for each page that it reads."""
    if (DOCS / f"{name}.md").exists() and f"{name}.md" not in PLACES.values():
        page = f"{name}.md"
        content[0] = linked(content[0], DOCS / page, page)


def setup(app):
    """Called by Sphinx before it looks for pages."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", turn_links)
