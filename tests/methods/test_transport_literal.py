"""The map of the OTF paper's equation 1, as literally as it can be had."""

import ot
import pytest
import torch
from methods.test_transport import MINE, perceptron
from methods.transport_models import build

from speechbrain_merge.methods import OptimalTransport, create
from speechbrain_merge.methods.transport import align, find_alignment


def literal_maps(first, second):
    """The paper's equations 1 to 3 for two layers, by POT alone."""

    def rows(model, *names):
        return torch.cat([model[name].reshape(6, -1) for name in names], 1)

    names = ("fc1.weight", "fc1.bias", "norm.running_var")
    left = torch.cat([rows(first, *names), first["fc2.weight"].T], 1)
    right = torch.cat([rows(second, *names), second["fc2.weight"].T], 1)
    plan = ot.emd([], [], torch.cdist(left.double(), right.double()).numpy())
    return 6 * torch.from_numpy(plan).float()


def test_the_literal_map_is_the_papers_linear_programme():
    """Equation 1 has no entropy: with equal masses it gives a permutation."""
    first, second = perceptron(6), perceptron(6, seed=1)
    plan = literal_maps(first, second)
    assert sorted(plan.argmax(1).tolist()) == list(range(6))
    options = {"exact": True, "sweeps": 0, "distance": "euclidean"}
    found = find_alignment(second, first, MINE, **options)
    assert torch.equal(found.transports["hidden"], plan.argmax(1))
    assert found.sweeps == 0
    fused = OptimalTransport(architecture=MINE, **options)([first, second])
    torch.testing.assert_close(
        fused["fc2.weight"],
        (first["fc2.weight"] + second["fc2.weight"] @ plan.T) / 2,
    )


def test_the_literal_map_is_a_parameter_of_the_method():
    """It calls POT's linear programme, keeps outputs, and is recorded."""
    conformers = [
        build("conformer-RelPosMHAXL-ctc", seed).state_dict() for seed in (1, 2)
    ]
    options = {"exact": True, "sweeps": 0, "distance": "euclidean"}
    method = create("optimal_transport", **options)
    assert method.configuration()["exact"] is True
    calls, solve = [], ot.emd
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ot, "emd", lambda *a, **more: calls.append(a) or solve(*a, **more)
        )
        fused = method(conformers)
    assert len(calls) > 10
    aligned = align(conformers[1], conformers[0], **options)
    name = "Transformer.encoder.layers.0.mha_layer.in_proj_weight"
    torch.testing.assert_close(
        fused[name], (conformers[0][name] + aligned[name]) / 2
    )
    # one pass finds another map than the default, which goes on
    default = align(conformers[1], conformers[0])
    assert not torch.equal(default[name], aligned[name])
    for wrong in ({"exact": True, "hard": False}, {"exact": "emd"}):
        with pytest.raises(ValueError, match="exact"):
            OptimalTransport(**wrong)
