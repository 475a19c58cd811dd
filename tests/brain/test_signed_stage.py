"""A merge stage whose YAML says by which key its outcome is signed."""

import pytest
from averaging_recipe import TEST_SET, Averaging, trained
from hyperpyyaml import load_hyperpyyaml
from signing_keys import write_key

from speechbrain_merge import verify_signature
from speechbrain_merge.records.signing import WrongSignature


def stage_of(brain, key):
    """A stage as a recipe's YAML has it."""
    return load_hyperpyyaml(
        "stage: !new:speechbrain_merge.MergeStage\n"
        "    method: average\n"
        f"    candidates: [{brain.pool.folder}]\n"
        f"    sign: {key}\n"
    )["stage"]


def test_a_stage_signs_what_it_merged(tmp_path):
    private, public = write_key(tmp_path, "key")
    brain = trained(tmp_path, Averaging)
    with pytest.raises(
        FileNotFoundError, match="private key .*none.pem is not"
    ):
        brain.merge(stage_of(brain, tmp_path / "none.pem"), TEST_SET)
    assert not list(tmp_path.rglob("merged.safetensors"))
    result = brain.merge(stage_of(brain, private), TEST_SET)
    verify_signature(result.path, key=public)
    # what is found again is signed as well, by whose key is given now
    other, second = write_key(tmp_path, "other")
    again = brain.merge(stage_of(brain, other), TEST_SET)
    assert again.reused
    verify_signature(again.path, key=second)
    with pytest.raises(WrongSignature):
        verify_signature(again.path, key=public)
