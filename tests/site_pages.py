"""The pages of docs/ as a list of code blocks, and how each is checked.

A block is run unless the comment before it says why it is not::

    <!-- not run: it needs the hub -->

Comments that readers do not see prepare the page's examples. Their code is run
in the place where they stand::

    <!-- setup
    import torch
    torch.save({"fc.weight": torch.ones(2, 2)}, "a.pt")
    -->

A YAML block is loaded with the lines of such a comment before it::

    <!-- with
    pool_folder: pool
    -->

and a recipe's command is run with more arguments, which make it small::

    <!-- in small: --whisper_hub whisper -->

A `text` block after `<!-- output -->` is what the block before it prints, as
doctests write it.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from warm_python import python

from speechbrain_merge.command.plan import Plan, parse_yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CODE = ("python", "pycon", "bash", "yaml", "toml")
SAID = ("not run", "setup", "with", "in small", "output")

_PIECE = re.compile(
    r"^<!-- (?P<comment>.*?)-->$"
    r"|^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Block:
    """A block of code, and what the comments before it say.

    Arguments
    ---------
    page : str
        The page's file.
    line : int
        Where the block stands.
    language : str
        ``setup``, or what the fence says.
    code : str
        The block.
    comments : dict
        First words of a comment, such as ``not run``, to the rest of it.
    """

    page: str
    line: int
    language: str
    code: str
    comments: dict

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"docs/{self.page}:{self.line}"


def pages() -> list:
    """All pages of docs/ with code on them.

    Those that are made of files elsewhere are left out: the tests of recipes
    and of fragments run what stands there.
    """
    names = {path.name for path in DOCS.glob("*.md")}
    return sorted(
        p for p in names - {"fragments.md", "security.md"} if blocks_of(p)
    )


def blocks_of(page) -> list:
    """The blocks of a page in their order, setups among them.

    Arguments
    ---------
    page : str
        The page's file.

    Returns
    -------
    list of Block

    Raises
    ------
    ValueError
        Where a comment is none of those above, or belongs to no block.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks, comments = [], {}
    for found in _PIECE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["language"] is not None:
            language = found["language"]
            blocks.append(Block(page, line, language, found["code"], comments))
            comments = {}
            continue
        word, _, rest = _split(found["comment"])
        if word not in SAID:
            raise ValueError(f"docs/{page}:{line}: a comment '{word}'")
        if word == "setup":
            blocks.append(Block(page, line, word, rest, {}))
        else:
            comments[word] = rest
    if comments:
        raise ValueError(f"docs/{page}: after the last block, {comments}")
    return blocks


def _split(comment):
    """A comment's first words and the rest, which is text or whole lines."""
    head = comment.partition("\n")[0]
    word, sign, rest = comment.partition(":" if ":" in head else "\n")
    return word.strip(), sign, rest


_COMMAND = re.compile(
    r"^((?:python|torchrun) (?:\\\n|[^\n#])*?)[ ]*(#[^\n]*)?$", re.MULTILINE
)


def _in_small(code, more):
    """Commands with other options: those that they have are replaced."""

    def changed(command):
        line = command[1]
        for option in re.findall(r"(?:^| )(--\w+)", more):
            line = re.sub(rf" {option} (\"[^\"]*\"|'[^']*'|\S+)", "", line)
        return f"{line} {more}"

    return _COMMAND.sub(changed, code) if more else code


class Examples:
    """Runs the blocks of a page, one after the other, in a folder.

    Arguments
    ---------
    folder : Path
        Where they run. It is the working directory then.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.names = {"__name__": "docs_example", "ROOT": ROOT}
        self.printed = ""

    def run(self, block):
        """Runs or checks a block.

        Arguments
        ---------
        block : Block
            Without ``not run``.

        Raises
        ------
        AssertionError
            Where it does not do what the page says.
        """
        check = getattr(self, f"_{block.language}", None)
        if check is None:
            return
        code = "\n" * (block.line - 1) + block.code
        try:
            check(code if block.language == "python" else block.code, block)
        except Exception as error:
            raise AssertionError(
                f"{block.where}: {type(error).__name__}: {error}"
            ) from error

    def _setup(self, code, block):
        exec(compile(code, block.where, "exec"), self.names)

    def _python(self, code, block):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, block.where, "exec"), self.names)
        self.printed = printed.getvalue()

    def _pycon(self, code, block):
        test = doctest.DocTestParser().get_doctest(
            code, self.names, block.where, block.page, block.line
        )
        said = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=_SAME)
        runner.run(test, out=said.write, clear_globs=False)
        self.names.update(test.globs)
        assert not runner.failures, said.getvalue()

    def _bash(self, code, block):
        code = _in_small(code, block.comments.get("in small", "").strip())
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.names.get("cwd", self.folder),
            env={
                **os.environ,
                "PATH": os.pathsep.join(
                    [
                        str(Path(python()).parent),
                        str(Path(sys.executable).parent),
                        os.environ["PATH"],
                    ]
                ),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
        self.printed = done.stdout
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def _text(self, code, block):
        if "output" not in block.comments:
            return
        same = doctest.OutputChecker().check_output(code, self.printed, _SAME)
        assert same, f"expected\n{code}\ngot\n{self.printed}"

    def _yaml(self, code, block):
        text = block.comments.get("with", "") + "\n" + code
        if re.search("^stages:", code, re.MULTILINE):
            Plan(parse_yaml(text, block.where)["stages"])
            return
        self.names["loaded"] = load_hyperpyyaml(text)

    def _toml(self, code, block):
        if sys.version_info >= (3, 11):
            import tomllib

            assert tomllib.loads(code)
