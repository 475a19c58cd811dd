"""A pretrained folder loads the merged weights, wherever its YAML looks."""

import time
from pathlib import Path

import pytest
import sentencepiece
import torch
from tiny_models import inference_yaml

from speechbrain.inference.interfaces import Pretrained
from speechbrain_merge.cli import main
from speechbrain_merge.export import NotLoadable, export_pretrained
from speechbrain_merge.weights import open_weights, write_weights

WEIGHTS = {
    "enc.weight": torch.full((2, 3), 2.0),
    "enc.bias": torch.full((2,), 2.0),
    "lm.weight": torch.full((3, 3), 2.0),
}
PATHS = """\
    paths:  # of the original
        enc: !ref <original>/enc.ckpt
        lm: !ref <original>/lm.ckpt
"""


@pytest.fixture
def yaml(tmp_path, monkeypatch):
    """A YAML as on the hub, and the original model that it names."""
    monkeypatch.chdir(tmp_path)
    Path("original").mkdir()
    for key in ("enc", "lm"):
        state = {
            name.partition(".")[2]: -tensor
            for name, tensor in WEIGHTS.items()
            if name.startswith(key)
        }
        torch.save(state, Path("original") / f"{key}.ckpt")
    write_weights("merged.safetensors", WEIGHTS)

    def write(more=PATHS):
        text = f"original: {tmp_path}/original  # moved\n"
        Path("h.yaml").write_text(text + inference_yaml(WEIGHTS) + more)
        return Path("h.yaml")

    return write


def loaded(folder):
    """The weights behind SpeechBrain's interface."""
    modules = Pretrained.from_hparams(str(folder)).mods
    return {
        f"{key}.{name}": tensor
        for key, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def test_the_places_of_the_original_are_left_out(yaml):
    """SpeechBrain loaded the original in place of the merged model."""
    line = "export pretrained merged.safetensors --hparams h.yaml -o exported"
    before = yaml().read_text()
    assert main(line.split()) == 0
    found = loaded("exported")
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor), name
    assert Path("h.yaml").read_text() == before
    written = Path("exported/hyperparams.yaml").read_text()
    assert "# of the original" in written and "# moved" in written
    # A part of the model is merged; the rest is given as a file
    with open_weights("merged.safetensors") as weights:
        part = {"lm.weight": weights["lm.weight"]}
    export_pretrained(part, "h.yaml", "part", files=["original/enc.ckpt"])
    assert torch.equal(loaded("part")["enc.bias"], -WEIGHTS["enc.bias"])
    assert torch.equal(loaded("part")["lm.weight"], WEIGHTS["lm.weight"])


def test_a_link_in_the_place_of_the_folder_is_refused(yaml, capsys):
    yaml()
    Path("exported").symlink_to("nowhere")
    line = "export pretrained merged.safetensors --hparams h.yaml -o exported"
    assert main(line.split()) == 2
    assert "exported is a file or a link" in capsys.readouterr().err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    "more, key",
    [
        ("    paths: {lm: !ref <original>/lm.ckpt}\n", "'lm'"),
        (
            "    paths:\n        lm:\n            !ref <original>/lm.ckpt\n",
            "lm",
        ),
        (
            "    paths: !ref <places>\nplaces: {lm: original/lm.ckpt}\n",
            "what was merged",
        ),
    ],
)
def test_places_that_cannot_be_left_out_are_refused(yaml, more, key):
    with pytest.raises(ValueError, match=f"h.yaml: `pretrainer.paths`.*{key}"):
        export_pretrained("merged.safetensors", yaml(more), "exported")
    assert not Path("exported").exists()


@pytest.mark.parametrize(
    "more, what",
    [
        ("    conditions: {lm: False}\n", "'lm.weight' is not what was merged"),
        (
            "    custom_hooks:\n        lm: !name:builtins.repr\n",
            "does not load it",
        ),
        ("x: !new:torch.nn.NoSuchLayer\n", "NoSuchLayer"),
    ],
)
def test_what_loads_otherwise_is_not_exported(yaml, more, what):
    with pytest.raises(NotLoadable, match=what):
        export_pretrained("merged.safetensors", yaml(more), "exported")
    assert not Path("exported").exists()


def test_a_model_with_more_than_was_merged_is_not_exported(yaml):
    """SpeechBrain leaves what is missing as it was drawn."""
    part = {name: WEIGHTS[name] for name in ("enc.weight", "lm.weight")}
    with pytest.raises(NotLoadable, match="'enc.bias' is not among the merged"):
        export_pretrained(part, yaml(""), "exported")


def test_a_tokenizer_keeps_no_paths_of_this_machine(yaml, tmp_path):
    """Copied as a file, it told where it had been trained."""
    (tmp_path / "text.txt").write_text("abc def\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=f"{tmp_path}/text.txt",
        model_prefix=f"{tmp_path}/tokenizer",
        vocab_size=10,
        model_type="char",
    )
    Path("tokenizer.model").rename("tokenizer.ckpt")
    trained = Path("tokenizer.ckpt").read_bytes()
    assert str(tmp_path).encode() in trained
    # begins like one, and is none
    Path("other.ckpt").write_bytes(b"\n\x07/me/a.t")
    text = (
        yaml("")
        .read_text()
        .replace(
            "    loadables:\n",
            "    loadables:\n        tokenizer: !ref <tokenizer>\n",
        )
    )
    assert "!ref <tokenizer>" in text
    text += "tokenizer: !new:sentencepiece.SentencePieceProcessor\n"
    Path("h.yaml").write_text(text)
    export_pretrained(
        "merged.safetensors",
        "h.yaml",
        "exported",
        ["tokenizer.ckpt", "other.ckpt"],
    )
    exported = Path("exported/tokenizer.ckpt").read_bytes()
    assert str(tmp_path).encode() not in exported and b"text.txt" in exported
    first, second = (
        sentencepiece.SentencePieceProcessor(model_proto=content)
        for content in (trained, exported)
    )
    assert first.encode("fed cab") == second.encode("fed cab") != []
    copied = Path("exported/other.ckpt").read_bytes()
    assert copied == Path("other.ckpt").read_bytes()


def test_very_many_names_are_counted_in_no_time(tmp_path, capsys):
    """50,000 of them kept the export busy for minutes."""
    tensors = {f"n{number}": torch.ones(0) for number in range(20_000)}
    write_weights(tmp_path / "m.safetensors", tensors)
    (tmp_path / "h.yaml").write_text("pretrainer: {loadables: {n1: 1}}")
    begun = time.process_time()
    line = f"export pretrained {tmp_path}/m.safetensors --hparams"
    words = [*line.split(), str(tmp_path / "h.yaml"), "-o", str(tmp_path / "o")]
    assert main(words) == 2
    assert time.process_time() - begun < 10
    assert "and 19980 more" in capsys.readouterr().err
