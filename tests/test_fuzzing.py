"""Whatever is in a file, it ends in an answer or in an error of ours, soon.

A short, seeded run is part of the tests; FUZZ=100000 in the environment asks
for so many inputs in all, and FUZZ_SEED for others.
"""

import struct

import pytest
from fuzz_targets import TARGETS, Files
from fuzzing import JUNK, asked, fuzz
from hypothesis import given, settings

from speechbrain_merge.records.reading import parse_number
from speechbrain_merge.weights import open_weights

INPUTS, SEED = asked(len(TARGETS))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Valid files, restored after each input."""
    return Files(tmp_path_factory.mktemp("fuzzed"))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_files(files, name):
    # once before, so that no import is counted
    with_files = TARGETS[name]
    costs = fuzz(lambda damage: with_files(files, damage), INPUTS or 20, SEED)
    print(f"\n{name}: {costs}")


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
