"""What decides how a recipe decodes, beside its text: values that its modules
read when they are imported, settings that methods write, folders.

Each was scored again by nobody: the error rate of another decoder was told.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import sys

import counted_scorings
import pytest
import torch
from counted_scorings import VALID, ask, trained
from tiny_models import tiny_ctc_data

import speechbrain as sb
from speechbrain_merge.brain.decisive import (
    data_settings,
    decisive_settings,
    running,
)
from speechbrain_merge.records.given_state import GivenState

HEAD = """
import dataclasses, enum, functools, json, os, types
from pathlib import Path
import speechbrain as sb
HERE = Path(__file__).parent
BEAM = int(os.environ["BEAM_OF_TEST"])
def read(name):
    return (HERE / name).read_text()
def told():
    return os.environ["BEAM_OF_{}".format("TEST")]
"""
BRAIN = """
class Brain(sb.Brain):
    def words(self, words):
        return {expression}
"""
BUILD = """
def build():
    brain = Brain(run_opts={{"device": "cpu"}})
    {steps}
    return brain
"""
DECODER = """
class Decoder:
    def __init__(self, folder=None):
        self.beam, self.folder, self.decoded = 1, folder, 0
    def configure(self, beam):
        self.beam = beam
    def words(self):
        self.decoded += 1
        return (Path(self.folder) / "words.txt").read_text()
"""
WRAPS = """
class Mapped:
    def __init__(self, function, table):
        self.table = table
        functools.update_wrapper(self, function)
    def __call__(self, word):
        return self.table or self.__wrapped__(word)
"""
VALUES = {
    "a table from a file": ("TABLE = json.loads(read('t.json'))", "TABLE"),
    "words of a file": ("WORDS = read('t.json').split()", "WORDS"),
    "a file that a method reads": ("", "(HERE / 't.json').read_text()"),
    "a variable in a dict": ("OPTIONS = {'beam': BEAM}", "OPTIONS"),
    "a variable in a method": ("", "os.environ['BEAM_OF_TEST']"),
    "a variable with a default": ("", "os.getenv('BEAM_OF_TEST', '1')"),
    "whether a variable is there": ("", "'BEAM_IS_3' in os.environ"),
    "a variable by the name of a constant": (
        "NAME = 'BEAM_OF_TEST'\nfrom os import environ as e",
        "e.get(NAME)",
    ),
    "folders in a list": (
        "",
        "self.folders",
        "brain.folders = [str(HERE / 'lexicon')]",
    ),
    "an object": (
        "@dataclasses.dataclass\nclass Kind:\n    beam: int = 1\n"
        "KIND = Kind(BEAM)",
        "KIND.beam",
    ),
    "a namespace": ("ARGS = types.SimpleNamespace(beam=BEAM)", "ARGS.beam"),
    "a function made of a value": (
        "def make(n):\n    def beam():\n        return n['beam']\n"
        "    return beam\nBEAMS = make({'beam': BEAM})",
        "BEAMS()",
    ),
    "a default": (
        "def said(w, table=told().split()):\n    return table",
        "said(0)",
    ),
    "a default of a keyword": (
        "def said(w, *, table=told()):\n    return table",
        "said(0)",
    ),
    "an attribute of a function": (
        "def said(w):\n    return said.table\nsetattr(said, 'table', told())",
        "said(0)",
    ),
    "an attribute of a member of an Enum": (
        "class Kind(enum.Enum):\n    ONE = 't'\n    def __init__(self, name):\n"
        "        self.table = told()",
        "Kind.ONE.table",
    ),
    "an object that wraps a function": (
        WRAPS + "said = Mapped(lambda w: w, told())",
        "said(0)",
    ),
    "an object that wraps another": (
        WRAPS + "said = Mapped(Mapped(lambda w: w, told()), '')",
        "said(0)",
    ),
    "a part of an object that wraps a function": (
        WRAPS + "said = functools.partial(Mapped(len, told()), 0)",
        "said()",
    ),
    "a method that an object wraps": (
        WRAPS + "class Decoder:\n    words = Mapped(lambda w: w, told())",
        "Decoder.words(0)",
    ),
    "an object of the Brain that wraps a function": (
        WRAPS,
        "self.mapped(0)",
        "brain.mapped = Mapped(read, BEAM)",
    ),
    "an object of a module that a Brain holds": (
        "import collections, logging",
        "self.module.BEAMS",
        "brain.module = types.ModuleType('of_settings')",
        "brain.module.BEAMS = collections.deque([BEAM])",
        "brain.module.LOG = logging.getLogger()",
        "brain.module.read = functools.lru_cache(read)",
    ),
    "a method of an object": (
        DECODER + "D = Decoder()\nD.configure(BEAM)\nWORDS = D.words",
        "WORDS()",
    ),
    "a member of an Enum": (
        "class Kind(enum.Enum):\n    ONE = BEAM",
        "self.kind.value",
        "brain.kind = Kind.ONE",
    ),
    "an item of a class": (
        "",
        "self.beams['b']",
        "Brain.beams = {}; Brain.beams['b'] = BEAM",
    ),
    "an object of a class": (
        "",
        "self.beam.b",
        "Brain.beam = types.SimpleNamespace(b=BEAM)",
    ),
    "a dict that a function fills": (
        "OPTIONS = {}\ndef main():\n    OPTIONS['beam'] = BEAM",
        "OPTIONS['beam']",
        "main()",
    ),
    "a global that a function sets": (
        "OPTIONS = None\ndef main():\n    global OPTIONS\n"
        "    OPTIONS = {'beam': BEAM}",
        "OPTIONS['beam']",
        "main()",
    ),
    "an attribute that the package writes elsewhere": (
        "from speechbrain_merge.brain.mixin import MergeMixin\n"
        "class Merging(MergeMixin, sb.Brain):\n    pass",
        "self.seconds",
        "brain = Merging({}, run_opts={}); brain.seconds = BEAM",
    ),
    "a class within a function": (
        "def make(n):\n    class Brain(sb.Brain):\n"
        "        def words(self, words):\n            return n.beam\n"
        "    return Brain",
        "0",
        "brain = make(types.SimpleNamespace(beam=BEAM))({}, run_opts={})",
    ),
    "a decoder's method": (
        DECODER,
        "self.decoder.beam",
        "brain.decoder = Decoder(); brain.decoder.configure(BEAM)",
    ),
    "a decoder's folder": (
        DECODER,
        "self.decoder.words()",
        "brain.decoder = Decoder(str(HERE / 'lexicon'))",
    ),
    "a folder among the hyperparameters": (
        "",
        "self.hparams.lexicon",
        "brain.hparams = types.SimpleNamespace(lexicon=str(HERE / 'lexicon'))",
    ),
    "a folder that a partial call holds": (
        "",
        "self.read()",
        "brain.read = functools.partial(read, str(HERE / 'lexicon'))",
    ),
    "a folder of a namedtuple": (
        "import collections\nLists = collections.namedtuple('Lists', 'folder')",
        "self.lists.folder",
        "brain.lists = Lists(str(HERE / 'lexicon'))",
    ),
    "a folder of parsed arguments": (
        "import argparse",
        "self.options.folder",
        "brain.options = argparse.Namespace(folder=str(HERE / 'lexicon'))",
    ),
    "a file whose path the code puts together": (
        "",
        "(HERE / 'lexicon' / 'words.txt').read_text()",
    ),
    "a file by a variable": (
        "os.environ['LEXICON_OF_TEST'] = str(HERE)",
        "open(os.path.expandvars(self.words)).read()",
        "brain.words = '$LEXICON_OF_TEST/t.json'",
    ),
    "files by a pattern": (
        "",
        "self.words",
        "brain.words = str(HERE / '*.json')",
    ),
    "a file by an address": (
        "",
        "self.words",
        "brain.words = f'file://{HERE}/t.json'",
    ),
    "a path in bytes": (
        "",
        "self.words",
        "brain.words = os.fsencode(HERE / 't.json')",
    ),
    "a set of data that decoding reads": (
        "from speechbrain.dataio.dataset import DynamicItemDataset",
        "self.hparams.words.data",
        "words = DynamicItemDataset({'a': {'n': BEAM}})",
        "brain.hparams = types.SimpleNamespace(words=words)",
    ),
    "the seed of a generator": (
        "import torch",
        "torch.rand(1, generator=self.lot)",
        "brain.lot = torch.Generator().manual_seed(BEAM)",
    ),
    "a module of TorchScript": (
        "import torch\nclass Gate(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.least = BEAM\n"
        "    def forward(self, x):\n        return x > self.least",
        "self.gate(words)",
        "brain.gate = torch.jit.script(Gate())",
    ),
    "functions that were added one by one": (
        "RULES = []\nfor number in range(150):\n"
        "    RULES.append(lambda w, n=number * BEAM: RULES[n:])",
        "RULES[0](words)",
    ),
    "the order of labels": (
        "",
        "list(self.labels)",
        "brain.labels = dict(sorted([('a', BEAM), ('b', 2)], "
        "key=lambda row: row[1])); brain.labels.update(a=0, b=0)",
    ),
}


@pytest.fixture
def settings_with(tmp_path, monkeypatch):
    """The settings of a recipe where the world around its text has a number."""
    monkeypatch.setattr(GivenState, "_of_modules", {})  # as in a new process
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lexicon").mkdir()

    def settings(text, number):
        monkeypatch.setenv("BEAM_OF_TEST", str(number))
        monkeypatch.setenv(f"BEAM_IS_{number}", "")
        (tmp_path / "t.json").write_text(f'{{"beam": {number}}}')
        (tmp_path / "lexicon" / "words.txt").write_text(str(number))
        (tmp_path / "train_values.py").write_text(text)
        sys.modules.pop("train_values", None)
        importlib.invalidate_caches()
        recipe = importlib.import_module("train_values")
        return decisive_settings(recipe.build())

    yield settings
    sys.modules.pop("train_values", None)


@pytest.mark.parametrize("name", VALUES)
def test_values_that_the_text_does_not_say(settings_with, name):
    above, expression, *steps = VALUES[name]
    text = HEAD + above + BRAIN.format(expression=expression)
    text += BUILD.format(steps="; ".join(steps) or "pass")
    before = settings_with(text, 1)
    assert settings_with(text, 1) == before  # all objects are new ones
    assert settings_with(text, 3) != before


RECIPE = """
from pathlib import Path
import torch
from counted_scorings import MergingCTC

class Search:
    def __init__(self, folder=None):
        self.bonus, self.folder, self.decoded, self.seen = 0.0, folder, 0, []
    def configure(self, bonus):
        self.bonus = bonus
    def __call__(self, log_probabilities):
        self.decoded += 1
        self.seen.append(self.decoded)
        self.last = {"bonus": self.bonus, "at": self.decoded}
        bonus = self.bonus
        if self.folder is not None:
            bonus = float((Path(self.folder) / "bonus.txt").read_text())
        blank = torch.zeros(log_probabilities.shape[-1])
        blank[0] = bonus
        return log_probabilities + blank

class Brain(MergingCTC):
    heard = 0
    def compute_forward(self, batch, stage):
        self.last_batch = batch.id
        type(self).heard += 1
        return super().compute_forward(batch, stage)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A module of a recipe."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "searching_recipe.py").write_text(RECIPE)
    importlib.invalidate_caches()
    module = importlib.import_module("searching_recipe")
    monkeypatch.setattr(counted_scorings, "MergingCTC", module.Brain)
    yield module
    sys.modules.pop("searching_recipe")


def test_a_search_that_a_method_configures(recipe, tmp_path):
    def brain(bonus):
        search = recipe.Search()
        search.configure(bonus)
        return trained(tmp_path / "results", decoder=search)

    first, scored = ask(brain(0.0))
    assert scored > 0
    other = brain(1e6)
    second, scored = ask(other)
    assert scored > 0 and second.value == 100.0 != first.value
    # what it did by the way is no setting: of this Brain, and of a new one
    assert other.hparams.decoder.decoded and recipe.Brain.heard
    for again in (other, brain(1e6)):
        result, scored = ask(again)
        assert result.reused and result.value == second.value and scored == 0
    # between two runs
    other.hparams.decoder.configure(-1e6)
    third, scored = ask(other)
    assert scored > 0 and third.value not in (first.value, second.value)
    other.hparams.decoder.configure(0.0)
    assert ask(other)[0].value == first.value


def test_a_folder_that_a_search_reads(recipe, tmp_path):
    def told(bonus):
        folder = tmp_path / f"lexicon{bonus}"
        folder.mkdir(exist_ok=True)
        (folder / "bonus.txt").write_text(str(bonus))
        search = recipe.Search(str(folder))
        brain = trained(tmp_path / "results", decoder=search)
        result, scored = ask(brain)
        tally = brain.score_weights(
            result.path, tiny_ctc_data(10, seed=50), VALID
        )
        return result.value == tally.value, scored > 0

    assert told(0.0) == (True, True)
    assert told(1e6) == (True, True)
    assert told(1e6) == (True, False)
    (tmp_path / "lexicon1000000.0" / "bonus.txt").write_text("0.0")
    (tmp_path / "lexicon1000000.0").rename(tmp_path / "lexicon2")
    assert told(2.0) == (True, True)


DATA = """
from speechbrain.dataio.dataset import DynamicItemDataset

def dataio_prepare(hparams):
    data_folder = hparams["data_folder"]

    def audio_pipeline(wav):
        return {inner}

    data = {{"1": {{"wav": str(data_folder) + "/1.wav"}}}}
    items = [{{"func": audio_pipeline, "takes": "wav", "provides": "sig"}}]
    return DynamicItemDataset(data, items, ["id", "sig"])

def other(hparams, wav):
    return hparams["data_folder"] + wav
"""


@pytest.mark.parametrize(
    "inner, counts",
    [
        ("hparams['rate'] * wav", False),
        ("other(hparams, wav)", True),  # whatever it reads
        ("data_folder + wav", True),
        ("hparams['data_folder'] + wav", True),
        ("[hparams['rate'] for _ in wav]", False),
        ("hparams['rate'] if 'rate' in hparams else wav", False),
    ],
)
def test_a_corpus_counts_by_its_rows(tmp_path, monkeypatch, inner, counts):
    """A pipeline that does not look into the folder knows nothing of it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "reading_recipe.py").write_text(DATA.format(inner=inner))
    importlib.invalidate_caches()
    recipe = importlib.import_module("reading_recipe")
    brain, found = sb.Brain(run_opts={"device": "cpu"}), []
    for rate, text in [(2, "one"), (2, "two"), (3, "two")]:
        (tmp_path / "corpus" / "BOOKS.TXT").write_text(text)
        hparams = {
            "data_folder": str(tmp_path / "corpus"),
            "rate": rate,
            "model": torch.nn.Linear(1, 1),
        }
        data = recipe.dataio_prepare(hparams)
        found.append(data_settings(brain, data))
    sys.modules.pop("reading_recipe")
    assert (found[0] != found[1]) == counts
    assert (found[1] != found[2]) == ("rate" in inner)


WRAPPED = """
import functools
from speechbrain.dataio.dataset import DynamicItemDataset

def spelled(table):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(wrd):
            return function(table.get(wrd, wrd))
        return wrapper
    return decorate

def by_a_wrapper(table):
    @spelled(table)
    def text_pipeline(wrd):
        return wrd.split()
    return text_pipeline

def by_a_memo(table):
    def text_pipeline(wrd):
        if wrd not in table:
            table[wrd] = wrd
        return table[wrd]
    return text_pipeline

def by_setdefault(table):
    def text_pipeline(wrd):
        return table.setdefault(wrd, wrd)
    return text_pipeline

def by_a_cache(table):
    @functools.lru_cache(maxsize=None)
    def text_pipeline(wrd):
        return table.get(wrd, wrd)
    return text_pipeline

def dataio_prepare(make, table):
    items = [{"func": make(table), "takes": "wrd", "provides": "words"}]
    return DynamicItemDataset({"1": {"wrd": "b"}}, items, ["id", "words"])
"""


@pytest.mark.parametrize(
    "way", ["by_a_wrapper", "by_a_memo", "by_setdefault", "by_a_cache"]
)
@pytest.mark.parametrize("runs", [False, True])
def test_a_table_of_the_data_counts(tmp_path, monkeypatch, way, runs):
    """Whatever holds it, and though the data write words into it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wrapping_recipe.py").write_text(WRAPPED)
    importlib.invalidate_caches()
    recipe = importlib.import_module("wrapping_recipe")

    def settings(table):
        brain = sb.Brain(run_opts={"device": "cpu"})
        data = recipe.dataio_prepare(getattr(recipe, way), dict(table))
        found = []
        if not runs:  # seen first before a run, or in it
            found.append(data_settings(brain, data))
        for _ in range(2):
            with running(brain):
                found.append(data_settings(brain, data))
                list(data)  # which writes
        found.append(data_settings(brain, data))
        assert len(set(found)) == 1
        return found[0]

    before = settings({"a": "A"})
    assert settings({"a": "A"}) == before != settings({"a": "B"})
    sys.modules.pop("wrapping_recipe")
