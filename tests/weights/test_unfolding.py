"""Plain weights into modules with LoRA, which then compute with them alone."""

import copy

import pytest
import torch

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge.weights import fold, load_plain, plain_state

peft = pytest.importorskip("peft")

INPUTS = torch.linspace(-1, 1, 24).reshape(2, 12) * 5


class Net(torch.nn.Module):
    """Linear layers, a convolution and batch norm."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(12, 6)
        self.fc = torch.nn.Linear(6, 8)
        self.conv = torch.nn.Conv1d(8, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, inputs):
        """(batch, 12) to (batch, 12, 5)."""
        hidden = self.fc(self.table(inputs.abs().long())).relu()
        hidden = self.norm(self.conv(hidden.transpose(1, 2))).relu()
        return self.head(hidden.transpose(1, 2))


def speechbrain_lora(net, rank=3):
    return AdaptedModel(
        net,
        LoRA,
        all_conv=True,
        target_layers=["fc"],
        unfrozen_layers=["head"],
        adapter_kwargs={"rank": rank, "alpha": 2.0},
    )


def peft_lora(net, **settings):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["table", "fc", "conv"],
        modules_to_save=["head"],
        **settings,
    )
    return peft.get_peft_model(net, config)


KINDS = {
    "speechbrain": speechbrain_lora,
    "peft": peft_lora,
    "peft, with all factors drawn": lambda net: peft_lora(
        net, init_lora_weights=False
    ),
}


def trained(module):
    """Every tensor that training would change has changed."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_computes_as_a_plain_one_to_the_bit(kind):
    torch.manual_seed(0)
    adapted = trained(KINDS[kind](Net()))
    other = Net().eval()
    other.norm.running_mean.normal_()
    other.norm.num_batches_tracked.fill_(7)
    load_plain(adapted, other.state_dict())
    assert torch.equal(adapted(INPUTS), other(INPUTS))
    for name, tensor in plain_state(adapted).items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_there_as_lora_starts(kind):
    """The up factor is zero and gets a gradient."""
    torch.manual_seed(1)
    adapted = trained(KINDS[kind](Net()))
    load_plain(adapted, Net().state_dict())
    adapted(INPUTS).sum().backward()
    ups = [
        parameter
        for name, parameter in adapted.named_parameters()
        if "adapter_up" in name or ("lora_B" in name and "fc" in name)
    ]
    assert ups and all(not up.any() and up.grad.any() for up in ups)


@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_before_training_a_candidate_is_the_original_to_the_bit(kind):
    net = Net()
    with torch.no_grad():
        net.fc.weight[0] = -0.0  # which adding zero would change
    original = copy.deepcopy(net.state_dict())
    state = plain_state(KINDS[kind](net))
    assert set(state) == set(original)
    for name, tensor in original.items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(torch.signbit(state[name]), torch.signbit(tensor))


def test_an_adapted_model_whose_adapters_are_inserted_later():
    model = AdaptedModel(
        Net(), LoRA, all_linear=True, manual_adapter_insertion=True
    )
    before = plain_state(model)
    assert set(before) == set(Net().state_dict())
    model.insert_adapters()
    after = plain_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weight_norm_stays_as_it_is_stored():
    net = torch.nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)),
        torch.nn.Linear(4, 4),
    )
    names = set(net.state_dict())
    adapted = trained(AdaptedModel(net, LoRA, target_layers=["1"]))
    state = plain_state(adapted)
    assert set(state) == names
    # on the adapted layer itself it cannot: then W is what is stored, and what
    # is loaded becomes magnitude and direction again
    over = trained(AdaptedModel(net, LoRA, target_layers=["0"]))
    assert "0.weight" in plain_state(over)
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    inputs = torch.randn(3, 4)
    state = {"0.weight": other[0].weight, "0.bias": other[0].bias} | {
        name: tensor
        for name, tensor in fold(over).items()
        if name.startswith("1.")
    }
    load_plain(over, state)
    expected = torch.nn.functional.linear(
        other[0](inputs), state["1.weight"], state["1.bias"]
    )
    torch.testing.assert_close(over(inputs), expected)


def test_its_own_state_is_loaded_as_it_is():
    adapted = trained(speechbrain_lora(Net()))
    state = copy.deepcopy(adapted.state_dict())
    expected = adapted(INPUTS)
    trained(adapted)
    load_plain(adapted, state)
    assert torch.equal(adapted(INPUTS), expected)


def test_what_does_not_fit_is_refused_and_nothing_is_loaded():
    adapted = trained(speechbrain_lora(Net()))
    before = adapted(INPUTS)
    state = Net().state_dict()
    with pytest.raises(ValueError, match="1 missing .'fc.bias'"):
        load_plain(adapted, {n: t for n, t in state.items() if n != "fc.bias"})
    with pytest.raises(ValueError, match=r"fc.bias \[9\] and \[8\]"):
        load_plain(adapted, {**state, "fc.bias": torch.zeros(9)})
    assert torch.equal(adapted(INPUTS), before)

    merged = trained(peft_lora(Net()))
    merged.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        load_plain(merged, state)
    several = trained(peft_lora(Net()))
    several.add_adapter("b", peft.LoraConfig(target_modules=["fc"]))
    with pytest.raises(ValueError, match=r"\['default', 'b'\]: plain"):
        load_plain(several, state)


def test_an_adapter_on_one_of_two_tied_layers():
    class Tied(torch.nn.Module):
        """An output layer that is the embedding."""

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 4)
            self.out = torch.nn.Linear(4, 5, bias=False)
            self.out.weight = self.table.weight

    adapted = AdaptedModel(Tied(), LoRA, target_layers=["out"])
    plain = Tied().state_dict()
    load_plain(adapted, plain)
    assert torch.equal(adapted.table.weight, plain["out.weight"])
    plain["out.weight"] = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="one tensor in the module"):
        load_plain(adapted, plain)
