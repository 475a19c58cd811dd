"""Experts that do not belong together: refused at every door, unless meant.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import shutil

import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import (
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
    tiny_wav2vec2,
    tiny_whisper,
)
from transformers import AutoModel

from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import MergeMixin, MergeStage, merge
from speechbrain_merge.belonging import check_belonging
from speechbrain_merge.cli import main
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import Restricted, create
from speechbrain_merge.pool import read_pool
from speechbrain_merge.report.card import merge_yaml
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.kinship import is_telling, strangers


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def train(folder, start, seed=1, shift=0.0, encoder=None):
    """Results of a recipe without a pool: checkpoints of two epochs."""
    model = tiny_network(start)
    if encoder is not None:
        model.hidden.load_state_dict(encoder)
        model.hidden.requires_grad_(False)
    torch.manual_seed(seed)
    brain = tiny_ctc_brain(folder, model, MergingCTC)
    brain.hparams.output_folder = str(folder)
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=seed, shift=shift),
        tiny_ctc_data(4, seed=50),
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs={"batch_size": 4},
    )
    return brain


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three trainings: two of one start, one of its own."""
    folder = tmp_path_factory.mktemp("results")
    for name, start, shift in (("a", 0, 0.0), ("b", 0, 0.8), ("other", 1, 0.0)):
        train(folder / name, start, shift=shift)
    return folder


def doors(folder, names, brain):
    """The same merge through each door; each gives an error's text or None."""
    paths = [folder / name / "save" for name in names]

    def stage(**settings):
        brain.merge(MergeStage("average", paths, **settings))

    def function(**settings):
        experts = [each for path in paths for each in read_pool(path)]
        merge("average", experts, progress=False, **settings)

    def command(**settings):
        if "same_base" in settings:
            settings = ["--different-bases"]
        output = str(folder / "merged.safetensors")
        arguments = ["merge", "average", *map(str, paths), "-o", output]
        if main([*arguments, "--quiet", *settings]) != 0:
            raise ValueError("refused")

    return {"stage": stage, "function": function, "command": command}


OPTIONS = {
    "stage": "`same_base: False`",
    "function": "`same_base=False`",
    "command": "(--different-bases)",
}


def assert_refused(folder, names, brain, capsys, *told):
    """Every door refuses, says why and what to do, and can be told."""
    for door, ask in doors(folder, names, brain).items():
        capsys.readouterr()
        with pytest.raises(ValueError) as caught:
            ask()
        text = " ".join(str(caught.value).split())
        if door == "command":
            text = capsys.readouterr().err
        for part in (*told, OPTIONS[door]):
            assert part in text, (door, text)
        ask(same_base=False)


def assert_merged(folder, names, brain):
    for ask in doors(folder, names, brain).values():
        ask()


@pytest.fixture
def folder(results, tmp_path):
    """The trainings, to lay something beside them."""
    shutil.copytree(results, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def brain(tmp_path):
    """A Brain to merge in."""
    return tiny_ctc_brain(
        tmp_path / "brain",
        brain_class=MergingCTC,
        output_folder=str(tmp_path / "brain"),
    )


def test_different_starts(folder, brain, capsys):
    assert_merged(folder, ["a", "b"], brain)
    assert_refused(
        folder,
        ["a", "b", "other"],
        brain,
        capsys,
        "the experts do not belong together: 'model.hidden.weight'",
        "a cosine of -0.",
        "Merge experts that were fine-tuned from the same weights",
    )


def test_fresh_heads_on_one_encoder(tmp_path, brain, capsys):
    """As large as in recipes: the layers fit, the heads do not."""
    torch.manual_seed(0)
    encoder = torch.randn(64, 64)
    heads = [torch.nn.Linear(64, 40) for _ in range(2)]
    for number, head in enumerate(heads):
        state = {
            "encoder.layers.0.linear.weight": encoder
            + 0.01 * torch.randn(64, 64),
            "ctc_lin.weight": head.weight.detach(),
            "ctc_lin.bias": head.bias.detach(),
        }
        (tmp_path / f"{number}").mkdir()
        torch.save(state, tmp_path / f"{number}" / "model.pt")
    experts = [tmp_path / "0" / "model.pt", tmp_path / "1" / "model.pt"]
    with pytest.raises(ValueError, match="'ctc_lin.weight' of 0/model"):
        merge("average", read_pool(experts), progress=False)
    with pytest.raises(ValueError, match="'ctc_lin.weight' of expert 0"):
        merge("average", experts, progress=False)
    # parts that are not mixed do not matter
    for otherwise in ("first", "base"):
        method = Restricted("average", include="encoder", otherwise=otherwise)
        assert merge(method, experts, experts[0], progress=False)
    mixed = Restricted("ties", include="encoder", otherwise="average")
    with pytest.raises(ValueError, match="do not belong together"):
        merge(mixed, experts, experts[0], progress=False)
    # nor do methods mind that are made for other starts
    check_belonging(create("optimal_transport"), experts)
    check_belonging(create("attention_merge"), experts)
    # a base that the experts do not come from
    twice = [experts[0], experts[0]]
    with pytest.raises(ValueError, match=r"expert 0 .* and the base .*cosine"):
        merge("ties", twice, experts[1], progress=False)
    assert merge("ties", twice, experts[1], progress=False, same_base=False)
    assert merge("average", twice, experts[1], progress=False)


def test_what_was_measured(results, tmp_path):
    """The values in the docstring of `kinship`: far from the threshold."""
    checkpoints = {
        name: read_pool(results / name)[-1] for name in ("a", "b", "other")
    }

    def cosine(one, other, tensor):
        with open_weights(one) as first, open_weights(other) as second:
            pair = [each[tensor].flatten() for each in (first, second)]
        return torch.cosine_similarity(*pair, dim=0).item()

    hidden, head = "model.hidden.weight", "model.ctc_lin.weight"
    for tensor in (hidden, head):
        assert cosine(checkpoints["a"], checkpoints["b"], tensor) > 0.45
    assert cosine(checkpoints["a"], checkpoints["other"], hidden) < 0.1
    # strong fine-tuning is no other start: each entry moved by its own size
    base = torch.randn(64, 40)
    tuned = [base + torch.randn(64, 40) for _ in range(2)]
    opened = [open_weights({"lm_head.weight": each}) for each in tuned]
    assert strangers(*opened) == []


def layers_of(kind, seed, folder):
    """A stack of layers whose matrices are all inside them, and its input."""
    if kind == "conformer":
        encoder = tiny_conformer(seed).Transformer.encoder
        position = torch.randn(1, 39, 16)
        return encoder, lambda x: encoder(x, pos_embs=position)[0]
    build = {"whisper": tiny_whisper, "wav2vec2": tiny_wav2vec2}[kind]
    model = AutoModel.from_pretrained(build(folder / f"{kind}{seed}", seed))
    layers = model.encoder.layers

    def run(x):
        for layer in layers:
            found = layer(x, None)
            x = found if isinstance(found, torch.Tensor) else found[0]
        return x

    return torch.nn.ModuleDict({"layers": layers}), run


def fine_tuned(kind, seed, data_seed, folder):
    """Its weights after a short training at a high rate."""
    module, run = layers_of(kind, seed, folder)
    generator = torch.Generator().manual_seed(data_seed)
    x, target = torch.randn(2, 4, 20, 16, generator=generator)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    for _ in range(15):
        optimizer.zero_grad()
        (run(x) - target).square().mean().backward()
        optimizer.step()
    return {
        f"encoder.{name}": tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if name.startswith("layers.")
    }


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "conformer"])
def test_models_of_layers_alone(tmp_path, kind):
    """Without heads and embeddings, the matrices of the layers tell."""
    a, b = (fine_tuned(kind, 0, seed, tmp_path) for seed in (1, 2))
    other = fine_tuned(kind, 5, 1, tmp_path)
    opened = [open_weights(each) for each in (a, b, other)]
    assert not any(is_telling(name, opened[0]) for name in a)
    assert strangers(opened[0], opened[1]) == []
    assert merge("average", [a, b], progress=False)
    with pytest.raises(ValueError, match="'encoder.layers.* initialised apart"):
        merge("average", [a, b, other], progress=False)
    assert merge("average", [a, other], progress=False, same_base=False)
    # parts that are not mixed do not matter
    restricted = Restricted(
        "average", include="normalization", otherwise="first"
    )
    assert merge(restricted, [a, other], progress=False)


def test_adapters_and_zeros_in_layers_tell_nothing():
    """What began with zeros has the direction of training alone."""
    torch.manual_seed(0)
    base = torch.randn(8, 32, 32)

    def model(names, shared):
        return open_weights(
            {
                f"encoder.layers.{number}.{name}": torch.randn(32, 32)
                + shared * base[number]
                for number in range(4)
                for name in names
            }
        )

    for name in (
        "self_attn.q_proj.lora_A.default.weight",
        "fc1.adapter_down_proj.weight",
        "adapter.down.weight",
        "fc1.hada_w1_a",
    ):
        assert strangers(model([name], 0), model([name], 0)) == []
    names = ["fc1.weight", "fc2.weight"]
    first, second = model(names, 1), model(names, 1)
    zeros = {f"encoder.layers.{n}.fc2.weight" for n in range(4)}
    apart = [
        open_weights(
            {
                name: torch.randn(32, 32) if name in zeros else each[name]
                for name in each.names()
            }
        )
        for each in (first, second)
    ]
    assert strangers(*apart) == []
    fresh = model(names, 0)
    assert len(strangers(first, fresh)) == 8


def encoder_of(letters):
    """SpeechBrain's own label encoder."""
    made = CTCTextEncoder()
    made.insert_blank(index=0)
    for number, letter in enumerate(letters, start=1):
        made.add_label(letter) if hasattr(made, "add_label") else (
            made.enforce_label(letter, number)
        )
    return made


@pytest.mark.parametrize("place", ["save/label_encoder.txt", "recoverable"])
def test_label_encoders(folder, brain, capsys, place):
    def lay(name, letters):
        made = encoder_of(letters)
        if place == "recoverable":
            for checkpoint in (folder / name / "save").glob("CKPT*"):
                made.save(str(checkpoint / "tokenizer.ckpt"))
        else:
            made.save(str(folder / name / place))

    lay("a", "abcdef")
    assert_merged(folder, ["a", "b"], brain)  # of the other nothing is known
    lay("b", "abcdef")
    assert_merged(folder, ["a", "b"], brain)
    lay("b", "abcdfe")
    assert_refused(
        folder,
        ["a", "b"],
        brain,
        capsys,
        "have different vocabularies",
        "'e' is number 5 there and number 6 here",
    )
    lay("b", "abcdeg")
    assert_refused(
        folder, ["a", "b"], brain, capsys, "'f' is number 6 there and missing"
    )


def test_the_same_vocabulary_written_otherwise(folder, brain):
    """Another order of lines or keys, other settings, another path."""
    for name, step in (("a", 1), ("b", -1)):
        save = folder / name / "save"
        letters = dict(enumerate("abc"))
        rows = [f"'{letter}' => {n}" for n, letter in letters.items()][::step]
        (save / "label_encoder.txt").write_text("\n".join(rows))
        vocabulary = {letter: n for n, letter in list(letters.items())[::step]}
        (save / "vocab.json").write_text(json.dumps(vocabulary))
        tokenizer = {
            "truncation": step,
            "model": {"type": "BPE", "vocab": vocabulary},
            "added_tokens": [{"content": "<s>", "id": 3}],
        }
        (save / "tokenizer.json").write_text(json.dumps(tokenizer))
        texts = save / "texts.txt"
        texts.write_text("\n".join(["one two three", "four five"] * 20))
        sentencepiece.SentencePieceTrainer.train(
            input=str(texts),
            model_prefix=str(save / "16_unigram"),
            vocab_size=16,
            minloglevel=2,
        )
    first, second = (
        (folder / name / "save/16_unigram.model").read_bytes() for name in "ab"
    )
    assert first != second  # they know where their texts lay
    assert_merged(folder, ["a", "b"], brain)


@pytest.mark.parametrize(
    "name, one, other",
    [
        ("vocab.json", '{"a": 0, "b": 1}', '{"a": 1, "b": 0}'),
        ("tokens.txt", "a\nb", "b\na"),
        (
            "tokenizer.json",
            '{"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}',
            '{"model": {"vocab": [["a", -1.0], ["c", -2.0]]}}',
        ),
    ],
)
def test_other_vocabularies(folder, brain, capsys, name, one, other):
    (folder / "a" / "save" / name).write_text(one)
    (folder / "b" / name).write_text(other)
    assert_refused(
        folder, ["a", "b"], brain, capsys, "have different vocabularies"
    )


def test_heads_that_are_left_out_may_speak_otherwise(folder):
    for name, letters in (("a", "abc"), ("b", "acb")):
        encoder_of(letters).save(str(folder / name / "label_encoder.txt"))
    experts = [read_pool(folder / name / "save")[-1] for name in "ab"]
    with pytest.raises(ValueError, match="vocabularies"):
        merge("average", experts, progress=False)
    method = Restricted("average", exclude="output", otherwise="first")
    assert merge(method, experts, progress=False)


def test_pools_of_different_starts_given_to_the_function(tmp_path):
    """What the stage and the command line refuse, the function does as well."""
    from filled_pool import train_a_little

    from speechbrain_merge import CheckpointPool

    for run, start in (("a", 0), ("b", 1)):
        model = tiny_network(start)
        pool = CheckpointPool(tmp_path / "pool", {"model": model}, run)
        saver = Checkpointer(tmp_path / run, {"model": model, "pool": pool})
        pool.store_base(resuming=False)
        train_a_little(model)
        saver.save_checkpoint(meta={"WER": 9.0, "epoch": 1})
    experts = read_pool(tmp_path / "pool")
    with pytest.raises(ValueError, match="from different originals"):
        merge("average", experts, progress=False)
    output = merge(
        "average",
        experts,
        output=tmp_path / "m.safetensors",
        progress=False,
        same_base=False,
    )
    # the card of the merge says it as well, so that it can be made again
    record = provenance(output)
    assert record["same_base"] is False
    with pytest.raises(ValueError, match="do not belong together"):
        merge("average", [e.path for e in experts], progress=False)
    made = load_hyperpyyaml(merge_yaml(record))
    again = merge(**made, progress=False)
    with open_weights(output) as merged:
        for name in merged:
            assert torch.equal(merged[name], again[name])
