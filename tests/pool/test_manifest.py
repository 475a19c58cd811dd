"""The manifest: append-only, whole lines, one writer."""

import json
import subprocess
import sys

import pytest

from speechbrain_merge.pool.manifest import Manifest, hold


def candidate(name):
    return {
        "event": "candidate",
        "name": name,
        "file": f"{name}.safetensors",
        "digest": "0" * 64,
        "lineage": "1",
        "meta": {},
    }


def test_a_line_torn_anywhere_is_passed_over_and_cut_off(tmp_path):
    manifest = Manifest(tmp_path)
    for name in "ab":
        manifest.append(candidate(name))
    whole = manifest.path.read_bytes()
    start = whole.index(b"\n") + 1
    # The line end is the last byte: without it, the line is still whole
    for end in range(start, len(whole) - 1):
        manifest.path.write_bytes(whole[:end])
        assert list(manifest.read().candidates) == ["a"]
        manifest.append(candidate("c"))
        assert list(manifest.read().candidates) == ["a", "c"]
        assert manifest.path.read_bytes().count(b"\n") == 2


def test_a_torn_line_longer_than_a_block(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.append(candidate("a"))
    with open(manifest.path, "a") as file:
        file.write(json.dumps(candidate("x" * 10000))[:-1])
    manifest.append(candidate("b"))
    assert list(manifest.read().candidates) == ["a", "b"]


def test_a_manifest_that_is_one_torn_line(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.path.write_text('{"event"')
    assert manifest.records() == []
    manifest.append(candidate("a"))
    assert list(manifest.read().candidates) == ["a"]


def test_a_damaged_line_is_named(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.append(candidate("a"))
    with open(manifest.path, "a") as file:
        file.write("oops\n")
    with pytest.raises(ValueError, match="manifest.jsonl, line 2 is not JSON"):
        manifest.read()


def test_only_one_process_writes_a_run(tmp_path):
    assert hold(tmp_path)
    assert hold(tmp_path)  # this process may, again and again
    other = (
        "import sys; from speechbrain_merge.pool.manifest import hold; "
        "print(hold(sys.argv[1]))"
    )
    command = [sys.executable, "-c", other, str(tmp_path)]
    assert subprocess.check_output(command, text=True).strip() == "False"
    command[-1] += "/free"
    assert subprocess.check_output(command, text=True).strip() == "True"
