"""Work that is done once, and not again."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from speechbrain_merge.records.once import once


def test_what_is_done_is_not_done_again(tmp_path):
    calls = []
    for _ in range(2):
        record = once(
            tmp_path / "a/done.json", {"x": [1]}, lambda: calls.append(1)
        )
    assert len(calls) == 1
    assert record["interrupted"] is False
    # the work may be moved with its folder
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "done.json",
        "done.lock",
    ]


def test_a_kill_after_the_record_leaves_no_remains(tmp_path):
    path = tmp_path / "done.json"
    once(path, {}, lambda: 1)
    before = path.read_bytes()
    (tmp_path / "done.begun").touch()
    assert once(path, {}, lambda: 2)["outcome"] == 1
    assert path.read_bytes() == before
    assert not (tmp_path / "done.begun").exists()


def test_other_settings_are_named(tmp_path):
    path = tmp_path / "done.json"
    once(path, {"yaml": {"lr": 1, "seed": 2}}, lambda: 1)
    with pytest.raises(ValueError, match=r"other settings \(yaml.lr\)"):
        once(path, {"yaml": {"lr": 3, "seed": 2}}, lambda: 2)
    assert once(path, {"yaml": {}}, lambda: 3, again=True)["outcome"] == 3


def test_a_failure_leaves_no_record(tmp_path):
    path = tmp_path / "done.json"
    with pytest.raises(ZeroDivisionError):
        once(path, {}, lambda: 1 / 0)
    assert not path.exists()
    record = once(path, {}, lambda: "second")
    # the seconds are not all that it took
    assert record["outcome"] == "second" and record["interrupted"] is True


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "done.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="done.json"):
        once(path, {}, lambda: 1)


def _work(path, seconds):
    once(path, {}, lambda: time.sleep(seconds))


def test_two_processes_do_not_do_the_same_work(tmp_path):
    path = tmp_path / "done.json"
    context = multiprocessing.get_context("fork")
    other = context.Process(target=_work, args=(path, 60))
    other.start()
    while not (tmp_path / "done.begun").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another process"):
        once(path, {}, lambda: 1)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    # what a killed process held is free
    assert once(path, {}, lambda: 2)["outcome"] == 2
    assert json.loads(path.read_text())["interrupted"] is True


def test_a_way_through_a_folder_that_is_not_there_yet(tmp_path):
    once(tmp_path / "data/done.json", {}, lambda: "first")
    path = tmp_path / "results/../data/done.json"
    assert once(path, {}, lambda: "again")["outcome"] == "first"
