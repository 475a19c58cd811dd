"""The merge stage inside a Brain, on recipes that really train."""

import json
import shutil

import pytest
import torch
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

import speechbrain as sb
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.methods import Average, Extreme
from speechbrain_merge.pool.half_written import pass_over_remains
from speechbrain_merge.search import GreedySearch, GridSearch, PrefixSearch
from speechbrain_merge.weights import open_weights


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def trained(folder, epochs=5, run="run", seed=0, **arguments):
    """A Brain that has trained and collected, with its selection set."""
    torch.manual_seed(seed)
    model = tiny_network(0)
    pool = CheckpointPool(folder / "pool", {"model": model}, run=run)
    brain = tiny_ctc_brain(
        folder / run,
        model,
        MergingCTC,
        epochs=epochs,
        recoverables={"pool": pool},
        output_folder=str(folder / run),
        **arguments,
    )
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=seed + 1),
        tiny_ctc_data(10, seed=50),
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs={"batch_size": 2},
    )
    brain.pool = pool
    return brain


VALID = dict(batch_size=2)


def test_merge_then_evaluate(tmp_path):
    brain = trained(tmp_path)
    before = {path.name for path in (tmp_path / "run" / "save").rglob("*")}
    candidates = brain.pool.candidates()
    assert len(candidates) == 5
    stage = MergeStage("average", [brain.pool])
    result = brain.merge(stage)
    hand = {}
    opened = [open_weights(candidate) for candidate in candidates]
    for name in opened[0].names():
        tensors = [weights[name] for weights in opened]
        hand[name] = tensors[0]
        if tensors[0].is_floating_point():
            hand[name] = torch.stack(tensors).double().mean(0).float()
    loss = brain.evaluate(tiny_ctc_data(10, seed=50), min_key="WER")
    for name, tensor in brain.modules.model.state_dict().items():
        assert torch.equal(tensor, hand[f"model.{name}"]), name
    # the test loss of the same data is the same however often it is asked
    again = brain.evaluate(tiny_ctc_data(10, seed=50), min_key="WER")
    assert loss == again
    after = {path.name for path in (tmp_path / "run" / "save").rglob("*")}
    assert before == after
    assert result.selected == [candidate.name for candidate in candidates]
    brain.use_weights(None)
    brain.evaluate(tiny_ctc_data(10, seed=50), min_key="WER")
    best = brain.checkpointer.find_checkpoint(min_key="WER")
    stored = torch.load(best.path / "model.ckpt")
    for name, tensor in brain.modules.model.state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_scoring_leaves_no_trace_and_agrees_with_evaluate(tmp_path):
    brain = trained(tmp_path)
    stats, step = list(brain.stats), brain.step
    saved = sorted((tmp_path / "run" / "save").iterdir())
    counter = brain.hparams.epoch_counter.current
    candidate = brain.pool.candidates()[0]
    valid = tiny_ctc_data(10, seed=50)
    tally = brain.score_weights(candidate, valid, VALID)
    assert brain.stats == stats and brain.step == step
    assert sorted((tmp_path / "run" / "save").iterdir()) == saved
    assert brain.hparams.epoch_counter.current == counter
    brain.use_weights(candidate)
    brain.evaluate(valid, test_loader_kwargs=dict(VALID))
    assert brain.stats[-1][3] == pytest.approx(tally.value)
    assert tally.value == pytest.approx(candidate.score)
    assert tally.complete and tally.utterances == 10


@pytest.mark.parametrize("accept", ["lt", "le"])
@pytest.mark.parametrize("domains", [False, True])
@pytest.mark.parametrize("regrouped", [False, True])
def test_racing_changes_nothing(tmp_path, accept, domains, regrouped):
    brain = trained(tmp_path, epochs=8)
    if regrouped:
        # the network hears frame by frame, whatever comes after
        brain.modules.model.padded_seconds = lambda seconds: 1.0
    valid = tiny_ctc_data(10, seed=50)
    if domains:
        valid = {"here": valid, "there": tiny_ctc_data(8, seed=60, shift=0.6)}
    results = {}
    for racing in (True, False):
        stage = MergeStage(
            "average",
            [brain.pool],
            search=GreedySearch("shuffled", accept, seed=3),
            average="macro" if domains else "micro",
            racing=racing,
            name=f"racing-{racing}",
        )
        results[racing] = brain.merge(stage, valid, VALID)
    assert results[True].selected == results[False].selected
    assert results[True].value == results[False].value
    assert results[False].savings["skipped_utterances"] == 0
    decoded = {
        racing: sum(t["decoded_utterances"] for t in result.trials)
        for racing, result in results.items()
    }
    assert decoded[True] <= decoded[False]


def test_statistical_racing_says_what_it_did(tmp_path):
    brain = trained(tmp_path, epochs=8)
    brain.modules.model.padded_seconds = lambda seconds: 1.0
    valid = tiny_ctc_data(60, seed=50, shift=1.0)
    results = {}
    for racing in (True, "statistical"):
        stage = MergeStage(
            "average",
            [brain.pool],
            search=GreedySearch(score_singles=True),
            score={"racing": racing, "racing_error": 0.2},
            name=f"racing-{racing}",
            # trials of their own: exact ones would answer the others
            folder=tmp_path / str(racing),
        )
        results[racing] = brain.merge(stage, valid, VALID)
        assert brain.merge(stage, valid, VALID).reused
    exact, statistical = results[True], results["statistical"]
    assert exact.savings["error"] is None and not exact.savings["given_up"]
    assert statistical.savings["error"] == 0.2
    given_up = [t for t in statistical.trials if "chance" in t]
    assert 0 < len(given_up) == statistical.savings["given_up"]
    assert all(t["chance"] <= 0.2 and not t["accepted"] for t in given_up)
    assert statistical.savings["seconds"] < exact.savings["seconds"]
    assert (
        statistical.savings["fraction_of_rejected"]
        > statistical.savings["fraction"]
    )
    # an exact search does not believe what was only likely
    again = MergeStage(
        "average",
        [brain.pool],
        search=GreedySearch(score_singles=True),
        folder=tmp_path / "statistical",
        name="exact",
    )
    found = brain.merge(again, valid, VALID)
    assert found.value == exact.value and found.selected == exact.selected
    rescored = [t for t in found.trials if not t["reused"]]
    assert len(rescored) == len(given_up)


def test_a_killed_search_goes_on_where_it_was(tmp_path, monkeypatch):
    brain = trained(tmp_path, epochs=6)
    valid = tiny_ctc_data(10, seed=50)

    def stage():
        return MergeStage(
            "average", [brain.pool], search=GreedySearch(), name="greedy"
        )

    calls, whole = [], type(brain).evaluate_batch

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(brain), "evaluate_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        brain.merge(stage(), valid, VALID)
    folder = tmp_path / "run" / "merge" / "greedy"
    assert not (folder / "merged.safetensors").exists()
    resumed = brain.merge(stage(), valid, VALID)
    assert any(trial["reused"] for trial in resumed.trials)
    shutil.rmtree(folder)
    fresh = brain.merge(stage(), valid, VALID)
    assert fresh.selected == resumed.selected
    assert fresh.value == resumed.value
    count = len(calls)
    cached = brain.merge(stage(), valid, VALID)
    assert cached.reused and cached.selected == fresh.selected
    assert len(calls) == count
    # other data is another question
    assert not brain.merge(stage(), tiny_ctc_data(10, seed=51), VALID).reused
    # a damaged result is made again
    path = folder / "merged.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert not brain.merge(stage(), tiny_ctc_data(10, seed=51), VALID).reused


def test_many_runs_prefixes_and_the_pools_base(tmp_path):
    for run in ("one", "two", "three"):
        brain = trained(tmp_path, 3, run, seed=len(run))
    stage = MergeStage(
        Average(),
        tmp_path / "pool",
        per_run="best",
        search=PrefixSearch(score_singles=True),
        name="mact",
    )
    result = brain.merge(stage, tiny_ctc_data(10, seed=50), VALID)
    assert len(result.selected) == 3
    merges = [trial for trial in result.trials if trial["kind"] == "merge"]
    assert [trial["merged"] for trial in merges] == [2, 3]
    assert json.loads(
        (tmp_path / "three" / "merge" / "mact" / "result.json").read_text()
    )["result"]["selected"] == list(result.selected)
    magmax = MergeStage(
        Extreme(reference="base"), tmp_path / "pool", per_run="best"
    )
    merged = brain.merge(magmax)
    with (
        open_weights(merged.path) as weights,
        open_weights(brain.pool.candidates()[0].base) as base,
    ):
        start = tiny_network(0).state_dict()
        assert torch.equal(base["model.hidden.weight"], start["hidden.weight"])
        assert (
            weights["model.hidden.weight"].shape == start["hidden.weight"].shape
        )


def test_the_base_under_another_name(tmp_path):
    """A file of the base that calls the module something else."""
    brain = trained(tmp_path, epochs=2)
    other = {
        f"hub.{name}": tensor
        for name, tensor in tiny_network(0).state_dict().items()
    }
    torch.save(other, tmp_path / "hub.pt")
    merged = {}
    for base in (None, str(tmp_path / "hub.pt")):
        stage = MergeStage(
            Extreme(reference="base"), [brain.pool], base=base, name="base"
        )
        with open_weights(brain.merge(stage).path) as weights:
            merged[base] = {name: weights[name] for name in weights.names()}
    first, second = merged.values()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_coefficients_are_searched(tmp_path):
    brain = trained(tmp_path, epochs=4)
    stage = MergeStage(
        Extreme(reference="base"),
        [brain.pool],
        search=GridSearch("scale", [0.0, 0.5, 1.0]),
        name="grid",
    )
    result = brain.merge(stage, tiny_ctc_data(10, seed=50), VALID)
    assert result.method["scale"] in (0.0, 0.5, 1.0)
    values = [trial["value"] for trial in result.trials]
    assert len(values) == 3 and result.value == min(values)


def test_old_checkpoints_merge_without_a_pool(tmp_path):
    """Past runs of any recipe, read where SpeechBrain left them."""
    brain = tiny_ctc_brain(tmp_path, brain_class=MergingCTC, epochs=3)
    brain.fit(
        brain.hparams.epoch_counter, tiny_ctc_data(8), tiny_ctc_data(4, seed=2)
    )
    brain.hparams.output_folder = str(tmp_path)
    stage = MergeStage("average", str(tmp_path / "save"))
    result = brain.merge(stage)
    brain.evaluate(tiny_ctc_data(4, seed=2))
    assert len(result.selected) == len(brain.checkpointer.list_checkpoints())


@pytest.mark.parametrize(
    "stage, message",
    [
        (lambda: MergeStage("averge", "pool"), "Did you mean 'average'"),
        (lambda: MergeStage("average", "p", decode="dev"), "'valid' or 'test'"),
        (lambda: MergeStage("average", "p", search="greedy"), "search"),
    ],
)
def test_wrong_stages(stage, message):
    with pytest.raises(ValueError, match=message):
        stage()


def test_wrong_use_of_a_stage(tmp_path):
    brain = trained(tmp_path, epochs=2)
    with pytest.raises(ValueError, match="give `valid_set`"):
        brain.merge(MergeStage("average", [brain.pool], search=GreedySearch()))
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        brain.merge(MergeStage("average", str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="`nothing_metric`"):
        brain.merge(
            MergeStage(
                "average",
                [brain.pool],
                search=GreedySearch(),
                tracker="nothing_metric",
            ),
            tiny_ctc_data(4),
            VALID,
        )
    with pytest.raises(ValueError, match="no utterance"):
        brain.merge(
            MergeStage("average", [brain.pool], search=GreedySearch()),
            tiny_ctc_data(4).filtered_sorted(key_max_value={"duration": -1}),
            VALID,
        )
    without = MergeStage(Extreme(reference="base"), str(tmp_path / "run/save"))
    with pytest.raises(ValueError, match="give `base`"):
        brain.merge(without)
    with pytest.raises(ValueError, match="module 'other'"):
        brain.load_weights({"other.weight": torch.zeros(1)})


@pytest.mark.parametrize("remains", ["missing", "empty", "torn", "only"])
def test_remains_of_a_checkpoint_are_passed_over(tmp_path, caplog, remains):
    """SpeechBrain writes in place: a kill leaves what cannot be loaded."""
    data = tiny_ctc_data(8)

    def train(folder, epochs):
        torch.manual_seed(0)
        brain = tiny_ctc_brain(
            folder, tiny_network(0), MergingCTC, epochs=epochs
        )
        brain.fit(brain.hparams.epoch_counter, data, data)
        return brain

    def files(brain):
        checkpoints = brain.checkpointer.find_checkpoints()
        assert checkpoints
        return checkpoints[0].path, checkpoints[0].paramfiles

    whole = train(tmp_path / "whole", 2)
    broken = tmp_path / "broken"
    if remains != "only":
        train(broken, 1)
    brain = train(broken, 2)
    newest, paths = files(brain)
    if remains == "missing":
        paths["brain"].unlink()
    elif remains == "empty":
        paths["optimizer"].write_bytes(b"")
    elif remains == "torn":
        content = paths["model"].read_bytes()
        paths["model"].write_bytes(content[: len(content) // 2])
    else:
        for checkpoint in brain.checkpointer.find_checkpoints():
            checkpoint.paramfiles["brain"].unlink()
    caplog.clear()
    again = train(broken, 2)
    assert f"{newest} is passed over" in caplog.text
    assert again.optimizer_step == whole.optimizer_step
    for name, tensor in whole.modules.state_dict().items():
        assert torch.equal(tensor, again.modules.state_dict()[name]), name


def test_a_kill_between_any_two_files_of_a_checkpoint(tmp_path):
    """Also after the Brain's file, while the optimizer's is not there yet."""
    data = tiny_ctc_data(8)

    def train(folder, epochs, stop_after=None):
        torch.manual_seed(0)
        brain = tiny_ctc_brain(
            folder, tiny_network(0), MergingCTC, epochs=epochs
        )
        written = []

        def save(name):
            hook = sb.utils.checkpoints.get_default_hook(
                brain.checkpointer.recoverables[name],
                sb.utils.checkpoints.DEFAULT_SAVE_HOOKS,
            )

            def function(recoverable, path):
                if len(written) == stop_after:
                    raise InterruptedError
                written.append(name)
                hook(recoverable, path)

            return function

        class Hooks(dict):
            def __contains__(self, name):
                return True

            def __getitem__(self, name):
                return save(name)

        brain.checkpointer.custom_save_hooks = Hooks()
        brain.fit(brain.hparams.epoch_counter, data, data)
        return brain, written

    whole, written = train(tmp_path / "whole", 2)
    files = len(written) // 2
    assert "optimizer" in written and written[-1] == "brain"
    for number in range(files):
        folder = tmp_path / str(number)
        train(folder, 1)
        with pytest.raises(InterruptedError):
            train(folder, 2, stop_after=number)
        again, _ = train(folder, 2)
        assert again.optimizer_step == whole.optimizer_step
        for name, tensor in whole.modules.state_dict().items():
            assert torch.equal(tensor, again.modules.state_dict()[name]), name


def test_a_part_of_a_checkpoint_is_no_remains_where_parts_are_allowed(tmp_path):
    modules = {name: torch.nn.Linear(1, 1) for name in ("model", "last")}
    saver = sb.utils.checkpoints.Checkpointer(
        tmp_path, modules, allow_partial_load=True
    )
    saver.save_checkpoint(name="first")
    part = saver.save_checkpoint(name="part")
    part.paramfiles["last"].unlink()
    pass_over_remains(saver)
    assert saver.recover_if_possible().path == part.path
    part.paramfiles["model"].write_bytes(b"")
    assert saver.recover_if_possible().path.name == "CKPT+first"


class PlainBrain(MergeMixin, sb.Brain):
    """As in a notebook."""

    def compute_forward(self, batch, stage):
        """The model's output."""
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        """A loss of some kind."""
        return predictions.square().mean()


def test_a_brain_without_hyperparameters_trains():
    """As SpeechBrain's own does."""
    model = torch.nn.Linear(3, 2)
    brain = PlainBrain({"model": model}, lambda p: torch.optim.SGD(p, lr=0.1))
    before = model.weight.clone()
    brain.fit(range(1), [torch.ones(4, 3)], [torch.ones(4, 3)], False)
    assert not torch.equal(model.weight, before)
    assert PlainBrain({}, hparams={"lr": 1}).hparams.lr == 1
