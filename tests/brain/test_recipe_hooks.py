"""Whatever a recipe's hooks do, the promised weights are evaluated.

Each recipe here does in its hooks what some recipe of SpeechBrain does, or
might do. `TinyCTC` stands for all that they have in common.
"""

import copy

import pytest
import torch
from averaging_recipe import (
    TEST_SET,
    Averaging,
    Recording,
    evaluate,
    load_average,
    train,
    trained,
)
from tiny_models import tiny_network

import speechbrain as sb
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain_merge import MergeStage
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import open_weights, plain_state


class OnItsOwn(Averaging):
    """As RescueSpeech: never calls the hook that it overrides."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Restores the checkpoint itself, step counter and all."""
        self.checkpointer.recover_if_possible(max_key=max_key, min_key=min_key)
        load_average(self, max_key, min_key)


class AtStageStart(Averaging):
    """Loads when the stage starts."""

    def on_stage_start(self, stage, epoch=None):
        """An average, when testing."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TEST:
            load_average(self)


class OwnBatch(Averaging):
    """As Switchboard: evaluates batches in its own way."""

    def evaluate_batch(self, batch, stage):
        """Its own way."""
        with torch.no_grad():
            predictions = self.compute_forward(batch, stage=stage)
            loss = self.compute_objectives(predictions, batch, stage=stage)
        return loss.detach()


class Smoothed(torch.nn.Module):
    """As SGMSE's model: in evaluation mode it has a moving average."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.smooth = copy.deepcopy(network.state_dict())
        self.kept = None

    def forward(self, features, lengths):
        """The network's; the average moves in training."""
        if self.training:
            for name, tensor in self.network.state_dict().items():
                if tensor.is_floating_point():
                    self.smooth[name].lerp_(tensor, 0.3)
        return self.network(features, lengths)

    def train(self, mode=True):
        """Swaps."""
        if not mode:
            self.kept = copy.deepcopy(self.network.state_dict())
            self.network.load_state_dict(self.smooth)
        elif self.kept is not None:
            self.network.load_state_dict(self.kept)
        return super().train(mode)


def assert_evaluated(brain, path):
    """All batches noted were evaluated with the weights of a file."""
    assert len(brain.evaluated) == 3
    with open_weights(path) as merged:
        names = merged.names()
        for state in brain.evaluated:
            assert {f"model.{name}" for name in state} == set(names)
            for name in names:
                found = state[name.removeprefix("model.")]
                assert torch.equal(found, merged[name]), name
    brain.evaluated = []


def files(folder):
    """What lies in a folder, with its time of writing."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "recipe", [Averaging, OnItsOwn, AtStageStart, OwnBatch]
)
def test_the_merge_is_evaluated(tmp_path, caplog, recipe):
    brain = trained(tmp_path, recipe)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    before = files(tmp_path / "save"), files(tmp_path / "pool")
    losses = []
    for _ in range(3):
        caplog.clear()
        losses.append(evaluate(brain))
        assert_evaluated(brain, merged)
        assert f"{recipe.__name__} loaded other weights" in caplog.text
        assert "asked to save or delete checkpoints" in caplog.text
    # nor did the step counter of a checkpoint divide the loss
    assert losses[0] == losses[1] == losses[2]
    assert before == (files(tmp_path / "save"), files(tmp_path / "pool"))
    # the methods are the recipe's and SpeechBrain's own again
    assert "evaluate_batch" not in vars(brain)
    assert "save_checkpoint" not in vars(brain.checkpointer)


def test_modules_that_swap_weights_in_evaluation_mode(tmp_path):
    model = Smoothed(tiny_network(0))
    brain = trained(tmp_path, Recording, model=model)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    evaluate(brain)
    assert_evaluated(brain, merged)


def test_modules_with_lora(tmp_path):
    """What they compute with is the merge; their own come back."""

    class Adapted(Recording):
        def on_evaluate_start(self, max_key=None, min_key=None):
            super().on_evaluate_start(max_key, min_key)
            (found,) = self.checkpointer.find_checkpoints(
                min_key="WER", max_num_checkpoints=1
            )
            saved = torch.load(found.paramfiles["model"])
            self.hparams.model.load_state_dict(saved, strict=False)

        def compute_forward(self, batch, stage):
            found = super().compute_forward(batch, stage)
            if stage == sb.Stage.TEST:
                self.evaluated[-1] = dict(plain_state(self.hparams.model))
            return found

    model = AdaptedModel(
        tiny_network(0), LoRA, all_linear=True, adapter_kwargs={"rank": 2}
    )
    brain = trained(tmp_path, Adapted, model=model, learning_rate=0.1)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    evaluate(brain)
    assert_evaluated(brain, merged)
    evaluate(brain)
    assert_evaluated(brain, merged)
    brain.use_weights(None)
    evaluate(brain)
    best = min(brain.pool.candidates(), key=lambda each: each.score)
    assert_evaluated(brain, best)


def test_weights_in_another_form_than_the_modules_hold(tmp_path):
    """Weight norm under its older names, which torch loads all the same."""
    model = tiny_network(0)
    torch.nn.utils.parametrizations.weight_norm(model.ctc_lin)
    brain = trained(tmp_path, Averaging, model=model)
    first = brain.pool.candidates()[0]
    with open_weights(first) as weights:
        state = {name: weights[name] for name in weights.names()}
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert set(older) != set(state)
    brain.use_weights(older)
    evaluate(brain)
    assert_evaluated(brain, first)


@pytest.mark.parametrize("torn", ["model.ckpt", "CKPT.yaml"])
def test_a_torn_checkpoint_is_not_averaged(tmp_path, torn):
    """The one a kill left: recipes average whatever they find."""
    brain = trained(tmp_path, Averaging)
    newest = brain.checkpointer.find_checkpoint()
    path = newest.path / torn
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = trained(tmp_path, Averaging, epochs=0)
    again.use_weights(None)
    found = again.checkpointer.find_checkpoints
    evaluate(again)
    assert newest.path.exists()
    assert newest.path not in [each.path for each in found()]


def test_without_promise_the_recipe_does_as_ever(tmp_path):
    """Evaluates its average, saves it, deletes the rest: the pool stays."""
    brain = trained(tmp_path, Averaging)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    brain.use_weights(None)
    pool = files(tmp_path / "pool")
    found = brain.checkpointer.find_checkpoints(min_key="WER")
    average = average_checkpoints(found, "model")
    evaluate(brain)
    for name, tensor in brain.evaluated[0].items():
        assert torch.equal(tensor, average[name].to(tensor.dtype)), name
    (kept,) = brain.checkpointer.list_checkpoints()
    assert kept.meta["WER"] == -0.1
    assert files(tmp_path / "pool") == pool
    # saved by hand: the modules still hold no state of the training
    with torch.no_grad():
        brain.hparams.model.ctc_lin.bias.add_(1)
    brain.checkpointer.save_checkpoint(meta={"WER": 0.0})
    assert files(tmp_path / "pool") == pool
    brain.evaluated = []
    brain.use_weights(merged)
    evaluate(brain)
    assert_evaluated(brain, merged)


def test_training_goes_on_as_if_nothing_had_been_evaluated(tmp_path):
    whole = trained(tmp_path / "whole", Averaging, epochs=5)
    brain = trained(tmp_path / "parts", Averaging, epochs=3)
    brain.merge(MergeStage("average", [brain.pool]))
    evaluate(brain)
    brain.hparams.epoch_counter.limit = 5
    train(brain)
    expected = whole.modules.state_dict()
    for name, tensor in brain.modules.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # the pool collects again, and is what it would have been
    assert [c.digest for c in brain.pool.candidates()] == [
        c.digest for c in whole.pool.candidates()
    ]
    # and so it is in another process
    resumed = trained(tmp_path / "parts", Averaging, epochs=6)
    again = trained(tmp_path / "whole", Averaging, epochs=6)
    for name, tensor in resumed.modules.state_dict().items():
        assert torch.equal(tensor, again.modules.state_dict()[name]), name


def test_a_loop_of_the_recipes_own(tmp_path):
    """As SpeechBrain's tutorial transcribes a data set."""

    class Transcribing(Averaging):
        def transcribe(self, data, min_key):
            loader = self.make_dataloader(
                data, sb.Stage.TEST, ckpt_prefix=None, batch_size=2
            )
            self.on_evaluate_start(min_key=min_key)
            self.modules.eval()
            with torch.no_grad():
                for batch in loader:
                    self.compute_forward(batch, stage=sb.Stage.TEST)

    brain = trained(tmp_path, Transcribing)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    brain.transcribe(TEST_SET, "WER")
    assert_evaluated(brain, merged)
    # a promise that no batch came for does not reach what is trained next
    brain.on_evaluate_start()
    candidate = brain.pool.candidates()[0]
    tally = brain.score_weights(candidate, TEST_SET)
    assert tally.value == pytest.approx(candidate.score)
    brain.on_evaluate_start()
    brain.hparams.epoch_counter.limit = 4
    train(brain)
    assert len(brain.pool.candidates()) == 4


def test_a_recipe_that_evaluates_each_epoch(tmp_path):
    class EachEpoch(Recording):
        def on_evaluate_start(self, max_key=None, min_key=None):
            """Evaluates what it is training."""

        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage == sb.Stage.VALID:
                evaluate(self)
            elif stage == sb.Stage.TEST:
                self.checkpointer.save_checkpoint({"WER": -0.1, "epoch": 0})
                return
            super().on_stage_end(stage, stage_loss, epoch)

    brain = trained(tmp_path, EachEpoch)
    found = brain.pool.candidates()
    assert [each.meta["epoch"] for each in found] == [1, 2, 3]


class Replacing(Recording):
    """Puts another module in the place of the one that was filled."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        """A copy, for the sake of it."""
        super().on_evaluate_start(max_key, min_key)
        self.modules["model"] = copy.deepcopy(self.hparams.model)


class LoadingInBatch(Recording):
    """Loads its own weights when the batch is there already."""

    def evaluate_batch(self, batch, stage):
        """An average each time."""
        if stage == sb.Stage.TEST:
            load_average(self)
        return super().evaluate_batch(batch, stage)


@pytest.mark.parametrize(
    "recipe, message",
    [
        (Replacing, "Replacing replaced the module 'model'"),
        (LoadingInBatch, r"evaluate_batch changed model\.hidden\.weight"),
    ],
)
def test_the_run_stops_and_says_why(tmp_path, recipe, message):
    brain = trained(tmp_path, recipe)
    brain.merge(MergeStage("average", [brain.pool]))
    with pytest.raises(RuntimeError, match=message) as raised:
        evaluate(brain)
    assert "use_weights(None)" in str(raised.value)
    brain.use_weights(None)
    evaluate(brain)  # the recipe as ever


def test_modules_that_do_not_keep_what_is_loaded(tmp_path):
    brain = trained(tmp_path, Averaging)
    brain.merge(MergeStage("average", [brain.pool]))

    def halve(module, keys):
        with torch.no_grad():
            module.weight.mul_(0.5)

    brain.modules.model.ctc_lin.register_load_state_dict_post_hook(halve)
    with pytest.raises(RuntimeError, match="model.ctc_lin.weight do not keep"):
        evaluate(brain)


def test_a_hook_that_merges(tmp_path):
    """Scoring within a hook is scoring, and the outcome is evaluated."""

    class MergingInHook(Averaging):
        def on_evaluate_start(self, max_key=None, min_key=None):
            super().on_evaluate_start(max_key, min_key)
            stage = MergeStage(
                "average",
                [self.pool],
                search=GreedySearch(),
                name="hook",
                decode="test",
            )
            self.result = self.merge(stage, TEST_SET)
            self.evaluated = []
            load_average(self)

    brain = trained(tmp_path, MergingInHook)
    stage = MergeStage(
        "average", [brain.pool], search=GreedySearch(), decode="test"
    )
    expected = brain.merge(stage, TEST_SET)
    assert brain.evaluated  # decoded as in the test stage
    evaluate(brain)
    assert not brain.result.reused
    assert brain.result.value == expected.value
    assert brain.result.selected == expected.selected
    assert_evaluated(brain, brain.result.path)
