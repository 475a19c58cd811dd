"""AdaMerging as a method: coefficients by expert, layer or tensor."""

import pytest
import torch

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import AdaMerging, Restricted, create
from speechbrain_merge.weights import open_weights, write_weights

NAMES = [
    "model.encoder.conv.weight",
    "model.encoder.layers.0.fc1.weight",
    "model.encoder.layers.1.fc1.weight",
    "model.encoder.layers.1.fc1.bias",
    "model.decoder.layers.1.fc1.weight",
    "model.decoder.embed_tokens.weight",
    "ctc_lin.weight",
]


def models(number=2):
    """A base of zeros, and experts whose task vectors tell them apart."""
    base = {name: torch.zeros(2, 2) for name in NAMES}
    return base, [
        {name: torch.full((2, 2), 10.0**index) for name in NAMES}
        for index in range(number)
    ]


def test_groups():
    base, experts = models()
    found = {}
    for by in ("expert", "layer", "tensor"):
        method = AdaMerging(by=by)
        method.make_coefficients(experts, base)
        found[by] = method.groups
        assert method.coefficients.shape == (2, len(method.groups))
        assert torch.equal(
            method.values(), torch.full_like(method.values(), 0.3)
        )
        assert method.learned is None
        assert [name for name, _ in method.named_parameters()] == [
            "coefficients"
        ]
    assert found["expert"] == ["everything"]
    assert found["tensor"] == NAMES
    assert found["layer"] == [
        "encoder",
        "encoder.layers.0",
        "encoder.layers.1",
        "decoder.layers.1",
        "decoder",
        "others",
    ]


def test_merges_with_the_coefficients_as_they_are(tmp_path):
    """In memory, over files, from its configuration and from its state."""
    base, experts = models()
    method = AdaMerging()
    method.make_coefficients(experts, base)
    with torch.no_grad():
        learned = torch.arange(12.0, dtype=torch.float64).reshape(2, 6) / 20
        method.coefficients.copy_(learned)
    merged = method(experts, base)
    group = dict(zip(method.groups, learned.T.tolist()))
    for name, tensor in merged.items():
        first, second = group[method.group_of(name)]
        expected = torch.full((2, 2), first + 10 * second)
        torch.testing.assert_close(tensor, expected)
    assert method.learned == group

    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, model in zip(paths, [*experts, base]):
        write_weights(path, model)
    output = tmp_path / "merged.safetensors"
    merge(method, paths[:2], paths[2], output, workers=2, progress=False)
    again = create("adamerging", **method.configuration())
    assert again.learned == method.learned
    remade = again(experts, base)
    third = AdaMerging()
    with pytest.raises(ValueError, match="call `make_coefficients`"):
        third.load_state_dict(method.state_dict())
    third.make_coefficients(experts, base)
    third.load_state_dict(method.state_dict())
    restored = third(experts, base)
    with open_weights(output) as streamed:
        for name, tensor in merged.items():
            assert torch.equal(streamed[name], tensor), name
            assert torch.equal(remade[name], tensor), name
            assert torch.equal(restored[name], tensor), name


def test_other_models_than_those_learned_with():
    base, experts = models()
    method = AdaMerging()
    # nothing was learned yet
    method.make_coefficients([*experts, experts[0]], base)
    method.make_coefficients(experts, base)
    held = method.coefficients
    method.make_coefficients(experts, base)
    assert method.coefficients is held  # an optimizer may hold it
    with torch.no_grad():
        method.coefficients += 0.1
    method(experts, base)
    with pytest.raises(ValueError, match="there are 3 experts"):
        method([*experts, experts[0]], base)
    more = {**base, "model.encoder.layers.7.fc1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="encoder.layers.7"):
        method([more, more], more)
    # a part of the same models is no other model
    part = Restricted(method, include="encoder.layers.1", otherwise="base")
    merged = part(experts, base)
    assert merged["model.encoder.layers.1.fc1.bias"].max() > 0
    assert merged["ctc_lin.weight"].max() == 0


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_tied_tensors_stay_one(by):
    """Whatever stack their names are of, and whichever name is read."""
    base, experts = models()
    for state in (base, *experts):
        state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    method = AdaMerging(by=by)
    method.make_coefficients(experts, base)
    assert "proj_out.weight" not in method.groups
    with torch.no_grad():
        method.coefficients += torch.rand_like(method.coefficients) / 2
    with open_weights(base) as anchor:
        merged = method.merged([open_weights(each) for each in experts], anchor)
        assert torch.equal(
            merged["proj_out.weight"],
            merged["model.decoder.embed_tokens.weight"],
        )


def test_starts_and_bounds():
    base, experts = models()
    start = AdaMerging(scale={"parts": {"decoder": 0.1}, "default": [0.2, 0.4]})
    start.make_coefficients(experts, base)
    found = dict(zip(start.groups, start.values().T.tolist()))
    assert found["decoder"] == found["decoder.layers.1"] == [0.1, 0.1]
    assert found["encoder"] == found["others"] == [0.2, 0.4]
    gate = AdaMerging(scale=0.3, lambda_param="sigmoid")
    gate.make_coefficients(experts, base)
    torch.testing.assert_close(
        gate.values(), torch.full_like(gate.values(), 0.3)
    )
    free = AdaMerging(scale=-1.0, lambda_param="free", by="expert")
    assert free(experts, base)["ctc_lin.weight"].tolist() == [[-11.0] * 2] * 2
    with pytest.raises(ValueError, match="between 0 and 1"):
        AdaMerging(scale=-1.0)(experts, base)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"by": "head"}, "`by` must be one of"),
        ({"lambda_param": "tanh"}, "`lambda_param` must be one of"),
        ({"scale": "0.3"}, "`scale` must be"),
        ({"learned": {}}, "`learned` must map"),
        ({"learned": {"encoder": 0.3}}, "must be a list"),
        ({"learned": {"encoder": [1.3]}}, "between 0 and 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        AdaMerging(**parameters)
