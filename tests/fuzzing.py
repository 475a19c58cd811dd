"""Damaged files of every kind, and what they cost.

A valid file is damaged with its structure in mind: a key is dropped or comes
twice, a value takes the place of another, a header of safetensors has the right
length and wrong offsets, an entry of an archive is exchanged. Or some of its
bytes are changed, whatever they mean. What reads it has to end in an answer or
in one error of this package that names the file, soon, and without much memory.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pickle
import struct
import sys
import time
import traceback
import zipfile
from pathlib import Path

import yaml
from hypothesis import (
    HealthCheck,
    Phase,
    given,
    seed,
    settings,
    strategies as st,
)

from speechbrain.utils.importutils import LazyModule

for _module in list(sys.modules.values()):
    if isinstance(_module, LazyModule):
        # hypothesis asks every module for its file, and SpeechBrain's lazy
        # ones would import what is not installed
        _module.__dict__.setdefault("__file__", None)

LONGEST = 10.0
"""Seconds that one input may take."""

AT_ONCE = 6
"""Inputs of one example of hypothesis, which costs more than they do."""

MEMORY_CONSTANT = 64 << 20
MEMORY_FACTOR = 1000
"""One input may raise the memory of the process by the constant, and by so many
times the bytes of the damaged file."""

_WORDS = ["../../x", "/etc/passwd", "\0", "x" * 10_000, "1e99999999", "nan"]
_WORDS += ["!ref <a>", "!!python/name:os.system", "epoch-0001", "a" * 64, ""]
_WORDS += [".", "..", "a/b", "\ud800", "\u202e", "é" * 200, "(a+)+b", "re:("]
_WORDS += ["*" * 300, "{rest}.{rest}", "9" * 5000, "-0", "1/0", "True", "0x1f"]
_NUMBERS = [10**50, -1, 0, 2**31, 2**63, 2**64, 1e308, -1e308, 10**390]
_NUMBERS += [float("nan"), float("inf"), 0.5]


def _junk():
    numbers = st.one_of(st.integers(), st.floats(), st.sampled_from(_NUMBERS))
    words = st.one_of(st.text(max_size=20), st.sampled_from(_WORDS))
    plain = st.one_of(st.none(), st.booleans(), numbers, words)
    small = st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(max_size=8), inner, max_size=4),
        ),
        max_leaves=8,
    )
    large = st.sampled_from(
        [
            _nested(60),
            _nested(900),
            [0] * 5000,
            {str(n): n for n in range(2000)},
        ]
    )
    return st.one_of(small, small, small, plain, large)


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


JUNK = _junk()


def damaged_value(value, choose):
    """The value with one thing in it, or all of it, replaced or removed."""
    if isinstance(value, (dict, list)) and value and choose(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = choose(st.sampled_from(list(keys)))
        copy = value.copy()
        what = choose(st.integers(0, 11))
        if what > 2:
            copy[key] = damaged_value(value[key], choose)
        elif what == 2 and isinstance(value, dict):
            copy[choose(st.sampled_from(_WORDS))] = copy.pop(key)
        elif what == 1:
            # what stands elsewhere in the record, of another kind
            copy[key] = value[choose(st.sampled_from(list(keys)))]
        else:
            del copy[key]
        return copy
    return choose(JUNK)


def damaged_json(text, choose):
    """A line of JSON with another value in it, or a key twice."""
    value = json.loads(text)
    if isinstance(value, dict) and value and not choose(st.integers(0, 5)):
        key = choose(st.sampled_from(list(value)))
        twice = json.dumps({key: choose(JUNK)})[1:-1]
        return f"{{{twice}, {text.strip()[1:]}"
    return json.dumps(damaged_value(value, choose))


def damaged_yaml(text, choose):
    """YAML with another value, with aliases, or with tags in it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None  # tags: HyperPyYAML
    kind = choose(st.integers(0, 4))
    if value is not None and kind > 1:
        value = damaged_value(value, choose)
        try:
            return yaml.safe_dump(value, allow_unicode=True)
        except RecursionError:
            return json.dumps(value)
    lines = text.splitlines() or [""]
    at = choose(st.integers(0, len(lines) - 1))
    more = ["a: &a [*a]", "<<: *b", "? [1]", "- x", "\tx", "%TAG ! x", "---"]
    more += ["x: !!python/object/apply:os.system [ls]", "x: &x 1", "*x : 1"]
    more += ["x: !!timestamp 9999-99-99", "x: !!binary =", "x: 1" + ":1" * 99]
    more += ["x: !new:os.system [ls]", "x: !include:x.yaml", lines[at]]
    lines.insert(at, choose(st.sampled_from(more)))
    return "\n".join(lines) + "\n"


def damaged_bytes(data, choose):
    """Some bytes changed, put in, taken out, repeated, or all cut off."""
    data = bytearray(data)
    for _ in range(choose(st.integers(1, 4))):
        at = choose(st.integers(0, len(data)))
        kind = choose(
            st.sampled_from(["change", "insert", "remove", "cut", "repeat"])
        )
        some = choose(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from(
                    [b"\0" * 8, b"\xff" * 8, b"[" * 500, b"{", b"*a"]
                ),
            )
        )
        if kind == "change":
            data[at : at + len(some)] = some
        elif kind == "insert":
            data[at:at] = some
        elif kind == "remove":
            del data[at : at + len(some)]
        elif kind == "repeat":
            times = min(2000, 50_000 // max(1, len(data) - at))
            data[at:] = data[at:] * max(1, times)
        else:
            del data[at:]
    return bytes(data)


_DTYPES = ["F32", "F16", "BF16", "I64", "U8", "BOOL", "F64", "F8_E4M3", "C64"]
_DTYPES += ["F4", "F32 ", "", "f32"]


def damaged_safetensors(data, choose):
    """A header of the right length that says something wrong."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    for _ in range(choose(st.integers(1, 3))):
        entry = dict(header[choose(st.sampled_from(names))])
        kind = choose(st.integers(0, 7))
        number = st.one_of(
            st.integers(0, 2 * len(body)),
            st.sampled_from([-1, 2**31, 2**63, 2**64 - 1, 2**64, 1.5, None]),
        )
        if kind == 0:
            entry["dtype"] = choose(st.sampled_from(_DTYPES))
        elif kind == 1:
            entry["shape"] = choose(st.lists(number, max_size=5))
        elif kind in (2, 3):
            entry["data_offsets"] = choose(st.lists(number, max_size=3))
        elif kind == 4:
            entry = choose(JUNK)
        elif kind == 5:
            header["__metadata__"] = choose(
                st.one_of(JUNK, st.dictionaries(st.text(max_size=9), JUNK))
            )
        elif kind == 6:
            # fits: the same bytes under a second name
            entry = dict(header[names[-1]])
        name = choose(
            st.one_of(
                st.sampled_from(names),
                st.text(max_size=20),
                st.sampled_from([*_WORDS, "layers." * 100 + "weight"]),
            )
        )
        header[name] = entry
        if not isinstance(entry, dict):
            break
    if not choose(st.integers(0, 9)):
        body = damaged_bytes(body, choose)
    text = json.dumps(header)
    if not choose(st.integers(0, 7)):
        twice = choose(st.sampled_from(names))
        text = f"{{{json.dumps({twice: header[twice]})[1:-1]}, {text[1:]}"
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    said = len(raw)
    if not choose(st.integers(0, 9)):
        said = choose(st.sampled_from([0, said - 1, said + 8, 2**40, 2**63]))
    return struct.pack("<Q", said) + raw + body


def damaged_archive(data, choose):
    """An archive of torch with an entry exchanged, doubled or gone."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [
            (entry.filename, archive.read(entry))
            for entry in archive.infolist()
        ]
    compression = zipfile.ZIP_STORED
    for _ in range(choose(st.integers(1, 2))):
        at = choose(st.integers(0, len(parts) - 1))
        name, content = parts[at]
        kind = choose(st.integers(0, 8))
        if kind < 3:
            parts[at] = (name, damaged_bytes(content, choose))
        elif kind == 3:
            parts[at] = (name, choose(st.sampled_from(parts))[1])
        elif kind == 4 and len(parts) > 1:
            del parts[at]
        elif kind == 5:
            folder = name.partition("/")[0]
            last = choose(st.sampled_from(["data/99", "../x", "data.pkl", ""]))
            parts.append((f"{folder}/{last}", content))
        elif kind == 6:
            top = choose(st.sampled_from(["archive", "", "..", "\u00e9"]))
            parts = [
                (f"{top}/{n.partition('/')[2]}", each) for n, each in parts
            ]
        elif kind == 7:
            compression = zipfile.ZIP_DEFLATED
        else:
            places = [n for n, (p, _) in enumerate(parts) if p.endswith("pkl")]
            for place in places:
                content = pickle.dumps(choose(JUNK), choose(st.integers(0, 5)))
                parts[place] = (parts[place][0], content)
    stream = io.BytesIO()
    with contextlib.suppress(UserWarning):
        with zipfile.ZipFile(stream, "w", compression) as archive:
            for name, content in parts:
                archive.writestr(zipfile.ZipInfo(name), content, compression)
    made = stream.getvalue()
    return made if choose(st.integers(0, 9)) else damaged_bytes(made, choose)


def damaged(path, valid, choose):
    """What is written in the place of a valid file."""
    if choose(st.integers(0, 3)) == 0:
        return damaged_bytes(valid, choose)
    if path.suffix == ".safetensors":
        return damaged_safetensors(valid, choose)
    if valid[:4] == b"PK\x03\x04":
        return damaged_archive(valid, choose)
    try:
        text = valid.decode()
    except UnicodeDecodeError:
        return damaged_bytes(valid, choose)
    if path.suffix == ".yaml":
        return damaged_yaml(text, choose).encode("utf-8", "surrogatepass")
    try:
        return damaged_json(text, choose).encode()
    except ValueError:
        pass  # a line each, or no JSON at all
    lines = text.splitlines()
    at = choose(st.integers(0, len(lines) - 1))
    try:
        lines[at] = damaged_json(lines[at], choose)
    except ValueError:
        return damaged_bytes(valid, choose)
    return ("\n".join(lines) + "\n").encode()


@dataclasses.dataclass
class Costs:
    """What the inputs of one kind have cost.

    Arguments
    ---------
    inputs, refused : int
        How many there were, and how many ended in an error.
    slowest : float
        Seconds of processor time of one.
    memory : int
        Bytes by which one has raised the memory of the process; 0 where the
        system does not tell (`measures_memory`).
    """

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0


class Damage:
    """Puts a damaged file in the place of a valid one, for a while."""

    def __init__(self, choose):
        self.choose = choose
        self.paths = []
        self.size = 0
        self.words = []

    def number(self, end):
        """A whole number below `end`."""
        return self.choose(st.integers(0, end - 1))

    @contextlib.contextmanager
    def __call__(self, path):
        path = Path(path)
        valid = path.read_bytes()
        content = damaged(path, valid, self.choose)
        self.paths.append(path)
        self.size += len(content)
        path.write_bytes(content)
        try:
            yield path
        finally:
            path.write_bytes(valid)


class Undamaged(Damage):
    """Leaves files as they are."""

    def __init__(self):
        super().__init__(None)

    def number(self, end):
        """The first of what there is."""
        return 0

    @contextlib.contextmanager
    def __call__(self, path):
        yield Path(path)


def fuzz(target, inputs, number=0):
    """Gives damaged files to a function, and checks how it ends.

    Arguments
    ---------
    target : callable
        Takes a `Damage`.
    inputs : int
        How many.
    number : int
        Seed.

    Returns
    -------
    Costs
    """
    costs = Costs()
    with contextlib.suppress(Exception):
        target(Undamaged())  # imports what a reader needs, which is no growth

    @seed(number)
    @settings(
        max_examples=-(-inputs // AT_ONCE),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data):
        for _ in range(AT_ONCE):
            one(data)

    def one(data):
        choices = []

        def choose(strategy):
            choices.append(data.draw(strategy))
            return choices[-1]

        costs.inputs += 1
        took, grown, size, refused = _costs_of(target, choose)
        if not _within(took, grown, size):
            # the first use of a module and a busy machine cost once, what
            # the file costs comes again: the same choices once more
            again = iter(choices)
            took, grown, size, refused = _costs_of(
                target, lambda strategy: next(again)
            )
        costs.refused += refused
        costs.slowest = max(costs.slowest, took)
        costs.memory = max(costs.memory, grown)
        assert _within(took, grown, size), (
            f"{took:.1f} s and {grown} bytes for {size} bytes: {choices}"
        )

    run()
    return costs


def _costs_of(target, choose):
    """Seconds, bytes by which memory grew, bytes of the files, if refused."""
    damage = Damage(choose)
    before = _reset_peak()
    begun = time.process_time()
    refused = False
    try:
        target(damage)
    except (ValueError, OSError) as error:
        refused = True
        _check_named(error, damage)
    took = time.process_time() - begun
    return took, _peak() - before, damage.size, refused


def _within(took, grown, size):
    return took < LONGEST and grown < MEMORY_CONSTANT + MEMORY_FACTOR * size


def _check_named(error, damage):
    """An error says which file is meant."""
    words = list(damage.words)
    for path in damage.paths:
        words += [path.name, path.parent.name]
    if not any(word in str(error) for word in words):
        raise AssertionError(
            "an error that does not name the file:\n"
            + "".join(traceback.format_exception(error))
        )


def measures_memory():
    """If this system tells the peak memory of a process, and starts it anew.

    A container may lack either: then only the time of an input is checked.
    """
    for _ in range(2):  # a peak that cannot start anew rises once
        before = _reset_peak()
        bytearray(32 << 20)
        risen = _peak() - before
    return risen >= 24 << 20


def _reset_peak():
    """Begins to measure the memory of this process; bytes that it has now.

    What was freed and is still the process's would be used again, unseen.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak():
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def asked(targets):
    """How many inputs of each kind, and the seed, by the environment."""
    inputs = int(os.environ.get("FUZZ", 0)) // targets
    return inputs, int(os.environ.get("FUZZ_SEED", 0))
