"""Selection sets whose error rate is undefined are refused at once."""

import pytest
import torch
from tiny_recipe import tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import merge
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.scorer import Scorer


def silent(data):
    """The same data without a word in the transcripts."""
    for row in data.data.values():
        row["wrd"] = ""
    return data


def test_a_domain_without_words_is_found_before_anything_is_decoded(tmp_path):
    brain = tiny_ctc_brain(tmp_path)
    sets = {"read": tiny_ctc_data(3), "noise": silent(tiny_ctc_data(3, 1))}
    with pytest.raises(ValueError, match="domain 'noise' has no reference"):
        Scorer(brain, FixedBatches(brain, sets), average="macro")
    Scorer(brain, FixedBatches(brain, sets), average="micro")
    with pytest.raises(ValueError, match="check the transcripts"):
        Scorer(brain, FixedBatches(brain, silent(tiny_ctc_data(3))))


def test_one_state_dict_is_no_list_of_experts():
    with pytest.raises(ValueError, match="merges a list of experts"):
        merge("average", {"w": torch.ones(1)}, progress=False)
