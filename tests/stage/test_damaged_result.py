"""A record of a result that cannot be read costs a merge, and no more."""

import json

import pytest
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.report.comparison import compare_models
from speechbrain_merge.stage.result import RESULT
from speechbrain_merge.weights import ChangedContent, digest, open_weights


def brain_with_pool(folder):
    """A Brain that has trained and collected."""
    model = tiny_network()
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder, model, MergingCTC, recoverables={"pool": pool}
    )
    brain.fit(brain.hparams.epoch_counter, tiny_ctc_data(8), tiny_ctc_data(4))
    return brain, MergeStage("average", [pool], folder=folder / "merge")


class MergingCTC(MergeMixin, TinyCTC):
    """Trains as `TinyCTC` does, and merges."""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"context": 1}', "newer"],
)
def test_a_damaged_result_is_named_and_made_again(tmp_path, caplog, text):
    brain, stage = brain_with_pool(tmp_path)
    first = brain.merge(stage)
    record = first.path.parent / RESULT
    whole = json.loads(record.read_text())
    if text == "newer":  # of a version that knows more
        whole["result"]["shards"] = 3
        text = json.dumps(whole)
    record.write_text(text)
    again = brain.merge(stage)
    assert not again.reused and str(record) in caplog.text
    assert brain.merge(stage).reused


def test_a_damaged_merge_is_neither_evaluated_nor_merged_on(tmp_path):
    brain, stage = brain_with_pool(tmp_path)
    path = brain.merge(stage).path
    other = brain.hparams.model.state_dict()
    other = {f"model.{name}": tensor for name, tensor in other.items()}
    merge("average", [path, other], progress=False)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for using in (
        lambda: brain.load_weights(path),
        lambda: merge("average", [path, other], progress=False),
        lambda: merge("average", [open_weights(path), other], progress=False),
        lambda: create("average")([path, other]),
        lambda: compare_models([path, other], progress=False),
    ):
        with pytest.raises(ChangedContent, match="is on record"):
            using()
    again = brain.merge(stage)
    assert not again.reused
    brain.load_weights(again.path)


@pytest.mark.parametrize("length", [0, 8, 300, -1])
def test_a_cut_merge_is_put_aside_and_made_again(tmp_path, caplog, length):
    brain, stage = brain_with_pool(tmp_path)
    path = brain.merge(stage).path
    content = path.read_bytes()
    path.write_bytes(content[:length])
    again = brain.merge(stage)
    assert not again.reused
    assert (
        digest(again.path)
        == json.loads((path.parent / RESULT).read_text())["digest"]
    )
    aside = path.with_name("merged.damaged.safetensors")
    assert aside.read_bytes() == content[:length]
    assert aside.name in caplog.text
    assert brain.merge(stage).reused
