"""Weights are opened from everything that a user may point at."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_bert, tiny_whisper

from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.parameter_transfer import Pretrainer
from speechbrain_merge.weights import digest, open_weights, write_weights


def model_state():
    return {
        "weight": torch.randn(4, 3),
        "half": torch.randn(5).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
    }


def assert_same(weights, state):
    assert sorted(weights) == sorted(state)
    for name, tensor in state.items():
        assert weights.dtype(name) == tensor.dtype
        assert weights.shape(name) == tuple(tensor.shape)
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    "name", ["a.ckpt", "a.pt", "a.bin", "a.pth", "old.ckpt", "a.safetensors"]
)
def test_files(tmp_path, name):
    state = model_state()
    path = tmp_path / name
    if name == "a.safetensors":
        save_file(state, path, metadata={"made": "here"})
    else:
        zipped = not name.startswith("old")
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for source in (path, str(path)):
        with open_weights(source) as weights:
            assert_same(weights, state)
            assert weights.label == str(path)
    with pytest.raises(ValueError, match="has been closed"):
        weights["weight"]
    if name == "a.safetensors":
        assert weights.metadata == {"made": "here"}


def mapped_file(address):
    """The file mapped at an address of this process, if any."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in fields[0].split("-"))
        if start <= address < end:
            return fields[5] if len(fields) == 6 else ""


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_tensors_are_mapped_not_copied(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    state = {"weight": torch.ones(1000, 1000)}
    if suffix == "ckpt":
        torch.save(state, path)
    else:
        save_file(state, path)
    with open_weights(path) as weights:
        assert mapped_file(weights["weight"].data_ptr()) == str(path)


def test_changing_a_tensor_cannot_change_the_file(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"weight": torch.ones(3)}, path)
    before = digest(path)
    with open_weights(path) as weights:
        weights["weight"].add_(1)
    assert digest(path) == before


def test_reading_from_many_threads(tmp_path):
    state = {f"t{number}": torch.full((500,), number) for number in range(40)}
    path = write_weights(tmp_path / "model.safetensors", state)
    wrong = []
    with open_weights(path) as weights:

        def read(offset):
            for number in range(40):
                name = f"t{(number + offset) % 40}"
                if not torch.equal(weights[name], state[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_state_dict_and_module():
    module = torch.nn.BatchNorm1d(3)
    with open_weights(module) as weights:
        assert_same(weights, module.state_dict())
        assert not weights["weight"].requires_grad
        assert "BatchNorm1d" in weights.label
    with open_weights(dict(module.named_parameters())) as weights:
        assert weights.names() == ["weight", "bias"]


def test_open_weights_are_shared_and_closed_by_the_last(tmp_path):
    path = write_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    mine = open_weights(path)
    with open_weights(mine) as same:
        assert same is mine
    assert mine["x"].item() == 1
    mine.close()
    with pytest.raises(ValueError, match="closed"):
        mine["x"]


@dataclass
class Candidate:
    path: str


def test_something_with_a_path(tmp_path):
    path = write_weights(
        tmp_path / "candidate.safetensors",
        {"asr.weight": torch.ones(2), "lm.weight": torch.zeros(2)},
    )
    with open_weights(Candidate(str(path))) as weights:
        assert weights.names() == ["asr.weight", "lm.weight"]
    with open_weights(Candidate(str(path)), recoverable="lm") as weights:
        assert_same(weights, {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"under 'decoder\.'.*asr, lm"):
        open_weights(path, recoverable="decoder")


def test_what_is_no_source():
    with pytest.raises(TypeError, match="cannot be opened from a int"):
        open_weights(3)
    with pytest.raises(ValueError, match="'b' is a sparse"):
        open_weights({"b": torch.eye(2).to_sparse()})
    with pytest.raises(ValueError, match="'lr' is a float"):
        open_weights({"a": torch.ones(1), "lr": 0.1})
    with pytest.raises(ValueError, match="meta device"):
        open_weights({"a": torch.ones(1, device="meta")})


def test_old_parameter_names_are_renamed_as_speechbrain_does(tmp_path):
    torch.save({"l.mutihead_attn.w": torch.ones(1)}, tmp_path / "model.ckpt")
    (tmp_path / "CKPT.yaml").write_text("{}")
    with open_weights(tmp_path / "model.ckpt") as weights:
        assert weights.names() == ["l.multihead_attn.w"]
    with open_weights(tmp_path) as weights:
        assert weights.names() == ["model.l.multihead_attn.w"]


def test_one_state_dict_among_other_things(tmp_path):
    path = tmp_path / "whisper.pt"
    state = {"weight": torch.ones(2)}
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, path)
    with open_weights(path) as weights:
        assert_same(weights, state)
    for content in (
        {"model": state, "ema": state},
        {"model": state, "loose": torch.ones(1)},
        {"epoch": 3},
    ):
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=r"whisper\.pt is not a state dict"
        ):
            open_weights(path)


# --- SpeechBrain ------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with all that a recipe stores, by SpeechBrain itself."""
    encoder = torch.nn.Linear(3, 4)
    head = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()])
    head(encoder(torch.randn(6, 3))).sum().backward()
    optimizer.step()
    normalizer = InputNormalization(norm_type="global", update_until_epoch=1)
    normalizer(torch.randn(2, 10, 3), torch.ones(2), epoch=0)
    counter = EpochCounter(3)
    next(iter(counter))
    checkpointer = Checkpointer(
        tmp_path / "save",
        {
            "wav2vec2": encoder,
            "model": head,
            "optimizer": optimizer,
            "scheduler": NoamScheduler(1e-3, 10),
            "normalizer": normalizer,
            "counter": counter,
        },
    )
    saved = checkpointer.save_checkpoint(meta={"WER": 12.5})
    return Path(saved.path), encoder, head


def test_checkpoint_folder(checkpoint):
    folder, encoder, head = checkpoint
    expected = {
        **{f"wav2vec2.{n}": t for n, t in encoder.state_dict().items()},
        **{f"model.{n}": t for n, t in head.state_dict().items()},
    }
    with open_weights(folder) as weights:
        assert_same(weights, expected)
        assert weights.dtype("model.1.num_batches_tracked") == torch.int64
    with open_weights(folder, recoverable="model") as weights:
        assert_same(weights, head.state_dict())


def test_checkpoint_folder_mistakes(checkpoint):
    folder, _, _ = checkpoint
    with pytest.raises(ValueError, match="no recoverable 'whisper'.*wav2vec2"):
        open_weights(folder, recoverable="whisper")
    with pytest.raises(ValueError, match="optimizer.ckpt is not a state dict"):
        open_weights(folder, recoverable="optimizer")
    with pytest.raises(ValueError, match="counter.ckpt was not written by"):
        open_weights(folder, recoverable="counter")
    with pytest.raises(ValueError, match="1 checkpoints: name one"):
        open_weights(folder.parent)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_half_written_checkpoint(checkpoint, keep):
    """What a kill during save_checkpoint leaves is never taken for a model."""
    folder, _, _ = checkpoint
    file = folder / "model.ckpt"
    whole = file.read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep
    file.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"model\.ckpt"):
        open_weights(folder)


def test_links_of_the_pretrainer(checkpoint, tmp_path):
    folder, _, head = checkpoint
    pretrainer = Pretrainer(
        collect_in=tmp_path / "collected",
        loadables={"model": torch.nn.Module()},
        paths={"model": str(folder / "model.ckpt")},
    )
    pretrainer.collect_files()
    link = tmp_path / "collected" / "model.ckpt"
    assert link.is_symlink()
    with open_weights(link) as weights:
        assert_same(weights, head.state_dict())
    with open_weights(link.parent, recoverable="model") as weights:
        assert_same(weights, head.state_dict())


# --- Hugging Face -----------------------------------------------------------


def test_hugging_face_folder_in_every_form(tmp_path):
    from transformers import BertModel

    whole = Path(tiny_bert(tmp_path / "whole"))
    model = BertModel.from_pretrained(whole)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="6KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    for folder in (whole, sharded, pickled):
        with open_weights(folder) as weights:
            assert_same(weights, model.state_dict())
        assert digest(folder) == digest(model.state_dict())

    index = sharded / "model.safetensors.index.json"
    first = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
    (sharded / first).unlink()
    with pytest.raises(FileNotFoundError, match=first):
        open_weights(sharded)


def test_whisper_folder_and_wrapper_agree(tmp_path):
    from speechbrain.integrations.huggingface.whisper import Whisper

    folder = tiny_whisper(tmp_path / "whisper")
    wrapper = Whisper(source=folder, save_path=str(tmp_path / "cache"))
    with open_weights(folder) as stored, open_weights(wrapper) as live:
        assert set(live) - set(stored) == {"_mel_filters"}
        for name in stored:
            assert torch.equal(stored[name], live[name]), name


def test_other_weights_beside_those_that_are_read_are_told(tmp_path, caplog):
    """A pytorch_model.bin of another model was left out without a word."""
    tiny_bert(tmp_path)
    with open_weights(tmp_path) as weights:
        state = {name: weights[name].clone() for name in weights}
    beside = tmp_path / "pytorch_model.bin"
    name = sorted(n for n in state if state[n].dim() == 2)[0]
    # the same, as many folders on the hub have it: in another type, too
    for same in (
        state,
        {n: t.half() for n, t in state.items()},
        {**state, "embeddings.position_ids": torch.arange(4)},
    ):
        torch.save(same, beside)
        with open_weights(tmp_path) as weights:
            assert torch.equal(weights[name], state[name])
    assert "beside it" not in caplog.text
    for other, said in [
        ({**state, name: state[name] + 1e-3}, f"'{name}' has other values"),
        ({**state, name: state[name][:1]}, f"'{name}' has the shapes"),
        ({**state, "head.weight": torch.ones(2)}, "'head.weight' is in one of"),
        ({"x": torch.ones(2)}, "is in one of them only"),
        ({"x": 1}, "cannot be read"),
    ]:
        caplog.clear()
        torch.save(other, beside)
        with open_weights(tmp_path) as weights:
            assert torch.equal(weights[name], state[name])
        assert said in caplog.text
        assert f"{tmp_path}/model.safetensors is read" in caplog.text
        assert f"{beside} beside it holds something else" in caplog.text
        # once, as long as nobody writes there
        caplog.clear()
        open_weights(tmp_path).close()
        assert not caplog.text


def test_folder_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="neither a SpeechBrain checkpoint"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_weights(tmp_path / "missing")
