"""Next month's average: of last month's members and one more."""

import json
import shutil

import pytest
import torch
from filled_pool import saver_of, take_checks, train_a_little
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage, merge
from speechbrain_merge.cli import main
from speechbrain_merge.methods import OPCM, Average
from speechbrain_merge.pool import read_merges, read_pool, select
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.stage.extending import remerge
from speechbrain_merge.weights import ChangedContent, open_weights


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def train(folder, run, seed, epochs=2):
    """An expert of its own run, from the one original."""
    model = tiny_network(0)
    pool = CheckpointPool(folder / "pool", {"model": model}, run)
    saver = saver_of(folder / run, model, pool)
    pool.store_base(resuming=False)
    torch.manual_seed(seed)
    for epoch in range(1, epochs + 1):
        train_a_little(model)
        # The first of each is the best
        saver.save_checkpoint(meta={"WER": 5.0 + epoch, "epoch": epoch})


@pytest.fixture
def pool(tmp_path):
    """Three domains."""
    for seed, run in enumerate(("child", "digits", "read")):
        train(tmp_path, run, seed)
    return tmp_path / "pool"


@pytest.fixture
def brain(pool, tmp_path):
    return merging_brain(tmp_path)


def merging_brain(folder):
    return tiny_ctc_brain(
        folder / "brain",
        tiny_network(9),
        MergingCTC,
        output_folder=str(folder),
    )


def stage(pool, **settings):
    return MergeStage(
        "average", [pool], **{"per_run": "best", "name": "aode", **settings}
    )


def expected(pool, weights):
    """The average by the engine alone."""
    best = {each.run: each for each in select(read_pool(pool), "best")}
    best["base"] = best["child"].base
    sources = [best[run] for run in weights]
    # noise stands for training, more than any training changes weights
    return merge(
        Average(list(weights.values())),
        sources,
        progress=False,
        same_base=False,
    )


def assert_merged(path, pool, weights):
    wanted = expected(pool, weights)
    with open_weights(path) as found:
        for name, tensor in wanted.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=0, atol=1e-7, msg=name
            )


def test_a_stage_leaves_a_record(brain, pool):
    result = brain.merge(stage(pool, with_base=True))
    (record,) = read_merges(pool)
    assert record.name == "aode" and record.with_base
    assert record.runs == ["child", "digits", "read", "base"]
    best = select(read_pool(pool), per_run="best")
    digests = [member.digest for member in record.members]
    assert digests[:3] == [each.digest for each in best]
    assert digests[3] == best[0].base_digest
    assert [member.weight for member in record.members] == [0.25] * 4
    assert record.path == str(result.path) and record.weights is None
    # found again, it is no news
    assert brain.merge(stage(pool, with_base=True)).reused
    assert len(read_merges(pool)) == 1
    # and it does not look like a run
    assert {each.run for each in read_pool(pool)} == {"child", "digits", "read"}


def test_a_month_later_one_domain_joins(brain, pool, tmp_path):
    brain.merge(stage(pool))
    train(tmp_path, "street", 7)
    # An old run has gone on training meanwhile: its member stays what it was
    best = [each.digest for each in select(read_pool(pool), "best")]
    take_checks(pool / "digits" / "manifest.jsonl")
    lines = (pool / "digits" / "manifest.jsonl").read_text()
    manifest = lines.replace('"WER": 6.0', '"WER": 60.0')
    (pool / "digits" / "manifest.jsonl").write_text(manifest)
    changed = [each.digest for each in select(read_pool(pool), "best")]
    assert best != changed
    result = brain.merge(stage(pool, extends="aode"))
    (pool / "digits" / "manifest.jsonl").write_text(lines)
    assert_merged(
        result.path,
        pool,
        dict.fromkeys(["child", "digits", "read"], 1) | {"street": 1},
    )
    first, second = read_merges(pool)
    assert second.runs == [*first.runs, "street"]
    assert second.members[1].digest == first.members[1].digest
    # the same command again: nothing is new
    assert brain.merge(stage(pool, extends="aode")).reused
    assert len(read_merges(pool)) == 2


def test_a_domain_is_rolled_back_and_stays_out(brain, pool, tmp_path):
    brain.merge(stage(pool))
    without = brain.merge(stage(pool, extends="aode", without="digits"))
    assert_merged(without.path, pool, {"child": 1, "read": 1})
    train(tmp_path, "street", 7)
    later = brain.merge(stage(pool, extends="aode"))
    assert_merged(later.path, pool, {"child": 1, "read": 1, "street": 1})
    assert read_merges(pool)[-1].left_out == ("digits",)
    # unless it is asked for
    back = brain.merge(stage(pool, extends="aode", runs=["digits"]))
    assert_merged(
        back.path, pool, {"child": 1, "read": 1, "street": 1, "digits": 1}
    )
    assert read_merges(pool)[-1].left_out == ()


def test_weights_and_the_original_are_remembered(brain, pool, tmp_path):
    weights = {"child": "4/8", "digits": "1/8", "read": "2/8", "base": "1/8"}
    brain.merge(stage(pool, weights=weights, with_base=True))
    train(tmp_path, "street", 7)
    with pytest.raises(ValueError, match="without a weight: street/epoch-0001"):
        brain.merge(stage(pool, extends="aode"))
    result = brain.merge(stage(pool, extends="aode", weights={"street": 0.25}))
    assert_merged(
        result.path,
        pool,
        {"child": 4, "digits": 1, "read": 2, "street": 2, "base": 1},
    )
    # an old one is weighed anew, the original left out
    settings = {"weights": {"child": 0.125}, "with_base": False}
    result = brain.merge(stage(pool, extends="aode", **settings))
    assert_merged(
        result.path, pool, {"child": 1, "digits": 1, "read": 2, "street": 2}
    )
    shares = {each.run: each.weight for each in read_merges(pool)[-1].members}
    assert shares == pytest.approx(
        {"child": 1 / 6, "digits": 1 / 6, "read": 1 / 3, "street": 1 / 3}
    )


def test_remerge_needs_no_recipe(brain, pool, tmp_path):
    weights = {"child": 2, "digits": 1, "read": 1, "base": 1}
    brain.merge(stage(pool, weights=weights, with_base=True))
    train(tmp_path, "street", 7)
    output = tmp_path / "new" / "aode.safetensors"
    result = remerge(pool, output, weights={"street": 3}, progress=False)
    assert result.path == output
    assert_merged(
        output,
        pool,
        {"child": 2, "digits": 1, "read": 1, "street": 3, "base": 1},
    )
    remerge(pool, output, without=["child"], progress=False)
    assert_merged(
        output, pool, {"digits": 1, "read": 1, "street": 3, "base": 1}
    )
    assert read_merges(pool)[-1].left_out == ("child",)
    with open_weights(output) as merged:
        made = json.loads(merged.metadata["merge"])
    assert [source["label"] for source in made["sources"]] == [
        "digits/epoch-0001",
        "read/epoch-0001",
        "street/epoch-0001",
        "base",
    ]


def test_the_first_original_joins_again_where_it_was_given(
    brain, pool, tmp_path
):
    """As after several rounds: the pool's own base is an average."""
    first = {f"model.{k}": v for k, v in tiny_network(5).state_dict().items()}
    torch.save(first, tmp_path / "original.pt")
    settings = {"with_base": True, "base": tmp_path / "original.pt"}
    brain.merge(stage(pool, **settings))
    train(tmp_path, "street", 7)
    result = remerge(pool, tmp_path / "again.safetensors", progress=False)
    best = select(read_pool(pool), per_run="best")
    wanted = merge("average", [*best, first], progress=False, same_base=False)
    with open_weights(result.path) as found:
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name


def test_the_command_line_shows_what_was_merged(brain, pool, capsys):
    brain.merge(stage(pool, with_base=True))
    brain.merge(MergeStage("ties", [pool], runs=["child", "read"], last=1))
    capsys.readouterr()
    assert main(["inspect", str(pool)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = rows.index(["merge", "made", "method", "member", "weight"])
    shown = [(row[0], row[3], row[4], row[5]) for row in rows[head + 1 :]]
    assert shown == [
        ("aode", "average", "child/epoch-0001", "0.2500"),
        ("aode", "average", "digits/epoch-0001", "0.2500"),
        ("aode", "average", "read/epoch-0001", "0.2500"),
        ("aode", "average", "base", "0.2500"),
        ("ties", "ties", "child/epoch-0002", "-"),
        ("ties", "ties", "read/epoch-0002", "-"),
    ]


def test_what_cannot_be_repeated_is_said(brain, pool, tmp_path):
    with pytest.raises(ValueError, match="no record of a merge"):
        remerge(pool, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no merge 'aode' is recorded"):
        brain.merge(stage(pool, extends="aode"))
    brain.merge(stage(pool))
    with pytest.raises(ValueError, match="no run noise. There is: child"):
        brain.merge(stage(pool, extends="aode", without=["noise"]))
    with pytest.raises(ValueError, match="no run noise"):
        brain.merge(stage(pool, extends="aode", runs=["noise"]))
    gone = read_merges(pool)[0].members[0].name
    with open(pool / "child" / "manifest.jsonl", "a") as file:
        line = {"event": "removed", "name": gone.partition("/")[2]}
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=f"any more: {gone}"):
        brain.merge(stage(pool, extends="aode"))
    # left out, it is not missed
    brain.merge(stage(pool, extends="aode", without="child"))


def test_a_remembered_base_is_not_looked_up_on_a_hub(
    brain, pool, tmp_path, monkeypatch
):
    import huggingface_hub

    def refuse(*arguments, **settings):
        raise AssertionError("reached the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    members = tuple(
        Member(each.name, each.run, each.digest) for each in read_pool(pool)
    )
    for name in ("evil/model", str(tmp_path / "gone.safetensors")):
        method = {"name": "task_arithmetic"}
        remember(pool, MergeRecord("aode", method, members, base=name))
        with pytest.raises(ValueError, match=f"{name}', which is not on this"):
            remerge(pool, tmp_path / "m.safetensors", progress=False)


def continual(pool, **settings):
    """The stage of hparams/continual.yaml."""
    return MergeStage(
        OPCM(alpha=0.5),
        [pool],
        **{
            "per_run": "best",
            "name": "continual",
            "extends": "continual",
            "same_base": False,  # noise stands for training
            **settings,
        },
    )


def test_opcm_adds_a_domain_without_the_old_experts(tmp_path):
    """One at a time is all in order, and the pool does not grow."""
    brain = merging_brain(tmp_path)
    pool, runs, experts = tmp_path / "pool", ("child", "digits", "read"), []
    for seed, run in enumerate(runs):
        train(tmp_path, run, seed)
        if seed:
            shutil.rmtree(pool / runs[seed - 1])
        (best,) = select(read_pool(pool), "best")
        with open_weights(best) as weights, open_weights(best.base) as base:
            experts.append({k: weights[k].clone() for k in weights})
            anchor = {k: base[k].clone() for k in base}
        result = brain.merge(continual(pool))
        wanted = OPCM(alpha=0.5)(experts, anchor)
        with open_weights(result.path) as found:
            for name, tensor in wanted.items():
                torch.testing.assert_close(
                    found[name], tensor, rtol=0, atol=1e-6, msg=name
                )
        record = read_merges(pool)[-1]
        assert record.runs == list(runs[: seed + 1])
        assert [path.name for path in pool.glob("*.safetensors")] == [
            record.kept
        ]
        assert (pool / record.kept).read_bytes() == result.path.read_bytes()
    # with nothing new the merge stays what it is
    before = result.path.read_bytes()
    with open_weights(pool / record.kept) as kept:
        for _ in range(2):
            again = brain.merge(continual(pool))
            with open_weights(again.path) as found:
                assert all(torch.equal(found[k], kept[k]) for k in kept)
    assert again.reused and len(read_merges(pool)) == 3
    assert (pool / record.kept).read_bytes() == before


def test_what_opcm_merged_is_not_taken_out_again(brain, pool, tmp_path):
    brain.merge(continual(pool))
    with pytest.raises(ValueError, match="digits cannot be taken out"):
        brain.merge(continual(pool, without=["digits"]))
    (record,) = read_merges(pool)
    (pool / record.kept).unlink()
    train(tmp_path, "street", 7)
    with pytest.raises(ValueError, match="does not hold its weights"):
        brain.merge(continual(pool))


def test_a_file_of_that_name_that_is_another_stays(brain, pool, tmp_path):
    brain.merge(continual(pool))
    (record,) = read_merges(pool)
    mine = pool / "mine.safetensors"
    mine.write_bytes(b"another file")
    take_checks(pool / "merges.jsonl")
    lines = (pool / "merges.jsonl").read_text()
    (pool / "merges.jsonl").write_text(
        lines.replace(record.kept, mine.name) + lines
    )
    train(tmp_path, "street", 7)
    brain.merge(continual(pool))
    assert mine.read_bytes() == b"another file"
    assert not (pool / record.kept).exists()


def test_another_base_under_the_name_of_the_first_is_refused(pool, tmp_path):
    base, other = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
    [first, *_] = read_pool(pool)
    shutil.copy(first.base, base)
    settings = {"base": str(base), "with_base": True, "runs": ["child"]}
    merging_brain(tmp_path).merge(stage(pool, **settings))
    shutil.copy(first.path, other)
    kept = base.read_bytes()
    other.replace(base)
    with pytest.raises(ChangedContent, match="the base .* of merge 'aode'"):
        remerge(pool, tmp_path / "out.safetensors", progress=False)
    base.write_bytes(kept)
    remerge(pool, tmp_path / "out.safetensors", progress=False)
