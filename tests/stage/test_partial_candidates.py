"""Candidates that hold a part of what is trained: refused unless it is meant.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.search import GreedySearch

VALID = dict(batch_size=5)


class TwoParts(MergeMixin, TinyCTC):
    """An encoder and a head, as modules of their own."""

    def compute_forward(self, batch, stage):
        """The head over the encoder."""
        features, lengths = batch.feats
        features = self.modules.normalize(features, lengths)
        encoded = torch.relu(self.modules.encoder(features))
        return self.modules.head(encoded).log_softmax(-1), lengths


def brain_of(folder, pooled, frozen=(), recoverables=None, seed=0, **pool):
    """A Brain whose pool holds some of its modules."""
    torch.manual_seed(seed)
    parts = {
        "encoder": torch.nn.Linear(8, 16),
        "head": torch.nn.Linear(16, 7),
    }
    both = torch.nn.ModuleList(parts.values())
    for name in frozen:
        parts[name].requires_grad_(False)
    held = {name: {**parts, "model": both}[name] for name in pooled}
    collector = CheckpointPool(folder / "pool", held, **pool) if held else None
    made = tiny_ctc_brain(
        folder, brain_class=TwoParts, epochs=2, output_folder=str(folder)
    )
    recoverables = recoverables or {"model": both}
    if collector is not None:
        recoverables["pool"] = collector
    brain = TwoParts(
        modules={**parts, "normalize": made.modules.normalize},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
        hparams=vars(made.hparams),
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=Checkpointer(
            folder / "save",
            {"counter": made.hparams.epoch_counter, **recoverables},
        ),
    )
    brain.pool = collector
    return brain


def fit(brain):
    """Trains for two epochs."""
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(8, seed=1),
        tiny_ctc_data(6, seed=50),
        valid_loader_kwargs=dict(VALID),
    )
    return brain


def merge(brain, candidates, **settings):
    """A merge stage with a search."""
    stage = MergeStage("average", candidates, search=GreedySearch(), **settings)
    return brain.merge(stage, tiny_ctc_data(6, seed=50), VALID)


def test_training_does_not_begin(tmp_path):
    brain = brain_of(tmp_path, ["encoder"])
    with pytest.raises(ValueError) as caught:
        fit(brain)
    told = str(caught.value)
    assert "holds 'encoder', but 'head' is trained as well" in told
    # the head is among the recoverables as a part of `model`
    assert "modules: {encoder: !ref <encoder>, model: !ref <model>}" in told
    assert "`partial: True`" in told
    assert not hasattr(brain, "stats") and not list(tmp_path.glob("save/CKPT*"))
    assert not (tmp_path / "pool" / "run").exists()
    parts = torch.nn.Linear(1, 1)
    brain = brain_of(tmp_path, ["encoder"], recoverables={"other": parts})
    with pytest.raises(ValueError, match="encoder>, head: !ref <head>}"):
        fit(brain)


@pytest.mark.parametrize(
    "pooled, frozen",
    [
        (["encoder", "head"], []),
        (["model"], []),  # both of them, in a ModuleList
        (["encoder"], ["head"]),
        (["head"], ["encoder"]),
    ],
)
def test_a_pool_of_all_that_is_trained(tmp_path, pooled, frozen):
    brain = fit(brain_of(tmp_path, pooled, frozen))
    result = merge(brain, [brain.pool])
    brain.evaluate(
        tiny_ctc_data(6, seed=50), min_key="WER", test_loader_kwargs=dict(VALID)
    )
    # the number that is reported is that of the evaluated model
    assert brain.stats[-1][3] == pytest.approx(result.value)


def test_a_part_that_is_meant(tmp_path, caplog):
    brain = fit(brain_of(tmp_path, ["encoder"], partial=True))
    assert "and, as `partial: True` says, not 'head'" in caplog.text
    first = merge(brain, [brain.pool])
    assert merge(brain, [brain.pool]).reused
    # another head is another question
    with torch.no_grad():
        brain.modules.head.weight.mul_(-1)
    second = merge(brain, [brain.pool])
    assert not second.reused and first.value != second.value


def test_a_merge_of_parts_is_refused(tmp_path):
    """Files and pools of another script, in a Brain that trains more."""
    fit(brain_of(tmp_path / "one", ["encoder"], partial=True))
    brain = fit(brain_of(tmp_path / "two", []))
    parts = [tmp_path / "one" / "pool"]
    with pytest.raises(ValueError) as caught:
        merge(brain, parts)
    told = str(caught.value)
    assert "candidates hold 'encoder', but 'head' is trained as well" in told
    assert "modules: {encoder: !ref <encoder>, model: !ref <model>}" in told
    assert not list(tmp_path.glob("two/merge/*/merged.safetensors"))
    assert merge(brain, parts, partial=True).value is not None
    # whole checkpoints are whole candidates
    assert merge(brain, [tmp_path / "two" / "save"]).value is not None
