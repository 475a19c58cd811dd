"""What a tenth attack found, each as the attack did it.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import logging
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import counted_scorings
import pytest
import torch
from counted_scorings import ask, trained
from signing_keys import write_key
from test_export_recipe import CHAIN, CTC, LABELS, TRANSDUCER, Trained, pieces
from tiny_models import tiny_ctc_data, tiny_network, tiny_wav2vec2

import speechbrain as sb
from speechbrain.augment.freq_domain import SpectrogramDrop
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.nnet.linear import Linear
from speechbrain_merge import Signer, merge, verify_signature
from speechbrain_merge.brain.decisive import decisive_settings
from speechbrain_merge.brain.matching import learn_matching
from speechbrain_merge.cli import main
from speechbrain_merge.evaluation import BestReferenceStats, TextNormalizer
from speechbrain_merge.export import NotLoadable
from speechbrain_merge.methods import OptimalTransport
from speechbrain_merge.records.signing import WrongSignature
from speechbrain_merge.stage.content import decided_by
from speechbrain_merge.weights import heads_metadata, write_weights

assert pieces  # a fixture

RECIPE = """\
from counted_scorings import MergingCTC

WORDS = {"one": 0.0}

class Brain(MergingCTC):
    def compute_forward(self, batch, stage):
        found, lengths = super().compute_forward(batch, stage)
        found[..., 0] += WORDS["one"]
        return found, lengths
"""


def test_a_recipe_that_was_edited_is_scored_again(tmp_path, monkeypatch):
    """A dictionary that a method reads."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(text):
        sys.modules.pop("edited_train", None)
        (tmp_path / "edited_train.py").write_text(text)
        importlib.invalidate_caches()
        recipe = importlib.import_module("edited_train")
        with monkeypatch.context() as patch:
            patch.setattr(counted_scorings, "MergingCTC", recipe.Brain)
            result, scored = ask(trained(tmp_path / "results"))
        return scored, result.value

    scored, value = run(RECIPE)
    assert scored > 0
    edited = RECIPE.replace('"one": 0.0', '"one": 1e6')
    scored, other = run(edited)
    assert scored > 0 and other == 100.0 != value
    assert run(edited.replace("import Merg", "import  Merg")) == (0, other)


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("results"))


def test_settings_of_this_package_count(brain):
    def key(stage=sb.Stage.VALID, **hparams):
        made = sb.Brain(hparams=hparams, run_opts={"device": "cpu"})
        return decisive_settings(made, stage=stage)

    plain = TextNormalizer(numbers=None)
    assert key(n=plain) != key(n=TextNormalizer(numbers=None, fillers=["a"]))
    clipped = [partial(BestReferenceStats, clip=each) for each in (0, 1)]
    assert key(w=clipped[0]) != key(w=clipped[1])
    # augmentation as well: a Brain may be tested in noise
    drops = [SpectrogramDrop(drop_length_low=each) for each in (1, 2)]
    train = sb.Stage.TRAIN
    assert key(a=drops[0]) != key(a=drops[1])
    assert key(train, a=drops[0]) != key(train, a=drops[1])
    assert key(train, train_noise=1) != key(train, train_noise=2)


MAP = """\
names: [tiny]
include: [body]
tensors:
  "model.ctc_lin.weight": [fixed, h]
  "model.ctc_lin.bias": [fixed]
fixed: ["model.norm.num_batches_tracked"]
"""
BODY = """\
tensors:
  "model.hidden.weight": [h, fixed]
  "model.hidden.bias": [h]
  "model.norm.weight": [h]
  "model.norm.bias": [h]
  "model.norm.running_mean": [h]
  "model.norm.running_var": [h]
"""
PINNED = "pinned:\n  h: a unit that stays\n"


def test_a_map_whose_yaml_was_edited_is_learned_again(brain, tmp_path):
    models = [
        {f"model.{k}": v for k, v in tiny_network(seed).state_dict().items()}
        for seed in (1, 2)
    ]
    own, body = tmp_path / "map.yaml", tmp_path / "body.part.yaml"
    own.write_text(MAP)
    body.write_text(BODY)

    def learned(architecture=own):
        return learn_matching(
            brain,
            *models,
            tiny_ctc_data(4),
            tiny_ctc_data(4, seed=5),
            tmp_path / "maps",
            {"batch_size": 4},
            {"steps": 1, "check_every": 1, "start": "identity"},
            architecture=str(architecture),
        )

    method = OptimalTransport(architecture=str(own))
    before, content = learned(), decided_by(method)
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert learned(tmp_path / "moved" / "map.yaml") == before
    body.write_text(BODY + "  'model.other': [fixed]\n")
    assert learned() != before and decided_by(method) != content
    there = sorted((tmp_path / "maps").iterdir())
    body.write_text(BODY)
    own.write_text(MAP + PINNED)
    with pytest.raises(ValueError, match="pins all spaces"):
        learned()
    assert sorted((tmp_path / "maps").iterdir()) == there


def test_an_encoder_that_normalises_is_not_exported_as_another(
    tmp_path, capsys, caplog
):
    hub = tiny_wav2vec2(tmp_path / "hub")
    labels = tmp_path / "vocab.json"
    labels.write_text('{"<pad>": 0, "a": 1}')
    head = Linear(input_size=16, n_neurons=2)

    def export(norm, notes=True):
        encoder = Wav2Vec2(hub, hub, output_norm=norm)
        modules = {"wav2vec2": encoder, "ctc_lin": head}
        expert = tmp_path / f"{norm}.safetensors"
        write_weights(
            expert,
            {
                f"{name}.{key}": tensor
                for name, module in modules.items()
                for key, tensor in module.state_dict().items()
            },
            heads_metadata(modules) if notes else {},
        )
        merged = tmp_path / "merged.safetensors"
        merge("average", [expert, expert], output=merged, progress=False)
        line = ["export", "ctc", merged, "--ssl", hub, "--labels", labels]
        return main([*map(str, line), "-o", str(tmp_path / "out")])

    assert export(True) == 2
    assert "with `output_norm` True" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export(False) == 0
    with caplog.at_level(logging.WARNING):
        assert export(False, notes=False) == 0
    assert "does not say whether" in caplog.text


@pytest.fixture(scope="module")
def transducer(tmp_path_factory):
    return Trained(TRANSDUCER, tmp_path_factory.mktemp("transducer"))


def exported(trained, folder, pieces, *change, encoder=("enc", "proj_enc")):
    """An export with another YAML than the training's."""
    folder.mkdir()
    other = folder / "other.yaml"
    text = trained.yaml.read_text()
    if change:
        assert change[0] in text
        text = text.replace(*change)
    other.write_text(text)
    before, trained.yaml = trained.yaml, other
    try:
        return trained.export(
            folder,
            interface="EncoderDecoderASR",
            encoder=[*CHAIN, *encoder],
            decoder="Greedysearcher",
            tokenizer=pieces,
        )
    finally:
        trained.yaml = before


def test_a_transducer_with_another_blank_is_refused(
    transducer, pieces, tmp_path
):
    old = "    blank_id: !ref <blank_index>\n    beam_size: 1"
    new = "    blank_id: 3\n    beam_size: 1"
    with pytest.raises(ValueError, match="more than one blank .*blank_id: 3"):
        exported(transducer, tmp_path / "a", pieces, old, new)
    asr = {"model": transducer.hparams["asr"]}
    with_record = Path(tmp_path / "recorded.safetensors")
    state = torch.nn.ModuleDict(asr).state_dict()
    write_weights(with_record, state, heads_metadata(asr))
    before, transducer.weights = transducer.weights, with_record
    try:
        for old, new, name in (
            ("blank_index: 0", "blank_index: 3", "blank_id"),
            ("causal: False", "causal: True", "causal"),
        ):
            folder = tmp_path / name
            with pytest.raises(NotLoadable, match=f"trained with `{name}`"):
                exported(transducer, folder, pieces, old, new)
    finally:
        transducer.weights = before


def test_a_part_that_is_not_asked_is_named(tmp_path, caplog):
    text = CTC.replace(
        "asr: !new",
        "unused: !new:torch.nn.Linear\n    in_features: 2\n"
        "    out_features: 2\nasr: !new",
    ).replace("<ctc_lin>]", "<ctc_lin>, !ref <unused>]")
    made = Trained(text, tmp_path)
    with caplog.at_level(logging.WARNING):
        made.export(
            tmp_path,
            interface="EncoderASR",
            encoder=[*CHAIN, "Transformer", "ctc_lin"],
            tokenizer=LABELS,
        )
    told = [r.getMessage() for r in caplog.records if "no part" in r.message]
    assert len(told) == 1 and "'asr.3' has merged weights" in told[0]


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "zero"])
def test_keys_and_signatures_that_never_end(tmp_path, kind):
    def place(path):
        if kind == "zero":
            path.symlink_to("/dev/zero")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            pipe = tmp_path / f"{path.parent.name}.{path.name}.pipe"
            os.mkfifo(pipe)
            path.symlink_to(pipe)

    write_key(tmp_path, "key")
    model = tmp_path / "model.safetensors"
    write_weights(model, {"w": torch.ones(2)})
    place(tmp_path / "endless.pem")
    with pytest.raises(ValueError, match="not a regular file"):
        verify_signature(model, key=tmp_path / "endless.pem")
    with pytest.raises(ValueError, match="not a regular file"):
        Signer(tmp_path / "endless.pem").check()
    Signer(tmp_path / "key.pem").sign(model)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(model, folder)
    signature = model.with_name(f"{model.name}.sig")
    signature.unlink()
    place(signature)
    place(folder / "model.sig")
    for signed in (model, folder):
        with pytest.raises(WrongSignature, match="not a regular file"):
            verify_signature(signed, key=tmp_path / "key.pub")
    (folder / "model.sig").unlink()
    Signer(tmp_path / "key.pem").sign(folder)
    place(folder / "weights.bin")
    with pytest.raises(WrongSignature):
        verify_signature(folder, key=tmp_path / "key.pub")


def test_tables_that_differ_are_told(tmp_path, caplog):
    models = [
        {
            "w": torch.full((2,), float(number)),
            "table": torch.tensor([number]),
            "norm.num_batches_tracked": torch.tensor(number),
        }
        for number in (1, 2)
    ]
    with caplog.at_level(logging.WARNING):
        merge("average", models, progress=False, same_base=False)
    assert "1 tensors without fractions differ" in caplog.text
    assert "(table)" in caplog.text


def test_a_search_with_other_fillers_scores_again(tmp_path):
    """The error rate of the first fillers was told."""
    made = trained(tmp_path, text=TextNormalizer(numbers=None))
    ask(made)
    made.hparams.text = TextNormalizer(numbers=None, fillers=["one"])
    assert ask(made)[1] > 0 and ask(made)[1] == 0
