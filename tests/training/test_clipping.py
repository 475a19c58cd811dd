"""Clipping of all groups, beside what SpeechBrain's Brain does.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch

import speechbrain as sb
from speechbrain_merge import MergeMixin
from speechbrain_merge.training import ClipAllGroups

LIMIT = 0.5


class Host(sb.Brain):
    """Three linear layers on a steep loss."""

    def compute_forward(self, batch, stage):
        hidden = batch[0]
        for module in self.modules.values():
            hidden = module(hidden)
        return hidden

    def compute_objectives(self, predictions, batch, stage):
        return 100 * (predictions - batch[1]).square().mean()


class Clipped(ClipAllGroups, MergeMixin, Host):
    """The same, with both mixins."""


def three_groups(parameters):
    """Weights and biases of a layer are a group; a step is its gradient."""
    parameters = list(parameters)
    return torch.optim.SGD(
        [{"params": parameters[i : i + 2]} for i in (0, 2, 4)], lr=1.0
    )


def make(brain_class, opt_class=three_groups, **run_opts):
    """A Brain, always with the same weights."""
    torch.manual_seed(0)
    brain = brain_class(
        {name: torch.nn.Linear(3, 3) for name in "abc"},
        opt_class=opt_class,
        run_opts={"max_grad_norm": LIMIT, **run_opts},
    )
    brain.init_optimizers()
    return brain


def batch(seed=1):
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 3, generator=generator)


def flat(brain):
    """All weights in a vector."""
    return torch.cat([p.detach().flatten() for p in brain.modules.parameters()])


def gradient(brain, *batches):
    """The sum of the gradients of batches, in a vector."""
    loss = sum(
        brain.compute_objectives(
            brain.compute_forward(each, sb.Stage.TRAIN), each, sb.Stage.TRAIN
        )
        for each in batches
    )
    found = torch.autograd.grad(loss, list(brain.modules.parameters()))
    return torch.cat([each.flatten() for each in found])


def moved(brain, *batches):
    """What fitting batches, one after the other, adds to the weights."""
    before = flat(brain)
    for each in batches:
        brain.step += 1
        brain.fit_batch(each)
    return flat(brain) - before


def test_three_groups_that_the_host_does_not_clip():
    host = moved(make(Host), batch())
    assert host[:12].norm() == pytest.approx(LIMIT, rel=1e-4)
    assert host.norm() > 100 * LIMIT
    whole = gradient(make(Clipped), batch())
    ours = moved(make(Clipped), batch())
    assert ours.norm() == pytest.approx(LIMIT, rel=1e-4)
    # Shortened, and in the same direction
    torch.testing.assert_close(
        ours, -whole * LIMIT / whole.norm(), rtol=1e-4, atol=1e-6
    )


def test_short_gradients_are_left_as_they_are():
    brain = make(Clipped, max_grad_norm=1e6)
    whole = gradient(brain, batch())
    torch.testing.assert_close(moved(brain, batch()), -whole)


def test_one_group_is_clipped_as_by_the_host_to_the_bit():
    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=0.1)

    batches = [batch(seed) for seed in range(6)]
    ours, host = make(Clipped, adam), make(Host, adam)
    assert torch.equal(moved(ours, *batches), moved(host, *batches))
    assert ours.optimizer_step == host.optimizer_step == 6


def test_accumulated_gradients_are_clipped_when_stepped():
    brain = make(Clipped, grad_accumulation_factor=2)
    first, second = batch(1), batch(2)
    whole = gradient(brain, first, second) / 2
    assert not moved(brain, first).any()
    step = moved(brain, second)
    torch.testing.assert_close(
        step, -whole * LIMIT / whole.norm(), rtol=1e-4, atol=1e-6
    )
    assert brain.optimizer_step == 1


def test_scaled_gradients_are_unscaled_before():
    """A gradient scaler, as in half precision; here on the CPU."""
    plain, scaled = make(Clipped), make(Clipped)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.testing.assert_close(moved(scaled, batch()), moved(plain, batch()))


class LastIsBroken:
    """The last layer's bias gets a gradient that is not a number."""

    def optimizers_step(self):
        self.modules["c"].bias.grad[0] = float("nan")
        super().optimizers_step()


class BrokenClipped(LastIsBroken, Clipped):
    pass


class BrokenHost(LastIsBroken, Host):
    pass


def test_a_scaler_leaves_out_steps_that_are_not_finite():
    brain = make(BrokenClipped)
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert not moved(brain, batch()).any()
    assert brain.scaler.get_scale() == 512.0


def test_no_half_of_a_step_is_taken():
    """The host steps the groups that are finite; here they are one norm."""
    broken = {"skip_nonfinite_grads": True}
    assert not moved(make(BrokenClipped, **broken), batch()).any()
    assert moved(make(BrokenHost, **broken), batch())[:12].any()


def test_frozen_optimizers_are_not_stepped():
    class Half(Clipped):
        def freeze_optimizers(self, optimizers):
            return {"second": optimizers["second"]}

    brain = make(Half)
    parameters = list(brain.modules.parameters())
    brain.optimizers_dict = {
        "first": torch.optim.SGD(parameters[:2], lr=1.0),
        "second": torch.optim.SGD(
            [{"params": parameters[2:4]}, {"params": parameters[4:]}], lr=1.0
        ),
    }
    step = moved(brain, batch())
    assert not step[:12].any()
    assert step.norm() == pytest.approx(LIMIT, rel=1e-4)


def test_a_brain_without_dict_and_one_without_optimizer():
    brain = make(Clipped)
    brain.optimizers_dict = None
    assert moved(brain, batch()).norm() == pytest.approx(LIMIT, rel=1e-4)
    still = make(Clipped, opt_class=None)
    assert not moved(still, batch()).any()
