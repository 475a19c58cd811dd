"""``speechbrain-merge fragments``: ready YAML, to include in a recipe.

The fragments are part of the package. HyperPyYAML looks for the file of an
``!include:`` beside the YAML that includes it, so they are copied there::

    speechbrain-merge fragments smact -o hparams

and a recipe's ``hparams/train.yaml`` then says::

    merge_stage: !include:smact.yaml
        candidates: [!ref <pool_folder>]

Example
-------
>>> {"average", "smact", "ties"} <= set(fragments())
True
>>> folder = getfixture("tmp_path") / "hparams"
>>> copy_fragments(["smact"], folder)
['.../hparams/smact.yaml']

Authors
 * The speechbrain_merge authors 2026
"""

import difflib
import os
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from speechbrain_merge.command.tables import print_table
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_bytes

FOLDER = files("speechbrain_merge") / "hparams"


def fragments() -> dict:
    """The fragments that come with the package.

    Returns
    -------
    dict
        Name to text.
    """
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in FOLDER.iterdir()
        if file.name.endswith(".yaml")
    }


def purposes() -> dict:
    """What each fragment is for, as their README says.

    Returns
    -------
    dict
        Name to a sentence, in the README's order.
    """
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(.*\| (.+) \|$", text, re.MULTILINE)
    return {name: purpose.replace("`", "") for name, purpose in rows}


def copy_fragments(names: Iterable[str], folder) -> list[str]:
    """Copies fragments into a folder.

    Arguments
    ---------
    names : list of str
        Which.
    folder : str or Path
        Where to. It is made if it is missing.

    Returns
    -------
    list of str
        The files.

    Raises
    ------
    ValueError
        Where there is no such fragment.
    FileExistsError
        Where another file of such a name is there; nothing was copied then.
    """
    known, folder = fragments(), Path(folder)
    texts = {folder / f"{name}.yaml": _text(known, name) for name in names}
    for path, text in texts.items():
        there = os.path.lexists(path)
        if there and (path.is_symlink() or read_bytes(path) != text.encode()):
            raise FileExistsError(
                f"{path} is there already, and is not the fragment as it "
                "comes with this version of the package. Nothing was copied. "
                "Move it away, or choose another folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_whole(path, text)
    return [str(path) for path in texts]


def run(options) -> dict:
    """Lists fragments, gives their texts, or copies them."""
    known = fragments()
    if options.output is not None:
        names = options.names or sorted(known)
        return {"files": copy_fragments(names, options.output)}
    if options.names:
        return {"texts": {name: _text(known, name) for name in options.names}}
    return {"fragments": purposes()}


def show(found):
    """Prints a list of fragments, their texts, or where they are now."""
    if "files" in found:
        print("\n".join(found["files"]))
    elif "texts" in found:
        print("\n".join(found["texts"].values()), end="")
    else:
        rows = [[name, text] for name, text in found["fragments"].items()]
        print_table(["fragment", "what it is for"], rows)


def _text(known, name):
    """The text of a fragment."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"there is no fragment '{name}'"
            + (f". Did you mean '{close[0]}'?" if close else "")
            + " `speechbrain-merge fragments` lists them."
        )
    return known[name]
