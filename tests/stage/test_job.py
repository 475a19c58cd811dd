"""A merge stage resolves into one job, however it is written.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses

import pytest
import torch
from filled_pool import saver_of, train_a_little
from hyperpyyaml import load_hyperpyyaml
from tiny_models import tiny_network

from speechbrain_merge import CheckpointPool, MergeStage, provenance
from speechbrain_merge.search import GreedySearch, GridSearch
from speechbrain_merge.stage import Scoring, Selection, resolve
from speechbrain_merge.weights import open_weights

YAML = """
merge_stage: !new:speechbrain_merge.MergeStage
    method: average
    candidates: [{pool}]
    search: !new:speechbrain_merge.search.GreedySearch
    with_base: True
"""
FLAT = """
    per_run: last
    without: [read]
    metric: CER
    average: macro
    decode: test
    racing: False
"""
PARTS = """
    select: {per_run: last, without: [read], metric: CER}
    score: {average: macro, decode: test, racing: False}
"""
OBJECTS = """
    select: !new:speechbrain_merge.stage.Selection
        per_run: last
        without: [read]
        metric: CER
    score: !new:speechbrain_merge.stage.Scoring
        average: macro
        decode: test
        racing: False
"""


@pytest.fixture
def pool(tmp_path):
    """Three runs of one original, each with two candidates."""
    for number, run in enumerate(("child", "digits", "read")):
        model = tiny_network(0)
        collector = CheckpointPool(tmp_path / "pool", {"model": model}, run)
        saver = saver_of(tmp_path / run, model, collector)
        collector.store_base(resuming=False)
        for epoch in (1, 2):
            train_a_little(model, 10.0 * number + epoch)
            saver.save_checkpoint(meta={"CER": 9.0 - epoch, "epoch": epoch})
    return tmp_path / "pool"


def known(names):
    """Stands for what a Brain knows."""
    return {"hparams": "beam 8", "beside": {}, "names": len(names)}


def test_however_a_stage_is_written_it_is_the_same_job(pool, tmp_path):
    jobs = []
    for form in (FLAT, PARTS, OBJECTS):
        text = YAML.format(pool=pool) + form
        stage = load_hyperpyyaml(text)["merge_stage"]
        assert stage.select == Selection(
            per_run="last", without=["read"], metric="CER"
        )
        assert stage.score == Scoring("cer_metric", "test", "macro", False)
        jobs.append(resolve(stage, tmp_path / "job", known, "key"))
    for job in jobs:
        assert [each.name for each in job.members] == [
            "child/epoch-0002",
            "digits/epoch-0002",
            "base",
        ]
        assert job.about == jobs[0].about
        assert job.fingerprint == jobs[0].fingerprint
        assert job.about["names"] and job.about["selection"] == "key"
        assert (job.about["decode"], job.racing) == ("TEST", False)
        assert job.left_out == ("read",) and job.folder == tmp_path / "job"
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.folder = tmp_path


def test_whatever_decides_the_outcome_is_in_the_fingerprint(pool, tmp_path):
    def ask(method="average", known=known, selection="key", **settings):
        stage = MergeStage(method, [pool], metric="CER", **settings)
        return resolve(stage, tmp_path / "job", known, selection).fingerprint

    usual = ask(search=GreedySearch())
    assert usual == ask(search=GreedySearch(), workers=2, racing=False)
    others = [
        ask(),
        ask("karcher", search=GreedySearch()),
        ask(search=GreedySearch(accept="le")),
        ask(search=GreedySearch(), per_run="last"),
        ask(search=GreedySearch(), with_base=True),
        ask(search=GreedySearch(), weights=dict(child=1, digits=1, read=2)),
        ask(search=GreedySearch(), score={"decode": "test"}),
        ask(search=GreedySearch(), score={"average": "macro"}),
        ask(search=GreedySearch(), dtype="float16"),
        ask(search=GreedySearch(), selection="another"),
        ask(search=GreedySearch(), known=lambda names: {"hparams": "beam 4"}),
    ]
    assert len({usual, *others}) == len(others) + 1


def test_a_job_merges_what_its_search_proposes(pool, tmp_path):
    stage = MergeStage(
        "average",
        [pool],
        per_run="last",
        search=GreedySearch(),
        weights={"child": 1, "digits": 3, "read": 4},
    )
    job = resolve(stage, tmp_path / "job")
    child, digits, _ = job.members
    merged = job.merge([child, digits])  # weights 2 and 12, of 1 and 3
    assert {x.unique().item() for x in parameters(merged)} == {9.5}
    path = job.merge(output=job.output)
    assert path == job.output and provenance(path)["same_base"] is True
    with open_weights(path) as weights:
        whole = {name: weights[name] for name in weights.names()}
    # 2, 12 and 22, of 1, 3 and 4
    assert {x.unique().item() for x in parameters(whole)} == {15.75}
    stage = MergeStage(
        "task_arithmetic",
        [pool],
        runs=["child"],
        last=1,
        base={name: torch.zeros_like(x) for name, x in whole.items()},
        search=GridSearch("scale", [0.5]),
        same_base=False,
    )
    job = resolve(stage, tmp_path / "job")
    assert {x.unique().item() for x in parameters(job.merge())} == {2.0}
    merged = job.merge({"scale": 0.5})
    assert {x.unique().item() for x in parameters(merged)} == {1.0}


def parameters(state):
    """The tensors that are merged, without counters."""
    own = dict(tiny_network(0).named_parameters())
    return [state[f"model.{name}"] for name in own]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"per_rnu": "last"}, TypeError, "`per_rnu`.*`per_run`"),
        ({"select": {"per_rnu": "last"}}, TypeError, "`select` has `per_rnu`"),
        (
            {"select": {"last": 1}, "best": 2},
            ValueError,
            "`select` is given, and `best` beside it",
        ),
        ({"score": {"decode": "dev"}}, ValueError, "'valid' or 'test'"),
    ],
)
def test_what_a_stage_does_not_have_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        MergeStage("average", ["save/pool"], **settings)
