"""Whatever is in a file, it ends in an answer or in an error of ours, soon.

A short, seeded run is part of the tests. FUZZ=100000 in the environment asks for
so many inputs in all, FUZZ_SEED for others; with ``-s`` each kind prints its
counts as a line of JSON.
"""

import dataclasses
import json
import struct
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, Files
from fuzzing import JUNK, MEMORY_CONSTANT, asked, fuzz, measures_memory
from hypothesis import given, settings
from sandbox import run_in_sandbox

from speechbrain_merge.records.reading import parse_number
from speechbrain_merge.weights import open_weights

WRITERS = 5
INPUTS, SEED = asked(len(TARGETS) + WRITERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Valid files, restored after each input."""
    return Files(tmp_path_factory.mktemp("fuzzed"))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_files(files, name):
    costs = fuzz(
        lambda damage: TARGETS[name](files, damage), INPUTS or 12, SEED
    )
    print("\n" + json.dumps({"kind": name, **dataclasses.asdict(costs)}))


CODE = """\
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
import fuzz_writers

fuzz_writers.run(Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4]))
"""


def test_damaged_files_and_commands_that_write(tmp_path):
    here = str(Path(__file__).parent)
    output = run_in_sandbox(CODE, tmp_path, here, str(INPUTS or 12), str(SEED))
    kinds = [json.loads(line) for line in output.splitlines()]
    assert len(kinds) == WRITERS
    print("\n" + output)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(JUNK)
def test_numbers(value):
    try:
        found = parse_number(value, "a test")
    except ValueError as error:
        assert "a test: expected a number" in str(error)
    else:
        assert abs(found) <= 1e30


@pytest.mark.parametrize("length", [0, 1, 7, 8, 2**31, 2**63 - 1, 2**64 - 1])
def test_lengths_of_headers(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}      ")
    with pytest.raises(ValueError, match="model.safetensors"):
        open_weights(path)


@pytest.mark.parametrize("times", [1, 100])
def test_memory_that_grows_once_is_not_the_files(tmp_path, times):
    if not measures_memory():
        pytest.skip("the system does not tell a process's peak memory")
    path = tmp_path / "some.json"
    path.write_text('{"a": 1}')
    grown = []

    def reader(damage):
        with damage(path):
            if damage.choose is not None and len(grown) < times:
                grown.append(len(bytearray(MEMORY_CONSTANT + (32 << 20))))

    if times == 1:
        assert fuzz(reader, 12).memory < MEMORY_CONSTANT
    else:
        with pytest.raises(AssertionError, match="bytes for"):
            fuzz(reader, 12)
