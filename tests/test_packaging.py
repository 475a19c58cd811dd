"""What is installed: built, put into an empty environment, and used there."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from signing_keys import write_key

import speechbrain_merge
from speechbrain_merge.weights import write_weights

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "speechbrain_merge"
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
HEAVY = {"torch", "speechbrain", "numpy", "scipy", "transformers"}
BUILD = "import sys, setuptools.build_meta as b; print(b.{}(sys.argv[1]))"


def python(folder, *arguments, interpreter=sys.executable, **variables):
    """Output of an interpreter that does not see this checkout."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        [str(interpreter), *map(str, arguments)],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution, and the wheel that is built of it."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(PACKAGE, checkout / PACKAGE.name, ignore=ignored)
    for name in SOURCES:
        shutil.copy(ROOT / name, checkout)
    python(checkout, "-c", BUILD.format("build_sdist"), folder)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder)
    (unpacked,) = folder.glob("speechbrain_merge-*/")
    python(unpacked, "-c", BUILD.format("build_wheel"), folder)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def metadata(built):
    """What the wheel says of itself."""
    with zipfile.ZipFile(built[1]) as archive:
        (name,) = (
            name for name in archive.namelist() if name.endswith("/METADATA")
        )
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    command = ["-m", "pip", "--disable-pip-version-check", "-q"]
    command += ["--python", interpreter, "install", "--no-deps", "--no-index"]
    python(folder, *command, built[1])
    # Its dependencies are those that are here; a path in a .pth brings no
    # other .pth with it, so that the checkout stays out
    (site,) = (folder / "lib").glob("python*/site-packages")
    present = sysconfig.get_paths()["purelib"]
    (site / "present.pth").write_text(f"{present}\n")
    return interpreter


def test_the_wheel_has_all_of_the_package_and_nothing_else(built, metadata):
    with zipfile.ZipFile(built[1]) as archive:
        names = {
            name for name in archive.namelist() if ".dist-info/" not in name
        }
        rest = [name for name in archive.namelist() if name not in names]
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == ours
    assert "speechbrain_merge/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in rest)
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.9"


def test_the_source_distribution_has_the_papers(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(SOURCES) <= names


def test_one_version(metadata):
    version = speechbrain_merge.__version__
    assert metadata["Version"] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    titles = re.findall(
        r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert version in titles[0]


def test_the_package_is_used_where_it_is_installed(installed, tmp_path):
    for value, name in enumerate("ab"):
        weights = {"layer.weight": torch.full((2, 2), float(value))}
        write_weights(tmp_path / f"{name}.safetensors", weights)
    write_key(tmp_path, "key")
    command = installed.with_name("speechbrain-merge")

    def run(line):
        return python(tmp_path, *line.split(), interpreter=command)

    version = f"speechbrain-merge {speechbrain_merge.__version__} (python "
    assert run("--version").startswith(version)
    assert "merge models by a method" in run("--help")
    merged = "m.safetensors"
    run(f"merge average a.safetensors b.safetensors -o {merged} --sign key.pem")
    assert "as signed" in run(f"verify {merged} --key key.pub")
    # a recipe includes fragments without a checkout
    run("fragments smact ties -o hparams")
    (tmp_path / "hparams" / "train.yaml").write_text(
        "pool_folder: pool\n"
        "stage: !include:smact.yaml\n"
        "    candidates: [!ref <pool_folder>]\n"
        "method: !include:ties.yaml\n"
        "    density: 0.3\n"
    )
    (tmp_path / "recipe.py").write_text(
        "import speechbrain_merge\n"
        "from hyperpyyaml import load_hyperpyyaml\n"
        "with open('hparams/train.yaml') as stream:\n"
        "    hparams = load_hyperpyyaml(stream)\n"
        "print(speechbrain_merge.__file__)\n"
        "print(hparams['stage'].candidates, hparams['method'].density)\n"
    )
    lines = python(tmp_path, "recipe.py", interpreter=installed).splitlines()
    assert Path(lines[-2]).is_relative_to(installed.parents[1])
    assert lines[-1] == "['pool'] 0.3"


@pytest.mark.parametrize(
    "line",
    ["--help", "--version"]
    + [
        f"{command} --help"
        for command in (
            "merge",
            "inspect",
            "compare",
            "evaluate",
            "study",
            "completion",
            "export",
            "verify",
            "methods",
            "fragments",
        )
    ],
)
def test_help_loads_nothing_heavy(installed, tmp_path, line):
    """Else it takes seconds and hundreds of megabytes."""
    code = (
        "import sys\n"
        "from speechbrain_merge.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    out = python(tmp_path, "-c", code, *line.split(), interpreter=installed)
    loaded = set(out.splitlines()[-1].split())
    assert "speechbrain_merge" in loaded and not loaded & HEAVY


def test_the_package_loads_what_is_asked_for():
    for name in speechbrain_merge.__all__:
        assert getattr(speechbrain_merge, name) is not None
        assert name in dir(speechbrain_merge)
    with pytest.raises(AttributeError, match="no attribute 'Mergestage'"):
        _ = speechbrain_merge.Mergestage
    assert "class" in repr(speechbrain_merge.search.GreedySearch)


def imported(files):
    """Modules that files import: when they are loaded, and later."""
    found = {True: set(), False: set()}

    def walk(node, loaded):
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                names = [child.module]
            for name in names:
                found[loaded].add(name.partition(".")[0])
            function = isinstance(
                child, (ast.FunctionDef, ast.AsyncFunctionDef)
            )
            walk(child, loaded and not function)

    for file in files:
        walk(ast.parse(file.read_text(encoding="utf-8")), True)
    return found


def normal(name):
    """A distribution's name as all its spellings have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(modules, ours):
    """Where modules come from: a set of distributions for each.

    Python's and our own are left out. Several distributions may share the
    first name of a module, as in `ruamel.yaml`.
    """
    homes = packages_distributions()
    unknown = {
        name
        for name in modules
        if name not in sys.stdlib_module_names
        and name not in homes
        and name not in ours
    }
    assert not unknown, f"not installed here: {unknown}"
    return [
        {normal(home) for home in homes[name]}
        for name in sorted(modules)
        if name not in sys.stdlib_module_names and name not in ours
    ]


def test_every_import_is_declared(metadata):
    """Those at the top of a module always, the others perhaps as an extra."""
    needs, extras = set(), set()
    for text in metadata.get_all("Requires-Dist"):
        requirement = Requirement(text)
        always = "extra ==" not in str(requirement.marker or "")
        (needs if always else extras).add(normal(requirement.name))
    files = sorted(PACKAGE.rglob("*.py"))
    found = imported(files)
    ours = {PACKAGE.name}
    at_once = distributions(found[True], ours)
    later = distributions(found[False], ours)
    assert [homes for homes in at_once if not homes & needs] == []
    assert [homes for homes in later if not homes & (needs | extras)] == []
    # and nothing is asked of users that is not used
    assert needs - set().union(*at_once, *later) == set()


def test_every_extra_that_is_spoken_of_exists(metadata):
    """Messages and pages tell users what to install."""
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md")]
    files += [*(ROOT / "docs").rglob("*.md")]
    named = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        for words in re.findall(r"(?:speechbrain_merge|\.)\[([\w,]+)\]'", text):
            named |= set(words.split(","))
    assert {"sign", "whisper"} <= named
    assert named - set(metadata.get_all("Provides-Extra")) == set()


def test_an_undeclared_import_is_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import yaml\n\ndef f():\n    from ruamel import yaml\n")
    found = imported([file])
    assert distributions(found[True], set()) == [{"pyyaml"}]
    assert "ruamel-yaml" in distributions(found[False], set())[0]


def test_everything_is_python_3_9():
    """The oldest Python that the metadata allow can read every file."""
    for folder in ("speechbrain_merge", "recipes", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            ast.parse(text, str(file), feature_version=(3, 9))
