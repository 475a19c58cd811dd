"""A card that says what a merged model is made of.

A merged file carries its provenance (``speechbrain_merge.engine.provenance``).
The card is that record for a person: the models that went in, with the hashes
that prove which, the method and who invented it, the command that makes the
same file again, and the results if there are any. Written as the ``README.md``
of an exported folder, it is what model hubs show first; its first lines are for
the Hub itself, see ``report/hub.py``.

The record may be a stranger's. Its text stands in the card as text: it makes no
picture, no link and no HTML.

Example
-------
>>> record = {
...     "method": "average",
...     "parameters": {"weights": None},
...     "sources": [
...         {"label": "a", "path": "a.safetensors", "digest": "ab" * 32}
...     ],
...     "created": "2026-01-01T00:00:00+00:00",
... }
>>> card = merge_card(record, title="a-merge")
>>> print(card[card.index("# ") : card.index("## Sources")].strip())
# a-merge
<BLANKLINE>
A merge of 1 model by `average`, made on 2026-01-01.

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
import json
import re
from collections.abc import Mapping
from typing import Optional

import yaml

from speechbrain_merge import methods
from speechbrain_merge.lineage import check_record
from speechbrain_merge.methods.registry import available, find
from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.report.citations import citation
from speechbrain_merge.report.hub import front_matter
from speechbrain_merge.report.quoted_yaml import quoted_node, quoted_yaml
from speechbrain_merge.report.results import check_results, row_of
from speechbrain_merge.report.tables import markdown_table, results_table

_AGAIN = """\
One command makes the same file, byte by byte. `FOLDER` is where this card lies.
The sources are looked for at the paths above, seen from there and from the
working folder; `--source NAME=PATH` says where another is:

```bash
speechbrain-merge again FOLDER -o merged.safetensors
```

It compares the sources and the result with the hashes on record. In Python, in a
folder from which the paths lead to the sources, and with another time of making
in the result:"""

# What Markdown and HTML would take for more than text
_SPECIAL = re.compile(r"[\\`*<>\[\]&@]|:(?=//)|\.(?<=www\.)")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")

_LOADING = """\
The weights are data. An exported folder may also hold `hyperparams.yaml`, from
which SpeechBrain builds a model: loading it calls what the file names, so it
can run any code. Load a folder only if you trust who made it, or read its
`hyperparams.yaml` first."""


def merge_card(
    metadata: Mapping,
    results: Optional[Mapping] = None,
    title: str = "Merged model",
    row: Optional[str] = None,
    about: Optional[Mapping] = None,
) -> str:
    """Markdown that says what a merged model is made of.

    Arguments
    ---------
    metadata : dict
        The metadata of a merged safetensors file, with the record as JSON
        under "merge", or the record itself. What the record lacks, the card
        leaves out.
    results : dict, optional
        Results to show beneath, see ``report/results.py``.
    title : str
        Heading of the card.
    row : str, optional
        The row of the results that is this model's. It is marked, and its
        error rates are given to the Hub.
    about : dict, optional
        What the Hub wants to know besides: licence, language and more, see
        ``report/hub.py``.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        Where there is no record of a merge, no such row, or something is wrong
        with what is said about the model.
    """
    record = _record(metadata)
    method = record["method"]
    sources = record.get("sources") or []
    lines = [
        front_matter(record, title, results, row, about),
        f"# {_plain(title)}",
        "",
        _opening(method, sources, record),
    ]
    cited = [
        f"- {_code(name)}: {citation(name)}"
        for name in _methods_in(record)
        if citation(name)
    ]
    if sources:
        lines += ["", "## Sources", "", _sources_table(sources, record)]
    if record.get("chain"):
        lines += ["", "## Earlier merges", "", _chain_table(record["chain"])]
    lines += ["", "## Method", ""]
    parameters = record.get("parameters") or {}
    if parameters:
        rows = [
            [_code(name), _code(json.dumps(value, ensure_ascii=False))]
            for name, value in parameters.items()
        ]
        lines += [markdown_table(["parameter", "value"], rows), ""]
    lines += cited or [_code(method)]
    recipe = merge_yaml(record)
    if recipe is not None:
        lines += [
            "",
            "## Make it again",
            "",
            _AGAIN,
            "",
            "```yaml",
            recipe.rstrip(),
            "```",
            "",
            "```python",
            "from hyperpyyaml import load_hyperpyyaml",
            "from speechbrain_merge import merge",
            "",
            'with open("merge.yaml") as yaml:',
            '    merge(**load_hyperpyyaml(yaml), output="merged.safetensors")',
            "```",
        ]
    lines += ["", "## Before you load it", "", _LOADING]
    if results is not None:
        check_results(results)
        shown = results_table(_as_text(results, row))
        lines += ["", "## Results", "", shown]
    versions = record.get("versions") or {}
    if versions:
        told = ", ".join(f"{name} {word}" for name, word in versions.items())
        lines += ["", "## Versions", "", _plain(told)]
    return "\n".join(lines) + "\n"


def merge_yaml(record: Mapping) -> Optional[str]:
    """HyperPyYAML with the arguments of the ``merge`` that a record describes.

    Arguments
    ---------
    record : dict
        Provenance, as ``speechbrain_merge.engine.provenance`` gives it.

    Returns
    -------
    str
        None where a method is not registered here, has parameters that it does
        not take, or where a source has no path; and where a text in it is one
        that HyperPyYAML does not read back as text.

    Example
    -------
    >>> record = {
    ...     "method": "ties",
    ...     "parameters": {"density": 0.3},
    ...     "sources": [{"path": "a.safetensors"}, {"path": "b.safetensors"}],
    ...     "base": {"path": "base.safetensors"},
    ... }
    >>> print(merge_yaml(record), end="")
    method: !new:speechbrain_merge.methods.TIES
        density: 0.3
    experts:
    - "a.safetensors"
    - "b.safetensors"
    base: "base.safetensors"
    """
    sources = record.get("sources") or []
    base = record.get("base")
    places = [source.get("path") for source in sources]
    if base is not None:
        places.append(base.get("path"))
    if not sources or None in places:
        return None
    if any(name not in available() for name in _methods_in(record)):
        return None
    method = _method_node(record["method"], record.get("parameters") or {})
    if method is None:
        return None
    content = {"method": method, "experts": places[: len(sources)]}
    labels = [source.get("label") for source in sources]
    if None not in labels and labels != content["experts"]:
        # coefficients may be given by these names
        content["labels"] = labels
    if base is not None:
        content["base"] = base["path"]
    if record.get("dtype") is not None:
        content["dtype"] = str(record["dtype"])
    if record.get("same_base") is False:
        content["same_base"] = False
    # Written by a YAML library: names and values come from a stranger's file
    node = quoted_node(content)
    if not all(map(_stays_text, _texts(node))):
        return None
    return quoted_yaml(node, indent=4)


def _record(metadata):
    """The record of the merge, wherever it is in the metadata."""
    record = metadata.get("merge", metadata)
    if isinstance(record, str):
        record = parse_json(record, "the metadata 'merge'")
    if not isinstance(record, Mapping) or "method" not in record:
        raise ValueError(
            'there is no record of a merge: expected "merge" in the metadata '
            f'of a merged file, or a dict with "method"; got {metadata!r}'
        )
    return check_record(record, "the record of the merge")


def _opening(method, sources, record):
    """The first sentence: how many models, and by which method."""
    words = f"A merge of {len(sources)} model{'s' * (len(sources) != 1)}"
    words += f" by {_code(method)}"
    if record.get("base"):
        words += ", fine-tuned from one base"
    if record.get("created"):
        words += f", made on {_plain(record['created'][:10])}"
    return words + "."


def _plain(text):
    """Text that is only text in Markdown, on one line."""
    found = printable(_BREAKS.sub(" ", str(text)))
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", found)


def _code(text):
    """Text as code, on one line, whatever backticks are in it."""
    found = printable(_BREAKS.sub(" ", str(text)))
    longest = max(map(len, re.findall("`+", found)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{found}{space}{fence}"


def _as_text(results, marked):
    """Results whose names are only text, with the row of the model marked."""
    if marked is not None:
        row_of(results, marked)
    shown = {
        **results,
        **{
            key: [_plain(name) for name in results[key]]
            for key in ("in_domain", "test_domains", "retention")
            if key in results
        },
        "rows": [
            {
                **row,
                "name": f"**{_plain(row['name'])}** (this model)"
                if row["name"] == marked
                else _plain(row["name"]),
                "sets": {
                    _plain(name): counts for name, counts in row["sets"].items()
                },
            }
            for row in results["rows"]
        ],
    }
    for key in ("metric", "seed", "created"):
        if shown.get(key) is not None:
            shown[key] = _plain(shown[key])
    if shown.get("command") is not None:
        command = _BREAKS.sub(" ", str(shown["command"]))
        shown["command"] = command.replace("`", "'")
    return shown


def _sources_table(sources, record):
    """The table of merged models, with the hashes of their files."""
    listed = [(source.get("label"), source) for source in sources]
    if record.get("base"):
        listed.append(("base", record["base"]))
    rows, weighted = [], any("weight" in source for source in sources)
    for label, source in listed:
        row = [_plain(label or ""), _plain(source.get("path") or "")]
        if weighted:
            row.append(f"{source['weight']:g}" if "weight" in source else "")
        rows.append(row + [_code(source.get("digest") or "unknown")])
    header = ["model", "path"] + ["weight"] * weighted + ["hash"]
    return markdown_table(header, rows)


def _chain_table(chain):
    """The table of merges that sources, or their sources, come from."""
    rows = []
    for entry in chain:
        models = entry.get("sources") or []
        names = [each.get("label") or each.get("path") or "" for each in models]
        made, names = _code(entry["method"]), _plain(", ".join(names))
        rows.append([_code(entry["digest"]), made, names])
    return markdown_table(["hash", "method", "of"], rows)


def _methods_in(record):
    """Names of the method and of those that it wraps, outermost first."""
    names, parameters = [record["method"]], record.get("parameters") or {}
    while isinstance(parameters.get("method"), Mapping):
        name, parameters = _inner(parameters["method"])
        names.append(name)
    return names


def _inner(recorded):
    """Name and parameters of a method that another wraps.

    In older records the parameters stand beside the name, and so a
    wrapper inside a wrapper has lost its own.
    """
    name = recorded.get("method")
    if not isinstance(name, str):
        return None, recorded
    beside = {
        key: value
        for key, value in recorded.items()
        if key not in ("method", "parameters")
    }
    inside = recorded.get("parameters")
    return name, {**beside, **(inside if isinstance(inside, Mapping) else {})}


def _method_node(name, parameters):
    """YAML that makes a method, and those inside it; None where it cannot."""
    cls = find(name)
    known = inspect.signature(cls).parameters
    if not all(isinstance(each, str) and each in known for each in parameters):
        return None
    home = (
        methods.__name__
        if getattr(methods, cls.__name__, None) is cls
        else cls.__module__
    )
    content = {}
    for parameter, value in parameters.items():
        if isinstance(value, Mapping) and "method" in value:
            value = _method_node(*_inner(value))
            if value is None:
                return None
        content[parameter] = value
    node = quoted_node(content)
    node.tag = f"!new:{home}.{cls.__qualname__}"
    return node


def _texts(node):
    """All text of a YAML tree, keys among it."""
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from (text for each in pair for text in _texts(each))
    else:
        yield from (text for each in node.value for text in _texts(each))


def _stays_text(text):
    """Whether HyperPyYAML reads a text in quotes as that text.

    It writes the file anew before it builds what that names, by a library
    that leaves out quotes that YAML does not need. Text in parentheses is then
    taken for a tuple, whose content is read as YAML with every tag, code among
    them; the control character NEL becomes a space.
    """
    return not text.startswith("(") and "\x85" not in text
