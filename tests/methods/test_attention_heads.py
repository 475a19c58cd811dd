"""Attention merging compares the numbers of heads of target and source."""

import json
import shutil

import pytest
import torch
from methods.test_attention_merge import beats_model
from tiny_models import tiny_bert, tiny_conformer, tiny_hubert, tiny_whisper

from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import AttentionMerge, LearnableAttentionMerge
from speechbrain_merge.methods.parametrization import parametrize_attention
from speechbrain_merge.weights import (
    IncompatibleWeights,
    attention_heads,
    open_weights,
    write_weights,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target of 2 heads of 8, and sources of 2 heads of 8 and 4 of 4."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "hubert": tiny_hubert(root / "hubert"),
        "bert": tiny_bert(root / "bert"),
        "whisper": tiny_whisper(root / "whisper"),
    }
    made["more_heads"] = root / "more_heads"
    shutil.copytree(made["bert"], made["more_heads"])
    path = made["more_heads"] / "config.json"
    config = json.loads(path.read_text())
    assert config["num_attention_heads"] == 2
    path.write_text(json.dumps({**config, "num_attention_heads": 4}))
    return made


def read(source):
    with open_weights(source) as weights:
        return {name: weights[name].clone() for name in weights}


def module_of(folder, kind):
    """A live model of a folder."""
    import transformers

    return getattr(transformers, kind).from_pretrained(folder)


def test_another_number_of_heads_is_refused(folders, tmp_path):
    """From folders and modules, in memory and in files, by every method."""
    target, source = folders["hubert"], folders["more_heads"]
    modules = module_of(target, "HubertModel"), module_of(source, "BertModel")
    output = tmp_path / "merged.safetensors"
    for ask in (
        lambda: AttentionMerge()([source], target),
        lambda: AttentionMerge()([modules[1]], modules[0]),
        lambda: AttentionMerge()([modules[1]], target),
        lambda: merge(
            AttentionMerge(), [source], target, output, progress=False
        ),
        lambda: LearnableAttentionMerge()([source], target),
        lambda: LearnableAttentionMerge().attach(*modules),
        lambda: parametrize_attention(modules[0], source),
        lambda: AttentionMerge(include="encoder")([source], folders["whisper"]),
    ):
        with pytest.raises(
            IncompatibleWeights, match="2 heads of 8 rows, .* 4 of 4.*HSA-Merge"
        ):
            ask()
    assert not output.exists()
    # nothing was changed on the way
    names = [name for name, _ in modules[0].named_parameters()]
    assert not any("parametrizations.weight.0" in name for name in names)


def test_the_command_line_refuses_too(folders, tmp_path, capsys):
    arguments = [
        "merge",
        "attention_merge",
        str(folders["more_heads"]),
        "--base",
        str(folders["hubert"]),
        "--output",
        str(tmp_path / "merged.safetensors"),
    ]
    assert main(arguments) != 0
    assert "4 of 4" in capsys.readouterr().err
    assert not (tmp_path / "merged.safetensors").exists()


def test_rows_are_mixed_where_that_is_meant(folders):
    target, source = folders["hubert"], folders["more_heads"]
    mixed = AttentionMerge(ratio=0.5, same_heads=False)([source], target)
    # the same matrices with the same number of heads
    plain = AttentionMerge(ratio=0.5)([folders["bert"]], target)
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)
    method = AttentionMerge(same_heads=False)
    assert method.configuration()["same_heads"] is False
    learned = LearnableAttentionMerge(ratio=0.5, same_heads=False)
    again = learned([source], target)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    ratios = learned.attach(module_of(target, "HubertModel"), source)
    assert len(ratios) == 2
    with pytest.raises(ValueError, match="same_heads"):
        AttentionMerge(same_heads=None)


def test_equal_numbers_need_nothing(folders):
    merged = AttentionMerge(ratio=1)([folders["bert"]], folders["hubert"])
    assert merged.keys() == read(folders["hubert"]).keys()
    AttentionMerge(ratio=1)([folders["bert"]], beats_model())


def test_a_number_that_nobody_tells_is_asked_for(folders, caplog):
    """A state dict has no configuration: it is said, and can be given."""
    states = read(folders["hubert"]), read(folders["more_heads"])
    with caplog.at_level("WARNING"):
        AttentionMerge()([folders["more_heads"]], states[0])
    (said,) = [r.getMessage() for r in caplog.records if "heads" in r.message]
    assert "4 attention heads" in said and "number_of_heads" in said
    for target, source, number in (
        (states[0], folders["more_heads"], 2),
        (folders["hubert"], states[1], 4),
    ):
        with pytest.raises(IncompatibleWeights, match="2 heads of 8.*4 of 4"):
            AttentionMerge(number_of_heads=number)([source], target)
    # a number that both contradict is nobody's
    with pytest.raises(ValueError, match=r"3 attention heads .*\[2\]"):
        AttentionMerge(number_of_heads=3)([folders["bert"]], folders["hubert"])


def test_what_lies_beside_a_projection_tells_as_well(tmp_path):
    """SpeechBrain's relative positions have one bias for each head."""
    target, source = tiny_conformer(0), tiny_conformer(1)
    heads = set(attention_heads(target).values())
    AttentionMerge(ratio=1)([source.state_dict()], target.state_dict())
    (number,) = heads
    other = {
        name: one.reshape(one.shape[0] * 2, -1) if "pos_bias" in name else one
        for name, one in source.state_dict().items()
    }
    path = write_weights(tmp_path / "other.safetensors", other)
    with pytest.raises(IncompatibleWeights, match=f"{number} heads"):
        AttentionMerge(ratio=1)([path], target.state_dict())


def test_a_candidate_of_a_pool_tells_as_its_modules_did(folders, tmp_path):
    """The target of a study is a file that a training has left."""
    from speechbrain.utils.checkpoints import Checkpointer
    from speechbrain_merge import CheckpointPool
    from speechbrain_merge.pool import read_pool

    encoder = module_of(folders["hubert"], "HubertModel")
    pool = CheckpointPool(
        tmp_path / "pool", {"encoder": encoder}, run="run", metric="WER"
    )
    checkpointer = Checkpointer(tmp_path / "save", {"pool": pool})
    checkpointer.save_checkpoint({"WER": 1.0, "epoch": 1})
    (candidate,) = read_pool(tmp_path / "pool" / "run")
    place = "encoder.encoder.layers.0.attention"
    assert attention_heads(candidate.path) == {}
    with open_weights(candidate) as weights:
        assert attention_heads(weights)[place] == 2
    AttentionMerge()([folders["bert"]], candidate)
    with pytest.raises(IncompatibleWeights, match="2 heads of 8.*4 of 4"):
        AttentionMerge()([folders["more_heads"]], candidate)
