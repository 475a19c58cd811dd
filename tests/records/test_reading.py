"""Whatever a file holds, reading it ends soon, and in a clear error."""

import os
import resource
import signal
import time
import tracemalloc

import pytest

from speechbrain_merge.records.checked import (
    anything,
    either,
    fields,
    listed,
    mapped,
    number,
    one_of,
    text,
    whole,
)
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.log import Log
from speechbrain_merge.records.paths import inside, plain_name
from speechbrain_merge.records.reading import (
    parse_json,
    parse_number,
    parse_yaml,
    read_bytes,
    read_json,
)

CLIMBING = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../up",
    "a/../../up",
    "a//b",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    "n" * 256,
    None,
    7,
    ["a"],
]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, now in zip("abcdefghi", "bcdefghij")
)


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_lead_elsewhere(name):
    for check in (plain_name, lambda *each: inside("folder", *each)):
        with pytest.raises(RecordError, match="index.json, entry 'w'"):
            check(name, "index.json, entry 'w'")


@pytest.mark.parametrize("digits", ["1" * 5000, "-" + "9" * 100_000])
def test_huge_whole_numbers(digits):
    with pytest.raises(RecordError, match="digits"):
        parse_json(f"[{digits}]", "a file")


@pytest.mark.parametrize(
    "value",
    ["1e99999999", "9" * 10_000, "1/0", "nan", "inf", "1e400", True, [], None],
)
def test_numbers_that_are_none_or_too_large(value):
    begun = time.process_time()
    with pytest.raises(RecordError, match="errors: expected a number"):
        parse_number(value, "errors")
    assert time.process_time() - begun < 1


def test_exact_numbers():
    assert parse_number(" 1/3 ", "x", exact=True) * 3 == 1
    assert parse_number(0.5, "x") == 0.5


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        "a: &a\n  b: *a\n",
        "&a [*a]",
        "[" * 3000,
        "1" + ":59" * 10_000,
        "!!python/object/apply:os.system [ls]",
        "a: [",
        "? {a: b}\n: 1",
        "a: 2020-99-99",
        "!!binary é",
        "--- a\n--- b",
    ],
)
def test_hostile_yaml_is_refused_at_once(content):
    begun = time.process_time()
    with pytest.raises(RecordError, match="plan.yaml"):
        parse_yaml(content, "plan.yaml")
    assert time.process_time() - begun < 5


def test_few_aliases_are_read():
    assert parse_yaml("a: &a [1]\nb: *a", "x") == {"a": [1], "b": [1]}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(RecordError, match="not a regular file"):
            read_json(path)


def test_files_that_are_too_large(tmp_path):
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(RecordError, match="large.json has more than"):
        read_json(path)


CHECK = fields(
    {"name": text(5), "epoch": whole(0)},
    {
        "scores": mapped(number(0, 100)),
        "mode": one_of("min", "max"),
        "files": listed(either(text(), whole())),
    },
    unknown="refuse",
)


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "^x: expected a mapping"),
        ({"name": "a"}, "'epoch' is missing"),
        ({"name": "abcdef", "epoch": 1}, "key 'name': expected at most 5"),
        ({"name": "a", "epoch": True}, "key 'epoch': expected a whole"),
        ({"name": "a", "epoch": -1}, "at least 0"),
        ({"name": "a", "epoch": 1.0}, "key 'epoch'"),
        ({"name": "a", "epoch": 10**50}, "key 'epoch'"),
        (
            {"name": "a", "epoch": 1, "scores": {"b": float("nan")}},
            "key 'scores', key 'b': expected a number between 0 and 100",
        ),
        ({"name": "a", "epoch": 1, "scores": {"b": 10**400}}, "huge number"),
        ({"name": "a", "epoch": 1, "mode": ["min"]}, "'min', 'max'"),
        ({"name": "a", "epoch": 1, "files": ["a", 2.5]}, "entry 2"),
        ({"name": "a", "epoch": 1, "extra": 1}, "unknown key 'extra'"),
    ],
)
def test_checks_name_the_key(value, message):
    with pytest.raises(RecordError, match=message):
        CHECK(value, "x")


def test_depth_is_bounded():
    value = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(RecordError, match="nested"):
        anything()(value, "x")


@pytest.mark.parametrize("torn", ['{"b": 2', '{"b": 2}}', "\0\0\0", "[1]"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    log = Log(tmp_path / "log")
    log.append({"a": 1})
    with open(log.path, "a") as file:
        file.write(torn)
    assert log.records() == [{"a": 1}]
    log.append({"c": 3})
    assert log.records() == [{"a": 1}, {"c": 3}]


def test_a_file_that_takes_no_more_is_named(tmp_path):
    log = Log(tmp_path / "log")
    log.append({"a": 1})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
    try:
        with pytest.raises(OSError, match="log"):
            log.append({"b": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    log.append({"c": 3})
    assert log.records() == [{"a": 1}, {"c": 3}]


def test_a_line_that_lacks_only_its_end_is_whole(tmp_path):
    log = Log(tmp_path / "log")
    log.append({"a": 1})
    log.append({"b": 2})
    log.path.write_bytes(log.path.read_bytes()[:-1])
    assert log.records() == [{"a": 1}, {"b": 2}]
    log.append({"c": 3})
    assert log.records() == [{"a": 1}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize("line", ["nothing", "", "[1]", '"a"', "null", "{"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "log"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(RecordError, match="log, line 2"):
        Log(path).records()


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    """Not after as much of it is read as would be allowed."""
    path = tmp_path / "manifest.jsonl"
    with open(path, "wb") as file:
        file.truncate(60 << 30)
    tracemalloc.start()
    with pytest.raises(RecordError, match="has more than 1073741824 bytes"):
        read_bytes(path, 1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
