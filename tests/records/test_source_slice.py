"""What of a recipe's code counts in the reuse of scores, and what does not.

Each module is written, imported and edited, as between two runs.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import sys

import pytest

from speechbrain_merge.records.fingerprint import fingerprint, look_at
from speechbrain_merge.records.given_state import GivenState
from speechbrain_merge.records.own_code import own_code
from speechbrain_merge.records.recipe_modules import remember

HEAD = """\
import functools
from math import floor as whole
"""
BRAIN = """
class Brain:
    {attribute}

    def word(self, w):
        return {expression}

    def fit(self):
        return 1


def unreached(w):
    return w


if __name__ == "__main__":
    Brain().fit()
"""
# of the Brain: what stands above it, what it reads, and an edit
EDITS = {
    "dict": ("M = {'a': 'b'}", "M[w]", "'b'", "'c'"),
    "dict, filled later": ("M = {}\nM['a'] = 'b'", "M[w]", "'b'", "'c'"),
    "list, filled in a loop": (
        "M = []\nfor n in range(3):\n    M.append(n)",
        "M[0]",
        "range(3)",
        "range(4)",
    ),
    "set": ("M = {'a'}", "w in M", "{'a'}", "{'b'}"),
    "augmented": ("M = 'a'\nM += 'b'", "M + w", "'b'", "'c'"),
    "under a condition": (
        "if whole(1) == 1:\n    M = ['a']",
        "M + w",
        "== 1",
        "!= 2",
    ),
    "or else": (
        "try:\n    import nothing\nexcept ImportError:\n    M = ['a']",
        "M + w",
        "['a']",
        "['b']",
    ),
    "class": ("class H:\n    f = 1", "H().f", "f = 1", "f = 2"),
    "its base": (
        "class B:\n    f = [1]\nclass H(B):\n    pass",
        "H().f",
        "[1]",
        "[2]",
    ),
    "object": (
        "class H:\n    def f(self, w):\n        return w\nh = H()",
        "h.f(w)",
        "return w\nh",
        "return w[1:]\nh",
    ),
    "arguments of an object": (
        "h = dict(a=['b'])",
        "h[w]",
        "['b']",
        "['c']",
    ),
    "cached": (
        "@functools.lru_cache\ndef f(w):\n    return w",
        "f(w)",
        "return w",
        "return w + w",
    ),
    "what a helper calls": (
        "def g(w):\n    return w[:1]\ndef f(w):\n    return g(w)",
        "f(w)",
        "[:1]",
        "[:2]",
    ),
    "partial": (
        "def g(p, w):\n    return p + w\nf = functools.partial(g, '')",
        "f(w)",
        "(g, '')",
        "(g, 'x')",
    ),
    "default": ("def f(w, p=['']):\n    return p", "f(w)", "['']", "['x']"),
    "lambda in a dict": (
        "OPS = {'n': lambda w: w}",
        "OPS['n'](w)",
        "lambda w: w",
        "lambda w: w + w",
    ),
    "registered": (
        "OPS = {}\n"
        "def known(f):\n    OPS['f'] = f\n    return f\n"
        "@known\ndef f(w):\n    return w[:1]",
        "OPS['f'](w)",
        "[:1]",
        "[:2]",
    ),
    "imported as": ("", "whole(w)", "floor as", "ceil as"),
    "a name like those of Python": (
        "__M__ = ['a']\ndef f(w):\n    return w in __M__",
        "f(w)",
        "['a']",
        "['b']",
    ),
    "class attribute": ("", "self.P[0] + w", "P = ['']", "P = ['x']"),
    "a method": ("", "w", "return w\n", "return w + w\n"),
}
SAME = {
    "a comment": ("return w\n", "return w  # the same\n"),
    "a docstring": ("(self, w):\n", "(self, w):\n        'Says it.'\n"),
    "another docstring": ("'''A Brain.'''", "'''Another Brain.'''"),
}
ELSEWHERE = {
    "what nothing reaches": ("unreached(w):\n    return w", "unreached(v): 0"),
    "training": ("return 1", "return 2"),
    "the end of the script": ("Brain().fit()", "print(Brain().fit())"),
    "a name of a parameter": ("OTHER = [1]", "OTHER = [2]"),
}
HELPERS = {
    "from helper import f": "f(w)",
    "from helper import f as g": "g(w)",
    "import helper": "helper.f(w)",
    "import helper as h": "h.f(w)",
    "from helper import *": "f(w)",
    "import package.inner": "package.inner.f(w)",
    "from package import inner": "inner.f(w)",
    "from package import again": "again(w)",
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The hash of a Brain whose module has this text."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("train_tenth", "helper", "package", "package.inner")

    def forget():
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def hash_of(text, files=()):
        forget()
        (tmp_path / "train_tenth.py").write_text(text)
        (tmp_path / "package").mkdir(exist_ok=True)
        for name, content in dict(files).items():
            (tmp_path / name).write_text(content)
        module = importlib.import_module("train_tenth")
        if hasattr(module, "Brain"):
            return own_code([module.Brain], ["fit"])
        return own_code([module.make()])

    yield hash_of
    forget()


def text_of(above, expression, attribute="'''A Brain.'''"):
    brain = BRAIN.format(attribute=attribute, expression=expression)
    return f"{HEAD}{above}\n{brain}"


@pytest.mark.parametrize("edit", EDITS)
def test_what_counts(recipe, edit):
    above, expression, old, new = EDITS[edit]
    attribute = "P = ['']" if edit == "class attribute" else "pass"
    text = text_of(above, expression, attribute)
    assert old in text
    before = recipe(text)
    assert recipe(text) == before != recipe(text.replace(old, new, 1))


@pytest.mark.parametrize("edit", [*SAME, *ELSEWHERE])
def test_any_edit_but_of_comments_counts(recipe, edit):
    """No analysis says what a script sets; so the whole text counts."""
    text = text_of("OTHER = [1]\ndef f(OTHER):\n    return OTHER", "w + f(w)")
    old, new = {**SAME, **ELSEWHERE}[edit]
    assert old in text
    same = recipe(text) == recipe(text.replace(old, new, 1))
    assert same == (edit in SAME)


@pytest.mark.parametrize("imported", HELPERS)
@pytest.mark.parametrize("within", [False, True])
def test_modules_of_the_recipe_are_followed(recipe, imported, within):
    expression = HELPERS[imported]
    if within and not imported.endswith("*"):  # imported by a function
        above = f"def u(w):\n    {imported}\n    return {expression}"
        text = text_of(above, "u(w)")
    else:
        text = text_of(imported, expression)

    def hash_of(f="w", other="w"):
        content = f"def f(w): return {f}\ndef other(w): return {other}\n"
        files = {"helper.py": content, "package/inner.py": content}
        files["package/__init__.py"] = "from .inner import f as again\n"
        return recipe(text, files)

    before = hash_of()
    assert hash_of() == before
    assert hash_of(other="w[:1]") != before
    assert hash_of(f="w[:1]") != before


def test_all_of_a_module_that_is_handed_on_counts(recipe):
    text = text_of("import helper", "getattr(helper, 'f')(w)")
    before = recipe(text, {"helper.py": "def f(w): return w\n"})
    assert recipe(text, {"helper.py": "def f(w): return w[:1]\n"}) != before


GIVEN = """\
import enum
import helper

class Cleaner:
    table = {'a': 'b'}
    def __call__(self, w):
        return w[:1]

class Rule(enum.Enum):
    first = 1
    def of(self, w):
        return w[:1]

def clean(w):
    return helper.f(w)

RULES = {'a': 'b'}
"""


@pytest.mark.parametrize(
    "given, edit, counts",
    [
        ("Cleaner", ("w[:1]", "w[:2]"), True),
        ("Cleaner", ("'b'}\n    def", "'c'}\n    def"), True),
        ("Cleaner", ("RULES = {'a'", "RULES = {'b'"), True),
        (
            "Rule.first",
            (
                "of(self, w):\n        return w[:1]",
                "of(self, w):\n        return w",
            ),
            True,
        ),
        ("MODULE", ("RULES = {'a'", "RULES = {'b'"), True),
        ("MODULE", ("helper.f(w)", "helper.f(w) + w"), True),
        ("MODULE", ("import helper\n", "import helper  # for clean\n"), False),
    ],
)
def test_a_class_or_module_that_is_handed_on(recipe, given, edit, counts):
    """As `!name:` in a YAML, or an attribute of the Brain."""
    assert edit[0] in GIVEN

    def found(text, helper="def f(w): return w\n"):
        recipe(text + "class Brain:\n    pass\n", {"helper.py": helper})
        module = sys.modules["train_tenth"]
        value = module if given == "MODULE" else eval(given, vars(module))
        state = GivenState()
        settings = {"given": value}
        state.look(lambda: look_at(settings, [], None, state))
        return fingerprint(settings, state=state)

    before = found(GIVEN)
    assert found(GIVEN) == before
    assert (found(GIVEN.replace(*edit, 1)) != before) == counts
    if given == "MODULE":
        assert found(GIVEN, "def f(w): return w[:3]\n") != before


PIPELINE = """\
SIGNS = ["."]
class Tokens:
    def encode(self, text):
        return text
def make():
    drop = ["a"]
    tokens = Tokens()
    def clean(text):
        return text.replace(SIGNS[0], "")
    def pipeline(text):
        yield [w for w in tokens.encode(clean(text)) if w not in drop]
    def other(text):
        return text
    return {made}
"""


@pytest.mark.parametrize("made", ["pipeline", "lambda text: pipeline(text)"])
@pytest.mark.parametrize(
    "old, new",
    [
        ('["."]', '["!"]'),
        ("return text\ndef", "return text[1:]\ndef"),
        ('["a"]', '["b"]'),
        ('""', '" "'),
        ("not in drop", "in drop"),
    ],
)
def test_functions_of_data_pipelines(recipe, made, old, new):
    text = PIPELINE.format(made=made)
    assert text.count(old) == 1
    before = recipe(text)
    assert recipe(text) == before != recipe(text.replace(old, new))


@pytest.mark.parametrize("edit", EDITS)
def test_code_without_a_text(edit):
    """Of a notebook."""
    above, expression, old, new = EDITS[edit]
    text = text_of(above, expression, "P = ['']").replace(
        'if __name__ == "__main__"', "if False"
    )
    found = []
    for each in (text, text.replace(old, new, 1)):
        module = {"__name__": "of_no_file"}
        exec(each, module)
        found.append(own_code([module["Brain"]], ["fit"]))
    # what a loop or condition came to counts, not how
    assert (found[0] == found[1]) == (edit == "under a condition")


def test_a_text_that_is_edited_in_the_midst_of_a_run(recipe, tmp_path):
    """The run computes with the one before."""
    text = text_of("M = ['a']", "M[0] + w")
    before = recipe(text)
    path = tmp_path / "train_tenth.py"
    module = sys.modules["train_tenth"]
    path.write_text(text.replace("['a']", "['b']"))
    remember()
    assert own_code([module.Brain], ["fit"]) == before
    assert own_code([importlib.reload(module).Brain], ["fit"]) != before


def test_values_that_a_run_sets_count(recipe):
    before = recipe(text_of("BEAM = 8", "w * BEAM"))
    module = sys.modules["train_tenth"]
    module.BEAM = 9
    assert own_code([module.Brain], ["fit"]) != before


def test_half_a_character_in_a_text(recipe):
    """As in the cleaning of transcripts; the environment takes no such name."""
    text = text_of("", "w.replace('\\ud83d', '')")
    before = recipe(text)
    assert "ud83d" in text and recipe(text) == before
    assert fingerprint("\ud83d") != fingerprint("\ud83e")
