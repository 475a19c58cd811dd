"""LoRA of SpeechBrain and PEFT is folded into what the model computes with."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import FEATURES, tiny_conformer, tiny_whisper

from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.weights import check_compatible, fold, open_weights

peft = pytest.importorskip("peft")


class Net(torch.nn.Module):
    """A layer of every kind that can be adapted."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)
        self.fc = torch.nn.Linear(6, 8)
        self.conv = torch.nn.Conv1d(8, 4, 3, stride=2, padding=1)
        self.image = torch.nn.Conv2d(1, 2, (3, 1), padding=(1, 0))
        self.head = torch.nn.Linear(4, 5)

    def forward(self, tokens):
        """Token numbers (batch, time) to (batch, 2, time / 2, 5)."""
        hidden = self.fc(self.table(tokens)).relu().transpose(1, 2)
        hidden = self.conv(hidden).relu().transpose(1, 2)
        return self.head(self.image(hidden[:, None]))


TOKENS = torch.arange(22).reshape(2, 11) % 11


def copy_of(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def randomise(module):
    """Give every trainable tensor a value that a fresh adapter lacks."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 2)


def close(one, other):
    return torch.allclose(one, other, atol=1e-5, rtol=1e-4)


# --- SpeechBrain ------------------------------------------------------------


@pytest.fixture
def adapted():
    model = AdaptedModel(
        Net(),
        LoRA,
        all_conv=True,
        target_layers=["fc"],
        unfrozen_layers=["head"],
        adapter_kwargs={"rank": 3, "alpha": 2.0},
    )
    base = {
        name.replace("adapted_model.", "").replace("pretrained_module.", ""): t
        for name, t in copy_of(model).items()
        if "adapter_" not in name
    }
    randomise(model)
    return model, base


def test_speechbrain_module_and_checkpoint(adapted, tmp_path):
    model, base = adapted
    expected = model(TOKENS)
    saved = Checkpointer(tmp_path, {"asr": model}).save_checkpoint()
    file = Path(saved.path) / "asr.ckpt"
    # SpeechBrain's saver keeps what was trained, and no alpha
    assert not any("pretrained" in name for name in open_weights(file))
    sources = {
        "module": fold(model),
        "state dict": fold(model.state_dict(), alpha=2.0),
        "file": fold(file, base=base, alpha=2.0, rank=3),
        "recoverable": fold(
            saved.path,
            base={f"asr.{name}": tensor for name, tensor in base.items()},
            alpha=2.0,
        ),
    }
    for title, plain in sources.items():
        state = {name.replace("asr.", ""): plain[name] for name in plain}
        net = Net()
        net.load_state_dict(state, strict=True)
        assert close(net(TOKENS), expected), title
    assert sources["file"].names() == list(base)
    check_compatible([sources["module"], sources["file"]])


def test_speechbrain_alpha_is_never_guessed(adapted):
    model, base = adapted
    with pytest.raises(ValueError, match="but not their alpha"):
        fold(model.state_dict())
    with pytest.raises(ValueError, match="has rank 3, not 4"):
        fold(model, rank=4)
    with pytest.raises(ValueError, match="'fc' is adapted, but .* give base="):
        only = {n: t for n, t in model.state_dict().items() if "adapter" in n}
        fold(only, alpha=2.0)
    with pytest.raises(ValueError, match="only one of the two factors"):
        fold(
            {"fc.adapter_up_proj.weight": torch.ones(8, 3)}, base=base, alpha=1
        )
    with pytest.raises(
        ValueError, match=r"do not fit a weight of shape \[5, 4"
    ):
        fold(
            {
                "head.adapter_down_proj.weight": torch.ones(2, 7),
                "head.adapter_up_proj.weight": torch.ones(5, 2),
            },
            base=base,
            alpha=1,
        )
    with pytest.raises(ValueError, match="base .* does not have, e.g. .'other"):
        fold({"other.weight": torch.ones(1)}, base=base)


def test_speechbrain_conformer_with_all_linear_layers_adapted():
    model = tiny_conformer()
    features, lengths = torch.randn(2, 10, FEATURES), torch.ones(2)
    names = list(model.state_dict())
    adapted = AdaptedModel(model, LoRA, all_linear=True)
    randomise(adapted)
    adapted.eval()
    expected = adapted(features, lengths)
    plain = fold(adapted)
    assert plain.names() == names
    fresh = tiny_conformer(seed=1).eval()
    fresh.load_state_dict(plain, strict=True)
    assert close(fresh(features, lengths), expected)


def test_lora_over_weight_norm():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    adapted = AdaptedModel(
        torch.nn.Sequential(layer), LoRA, target_layers=["0"]
    )
    randomise(adapted)
    inputs = torch.randn(3, 4)
    plain = fold(adapted)
    assert plain.names() == ["0.bias", "0.weight"]
    output = torch.nn.functional.linear(
        inputs, plain["0.weight"], plain["0.bias"]
    )
    assert close(output, adapted(inputs))


@pytest.mark.parametrize("bias", [True, False])
def test_houlsby_adapters_are_refused(bias):
    model = AdaptedModel(
        Net(),
        HoulsbyAdapterLinear,
        all_linear=True,
        adapter_kwargs={"projection_size": 2, "bias": bias},
    )
    with pytest.raises(
        ValueError, match="Houlsby adapter, which cannot be fol"
    ):
        fold(model)


# --- PEFT -------------------------------------------------------------------


def peft_model(net=None, **settings):
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["table", "fc", "conv", "image"],
        "modules_to_save": ["head"],
        **settings,
    }
    net = net or Net()
    base = copy_of(net)
    model = peft.get_peft_model(net, peft.LoraConfig(**settings)).eval()
    randomise(model)
    return model, base


SETTINGS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"fc": 2},
        "alpha_pattern": {"conv": 3, "^nothing": 9},
        "use_rslora": True,
    },
    "all biases": {"bias": "all"},
    "with biases": {
        "lora_bias": True,
        "target_modules": ["fc", "conv"],
        "init_lora_weights": False,
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_peft_module_and_folder_against_merge_and_unload(tmp_path, settings):
    model, base = peft_model(**settings)
    expected = model(TOKENS)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    # Read all before merging: the module below is changed in place
    folded = {
        "module": dict(fold(model)),
        "folder": dict(fold(tmp_path, base=base)),
    }
    oracle = copy_of(model.merge_and_unload())
    for title, plain in folded.items():
        assert list(plain) == list(oracle)
        for name, tensor in oracle.items():
            assert torch.allclose(plain[name], tensor, atol=1e-6), (title, name)
        net = Net()
        net.load_state_dict(plain, strict=True)
        assert close(net(TOKENS), expected), title


def test_peft_state_dict_needs_alpha():
    model, _ = peft_model(use_rslora=True)
    expected = dict(fold(model))
    state = copy_of(model)
    with pytest.raises(ValueError, match="but not their alpha"):
        fold(state)
    plain = fold(state, alpha=6, rank_stabilised=True)
    for name, tensor in expected.items():
        assert torch.equal(plain[name], tensor)


def test_peft_whisper_from_folders(tmp_path):
    """As users have it: a base folder, an adapter folder, nothing in memory."""
    from transformers import WhisperForConditionalGeneration

    base = tiny_whisper(tmp_path / "base")
    whisper = WhisperForConditionalGeneration.from_pretrained(base)
    model = peft.get_peft_model(
        whisper,
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"]),
    )
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    with fold(tmp_path / "adapter", base=base) as plain:
        oracle = copy_of(model.merge_and_unload())
        assert set(oracle) - set(plain) == {"proj_out.weight"}
        for name in plain:
            assert torch.allclose(plain[name], oracle[name], atol=1e-6), name
        assert plain.metadata == {"format": "pt"}


def test_peft_layers_inside_speechbrains_adapted_model(tmp_path):
    model = AdaptedModel(
        Net(),
        peft.tuners.lora.layer.Linear,
        target_layers=["fc", "head"],
        adapter_kwargs={
            "adapter_name": "x",
            "config": peft.LoraConfig(r=2, lora_alpha=3),
            "r": 2,
            "lora_alpha": 3,
        },
    )
    randomise(model)
    net = Net()
    net.load_state_dict(fold(model), strict=True)
    assert close(net(TOKENS), model(TOKENS))
    plain = fold(model.state_dict(), alpha=3)
    assert torch.equal(plain["fc.weight"], net.fc.weight)


def test_several_peft_adapters():
    model, _ = peft_model()
    model.add_adapter(
        "second", peft.LoraConfig(r=2, target_modules=["fc"], lora_alpha=8)
    )
    model.set_adapter("second")
    randomise(model)
    with pytest.raises(ValueError, match=r"\['default', 'second'\]: choose"):
        fold(model)
    plain = fold(model, adapter="second")
    net = Net()
    net.load_state_dict(plain, strict=True)
    assert close(net(TOKENS), model(TOKENS))
    model.set_adapter("default")
    net.load_state_dict(fold(model, adapter="default"), strict=True)
    assert close(net(TOKENS), model(TOKENS))
    with pytest.raises(ValueError, match="not 'third'"):
        fold(model, adapter="third")


def test_a_merged_peft_module_is_not_merged_twice():
    model, _ = peft_model()
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into its weight already"):
        fold(model)


def test_what_peft_alone_can_fold(tmp_path):
    model, base = peft_model(
        use_dora=True, target_modules=["fc"], modules_to_save=None
    )
    model.save_pretrained(tmp_path / "dora")
    for source in (model, tmp_path / "dora"):
        with pytest.raises(ValueError, match="merge_and_unload"):
            fold(source, base=base)
    model, base = peft_model()
    model.save_pretrained(tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    content = json.loads(config.read_text())
    for changes, message in (
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which chan"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"use_qalora": True}, "use_qalora"),
    ):
        config.write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=message):
            fold(tmp_path / "lora", base=base)
    grouped = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups"):
        model = peft.get_peft_model(
            grouped, peft.LoraConfig(r=2, target_modules=["0"])
        )
    with pytest.raises(ValueError, match="Grouped convolutions"):
        fold(model)


# --- all --------------------------------------------------------------------


def test_a_plain_model_comes_back_as_it_is(tmp_path):
    net = Net()
    torch.save(net.state_dict(), tmp_path / "net.ckpt")
    with fold(tmp_path / "net.ckpt") as plain:
        assert plain.names() == list(net.state_dict())
        for name, tensor in net.state_dict().items():
            assert torch.equal(plain[name], tensor)
    with pytest.raises(ValueError, match="closed"):
        plain["fc.weight"]
    # A module may be called anything, as long as it is not adapted
    state = {"adapted_model.weight": torch.ones(1)}
    assert fold(state).names() == ["adapted_model.weight"]


def test_folding_is_lazy_and_closes_what_it_opened(tmp_path):
    torch.save(
        {
            "fc.adapter_down_proj.weight": torch.ones(1, 2),
            "fc.adapter_up_proj.weight": torch.ones(2, 1),
        },
        tmp_path / "adapter.ckpt",
    )
    base = open_weights({"fc.weight": torch.zeros(2, 2)})
    plain = fold(tmp_path / "adapter.ckpt", base=base, alpha=1)
    assert plain.shape("fc.weight") == (2, 2)
    assert plain["fc.weight"].sum() == 4
    plain.close()
    assert base["fc.weight"].sum() == 0


def test_ties_after_folding():
    """An adapter on one of two tied layers unties them, as it does in use."""
    shared = torch.randn(4, 3)
    base = {"in.weight": shared, "out.weight": shared, "x": shared[0]}
    assert fold(base).tied == {"out.weight": "in.weight"}
    adapter = {
        "out.adapter_down_proj.weight": torch.ones(1, 3),
        "out.adapter_up_proj.weight": torch.ones(4, 1),
    }
    plain = fold(adapter, base=base, alpha=1)
    assert plain.tied == {}
    assert torch.equal(plain["in.weight"], shared)
    assert torch.equal(plain["out.weight"], shared + 1)


def test_half_precision_is_computed_in_float32():
    weight = torch.full((1, 1), 1024.0).half()
    state = {
        "pretrained_module.weight": weight,
        "adapter_down_proj.weight": torch.full((2, 1), 256.0).half(),
        "adapter_up_proj.weight": torch.full((1, 2), 256.0).half(),
    }
    plain = fold(state, alpha=2 / 256)["weight"]
    assert plain.dtype == torch.float16
    assert plain.item() == 1024 + 512
