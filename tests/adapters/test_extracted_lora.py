"""A LoRA adapter out of a model that was fine-tuned in full."""

import pytest
import torch
from tiny_models import tiny_conformer, tiny_whisper

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import extract_lora, provenance
from speechbrain_merge.adapters import extraction
from speechbrain_merge.weights import fold, open_weights
from speechbrain_merge.weights.adapter_files import WEIGHTS
from speechbrain_merge.weights.adapter_scales import adapter_arguments

peft = pytest.importorskip("peft")


class Net(torch.nn.Module):
    """Linear layers, and what is none."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)
        self.fc = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.conv = torch.nn.Conv1d(8, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, tokens):
        """Token numbers (batch, time) to (batch, time, 5)."""
        hidden = self.norm(self.fc(self.table(tokens)).transpose(1, 2))
        return self.head(self.conv(hidden).relu().transpose(1, 2))


TOKENS = torch.arange(22).reshape(2, 11) % 11


def net():
    torch.manual_seed(0)
    return Net().eval()


def fine_tuned(rank, frozen=("table",)):
    """The same net, its matrices moved by a product of a rank."""
    model = net()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(frozen) or not tensor.is_floating_point():
                continue
            if tensor.dim() == 2:
                rows, columns = tensor.shape
                left, right = (
                    torch.randn(rows, rank),
                    torch.randn(rank, columns),
                )
                tensor += left @ right / 4
            else:
                tensor += torch.rand_like(tensor) / 4
    return model


def loaded(path):
    if path.is_dir():
        return peft.PeftModel.from_pretrained(net(), path).eval()
    model = AdaptedModel(net(), LoRA, **adapter_arguments(path))
    assert not model.load_state_dict(
        dict(open_weights(path)), strict=False
    ).unexpected_keys
    return model.eval()


def error_of(path):
    file = path / WEIGHTS if path.is_dir() else path
    return provenance(file)["parameters"]["error"]


FORMATS = pytest.mark.parametrize(
    "form, name", [("peft", "out"), ("speechbrain", "out.safetensors")]
)


@FORMATS
def test_a_task_vector_of_the_rank_is_found_whole(form, name, tmp_path):
    """Biases, running statistics and convolutions included."""
    expert = fine_tuned(2)
    path = extract_lora(
        expert, net(), tmp_path / name, 2, format=form, progress=False
    )
    assert error_of(path) < 1e-6
    torch.testing.assert_close(
        loaded(path)(TOKENS), expert(TOKENS), rtol=1e-4, atol=1e-4
    )
    with fold(path, base=net()) as plain:
        for key, tensor in expert.state_dict().items():
            torch.testing.assert_close(plain[key], tensor, rtol=1e-4, atol=1e-5)


@FORMATS
def test_a_lower_rank_leaves_out_the_smallest_singular_values(
    form, name, tmp_path
):
    expert, base = fine_tuned(4), net().state_dict()
    path = extract_lora(
        expert, base, tmp_path / name, 1, format=form, progress=False
    )
    lost = total = 0.0
    with fold(path, base=base) as plain:
        for layer in ("fc.weight", "head.weight"):
            true = expert.state_dict()[layer]
            values = torch.linalg.svdvals((true - base[layer]).double())
            error = (plain[layer] - true).norm().item()
            assert error == pytest.approx(values[1:].norm().item(), rel=1e-4)
            lost += values[1:].square().sum().item()
            total += values.square().sum().item()
    assert error_of(path) == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_an_embedding_that_changed_needs_a_decision(tmp_path):
    expert = fine_tuned(2, frozen=())
    with pytest.raises(ValueError, match=r"table.weight.*leave_out=\['\*table"):
        extract_lora(expert, net(), tmp_path / "out", 2, progress=False)
    left = extract_lora(
        expert,
        net(),
        tmp_path / "out",
        2,
        leave_out=["*table.weight"],
        progress=False,
    )
    with fold(left, base=net()) as plain:
        assert torch.equal(plain["table.weight"], net().table.weight)
    whole = extract_lora(
        expert,
        net(),
        tmp_path / "out.safetensors",
        2,
        format="speechbrain",
        progress=False,
    )
    torch.testing.assert_close(
        loaded(whole)(TOKENS), expert(TOKENS), rtol=1e-4, atol=1e-4
    )


def test_nothing_to_extract(tmp_path):
    with pytest.raises(ValueError, match="no adapter to extract"):
        extract_lora(net(), net(), tmp_path / "out", 2, progress=False)
    with pytest.raises(ValueError, match="`rank`"):
        extract_lora(fine_tuned(1), net(), tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["peft", "speechbrain"])
def test_the_place_is_looked_at_before_anything_is_decomposed(
    tmp_path, monkeypatch, form
):
    monkeypatch.setattr(extraction, "_nearest", pytest.fail)
    link = tmp_path / "out.safetensors"
    link.symlink_to("nowhere")
    person = tmp_path / "person"
    person.mkdir()
    (person / "notes.txt").write_text("mine")
    for path in (link, person):
        with pytest.raises((ValueError, FileExistsError), match=path.name):
            extract_lora(fine_tuned(1), net(), path, 2, form)


def test_a_whisper_from_folders(tmp_path):
    """As users have it; PEFT loads the adapter onto the base's folder."""
    from transformers import WhisperForConditionalGeneration as Whisper

    base = tiny_whisper(tmp_path / "base")
    expert = Whisper.from_pretrained(base)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if "q_proj" in name or "fc1" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += noise / 10
    expert.save_pretrained(tmp_path / "expert")
    path = extract_lora(
        tmp_path / "expert", base, tmp_path / "lora", 999, progress=False
    )
    model = peft.PeftModel.from_pretrained(Whisper.from_pretrained(base), path)
    merged = model.merge_and_unload().state_dict()
    for name, tensor in expert.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5)


def test_torchs_attention_is_kept_whole(tmp_path):
    """Its output layer is none that SpeechBrain can adapt."""
    model = tiny_conformer()
    base = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name:
                parameter += torch.linspace(0, 0.1, parameter.numel()).view(
                    parameter.shape
                )
    path = extract_lora(
        model,
        base,
        tmp_path / "lora.safetensors",
        999,
        format="speechbrain",
        same_base=False,
        progress=False,
    )
    with fold(path, base=base) as plain:
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(
                plain[name], tensor, rtol=1e-4, atol=1e-5
            )
    adapted = AdaptedModel(tiny_conformer(), LoRA, **adapter_arguments(path))
    assert not adapted.load_state_dict(
        dict(open_weights(path)), strict=False
    ).unexpected_keys
