"""A merge stage that weighs the checkpoints of a training as a decay."""

from pathlib import Path

import pytest
from filled_pool import collect
from hyperpyyaml import load_hyperpyyaml

from speechbrain_merge import MergeStage
from speechbrain_merge.methods import Average, Restricted, trajectory_weights
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.stage import resolve
from speechbrain_merge.study.plan import plan_models

MAST = (
    Path(__file__).resolve().parents[2] / "speechbrain_merge/hparams/mast.yaml"
)


@pytest.fixture
def pool(tmp_path):
    """A run of five epochs; the weights of epoch n are all n."""
    metas = [{"WER": rate} for rate in (9.0, 7.0, 8.0, 6.0, 6.5)]
    collect(tmp_path, metas, run="seed-1")
    return tmp_path / "pool"


def value_of(merged):
    """What all weights of a merge are."""
    [value] = {x.item() for tensor in merged.values() for x in tensor.flatten()}
    return value


def test_one_word_of_yaml(pool, tmp_path):
    text = (
        f"merge_stage: !include:{MAST}\n"
        f"    candidates: [{pool}]\n"
        "    weights: inverse_square_root\n"
    )
    stage = load_hyperpyyaml(text)["merge_stage"]
    job = resolve(stage, tmp_path / "job")
    weights = trajectory_weights("inverse_square_root", 5)
    expected = sum(c * epoch for c, epoch in zip(weights, range(1, 6)))
    assert value_of(job.merge()) == pytest.approx(expected, rel=1e-6)
    # what was merged says the numbers
    result = job.result(job.merge(output=job.output))
    given = result.method["weights"]["experts"]
    assert list(given) == [f"seed-1/epoch-000{n}" for n in range(1, 6)]
    assert list(given.values()) == weights


def test_the_last_ones_with_the_word_in_either_place(pool, tmp_path):
    stages = [
        MergeStage("average", [pool], last=3, weights="cosine"),
        MergeStage(Average("cosine"), [pool], last=3),
        MergeStage(Restricted(Average("cosine"), "weight"), [pool], last=3),
    ]
    jobs = [resolve(stage, tmp_path / "job") for stage in stages]
    assert jobs[0].fingerprint == jobs[1].fingerprint != jobs[2].fingerprint
    for job in jobs:
        # a quarter, a half and a quarter of 3, 4 and 5
        assert value_of(job.merge()) == pytest.approx(4, rel=1e-6)
    usual = resolve(MergeStage("average", [pool], last=3), tmp_path / "job")
    assert usual.fingerprint != jobs[0].fingerprint


def test_a_search_weighs_what_it_tries_in_the_order_of_training(pool, tmp_path):
    stage = MergeStage(
        "average",
        [pool],
        weights="inverse_square_root",
        search=GreedySearch(order="sorted", sort_by="pool"),
    )
    job = resolve(stage, tmp_path / "job")
    _, second, _, fourth, fifth = job.members
    c = trajectory_weights("inverse_square_root", 3)
    expected = c[0] * 2 + c[1] * 4 + c[2] * 5
    for proposal in ([fourth, fifth, second], [second, fourth, fifth]):
        assert value_of(job.merge(proposal)) == pytest.approx(expected)
    assert value_of(job.merge([fourth])) == 4


def test_two_trainings_have_no_common_decay(pool, tmp_path):
    collect(tmp_path / "other", [{"WER": 5.0}] * 2, run="seed-2")
    pools = [pool, tmp_path / "other/pool"]
    message = "one training, and these are of seed-1, seed-2: name one"
    stage = MergeStage("average", pools, weights="cosine")
    with pytest.raises(ValueError, match=message):
        stage.chosen()
    with pytest.raises(ValueError, match=message):
        resolve(stage, tmp_path / "job")
    chosen = MergeStage("average", pools, weights="cosine", runs=["seed-2"])
    assert [each.run for each in chosen.chosen()] == ["seed-2"] * 2


@pytest.mark.parametrize("option", [{"with_base": True}, {"extends": "aode"}])
def test_what_does_not_go_with_a_decay(option):
    [name] = option
    with pytest.raises(ValueError, match=f"does not go with `{name}`"):
        MergeStage("average", ["pool"], weights="linear", **option)
    with pytest.raises(ValueError, match="no decay 'best'"):
        MergeStage("average", ["pool"], weights="best")
    with pytest.raises(ValueError, match="takes no `weights`"):
        MergeStage("model_stock", ["pool"], weights="linear")


def test_in_a_study():
    models = {
        "best": {"train": ["clean"]},
        "decayed": {
            "merge": "average",
            "of": {"runs": "best", "last": 3},
            "weights": "cosine",
        },
    }
    *_, node = plan_models(models, ["clean"], ["expert"])
    assert node.method.weights == "cosine"
    models["decayed"]["of"] = ["best", "original"]
    with pytest.raises(ValueError, match="'cosine': a decay weighs the cand"):
        plan_models(models, ["clean"], ["expert"])
    models["decayed"]["of"] = {"runs": "best"}
    models["decayed"]["weights"] = [1, 2]
    with pytest.raises(ValueError, match="go with models, not with the cand"):
        plan_models(models, ["clean"], ["expert"])
