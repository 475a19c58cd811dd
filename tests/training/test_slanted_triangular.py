"""The slanted triangular schedule against the paper's formula, by hand.

Authors
 * The speechbrain_merge authors 2026
"""

import math

import pytest
import torch
from tiny_models import tiny_conformer, tiny_ctc_brain, tiny_ctc_data
from tiny_recipe import TinyCTC

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.training import (
    SlantedTriangularScheduler,
    layerwise_decay,
)


def one_group(lr=1.0):
    """An optimizer with a single group."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def decayed(model, lr=3e-5, decay=0.9):
    """Layer-wise rates for a model."""
    return layerwise_decay(
        model.parameters(),
        {"model": model},
        lambda groups: torch.optim.AdamW(groups, lr=lr),
        decay=decay,
    )


def test_by_hand():
    """N = 20, cut_fraction = 0.2, ratio = 5: cut = 4, decline over 16."""
    schedule = SlantedTriangularScheduler(20, cut_fraction=0.2, ratio=5)
    optimizer = one_group(lr=10.0)
    found = [schedule(optimizer)[1] for _ in range(24)]
    rise = [2, 4, 6, 8]
    fall = [10, 9.5, 9, 8.5, 8, 7.5, 7, 6.5, 6, 5.5, 5, 4.5, 4, 3.5, 3, 2.5]
    after = [2, 2, 2, 2]
    assert found == pytest.approx(rise + fall + after, rel=1e-12)


def test_the_paper_formula_with_its_defaults():
    steps, fraction, ratio, peak = 1000, 0.1, 32, 3e-5
    schedule = SlantedTriangularScheduler(steps)
    optimizer = one_group(lr=peak)
    cut = math.floor(steps * fraction)
    for t in range(steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / fraction - 1))
        expected = peak * (1 + p * (ratio - 1)) / ratio
        schedule(optimizer)
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(expected, rel=1e-9)
        assert rate == schedule.current_lr


def test_the_cut_is_not_lost_to_rounding():
    assert 0.29 * 100 < 29
    assert SlantedTriangularScheduler(100, cut_fraction=0.29).cut == 29


def test_rates_never_fall_below_the_lowest():
    """With 19 steps and a tenth the bare formula goes below zero."""
    schedule = SlantedTriangularScheduler(19, cut_fraction=0.1, ratio=32)
    scales = [schedule.scale(step) for step in range(40)]
    assert min(scales) == 1 / 32
    assert scales[10:] == [1 / 32] * 30


def test_ratios_survive_100_steps_and_a_reload(tmp_path):
    model = tiny_conformer(layers=3)
    optimizer = decayed(model)
    schedule = SlantedTriangularScheduler(150, cut_fraction=0.2)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks == [3e-5, 3e-5 * 0.9, 3e-5 * 0.9**2, 3e-5 * 0.9**2]

    def follow(optimizer, schedule, steps):
        for step in steps:
            schedule(optimizer)
            optimizer.step()
            assert [group["lr"] for group in optimizer.param_groups] == [
                peak * schedule.scale(step) for peak in peaks
            ]

    follow(optimizer, schedule, range(100))
    recoverables = {"optimizer": optimizer, "lr_annealing": schedule}
    Checkpointer(tmp_path, recoverables).save_checkpoint()

    new = decayed(model, lr=1.0, decay=0.5)
    renewed = SlantedTriangularScheduler(150, cut_fraction=0.2)
    Checkpointer(
        tmp_path, {"optimizer": new, "lr_annealing": renewed}
    ).recover_if_possible()
    assert renewed.current_lr == schedule.current_lr
    [path] = tmp_path.glob("*/lr_annealing.ckpt")
    path.write_text(path.read_text().replace("100", "101"))
    with pytest.raises(RecordError, match="is not as it was written"):
        renewed.load(path)
    # SpeechBrain's recoverables come back before the first step
    follow(new, renewed, range(100, 160))
    assert [g["lr"] for g in new.param_groups] == [p / 32 for p in peaks]


class Scheduled(TinyCTC):
    """A recipe's Brain that calls its schedule before each step."""

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            self.hparams.lr_annealing(self.optimizer)
            self.rates = getattr(self, "rates", [])
            self.rates.append(
                [group["lr"] for group in self.optimizer.param_groups]
            )


def test_a_brain_that_is_interrupted_goes_on(tmp_path):
    """Two epochs in two processes have the rates of two epochs in one."""

    def train(folder, epochs):
        torch.manual_seed(0)
        model = tiny_conformer(layers=2)
        schedule = SlantedTriangularScheduler(8, cut_fraction=0.25, ratio=4)
        brain = tiny_ctc_brain(
            folder,
            model=model,
            brain_class=Scheduled,
            epochs=epochs,
            recoverables={"lr_annealing": schedule},
            lr_annealing=schedule,
        )
        brain.opt_class = lambda parameters: layerwise_decay(
            parameters,
            {"model": model},
            lambda groups: torch.optim.SGD(groups, lr=0.01),
            decay=0.5,
        )
        brain.fit(
            brain.hparams.epoch_counter, tiny_ctc_data(4), tiny_ctc_data(1)
        )
        return brain.rates

    whole = train(tmp_path / "whole", 2)
    parts = train(tmp_path / "parts", 1) + train(tmp_path / "parts", 2)
    assert parts == whole
    scales = [SlantedTriangularScheduler(8, 0.25, 4).scale(t) for t in range(8)]
    assert whole == [[0.01 * s, 0.005 * s, 0.005 * s] for s in scales]
    assert scales[:3] == [0.25, 0.625, 1.0]


def test_as_the_schedule_of_the_optimizer():
    """A recipe that knows nothing of schedules still starts low."""
    model = tiny_conformer(layers=2)
    optimizer = layerwise_decay(
        model.parameters(),
        model,
        lambda groups: torch.optim.SGD(groups, lr=1.0),
        decay=0.5,
        schedule=SlantedTriangularScheduler(4, cut_fraction=0.5, ratio=2),
    )
    top = []
    for _ in range(5):
        optimizer.step()
        top.append([group["lr"] for group in optimizer.param_groups])
    assert top == [
        [scale, scale / 2, scale / 2] for scale in (0.5, 0.75, 1, 0.75, 0.5)
    ]


def test_a_rate_that_is_a_tensor_is_changed_in_place():
    rate = torch.tensor(2.0)
    optimizer = torch.optim.Adam(
        [torch.nn.Parameter(torch.zeros(1))], lr=rate, foreach=False
    )
    schedule = SlantedTriangularScheduler(10, cut_fraction=0.5, ratio=4)
    assert schedule(optimizer) == (2.0, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5


def test_another_optimizer_is_refused():
    schedule = SlantedTriangularScheduler(10)
    schedule(one_group())
    with pytest.raises(ValueError, match="of 1 groups, and this one has 4"):
        schedule(decayed(tiny_conformer(layers=3)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1,), "whole number of at least 2, got 1"),
        ((10.5,), "whole number of at least 2, got 10.5"),
        (("100",), "`num_training_steps` must be a number"),
        ((100, 0.0), "`cut_fraction` must be between 0 and 1"),
        ((100, 1.0), "`cut_fraction` must be between 0 and 1"),
        ((100, 0.1, 0.5), "`ratio` must be at least 1, got 0.5"),
        ((100, 0.1, float("inf")), "`ratio` must be at least 1"),
        ((9, 0.1), "leaves no step to rise in.* at least 0.111"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlantedTriangularScheduler(*arguments)
