"""A room of the package imports only rooms below it.

The rooms and their order are design: whoever reads a room has to know those
below it and none of those above. Modules on their own count as rooms.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
from pathlib import Path

import pytest

import speechbrain_merge

PACKAGE = Path(speechbrain_merge.__file__).parent

ROOMS = (
    "__main__",
    "cli",
    "command",
    "study",
    "brain",
    "stage",
    "export",
    "report",
    "adapters",
    "engine",
    "source_hashes",
    "lineage",
    "belonging",
    "search",
    "methods",
    "training",
    "pool",
    "evaluation",
    "weights",
    "records",
    "version",
)
"""From the top to the ground."""


def modules():
    """The package's modules by name, each with its file."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = file
    return found


def imports_of(text, known):
    """What a source imports of the package, wherever it stands in it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to its own place"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in below]
        else:
            continue
        found += [
            (name, node.lineno)
            for name in names
            if name.split(".")[0] == PACKAGE.name
        ]
    return found


def room_of(module):
    """The first name below the package's."""
    return module.split(".")[1]


def climbing(texts):
    """Imports that do not go downwards, as ``file:line``; text by module."""
    wrong = []
    for module, text in texts.items():
        for name, line in imports_of(text, texts):
            if name == PACKAGE.name:
                wrong.append(f"{module}:{line} imports the whole package")
            elif ROOMS.index(room_of(name)) < ROOMS.index(room_of(module)):
                wrong.append(f"{module}:{line} imports {name}")
    return wrong


def circle(texts):
    """Modules that import each other in a circle when they are loaded."""
    below = {
        module: [
            name
            for name, _ in imports_of(_when_loaded(text), texts)
            if name in texts
        ]
        for module, text in texts.items()
    }
    done, path = set(), []

    def walk(module):
        if module in path:
            return path[path.index(module) :] + [module]
        if module in done:
            return None
        path.append(module)
        for name in below[module]:
            # a module's own package is under way while its parts are loaded
            if not module.startswith(f"{name}."):
                found = walk(name)
                if found:
                    return found
        path.pop()
        done.add(module)
        return None

    for module in texts:
        found = walk(module)
        if found:
            return found
    return None


def _when_loaded(text):
    """A source without the bodies of its functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def texts():
    return {
        module: file.read_text(encoding="utf-8")
        for module, file in modules().items()
        if module != PACKAGE.name  # which gathers what users need
    }


def test_every_room_has_its_place(texts):
    assert {room_of(module) for module in texts} == set(ROOMS)


def test_imports_go_downwards(texts):
    assert climbing(texts) == []


def test_no_modules_import_each_other(texts):
    assert circle(texts) is None


def test_a_wrong_import_is_seen(texts):
    """Also within a function, and by way of the whole package."""
    name = "speechbrain_merge.weights.source"
    for wrong in (
        "from speechbrain_merge.pool import Candidate",
        "import speechbrain_merge.study.graph",
        "def f():\n    from speechbrain_merge import brain",
        "from speechbrain_merge import MergeStage",
    ):
        assert len(climbing({**texts, name: wrong})) == 1, wrong
    first = "speechbrain_merge.pool.candidate"
    second = "speechbrain_merge.pool.reading"
    changed = {
        first: f"import {second}",
        second: f"from {first} import Candidate",
    }
    assert circle({**texts, **changed}) is not None
