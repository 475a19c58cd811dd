"""The same settings are known again, others never taken for them.

Authors
 * The speechbrain_merge authors 2026
"""

import array
import collections
import contextvars
import dataclasses
import functools
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy
import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import tiny_whisper
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    PreTrainedTokenizerFast,
    WhisperForConditionalGeneration,
)

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.lobes.features import Fbank
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge.records.file_hashes import file_fingerprint
from speechbrain_merge.records.fingerprint import fingerprint, look_at
from speechbrain_merge.records.given_state import GivenState


class Decoder(torch.nn.Module):
    """A decoder with everything that decoders have."""

    def __init__(self, beam=4, weights=(0.5, 0.5), table=None):
        super().__init__()
        self.beam, self.weights = beam, list(weights)
        self.cache, self.calls = None, 0
        self.blank = 0
        self.register_buffer("table", torch.arange(3.0))
        self.inner = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.inner.weight)
        torch.nn.init.zeros_(self.inner.bias)
        self.nested = {"scorers": [Scorer(0.3)], "table": table}

    def forward(self, features):
        """Leaves traces, as decoders do."""
        self.cache, self.last_batch = [features], len(features)
        self.calls += 1
        return features

    def set_blank(self, blank):
        """A setting."""
        self.blank = blank


class Scorer:
    """Nested in the decoder."""

    __slots__ = ("weight", "seen")

    def __init__(self, weight):
        self.weight, self.seen = weight, 0

    def score(self):
        """Leaves a trace."""
        self.seen += 1


@dataclasses.dataclass
class Settings:
    """Plain data."""

    beam: int
    note: str = ""


def text_of(number):
    """A function that a YAML may name."""
    return str(number)


CHANGES = {
    "a number": lambda d: setattr(d, "beam", 5),
    "a list": lambda d: d.weights.append(0.1),
    "an entry": lambda d: d.weights.__setitem__(0, 0.4),
    "a value inside": lambda d: setattr(d.nested["scorers"][0], "weight", 1),
    "another object inside": lambda d: d.nested["scorers"].append(Scorer(0.3)),
    "a buffer": lambda d: d.table.add_(1),
    "a parameter": lambda d: d.inner.weight.data.mul_(2),
    "a new setting": lambda d: setattr(d, "temperature", 1.0),
    "by a setter": lambda d: d.set_blank(1),
    "an array": lambda d: d.nested.update(table=numpy.arange(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides(change):
    one, other = Decoder(), Decoder()
    assert fingerprint(one) == fingerprint(other)
    CHANGES[change](other)
    assert fingerprint(one) != fingerprint(other), change
    assert fingerprint({"a": [one]}) != fingerprint({"a": [other]})


def test_what_a_decoder_does_is_no_setting():
    decoder = Decoder()
    before = fingerprint(decoder)
    decoder(torch.ones(3, 2))
    decoder.nested["scorers"][0].score()
    decoder.eval()
    assert fingerprint(decoder) == before
    counter = EpochCounter(3)
    before = fingerprint(counter)
    assert list(counter) == [1, 2, 3]
    assert fingerprint(counter) == before
    assert fingerprint(EpochCounter(4)) != before


DIFFERENT = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    [1],
    {1},
    {"1": 1},
    {1: "1"},
    [[1], []],
    [[], [1]],
    [1, 2],
    "a/name-on-the-hub",
    "another/name-on-the-hub",
    Settings(1),
    Settings(2),
    Settings(1, "note"),
    functools.partial(text_of, 1),
    functools.partial(text_of, number=1),
    functools.partial(repr, 1),
    text_of,
    lambda number: number + 1,
    lambda number: number + 2,
    Scorer(1).score,
    Scorer(2).score,
    Scorer,
    torch.ones(2),
    torch.ones(2).half(),
    torch.ones(2).bfloat16(),
    torch.ones(1, 2),
    torch.float16,
    numpy.ones(2),
    numpy.ones(2, dtype="f4"),
    torch,
    re.compile("a"),
    re.compile("b"),
    re.compile("a", re.IGNORECASE),
    re.compile("a").sub,
    re.compile("b").sub,
    {"a": 1}.get,
    {"a": 2}.get,
    {"a": 2}.values(),
    {"a": 2}.keys(),
    defaultdict(int, a=1),
    defaultdict(list, a=1),
    torch.eye(2).to_sparse(),
    2 * torch.eye(2).to_sparse(),
    torch.eye(2).to_sparse_csr(),
    torch.tensor([1j]),
    torch.tensor([1j]).conj(),
    torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    numpy.ma.masked_array([1, 2], mask=[True, False]),
    numpy.ma.masked_array([1, 2], mask=[False, True]),
    " ".join,
    "".join,
]


def test_nothing_is_taken_for_anything_else():
    found = [fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)
    assert [fingerprint(value) for value in DIFFERENT] == found
    assert fingerprint(OrderedDict(a=1, b=2)) == fingerprint({"a": 1, "b": 2})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"b": 2, "a": 1})
    assert fingerprint(numpy.float64(0.5)) == fingerprint(0.5)
    assert fingerprint(torch.device("cpu")) == fingerprint(torch.device("meta"))


class Rules:
    """Keeps words to itself."""

    __slots__ = ("__words", "__asked")

    def __init__(self, words):
        self.__words, self.__asked = words, []

    def has(self, word):
        """Leaves a note."""
        self.__asked.append(word)
        return word in self.__words


def noted(value, also):
    """The object with an attribute beside what it holds."""
    value.items = also
    return value


class Fillers(frozenset):
    """Words."""


class Last(collections.deque):
    """The last words."""


class Lengths(array.array):
    """Numbers."""


class Table(dict):
    """By word."""


class Word(str):
    """One."""


class Share(float):
    """Of one."""


class Pair(tuple):
    """Two."""


class Bare(frozenset):
    """Without attributes."""

    __slots__ = ()


@pytest.mark.parametrize(
    "make, one, other",
    [
        (Fillers, ["one", "two", "six"], ["one", "two"]),
        (Last, ["one"], ["two"]),
        (lambda words: Last(words, 1), ["one", "two"], ["two", "one"]),
        (lambda limit: Last(["one"], limit), 1, 2),
        (lambda numbers: Lengths("i", numbers), [1], [2]),
        (Table, {"a": 1}, {"a": 2}),
        (Word, "one", "two"),
        (Share, 1.0, 2.0),
        (Pair, (1, 2), (1, 3)),
    ],
)
def test_containers_and_texts_with_attributes_count_by_both(make, one, other):
    made = [
        noted(make(one), "a"),
        noted(make(one), "a"),
        noted(make(other), "a"),
        noted(make(one), "b"),
    ]
    found = list(map(fingerprint, made))
    assert found[0] == found[1] and len(set(found)) == 3


class Signal(numpy.ndarray):
    """With notes."""


def test_an_array_with_attributes_counts_by_both():
    made = [
        noted(numpy.ones(2).view(Signal), "a"),
        noted(numpy.ones(2).view(Signal), "a"),
        noted(numpy.zeros(2).view(Signal), "a"),
        noted(numpy.ones(2).view(Signal), "b"),
    ]
    found = list(map(fingerprint, made))
    assert found[0] == found[1] and len(set(found)) == 3


def shifted(module, given, made, by):
    """A hook."""
    return made + by


def test_a_part_of_a_function_as_hook_counts():
    found = []
    for by in (1, 1, 2):
        module = torch.nn.ReLU()
        module.register_forward_hook(functools.partial(shifted, by=by))
        found.append(fingerprint(module))
    assert found[0] == found[1] != found[2]


def test_containers_without_attributes():
    found = {fingerprint(Bare(words)) for words in (["one"], ["two"], ["one"])}
    assert len(found) == 2
    assert fingerprint(Bare(["one"])) != fingerprint(frozenset(["one"]))
    lines = [collections.deque("ab", 2), collections.deque("ab", 3)]
    assert fingerprint(lines[0]) != fingerprint(lines[1])


def test_a_variable_of_the_context_counts_as_it_was_given():
    def of(word):
        state, given = GivenState(), contextvars.ContextVar("given")
        given.set([word])

        def look():
            return look_at([given], [], None, state)

        with state.running(look):
            before = fingerprint([given], state=state)
            given.set(["another"])
        state.look(look)
        assert fingerprint([given], state=state) == before
        return before

    assert of("one") == of("one") != of("two")


def test_texts_that_look_like_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fingerprint(["/one/"]) != fingerprint(["/two/"])
    assert fingerprint([Path("/one/")]) == fingerprint([Path("/two/")])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert fingerprint(folders[0]) == fingerprint(folders[1])
    missing = [f"{folder}/wer.txt" for folder in folders]
    assert fingerprint(missing[0], folders) == fingerprint(missing[1], folders)
    assert fingerprint("/" + "a" * 300) != fingerprint("/" + "b" * 300)


def test_a_file_that_a_path_names_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for words in ("one", "two"):
        (tmp_path / "lexicon").write_text(words)
        found += [fingerprint(Path("lexicon")), fingerprint("lexicon")]
    assert found[0] != found[2] and found[1] != found[3]  # as Kaldi's


def test_slots_with_private_names_count():
    def of(words):
        state, rules = GivenState(), Rules(words)

        def look():
            return look_at([rules], [], None, state)

        with state.running(look):
            before = fingerprint([rules], state=state)
            rules.has("one")
        state.look(look)
        assert fingerprint([rules], state=state) == before
        return before

    assert of(["one"]) == of(["one"]) != of(["two"])


def test_an_object_that_holds_itself():
    one, other = {"beam": 1}, {"beam": 1}
    one["self"], other["self"] = one, other
    assert fingerprint(one) == fingerprint(other)
    other["beam"] = 2
    assert fingerprint(one) != fingerprint(other)


def test_files_and_folders(tmp_path):
    model = tmp_path / "lm.arpa"
    model.write_text("one")
    before = fingerprint({"lm": str(model)})
    moved = tmp_path / "elsewhere.arpa"
    moved.write_text("one")
    assert fingerprint({"lm": moved}) == before
    model.write_text("two")
    assert fingerprint({"lm": str(model)}) != before
    assert file_fingerprint(model) != file_fingerprint(moved)
    results = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "wer.txt").write_text(name)
        settings = {"wer_file": str(folder / "wer.txt"), "out": str(folder)}
        results.append(fingerprint(settings, [folder]))
    assert results[0] == results[1]
    other = {"wer_file": str(folder / "cer.txt"), "out": str(folder)}
    assert fingerprint(other, [folder]) != results[0]


YAML = """
vocabulary: [a, b, {words}]
decoder: !new:records.test_fingerprint.Decoder
    beam: {beam}
    weights: [0.1, 0.9]
    table: !new:records.test_fingerprint.Scorer
        weight: {weight}
scorer: !name:records.test_fingerprint.text_of
    number: {number}
"""


def of_yaml(words="c", beam=4, weight=0.1, number=1):
    """The fingerprint of what a YAML makes."""
    text = YAML.format(words=words, beam=beam, weight=weight, number=number)
    return fingerprint(load_hyperpyyaml(text))


def test_a_yaml_in_a_new_process():
    changed = [{"words": "d"}, {"beam": 5}, {"weight": 0.2}, {"number": 2}]
    found = {of_yaml(), *(of_yaml(**change) for change in changed)}
    assert len(found) == 5
    tests = Path(__file__).parents[1]
    code = "from records.test_fingerprint import of_yaml; print(of_yaml())"
    for seed in ("1", "2"):
        paths = [str(tests), str(tests.parent)]
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(paths),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == of_yaml()


def test_tokenizers_and_whisper(tmp_path):
    """Real ones: a model in C++, a tokenizer in Rust, modules that decode."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["one two three", "four five six"] * 20))
    found = set()
    for size in (19, 20, 19):
        sentencepiece.SentencePieceTrainer.train(
            input=str(texts),
            model_prefix=str(tmp_path / f"{size}"),
            vocab_size=size,
            minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor()
        processor.load(str(tmp_path / f"{size}.model"))
        found.add(fingerprint(processor))
    assert len(found) == 2
    hub = tiny_whisper(tmp_path / "hub", layers=1, multilingual=True)
    whisper = Whisper(hub, hub + "/cache", language="english")
    again = Whisper(hub, hub + "/cache", language="english")
    before = fingerprint(whisper)
    assert fingerprint(again) == before
    whisper.tokenizer(["one", "two three"], padding=True)
    whisper(torch.zeros(1, 1600), torch.tensor([[1, 2]]))
    assert fingerprint(whisper) == before
    next(again.parameters()).data.view(-1)[0] += 1
    assert fingerprint(again) != before
    german = Whisper(hub, hub + "/cache", language="german")
    assert fingerprint(german) != before
    model = WhisperForConditionalGeneration.from_pretrained(hub)
    before = fingerprint(model, state=GivenState())
    model.generation_config.num_beams = 3
    assert fingerprint(model, state=GivenState()) != before
    before = fingerprint(german, state=GivenState())
    german.tokenizer.add_tokens(["<|more|>"])
    assert fingerprint(german, state=GivenState()) != before


def fast_tokenizer(decoder=None, normalizer=None, merges=(("a", "b"),)):
    """One of transformers, over one of Rust."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "ba": 3, "[PAD]": 4}
    model = models.BPE(vocab=vocabulary, merges=list(merges))
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder or decoders.Fuse()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]"
    )


def test_all_of_a_fast_tokenizer_counts():
    changes = [
        {},
        {"decoder": decoders.WordPiece()},
        {"normalizer": normalizers.Lowercase()},
        {"merges": [("b", "a")]},
    ]
    found = {fingerprint(fast_tokenizer(**each)) for each in changes}
    assert len(found) == len(changes)
    tokenizer = fast_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer(["ab", "a"], padding=True, truncation=True, max_length=1)
    assert fingerprint(tokenizer) == before


def of_what_says_nothing():
    """The fingerprints of a data base, which cannot be read, and of a lock."""
    base = sqlite3.connect(":memory:")
    assert fingerprint([base]) == fingerprint([base])
    return f"{fingerprint([base])} {fingerprint([threading.Lock()])}"


def test_what_cannot_be_read_is_the_same_for_no_other_process(caplog):
    tests = Path(__file__).parents[1]
    code = (
        "from records.test_fingerprint import of_what_says_nothing\n"
        "print(of_what_says_nothing())"
    )
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    here, there = of_what_says_nothing().split(), done.stdout.split()
    assert here[0] != there[0]
    assert here[1] == there[1]
    assert "sqlite3.Connection does not tell what it holds" in caplog.text


@pytest.mark.parametrize(
    "make",
    [random.Random, numpy.random.default_rng, numpy.random.RandomState],
)
def test_random_numbers_count_by_what_they_begin_with(make):
    def of(seed):
        given, state = {"given": make(seed)}, GivenState()

        def look():
            return look_at(given, [], None, state)

        with state.running(look):
            before = fingerprint(given, state=state)
            given["given"].random()
        state.look(look)
        assert fingerprint(given, state=state) == before
        return before

    assert of(1) == of(1) != of(2)


def shift(module, inputs, outputs, by):
    """A hook."""
    return outputs + by


class Masked(torch.nn.Module):
    """With a buffer that is in no checkpoint, and one that it caches."""

    def __init__(self, suppress):
        super().__init__()
        mask = torch.tensor(suppress)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("cache", torch.zeros(1), persistent=False)


def test_buffers_and_hooks_count():
    def of(suppress=(0,), by=1, run=False):
        module, state = Masked(list(suppress)), GivenState()
        module.register_forward_hook(functools.partial(shift, by=by))
        given = {"module": module}

        def look():
            return look_at(given, [], None, state)

        with state.running(look):
            module.cache += run
        return fingerprint(given, state=state)

    assert of() == of(run=True)
    assert len({of(), of([0, 1]), of(by=2)}) == 3


def test_an_open_file_counts_by_what_is_read(tmp_path):
    found = []
    for text in ("one", "two"):
        (tmp_path / "words.txt").write_text(text)
        with open(tmp_path / "words.txt") as file:
            found.append(fingerprint(file))
        with open(tmp_path / f"{text}.log", "w") as file:
            found.append(fingerprint(file))
    assert found[0] != found[2] and found[1] == found[3]


def test_features_that_were_computed_are_the_same_settings():
    features = Fbank(sample_rate=16000, n_mels=16)
    before = fingerprint({"features": features})
    features(torch.randn(1, 1600))
    assert fingerprint({"features": features}) == before
    assert fingerprint({"features": Fbank(n_mels=20)}) != before
