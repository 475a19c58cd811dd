"""A record of a result that cannot be read costs a merge, and no more."""

import json

import pytest
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.stage.result import RESULT


class MergingCTC(MergeMixin, TinyCTC):
    """Trains as `TinyCTC` does, and merges."""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"context": 1}', "newer"],
)
def test_a_damaged_result_is_named_and_made_again(tmp_path, caplog, text):
    model = tiny_network()
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path, model, MergingCTC, recoverables={"pool": pool}
    )
    brain.fit(brain.hparams.epoch_counter, tiny_ctc_data(8), tiny_ctc_data(4))
    stage = MergeStage("average", [pool], folder=tmp_path / "merge")
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
