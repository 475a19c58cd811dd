"""What a fifth attack found: merges that go on from themselves, and states.

Authors
 * The speechbrain_merge authors 2026
"""

import shutil

import pytest
import torch
from filled_pool import saver_of, train_a_little
from sandbox import run_in_sandbox
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.methods import OPCM
from speechbrain_merge.pool import read_merges, read_pool
from speechbrain_merge.stage.job import resolve
from speechbrain_merge.stage.merge_records import remember_merge
from speechbrain_merge.weights import open_weights, write_weights


def train(folder, pool, run, seed):
    """An expert of its own run, in some pool."""
    model = tiny_network(0)
    collected = CheckpointPool(folder / pool, {"model": model}, run)
    saver = saver_of(folder / pool / "saved" / run, model, collected)
    collected.store_base(resuming=False)
    torch.manual_seed(seed)
    train_a_little(model)
    saver.save_checkpoint(meta={"WER": 5.0, "epoch": 1})


def continual(folder, pools, output, **settings):
    """A merge of all that is new, resolved and merged, not yet on record."""
    stage = MergeStage(
        OPCM(),
        [folder / pool for pool in pools],
        name="so-far",
        extends="so-far",
        per_run="best",
        **settings,
    )
    (folder / output).mkdir()
    job = resolve(stage, folder / output)
    job.merge(output=job.output)
    return job


def on_record(job):
    """The same, and on record."""
    result = job.result(job.output)
    remember_merge(job, result)
    return result


@pytest.fixture
def begun(tmp_path):
    """A pool with a merge of two experts, and a third that is new."""
    train(tmp_path, "pool", "child", 1)
    train(tmp_path, "pool", "digits", 2)
    on_record(continual(tmp_path, ["pool"], "first"))
    train(tmp_path, "pool", "read", 3)
    return tmp_path


def test_a_merge_does_not_go_on_from_other_weights(begun):
    (record,) = read_merges(begun / "pool")
    kept = begun / "pool" / record.kept
    with open_weights(kept) as weights:
        state = {name: weights[name].clone() for name in weights}
        metadata = dict(weights.metadata)
    state[next(iter(state))] += 1
    kept.unlink()
    write_weights(kept, state, metadata)
    with pytest.raises(ValueError, match=f"{record.digest} is on record"):
        continual(begun, ["pool"], "second")


def test_a_merge_does_not_go_on_around_another_base(begun):
    other = {
        f"model.{name}": tensor
        for name, tensor in tiny_network(7).state_dict().items()
    }
    path = write_weights(begun / "other.safetensors", other)
    with pytest.raises(ValueError, match="only go on around its own base"):
        continual(begun, ["pool"], "second", base=str(path))


def test_no_expert_is_merged_twice_where_there_are_several_pools(begun):
    train(begun, "second_pool", "street", 4)
    both = ["pool", "second_pool"]
    on_record(continual(begun, both, "second", runs=["street"]))
    train(begun, "third_pool", "phone", 5)
    third = on_record(continual(begun, [*both, "third_pool"], "third"))
    assert third.selected == [
        "so-far",
        "read/epoch-0001",
        "phone/epoch-0001",
    ]
    for pool in ("pool", "third_pool"):
        last = read_merges(begun / pool)[-1]
        assert last.runs == ["child", "digits", "street", "read", "phone"]
        assert (begun / pool / last.kept).is_file()


def test_of_two_merges_that_go_on_at_once_one_is_refused(begun):
    train(begun, "pool", "street", 4)
    one = continual(begun, ["pool"], "one", runs=["read"])
    other = continual(begun, ["pool"], "other", runs=["street"])
    on_record(one)
    with pytest.raises(ValueError, match="was recorded in .* merge again"):
        on_record(other)
    last = read_merges(begun / "pool")[-1]
    assert last.runs == ["child", "digits", "read"]
    assert (begun / "pool" / last.kept).read_bytes() == one.output.read_bytes()
    again = on_record(continual(begun, ["pool"], "again"))
    assert again.selected == ["so-far", "street/epoch-0001"]


def test_a_run_with_another_name_is_not_merged_again(begun, caplog):
    shutil.copytree(begun / "pool" / "child", begun / "pool" / "renamed")
    with pytest.raises(ValueError, match="'child/epoch-0001': it would be mer"):
        continual(begun, ["pool"], "second")
    with caplog.at_level("WARNING"):
        resolve(MergeStage("average", [begun / "pool"]), begun / "plain")
    assert "'child/epoch-0001' and 'renamed/epoch-0001' are the" in caplog.text


LOCKED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_fifth_attack import continual, on_record, read_merges
folder = Path(sys.argv[1])
(folder / "pool" / "merges.jsonl").chmod(0o444)
on_record(continual(folder, ["pool"], "second"))
(record,) = read_merges(folder / "pool")
assert (folder / "pool" / record.kept).is_file()
"""


def test_what_the_record_says_last_stays(begun, request):
    run_in_sandbox(LOCKED, begun, str(request.path.parent))


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def test_a_damaged_candidate_gets_no_error_rate(tmp_path):
    train(tmp_path, "pool", "child", 1)
    (candidate,) = read_pool(tmp_path / "pool")
    brain = tiny_ctc_brain(tmp_path / "brain", tiny_network(9), MergingCTC)
    brain.load_weights(candidate)
    content = bytearray(candidate.path.read_bytes())
    content[-3] ^= 4
    candidate.path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or replaced since"):
        brain.load_weights(candidate)
    (candidate,) = read_pool(tmp_path / "pool")
    with pytest.raises(ValueError, match="damaged or replaced since"):
        with brain.borrowed_weights(candidate):
            pass
