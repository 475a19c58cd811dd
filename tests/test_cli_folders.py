"""Hugging Face folders and names on the hub, in a shell."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from signing_keys import write_key
from tiny_models import tiny_whisper
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    WhisperForConditionalGeneration,
)

from speechbrain.inference.ASR import WhisperASR
from speechbrain_merge import provenance
from speechbrain_merge.cli import main
from speechbrain_merge.records.files import temporary_beside
from speechbrain_merge.records.ownership import foreign_files
from speechbrain_merge.weights import open_weights, write_weights


def fine_tuned(source, folder, seed):
    """Another Whisper of the same kind, as transformers saves it."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    model = WhisperForConditionalGeneration.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=generator)
            )
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def whispers(tmp_path_factory):
    """A Whisper and two that were fine-tuned from it."""
    place = tmp_path_factory.mktemp("whispers")
    base = tiny_whisper(place / "hub", layers=1)
    model = WhisperForConditionalGeneration.from_pretrained(base)
    model.save_pretrained(place / "base")
    for file in Path(base).iterdir():
        if not (place / "base" / file.name).exists():
            shutil.copyfile(file, place / "base" / file.name)
    for seed, name in enumerate("ab"):
        fine_tuned(place / "base", place / name, seed)
    return place


@pytest.fixture
def place(whispers, tmp_path, monkeypatch):
    """A folder to work in, with the three of them."""
    for name in ("base", "a", "b"):
        shutil.copytree(whispers / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_comes_of_folders(place, capsys):
    assert main(["merge", "average", "a", "b", "-o", "m", "--quiet"]) == 0
    assert capsys.readouterr().out == "m: merged\n"
    states = [
        WhisperForConditionalGeneration.from_pretrained(name).state_dict()
        for name in "ab"
    ]
    shutil.move("m", "elsewhere")
    merged = AutoModelForSpeechSeq2Seq.from_pretrained("elsewhere")
    assert isinstance(merged, WhisperForConditionalGeneration)
    for name, tensor in merged.state_dict().items():
        mean = (states[0][name] + states[1][name]) / 2
        assert torch.allclose(tensor, mean, atol=1e-7), name
    processor = AutoProcessor.from_pretrained("elsewhere")
    own = AutoProcessor.from_pretrained("a")
    assert processor.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    for file in Path("a").iterdir():
        if file.suffix in (".json", ".txt"):
            copied = Path("elsewhere", file.name)
            assert copied.read_bytes() == file.read_bytes(), file
    with open_weights("elsewhere") as found, open_weights("a") as first:
        assert found.names() == first.names()
    assert provenance("elsewhere")["method"] == "average"


def test_a_merged_folder_is_exported_for_speechbrain(place, capsys):
    assert main(["merge", "average", "a", "b", "-o", "m", "--quiet"]) == 0
    line = ["export", "whisper", "m", "--whisper", "base", "-o", "exported"]
    assert main(line) == 0
    shutil.move("exported", "elsewhere")
    found = WhisperASR.from_hparams("elsewhere").mods.whisper.model
    merged = WhisperForConditionalGeneration.from_pretrained("m").model
    for name, tensor in merged.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_an_output_layer_of_its_own_is_not_left_out(place, capsys):
    """SpeechBrain has none; transformers and CTranslate2 write the same."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    generator = torch.Generator().manual_seed(0)
    output = None
    for name in "ab":
        model = WhisperForConditionalGeneration.from_pretrained(
            name, tie_word_embeddings=False
        )
        noise = torch.randn(model.proj_out.weight.shape, generator=generator)
        output = noise if output is None else output + 0.1 * noise
        model.proj_out.weight.data = output
        model.save_pretrained(name)
    assert main(["merge", "average", "a", "b", "-o", "m", "--quiet"]) == 0
    line = ["export", "whisper", "m", "--whisper", "base", "-o", "exported"]
    assert main(line) == 2
    assert "has an output layer of its own" in capsys.readouterr().err
    assert not Path("exported").exists()
    assert main(["export", "ctranslate2", "m", "-o", "fast"]) == 0
    shutil.move("fast", "elsewhere")
    model = WhisperForConditionalGeneration.from_pretrained("m").eval()
    features = torch.randn(
        1, 80, 3000, generator=torch.Generator().manual_seed(2)
    )
    tokens = AutoProcessor.from_pretrained("m").tokenizer.prefix_tokens
    fast = ctranslate2.models.Whisper("elsewhere", device="cpu")
    (heard,) = fast.generate(
        ctranslate2.StorageView.from_array(features.numpy()),
        [tokens],
        beam_size=1,
        max_length=12,
        suppress_blank=False,
        suppress_tokens=None,
    )
    assert len(heard.sequences_ids[0]) > 3
    embedding = model.model.decoder.embed_tokens.weight
    tied = []
    for token in heard.sequences_ids[0]:
        with torch.no_grad():
            states = model.model(
                features, decoder_input_ids=torch.tensor([tokens])
            ).last_hidden_state[0, -1]
            assert model.proj_out(states).argmax() == token
            tied.append((embedding @ states).argmax() == token)
        tokens.append(token)
    assert not all(tied)


def test_a_folder_is_made_once_and_followed_back(place, capsys):
    command = ["merge", "ties", "a", "b", "--base", "base", "-o", "m"]
    assert main(command) == 0 and main(command) == 0
    assert capsys.readouterr().out == "m: merged\nm: up to date\n"
    assert foreign_files("m") == []
    assert main(["inspect", "--verify", "m"]) == 0
    out = capsys.readouterr().out
    assert out.count("as recorded") == 3
    # the same bytes come of its record
    assert main(["again", "m", "-o", "copy.safetensors", "--quiet"]) == 0
    copy = Path("copy.safetensors").read_bytes()
    assert copy == Path("m/model.safetensors").read_bytes()
    # other parameters replace what is ours
    assert main([*command, "--parameters", "{density: 0.5}"]) == 0
    assert provenance("m")["parameters"]["density"] == 0.5


def test_an_empty_folder_is_as_good_as_none(place):
    Path("m").mkdir()
    assert main(["merge", "average", "a", "b", "-o", "m", "--dry-run"]) == 0
    assert main(["merge", "average", "a", "b", "-o", "m", "--quiet"]) == 0
    assert AutoModelForSpeechSeq2Seq.from_pretrained("m") is not None


def test_a_folder_in_half_the_bytes(place, capsys):
    write_key(place, "key")
    command = ["merge", "average", "a", "b", "-o", "m", "--dtype", "float16"]
    assert main([*command, "--sign", "key.pem"]) == 0
    config = json.loads(Path("m/config.json").read_text())
    assert "float16" in (config.get("dtype"), config.get("torch_dtype"))
    merged = AutoModelForSpeechSeq2Seq.from_pretrained("m", dtype="auto")
    assert merged.dtype == torch.float16
    assert main(["verify", "m", "--key", "key.pub"]) == 0
    assert "as signed" in capsys.readouterr().out


def test_a_plan_with_folders(place, capsys):
    Path("plan.yaml").write_text(
        "stages:\n"
        "  half: {method: average, experts: [a, b], output: half}\n"
        "  whole: {method: average, experts: [half, b], output: whole}\n"
    )
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    assert AutoModelForSpeechSeq2Seq.from_pretrained("whole") is not None
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    assert capsys.readouterr().out.count("up to date") == 2


def test_what_a_kill_left_of_a_folder_goes(place):
    line = ["merge", "average", "a", "b", "-o", "mean", "--quiet"]
    assert main(line) == 0
    there = sorted(os.listdir())
    # the folder of before, between its exchange and its removal
    shutil.copytree("mean", temporary_beside(Path("mean").absolute()))
    assert main(line) == 0  # up to date
    assert sorted(os.listdir()) == there


def test_the_heads_are_those_of_the_configuration(place, capsys):
    command = ["merge", "attention_merge", "a", "--base", "base", "-o", "m"]
    assert main([*command, "--parameters", "{heads: 0.5}"]) == 0
    heads = json.loads(Path("base/config.json").read_text())
    assert heads["encoder_attention_heads"] > 1
    assert provenance("m")["parameters"]["number_of_heads"] is None


@pytest.mark.parametrize(
    "line, words",
    [
        ("merge average file.safetensors a -o m", "the first expert must be"),
        ("merge average a b -o mine", "mine holds what was not written"),
        ("merge average a b -o a", "'a' is one of the experts"),
        ("merge average ./a b -o a", "'a' is one of the experts"),
        ("merge ties a b --base base -o ./base", "'./base' is one of the"),
        ("merge average a b -o empty", "not written there by this package: 'e"),
        ("merge average a b -o taken", "taken is a file or a link"),
        ("merge average a b -o m.bin", "must end in .safetensors, or be"),
        ("merge average a someone/nowhere -o m", "no model on the hub"),
        ("merge ties a b --base someone/nowhere -o m", "no model on the hub"),
    ],
)
def test_wrong_folders(place, capsys, line, words):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("taken").write_text("")
    Path("empty/empty").mkdir(parents=True)
    write_weights("file.safetensors", {"w": torch.ones(1)})
    before = {p: p.stat().st_mtime_ns for p in sorted(place.rglob("*"))}
    assert main(line.split()) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words in error
    assert before == {p: p.stat().st_mtime_ns for p in sorted(place.rglob("*"))}


def test_names_on_the_hub(place, monkeypatch, capsys):
    """As the hub's client keeps what it has downloaded."""
    cache = place / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for name in ("base", "a", "b"):
        repository = cache / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        shutil.move(name, repository / "snapshots" / ("0" * 40))
    experts = ["someone/a", "someone/b", "--base", "someone/base"]
    assert main(["merge", "ties", *experts, "-o", "m"]) == 0
    labels = [each["label"] for each in provenance("m")["sources"]]
    assert labels == ["someone/a", "someone/b"]
    assert AutoModelForSpeechSeq2Seq.from_pretrained("m") is not None
