"""Layer-wise learning-rate decay on real models, through YAML and the Brain.

Authors
 * The speechbrain_merge authors 2026
"""

import math

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import (
    tiny_bert,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_hubert,
    tiny_vit,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.nnet.schedulers import (
    NewBobScheduler,
    ReduceLROnPlateau,
    update_learning_rate,
)
from speechbrain.utils.optimizers import rm_vector_weight_decay
from speechbrain_merge.training import layerwise_decay, layerwise_groups

RECIPE = """
model: !new:tiny_models.TinyConformer
    layers: 3
modules:
    model: !ref <model>
opt_class: !name:speechbrain_merge.training.layerwise_decay
    modules: !ref <modules>
    optimizer: !name:torch.optim.SGD
        lr: 0.2
        momentum: 0.9
    decay: 0.9
"""


def ratios(groups):
    """Group name to its ratio to the full rate."""
    return {group["name"]: group["ratio"] for group in groups}


def names_by_group(groups, modules):
    """Group name to the names of its parameters."""
    known = {}
    for name, parameter in torch.nn.ModuleDict(modules).named_parameters():
        known[id(parameter)] = name
    return {
        group["name"]: {known[id(each)] for each in group["params"]}
        for group in groups
    }


def assert_each_once(groups, modules):
    """Every trainable parameter is in exactly one group."""
    grouped = [id(each) for group in groups for each in group["params"]]
    trainable = {
        id(each)
        for each in torch.nn.ModuleDict(modules).parameters()
        if each.requires_grad
    }
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable


def speechbrain_wrapper(family, folder):
    """SpeechBrain's wrapper of a tiny Hugging Face model of three layers."""
    from speechbrain.integrations.huggingface.hubert import HuBERT
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
    from speechbrain.integrations.huggingface.wavlm import WavLM
    from speechbrain.integrations.huggingface.whisper import Whisper

    wrapper, build, layers = {
        "whisper": (Whisper, tiny_whisper, {"layers": 3}),
        "wav2vec2": (Wav2Vec2, tiny_wav2vec2, {"num_hidden_layers": 3}),
        "hubert": (HuBERT, tiny_hubert, {"num_hidden_layers": 3}),
        "wavlm": (WavLM, tiny_wavlm, {"num_hidden_layers": 3}),
    }[family]
    source = build(folder / "source", **layers)
    return wrapper(source=source, save_path=str(folder / "save"))


@pytest.mark.parametrize("family", ["whisper", "wav2vec2", "hubert", "wavlm"])
def test_speechbrain_wrappers(family, tmp_path):
    modules = {
        "pretrained": speechbrain_wrapper(family, tmp_path),
        "head": torch.nn.Linear(16, 5),
    }
    parameters = torch.nn.ModuleDict(modules).parameters()
    groups = layerwise_groups(parameters, modules, decay=0.9)
    assert ratios(groups) == {
        "encoder.layers.2": 1.0,
        "encoder.layers.1": 0.9,
        "encoder.layers.0": 0.9**2,
        "others": 0.9**2,
    }
    assert_each_once(groups, modules)
    members = names_by_group(groups, modules)
    for layer in range(3):
        prefix = f"pretrained.model.encoder.layers.{layer}."
        assert members[f"encoder.layers.{layer}"] == {
            name
            for name, _ in torch.nn.ModuleDict(modules).named_parameters()
            if name.startswith(prefix)
        }
    assert "head.weight" in members["others"]
    assert "pretrained.model.encoder.layer_norm.weight" in members["others"]


@pytest.mark.parametrize(
    "build, path", [(tiny_bert, "encoder.layer"), (tiny_vit, "layers")]
)
def test_plain_hugging_face_models(build, path, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(build(tmp_path / "model", layers=3))
    groups = layerwise_groups(model.parameters(), model, decay=0.5)
    shares = ratios(groups)
    assert shares.pop("others") == 0.25
    assert shares == {f"encoder.layers.{k}": 0.5 ** (2 - k) for k in range(3)}
    assert len(groups[0]["params"]) == sum(
        name.startswith(f"{path}.2.") for name, _ in model.named_parameters()
    )


def test_whisper_head_that_is_tied_is_trained_once(tmp_path):
    from transformers import WhisperForConditionalGeneration

    folder = tiny_whisper(tmp_path / "whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    groups = layerwise_groups(model.parameters(), model)
    table = model.proj_out.weight
    found = [g["name"] for g in groups if any(p is table for p in g["params"])]
    assert found == ["others"]


def test_other_conventions():
    modules = {"model": tiny_conformer(layers=3, decoder_layers=2)}
    groups = layerwise_groups(
        torch.nn.ModuleDict(modules).parameters(),
        modules,
        decay=0.5,
        others={
            "front_end": "below",
            "decoder.embedding": "below",
            "decoder": "depth",
            "output": "full",
            "*encoder.norm*": 0.75,
        },
    )
    decoder = "model.Transformer.decoder"
    assert ratios(groups) == {
        "encoder.layers.2": 1.0,
        "encoder.layers.1": 0.5,
        "encoder.layers.0": 0.25,
        f"{decoder}.layers.1": 1.0,
        f"{decoder}.layers.0": 0.5,
        "decoder": 0.5,
        "front_end": 0.125,
        "decoder.embedding": 0.125,
        "output": 1.0,
        "*encoder.norm*": 0.75,
    }
    assert_each_once(groups, modules)
    members = names_by_group(groups, modules)
    assert members["output"] == {"model.ctc_lin.weight", "model.ctc_lin.bias"}
    assert members["decoder"] == {
        f"{decoder}.norm.norm.weight",
        f"{decoder}.norm.norm.bias",
    }
    assert [group["ratio"] for group in groups] == sorted(
        (group["ratio"] for group in groups), reverse=True
    )


def test_one_word_for_all_others():
    model = tiny_conformer(layers=2, decoder_layers=2)
    for word, expected in {"full": 1.0, "below": 0.25, 3: 3.0}.items():
        groups = layerwise_groups(model.parameters(), model, 0.5, others=word)
        assert ratios(groups)["others"] == expected
    by_depth = ratios(
        layerwise_groups(model.parameters(), model, 0.5, others="depth")
    )
    assert by_depth["Transformer.decoder.layers.1"] == 1.0
    assert by_depth["decoder"] == 0.5
    # Output and front end have no depth of their own
    assert by_depth["others"] == 0.5


def test_frozen_layers_count_and_are_left_out():
    model = tiny_conformer(layers=4)
    for layer in (1, 3):
        model.Transformer.encoder.layers[layer].requires_grad_(False)
    groups = layerwise_groups(model.parameters(), model, decay=0.5)
    assert ratios(groups) == {
        "encoder.layers.2": 0.5,
        "encoder.layers.0": 0.125,
        "others": 0.125,
    }
    assert_each_once(groups, {"model": model})


def test_adapters_belong_to_the_layer_that_they_are_in():
    model = AdaptedModel(
        tiny_conformer(layers=2), adapter_class=LoRA, all_linear=True
    )
    groups = layerwise_groups(model.parameters(), {"model": model}, 0.5)
    assert ratios(groups)["encoder.layers.1"] == 1.0
    assert ratios(groups)["encoder.layers.0"] == 0.5
    assert_each_once(groups, {"model": model})


def test_groups_of_the_brain_keep_their_options():
    modules = torch.nn.ModuleDict({"model": tiny_conformer(layers=2)})
    split = rm_vector_weight_decay(modules)
    split[1]["lr"] = 0.02
    optimizer = layerwise_decay(
        split,
        modules,
        lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
        decay=0.5,
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["encoder.layers.0 (0)"]["weight_decay"] == 0.0
    assert groups["encoder.layers.0 (0)"]["lr"] == 0.005
    assert groups["encoder.layers.0 (1)"]["weight_decay"] == 0.1
    assert groups["encoder.layers.0 (1)"]["lr"] == 0.01
    assert groups["encoder.layers.0 (1)"]["ratio"] == 1.0
    assert groups["encoder.layers.1 (1)"]["lr"] == 0.02
    assert_each_once(optimizer.param_groups, modules)


def yaml_brain(folder, **arguments):
    """A Brain whose optimizer is the YAML's, as a recipe's main makes it."""
    hparams = load_hyperpyyaml(RECIPE)
    brain = tiny_ctc_brain(folder, model=hparams["model"], **arguments)
    brain.opt_class = hparams["opt_class"]
    return brain


def test_a_recipe_by_yaml_alone(tmp_path):
    torch.manual_seed(0)
    brain = yaml_brain(tmp_path, epochs=1)
    brain.fit(brain.hparams.epoch_counter, tiny_ctc_data(4), tiny_ctc_data(2))
    rates = {
        group["name"]: group["lr"] for group in brain.optimizer.param_groups
    }
    assert rates == {
        "encoder.layers.2": 0.2,
        "encoder.layers.1": 0.2 * 0.9,
        "encoder.layers.0": 0.2 * 0.9**2,
        "others": 0.2 * 0.9**2,
    }
    assert_each_once(brain.optimizer.param_groups, brain.modules)
    # The checkpoint brings names, ratios and rates back
    torch.manual_seed(1)
    again = yaml_brain(tmp_path, epochs=2)
    again.on_fit_start()
    assert {
        group["name"]: group["lr"] for group in again.optimizer.param_groups
    } == rates


def test_the_step_of_a_layer_is_its_rate_times_its_gradient():
    model = tiny_conformer(layers=2)
    optimizer = layerwise_decay(
        model.parameters(),
        model,
        lambda groups: torch.optim.SGD(groups, lr=0.5),
        decay=0.5,
    )
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.5 if ".encoder.layers.1." in name else 0.25
        torch.testing.assert_close(parameter, before[name] - rate)


def test_speechbrain_schedulers_leave_the_ratios():
    """They write one rate into all groups; the ratios are there at the step."""
    model = tiny_conformer(layers=3)
    optimizer = layerwise_decay(
        model.parameters(),
        model,
        lambda groups: torch.optim.SGD(groups, lr=1.0),
        decay=0.9,
    )
    scheduler = NewBobScheduler(initial_value=1.0, annealing_factor=0.97)
    for epoch in range(100):
        _, new = scheduler(metric_value=1.0)
        update_learning_rate(optimizer, new)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        for _ in range(2):  # the second step must not decay again
            optimizer.step()
            assert [group["lr"] for group in optimizer.param_groups] == [
                new,
                new * 0.9,
                new * 0.9**2,
                new * 0.9**2,
            ]
    assert math.isclose(new, 0.97**99)


def with_own_rates(modules):
    """Groups that a recipe gave rates of their own: none is the full one."""
    split = rm_vector_weight_decay(modules)
    for group, rate in zip(split, (0.5, 4.0)):
        group["lr"] = rate
    return split


@pytest.mark.parametrize(
    "others, frozen, own_rates",
    [
        ({"*output*": 10.0}, False, False),
        (3.0, False, False),
        ("lowest", True, False),
        ("full", True, False),
        ("lowest", False, True),
    ],
)
def test_a_scheduler_that_reads_the_first_group(others, frozen, own_rates):
    """ReduceLROnPlateau multiplies the rate that it finds there."""
    model = tiny_conformer(layers=3)
    modules = torch.nn.ModuleDict(
        {"model": model, "output": torch.nn.Linear(2, 2)}
    )
    if frozen:
        model.Transformer.encoder.layers[2].requires_grad_(False)
    optimizer = layerwise_decay(
        with_own_rates(modules) if own_rates else modules.parameters(),
        modules,
        lambda groups: torch.optim.AdamW(groups, lr=0.125),
        decay=0.9,
        others=others,
    )
    scheduler = ReduceLROnPlateau(
        factor=0.5, patience=0, dont_halve_until_epoch=0
    )
    full = 0.125
    assert optimizer.param_groups[0]["lr"] == full
    trained = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert trained == {
        id(each) for each in modules.parameters() if each.requires_grad
    }
    # it improves for four epochs, and then twice not
    for epoch, loss in enumerate([6.0, 5.0, 4.0, 3.0, 3.5, 3.6], start=1):
        for _ in range(2):
            optimizer.step()
            assert [group["lr"] for group in optimizer.param_groups] == [
                pytest.approx(full * group["ratio"])
                for group in optimizer.param_groups
            ]
        old, new = scheduler([optimizer], epoch, loss)
        update_learning_rate(optimizer, new)
        assert old == full
        full = new
    assert full == 0.125 / 4


def test_groups_without_the_full_rate_train_and_are_saved():
    model = tiny_conformer(layers=2)
    model.Transformer.encoder.layers[1].requires_grad_(False)

    def optimizer(make, **options):
        return layerwise_decay(
            model.parameters(), model, lambda groups: make(groups, lr=0.25)
        )

    for make in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adadelta):
        first = optimizer(make)
        assert first.param_groups[0]["name"] == "full rate"
        before = [each.detach().clone() for each in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        first.step()
        moved = [
            not torch.equal(old, new)
            for old, new in zip(before, model.parameters())
        ]
        assert moved == [each.requires_grad for each in model.parameters()]
        second = optimizer(make)
        second.load_state_dict(first.state_dict())
        assert [group["lr"] for group in second.param_groups] == [
            group["lr"] for group in first.param_groups
        ]


def test_a_saved_optimizer_with_other_groups_is_refused():
    model = tiny_conformer(layers=2)

    def optimizer(others):
        return layerwise_decay(
            model.parameters(),
            model,
            lambda groups: torch.optim.AdamW(groups, lr=0.25),
            others=others,
        )

    saved = optimizer({"output": 10.0}).state_dict()
    optimizer({"output": 10.0}).load_state_dict(saved)
    with pytest.raises(ValueError, match="groups .*'output'.* do not belong"):
        optimizer("full").load_state_dict(saved)


def test_a_schedule_that_the_recipe_does_not_call():
    model = tiny_conformer(layers=2)
    seen = []

    def schedule(optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["ratio"] * 2.0 ** -len(seen)
        seen.append([group["lr"] for group in optimizer.param_groups])

    optimizer = layerwise_decay(
        model.parameters(), model, decay=0.5, schedule=schedule
    )
    optimizer.step()
    optimizer.step()
    assert seen == [[1.0, 0.5, 0.5], [0.5, 0.25, 0.25]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decay": 0.0}, "above 0 and at most 1, got 0"),
        ({"decay": 1.1}, "above 0 and at most 1, got 1.1"),
        ({"decay": "0.9"}, "`decay` must be a number"),
        ({"decay": float("nan")}, "above 0 and at most 1, got nan"),
        ({"others": "lower"}, "`others` must be one of lowest, below"),
        ({"others": {"decoder": 0}}, "`others.decoder` must be one of"),
        ({"others": {"decodr": "full"}}, "'decodr' names no part"),
        ({"others": {"*nothing*": "full"}}, r"names \['\*nothing\*'\]"),
        ({"encoder": "model.layers"}, "`encoder: model.layers` has no layers"),
    ],
)
def test_wrong_arguments(arguments, message):
    model = tiny_conformer()
    with pytest.raises(ValueError, match=message):
        layerwise_groups(model.parameters(), model, **arguments)


def test_parameters_that_the_modules_lack():
    model, stranger = tiny_conformer(), torch.nn.Linear(3, 2)
    parameters = [*model.parameters(), *stranger.parameters()]
    with pytest.raises(ValueError, match=r"2 of the .* shape \(2, 3\)"):
        layerwise_groups(parameters, {"model": model})


def test_no_encoder_and_two_encoders():
    linear = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="No encoder layer was found"):
        layerwise_groups(linear.parameters(), linear)
    linear.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        layerwise_groups(linear.parameters(), linear)
    two = torch.nn.ModuleDict({"a": tiny_conformer(), "b": tiny_conformer()})
    with pytest.raises(ValueError, match="There are 2 encoders"):
        layerwise_groups(two.parameters(), two)
    path = "b.Transformer.encoder.layers"
    groups = layerwise_groups(two.parameters(), two, 0.5, encoder=path)
    members = names_by_group(groups, two)
    assert all(name.startswith(path) for name in members["encoder.layers.1"])
    assert (
        "a.Transformer.encoder.layers.1.norm1.norm.weight"
        in (members["others"])
    )


def test_an_architecture_that_is_named():
    stack = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    model = torch.nn.ModuleDict({"net": torch.nn.ModuleDict({"steps": stack})})
    with pytest.raises(ValueError, match="architecture is unknown"):
        layerwise_groups(model.parameters(), model)
    groups = layerwise_groups(
        model.parameters(), model, 0.5, encoder="net.steps"
    )
    assert ratios(groups) == {
        "encoder.layers.2": 1.0,
        "encoder.layers.1": 0.5,
        "encoder.layers.0": 0.25,
    }
