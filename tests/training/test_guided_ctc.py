"""Guided CTC and the mean posterior of teachers: by hand, and in training."""

import math

import pytest
import torch
from tiny_models import (
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
)

from speechbrain_merge.training import (
    FrozenModels,
    guided_ctc_loss,
    mean_posterior_loss,
)


def logs(*frames):
    return torch.tensor([list(frames)]).log()


def test_guided_by_hand():
    guide = logs([0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7])
    model = logs([0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4])
    # frames 0 and 2 are spikes, of labels 1 and 2
    expected = -(math.log(0.5) + math.log(0.4)) / 2
    assert guided_ctc_loss(model, guide).item() == pytest.approx(expected)
    found = guided_ctc_loss(model, guide, form="posterior").item()
    assert found == pytest.approx(-(0.5 + 0.4) / 2)
    # with another blank, frame 1 is a spike of label 0, frame 0 is none
    found = guided_ctc_loss(model, guide, blank_index=1).item()
    assert found == pytest.approx(-(math.log(0.1) + math.log(0.4)) / 2)
    # the last frame is padding
    lengths = torch.tensor([2 / 3])
    found = guided_ctc_loss(model, guide, lengths).item()
    assert found == pytest.approx(-math.log(0.5))
    silent = logs([0.8, 0.1, 0.1])
    assert guided_ctc_loss(model[:, :1], silent).item() == 0.0


def test_the_paper_s_form():
    """Minus the sum of the guide's mask times the posteriors."""
    torch.manual_seed(1)
    model = torch.randn(3, 40, 5).log_softmax(-1)
    guide = torch.randn(3, 40, 5).log_softmax(-1)
    lengths = torch.tensor([1.0, 0.5, 0.8])
    mask = torch.zeros_like(guide)
    for utterance, length in enumerate((40, 20, 32)):
        for frame in range(length):
            label = int(guide[utterance, frame].argmax())
            if label != 0:
                mask[utterance, frame, label] = 1
    literal = -(mask * model.exp()).sum()
    found = guided_ctc_loss(model, guide, lengths, form="posterior")
    torch.testing.assert_close(found * mask.sum(), literal)


def test_the_mean_of_posteriors_by_hand():
    teachers = [logs([0.9, 0.1]), logs([0.3, 0.7])]
    model = logs([0.5, 0.5])
    expected = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    found = mean_posterior_loss(model, teachers).item()
    assert found == pytest.approx(expected, rel=1e-5)
    padded = torch.cat([model, logs([0.001, 0.999])], dim=1)
    known = [torch.cat([one, one], dim=1) for one in teachers]
    found = mean_posterior_loss(padded, known, torch.tensor([0.5])).item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a, b: guided_ctc_loss(a, b[:, :1]), "the same rate of frames"),
        (lambda a, b: guided_ctc_loss(a, a, form="max"), "`form` is 'max'"),
        (lambda a, b: mean_posterior_loss(a, []), "no teacher"),
        (lambda a, b: mean_posterior_loss(a, [b[:, :1]]), "the same shape"),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_frozen_copies_share_what_the_modules_share():
    model = tiny_conformer()
    modules = {"model": model, "encoder": model.Transformer}
    other = tiny_conformer(5)
    weights = {f"model.{n}": t for n, t in other.state_dict().items()}
    frozen = FrozenModels(modules, [weights, weights])
    assert frozen.models[0]["encoder"] is frozen.models[0]["model"].Transformer
    assert frozen.models[0]["model"] is not frozen.models[1]["model"]
    inputs = torch.randn(1, 9, 8), torch.ones(1)
    outputs = frozen.outputs(lambda m, *given: m["model"](*given), *inputs)
    for each in outputs:
        torch.testing.assert_close(each, other.eval()(*inputs))
        assert not each.requires_grad
    with pytest.raises(ValueError, match="'head.weight' is of no module"):
        FrozenModels(modules, [{"head.weight": torch.ones(1)}])
    part = {
        f"encoder.{n}": t for n, t in model.Transformer.state_dict().items()
    }
    with pytest.raises(ValueError, match="no weights of model: this would be"):
        FrozenModels(modules, [part])


def spikes_that_agree(one, other, data, blank=0):
    """The share of spikes of one with the same label in the same frame."""
    same = count = 0
    for index in range(len(data)):
        feats = data[index]["feats"][None]
        labels = [
            model.eval()(feats, torch.ones(1)).argmax(-1)[0]
            for model in (one, other)
        ]
        spikes = labels[0] != blank
        same += int((labels[0] == labels[1])[spikes].sum())
        count += int(spikes.sum())
    return same / max(count, 1)


def test_a_guide_puts_spikes_in_its_frames(tmp_path):
    """Two trainings, one of them guided: the guided one has more in place."""
    data = tiny_ctc_data(32)

    def train(seed, guide=None):
        class Guided(TinyCTC):
            def compute_objectives(self, predictions, batch, stage):
                loss = super().compute_objectives(predictions, batch, stage)
                if guide is None or self.optimizer is None:
                    return loss
                feats, lengths = batch.feats
                with torch.no_grad():
                    known = guide.eval()(
                        self.modules.normalize(feats, lengths, epoch=9), lengths
                    )
                return loss + 3.0 * guided_ctc_loss(
                    predictions[0], known, lengths
                )

        model = tiny_network(seed)
        brain = tiny_ctc_brain(
            tmp_path / f"{seed}-{guide is None}",
            model,
            Guided,
            epochs=8,
            learning_rate=0.02,
        )
        # each would take its own scale of the features
        brain.modules.normalize.norm_type = "sentence"
        brain.fit(
            brain.hparams.epoch_counter,
            data,
            train_loader_kwargs={"batch_size": 8},
        )
        return model

    guide = train(1)
    alone, guided = train(2), train(2, guide)
    free = spikes_that_agree(guide, alone, data)
    assert spikes_that_agree(guide, guided, data) > free + 0.1
