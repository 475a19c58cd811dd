"""A pool remembers what was merged of it."""

import dataclasses
import multiprocessing

import pytest
from filled_pool import collect

from speechbrain_merge.pool import CheckpointPool, MergeRecord, read_merges
from speechbrain_merge.pool.merges import Member, find_merge, pools_of, remember


def record(name="aode", runs=("a", "b"), **settings):
    members = tuple(Member(f"{run}/1", run, run * 64, 0.5) for run in runs)
    return MergeRecord(name, {"name": "average"}, members, **settings)


def test_what_is_remembered_comes_back(tmp_path):
    assert read_merges(tmp_path) == []
    first = record(
        weights={"a/1": 0.5, "b/1": 0.5},
        with_base=True,
        left_out=("c",),
        base="original.pt",
        path="aode.safetensors",
        digest="d" * 64,
        value=12.5,
        time=7.0,
    )
    second = record("other")
    for each in (first, second):
        remember(tmp_path, each)
    assert read_merges(tmp_path) == [first, second]
    assert read_merges(tmp_path)[0].time == 7.0
    assert first.runs == ["a", "b"]


def test_the_same_merge_again_is_not_news(tmp_path):
    for each in (record(), record(), record("other"), record()):
        remember(tmp_path, each)
    assert len(read_merges(tmp_path)) == 2
    remember(tmp_path, record(runs=("a", "b", "c")))
    remember(tmp_path, record())  # went back: that is news
    assert [len(each.runs) for each in read_merges(tmp_path)] == [2, 2, 3, 2]


def test_a_torn_line_is_passed_over_and_cut_off(tmp_path):
    remember(tmp_path, record(time=1.0))
    with open(tmp_path / "merges.jsonl", "a") as file:
        file.write('{"name": "ao')  # killed here
    assert len(read_merges(tmp_path)) == 1
    remember(tmp_path, record("other"))
    assert [each.name for each in read_merges(tmp_path)] == ["aode", "other"]


def _remember_many(pool, start):
    for number in range(start, start + 20):
        remember(pool, record(f"merge-{number:03d}"))


def test_several_processes_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_remember_many, args=(tmp_path, start))
        for start in (0, 100)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = sorted(each.name for each in read_merges(tmp_path))
    expected = [*range(20), *range(100, 120)]
    assert names == [f"merge-{number:03d}" for number in expected]


def test_the_last_of_a_name_is_found(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    remember(one, record(time=1.0))
    remember(other, record(runs=("c",), time=3.0))
    remember(one, record(runs=("d",), time=2.0))
    assert find_merge([one, other], "aode").runs == ["c"]
    with pytest.raises(ValueError, match="no merge 'oade' .*There is: aode"):
        find_merge([one, other], "oade")
    with pytest.raises(ValueError, match="There is: none"):
        find_merge([tmp_path], "aode")


def test_members_are_known_by_content(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 9.0}, {"WER": 8.0}])
    candidates = pool.candidates()
    members = tuple(
        Member(each.name, each.run, each.digest) for each in candidates[::-1]
    )
    original = Member("base", "base", "0" * 64)
    merge = MergeRecord("m", {"name": "average"}, (original, *members))
    assert merge.find_members(candidates) == candidates[::-1]
    moved = [dataclasses.replace(each, name="moved") for each in candidates]
    assert merge.find_members(moved) == moved[::-1]
    with pytest.raises(ValueError, match="'m' had members .*: run/epoch-0001"):
        merge.find_members(candidates[1:])
    assert merge.find_members(candidates[1:], without=["run"]) == []


def test_pools_are_found_by_their_manifests(tmp_path):
    pool, saver, _ = collect(tmp_path, [{"WER": 9.0}])
    assert pools_of(pool.candidates()) == [tmp_path / "pool"]
    checkpoint = saver.list_checkpoints()[0].path
    others = [
        dataclasses.replace(each, path=checkpoint) for each in pool.candidates()
    ]
    assert pools_of(others) == []
    assert read_merges(CheckpointPool(tmp_path / "pool", saver_of(saver))) == []


def saver_of(saver):
    """The modules that a checkpointer saves."""
    return {"model": saver.recoverables["model"]}
