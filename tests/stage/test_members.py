"""Who takes part in a merge stage, from which original, with what weight."""

import pytest
import torch
from filled_pool import saver_of, train_a_little
from hyperpyyaml import load_hyperpyyaml
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.cli import main
from speechbrain_merge.methods import Average
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.stage import resolve
from speechbrain_merge.weights import open_weights

RUNS = ("child_l2", "digits", "read", "telephony")


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def fill(folder, start, runs=RUNS, epochs=2, pool="pool"):
    """Experts of one original, a run each, with their error rates."""
    for number, run in enumerate(runs):
        torch.manual_seed(number)
        model = tiny_network(0)
        model.load_state_dict(start)
        collector = CheckpointPool(folder / pool, {"model": model}, run)
        saver = saver_of(folder / run / pool, model, collector)
        collector.store_base(resuming=False)
        for epoch in range(1, epochs + 1):
            train_a_little(model)
            saver.save_checkpoint(meta={"WER": 10.0 - epoch, "epoch": epoch})


@pytest.fixture
def brain(tmp_path):
    """A Brain that merges four domain experts of one original."""
    fill(tmp_path, tiny_network(0).state_dict())
    return tiny_ctc_brain(
        tmp_path / "brain",
        tiny_network(9),
        MergingCTC,
        output_folder=str(tmp_path),
    )


def mean(folder, weights, base=None):
    """The weighted mean of the best of each run, by hand in float64."""
    total = {}
    sources = {
        each.run: each
        for each in select(read_pool(folder / "pool"), per_run="best")
    }
    sources["base"] = base or sources["digits"].base
    for run, weight in weights.items():
        with open_weights(sources[run]) as opened:
            for name in opened:
                if opened.dtype(name).is_floating_point:
                    part = weight * opened[name].double()
                    total[name] = total.get(name, 0) + part
    return {
        name: (tensor / sum(weights.values())).float()
        for name, tensor in total.items()
    }


def assert_merged(path, expected, tolerance=0.0):
    with open_weights(path) as merged:
        for name, tensor in expected.items():
            torch.testing.assert_close(
                merged[name], tensor, rtol=tolerance, atol=tolerance
            )


def test_the_original_is_one_more_member(brain, tmp_path):
    stage = MergeStage(
        "average", [tmp_path / "pool"], per_run="best", with_base=True
    )
    result = brain.merge(stage)
    assert result.selected[-1] == "base" and len(result.selected) == 5
    equal = dict.fromkeys([*RUNS, "base"], 1.0)
    assert_merged(result.path, mean(tmp_path, equal), 1e-7)
    # the YAML of an earlier result is another question
    plain = MergeStage("average", [tmp_path / "pool"], per_run="best")
    assert not brain.merge(plain).reused
    assert brain.merge(stage).reused is False  # merged anew over the other
    assert brain.merge(stage).reused


def test_one_domain_is_favoured_in_yaml(brain, tmp_path):
    text = f"""
    stage: !new:speechbrain_merge.MergeStage
        method: average
        candidates: [{tmp_path}/pool]
        per_run: best
        with_base: True
        weights: {{child_l2: 4/8, digits: 1/8, read: 0.125, telephony: 1/8,
            base: 1/8}}
    """
    result = brain.merge(load_hyperpyyaml(text)["stage"])
    weights = dict.fromkeys([*RUNS, "base"], 1 / 8) | {"child_l2": 4 / 8}
    assert_merged(result.path, mean(tmp_path, weights))
    assert result.method["weights"] == {
        "experts": {
            "child_l2/epoch-0002": 0.5,
            "digits/epoch-0002": 0.125,
            "read/epoch-0002": 0.125,
            "telephony/epoch-0002": 0.125,
            "base": 0.125,
        }
    }


def test_a_run_shares_its_weight_among_its_candidates(brain, tmp_path):
    stage = MergeStage(
        "average",
        [tmp_path / "pool"],
        runs=["digits", "read"],
        weights={"digits": 3, "read/epoch-0001": 1, "read/epoch-0002": 0},
    )
    method, _ = resolve(stage, tmp_path).proposed()
    weights = method.weights
    assert list(weights["experts"].values()) == [1.5, 1.5, 1, 0]


def test_leaving_a_domain_out_rolls_it_back(brain, tmp_path):
    without = MergeStage(
        "average", tmp_path / "pool", per_run="last", without=["read"]
    )
    chosen = MergeStage(
        "average",
        tmp_path / "pool",
        per_run="last",
        runs=["child_l2", "digits", "telephony"],
    )
    assert without.chosen() == chosen.chosen()
    rest = dict.fromkeys(["child_l2", "digits", "telephony"], 1.0)
    assert_merged(brain.merge(without).path, mean(tmp_path, rest), 1e-7)


def test_a_search_weighs_what_it_tries_and_may_leave_the_base_out(
    brain, tmp_path
):
    brain.fit(brain.hparams.epoch_counter, tiny_ctc_data(4), tiny_ctc_data(4))
    stage = MergeStage(
        "average",
        [tmp_path / "pool"],
        per_run="best",
        with_base=True,
        weights={"child_l2": 4, "digits": 1, "read": 1, "telephony": 1}
        | {"base": 2},
        search=GreedySearch("given", "le"),
    )
    result = brain.merge(stage, tiny_ctc_data(6, seed=5), {"batch_size": 2})
    tried = {trial["candidate"] for trial in result.trials}
    assert "base" in tried and len(tried) == 5
    shares = {"child_l2": 4, "base": 2}
    runs = [name.partition("/")[0] for name in result.selected]
    weights = {run: shares.get(run, 1) for run in runs}
    assert_merged(result.path, mean(tmp_path, weights), 1e-7)
    assert list(result.method["weights"]["experts"]) == result.selected


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"runs": ["digits", "noise"]}, ["no run noise", "child_l2, digits"]),
        ({"without": "noise"}, ["no run noise", "read, telephony"]),
        ({"without": RUNS}, ["leaves none of the runs child_l2"]),
        (
            {"runs": ["digits", "read"], "weights": {"digits": 1, "noise": 1}},
            [
                "weights without a member: noise",
                "members without a weight: read/epoch-0002",
                "(digits, read)",
            ],
        ),
        (
            {"runs": ["digits"], "weights": {"digits": 1, "base": 1}},
            ["without a member: base"],
        ),
        (
            {"runs": ["read"], "weights": {"read": 1, "read/epoch-0002": 1}},
            ["weighed by candidate and by run: read/epoch-0002"],
        ),
        (
            {"runs": ["read"], "weights": {"read": "4/0"}},
            ["the weight of 'read' is '4/0'"],
        ),
        ({"method": "ties", "weights": {}}, ["'ties' takes no `weights`"]),
    ],
)
def test_wrong_members_are_named(brain, tmp_path, settings, words):
    with pytest.raises(ValueError) as caught:
        MergeStage(
            **{"method": "average", "per_run": "best", **settings},
            candidates=tmp_path / "pool",
        ).chosen()
    for word in words:
        assert word in str(caught.value)


def test_a_run_must_not_be_called_base(tmp_path):
    fill(tmp_path, tiny_network(0).state_dict(), ["base", "read"], 1)
    stage = MergeStage("average", tmp_path / "pool", with_base=True)
    with pytest.raises(ValueError, match="give the run another name"):
        stage.chosen()


def test_experts_of_different_originals_are_refused(brain, tmp_path):
    fill(tmp_path, tiny_network(1).state_dict(), ["strange"], 1)
    stage = MergeStage("average", tmp_path / "pool", per_run="best")
    with pytest.raises(ValueError) as caught:
        brain.merge(stage)
    told = str(caught.value)
    for run in ("child_l2", "strange"):
        assert str(tmp_path / "pool" / run / "base.safetensors") in told
    assert "'strange/epoch-0001'" in told and "same_base: False" in told
    for digest in {c.base_digest for c in read_pool(tmp_path / "pool")}:
        assert digest[:12] in told
    # unless told otherwise, or the stranger is left out
    settings = {"candidates": tmp_path / "pool", "per_run": "best"}
    free = MergeStage("average", same_base=False, **settings)
    assert len(brain.merge(free).selected) == 5
    assert len(MergeStage("average", without="strange", **settings).chosen())
    with pytest.raises(ValueError, match="from different ones: give `base`"):
        MergeStage(
            "average", same_base=False, with_base=True, **settings
        ).chosen()


def test_rounds_start_from_averages_and_the_original_joins_at_the_end(
    brain, tmp_path
):
    original = tiny_network(0).state_dict()
    first = brain.merge(
        MergeStage("average", tmp_path / "pool", per_run="best", name="round-1")
    )
    brain.load_weights(first.path)
    average = brain.modules.model.state_dict()
    fill(tmp_path, average, epochs=1, pool="pool-2")
    experts = read_pool(tmp_path / "pool-2")
    with open_weights(experts[0].base) as base, open_weights(first.path) as one:
        assert all(torch.equal(base[name], one[name]) for name in base)
    assert len({expert.base_digest for expert in experts}) == 1

    # the pool's base is the average of round 1; the original is given
    settings = {"candidates": tmp_path / "pool-2", "with_base": True}
    torch.save(
        {f"model.{k}": v for k, v in original.items()}, tmp_path / "o.pt"
    )
    last = brain.merge(
        MergeStage("average", base=tmp_path / "o.pt", name="end", **settings)
    )
    with open_weights(last.path) as merged:
        for name in ("hidden.weight", "norm.bias", "norm.running_mean"):
            members = [original[name].double()]
            for expert in experts:
                with open_weights(expert) as weights:
                    members.append(weights[f"model.{name}"].double())
            expected = (sum(members) / 5).float()
            torch.testing.assert_close(
                merged[f"model.{name}"], expected, rtol=1e-7, atol=1e-7
            )
    # experts of two rounds are of two originals
    both = [tmp_path / "pool", tmp_path / "pool-2"]
    with pytest.raises(ValueError, match="different originals"):
        MergeStage("average", both).chosen()


def test_the_command_line_refuses_different_originals_too(tmp_path, capsys):
    fill(tmp_path, tiny_network(0).state_dict(), ["digits"], 1)
    fill(tmp_path, tiny_network(1).state_dict(), ["strange"], 1)
    files = [str(path) for path in (tmp_path / "pool").glob("*/epoch-*")]
    output = tmp_path / "merged.safetensors"
    for experts in ([str(tmp_path / "pool")], files):
        command = ["merge", "average", *experts, "-o", str(output), "--quiet"]
        assert main(command) != 0
        told = capsys.readouterr().err
        assert "different originals" in told and "'strange/epoch-0001'" in told
        assert "--different-bases" in told and not output.exists()
        assert main([*command, "--different-bases"]) == 0
        capsys.readouterr()
        output.unlink()


def test_a_method_made_for_models_of_different_starts_takes_them(tmp_path):
    class Aligning(Average):
        """Stands for one that aligns its experts first."""

        needs_same_base = False

    fill(tmp_path, tiny_network(0).state_dict(), ["digits"], 1)
    fill(tmp_path, tiny_network(1).state_dict(), ["strange"], 1)
    assert len(MergeStage(Aligning(), tmp_path / "pool").chosen()) == 2
