"""Adapters merged into their base, and pools that collect adapters."""

import json
import shutil

import pytest
import torch
from filled_pool import saver_of

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import CheckpointPool, MergeStage, merge, merge_adapters
from speechbrain_merge.adapters import CoreSpace
from speechbrain_merge.cli import main
from speechbrain_merge.methods import TIES, TaskArithmetic
from speechbrain_merge.pool import read_pool
from speechbrain_merge.stage.job import resolve
from speechbrain_merge.stage.named_coefficients import with_coefficients
from speechbrain_merge.weights import (
    ChangedContent,
    digest,
    fold,
    open_weights,
    write_weights,
)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))


def adapted(seed, rank=2):
    model = net()
    options = {"rank": rank, "alpha": 2.0 * rank}
    AdaptedModel(model, LoRA, all_linear=True, adapter_kwargs=options)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def pools(tmp_path):
    """A pool of folded models and one of adapters, of two trainings."""
    folders = [tmp_path / "pool", tmp_path / "adapters"]
    for seed, run in enumerate(("digits", "read"), start=1):
        model = adapted(seed, rank=seed + 1)
        both = {
            folder.name: CheckpointPool(
                folder, {"model": model}, run, adapters=folder is folders[1]
            )
            for folder in folders
        }
        saver = saver_of(tmp_path / run, model, both["pool"])
        both["adapters"].attach(saver, "adapters")
        saver.save_checkpoint(meta={"WER": 9.0, "epoch": 1})
    return folders


def base():
    return {f"model.{name}": t for name, t in net().state_dict().items()}


def test_a_pool_of_adapters_holds_the_same_models(pools):
    for whole, alone in zip(*map(read_pool, pools)):
        assert whole.name == alone.name and alone.base is None
        with open_weights(alone) as adapter:
            assert all("adapter_" in name for name in adapter)
        with open_weights(whole) as plain, fold(alone, base=base()) as folded:
            for name in plain:
                torch.testing.assert_close(folded[name], plain[name])


@pytest.mark.parametrize(
    "method, rank",
    [(TaskArithmetic(0.3), None), (TIES(scale=0.5), None), ("tsv_m", 3)],
)
def test_it_is_the_merged_adapter_on_the_base(pools, method, rank, tmp_path):
    adapters = read_pool(pools[1])
    path = merge_adapters(
        method,
        adapters,
        tmp_path / "merged.safetensors",
        how="core",
        rank=rank,
        progress=False,
    )
    core = CoreSpace(method, rank)
    merged = merge(core, adapters, base(), progress=False)
    with fold(path, base=base()) as expected:
        assert list(merged) == list(expected)
        for name in merged:
            torch.testing.assert_close(
                merged[name], expected[name], rtol=1e-5, atol=1e-5
            )
    file = merge(core, adapters, base(), tmp_path / "m.safetensors")
    with open_weights(file) as streamed:
        assert all(torch.equal(streamed[k], merged[k]) for k in merged)


def test_task_arithmetic_there_is_that_of_the_folded_models(pools):
    whole, adapters = map(read_pool, pools)
    merged = merge(
        CoreSpace(TaskArithmetic(0.4)), adapters, base(), progress=False
    )
    expected = merge(TaskArithmetic(0.4), whole, base(), progress=False)
    for name in merged:
        torch.testing.assert_close(
            merged[name], expected[name], rtol=0, atol=1e-5
        )


def test_a_merge_stage_takes_adapters(pools, tmp_path):
    original = tmp_path / "base.pt"
    torch.save(base(), original)
    stage = MergeStage(CoreSpace("ties"), [pools[1]], base=original)
    job = resolve(stage, tmp_path / "merge")
    made = job.merge()
    expected = merge(
        CoreSpace("ties"), read_pool(pools[1]), base(), progress=False
    )
    assert all(torch.equal(made[name], expected[name]) for name in made)
    scaled = with_coefficients(stage.method, {"scale": 0.1}, list(job.members))
    assert scaled.method.scale == 0.1


@pytest.mark.parametrize(
    "method, more, message",
    [
        ("ties", {}, "as `base`"),
        ("ties", {"base": net().state_dict()}, "has no 'model.0.weight'"),
        ("fisher", {}, "statistics of whole models"),
    ],
)
def test_what_cannot_be(pools, method, more, message):
    with pytest.raises(ValueError, match=message):
        merge(CoreSpace(method), read_pool(pools[1]), progress=False, **more)


def test_a_pool_of_adapters_needs_them(tmp_path):
    model = net()
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, adapters=True)
    saver = saver_of(tmp_path, model, pool)
    with pytest.raises(ValueError, match="of model has no LoRA"):
        saver.save_checkpoint(meta={"WER": 9.0, "epoch": 1})


def adapters_of(folder):
    """The files of a pool's candidates."""
    return [each.path for each in read_pool(folder)]


def test_a_changed_adapter_is_refused_by_the_command_line(pools, capsys):
    models, adapters = pools
    line = ["merge", "average", str(adapters), "--adapter", "concatenate"]
    more = ["--quiet", "-o", str(adapters.parent / "out.safetensors")]
    assert main([*line, *more]) == 0
    first, second = adapters_of(adapters)
    kept = first.read_bytes()
    shutil.copy(second, first)
    assert main([*line, *more]) == 2
    assert "is on record" in capsys.readouterr().err
    line[2:3] = [str(first), str(second)]
    assert main([*line, *more]) == 2
    assert "is on record" in capsys.readouterr().err
    first.write_bytes(kept)
    assert main([*line, *more]) == 0
    capsys.readouterr()
    whole, _ = adapters_of(models)
    shutil.copy(adapters_of(models)[1], whole)
    path = write_weights(adapters.parent / "base.safetensors", base())
    line = ["extract", str(whole), "--base", str(path), "--rank", "1"]
    assert main([*line, "-o", str(adapters.parent / "lora"), "--quiet"]) == 2
    assert "is on record" in capsys.readouterr().err


def test_the_scale_of_an_adapter_is_on_record(pools, tmp_path):
    [first, *_] = adapters_of(pools[1])
    content = first.read_bytes()
    key = b'\\"alpha\\": '
    assert content.count(key) == 1
    place = content.index(key) + len(key)
    first.write_bytes(content[:place] + b"8" + content[place + 1 :])
    with pytest.raises(ChangedContent, match="metadata is not as"):
        merge_adapters(
            "average", read_pool(pools[1]), tmp_path / "o.safetensors"
        )
    assert main(["inspect", "--verify", str(pools[1])]) == 2


def test_an_earlier_record_of_an_adapter_holds(pools, tmp_path):
    """Of its tensors alone."""
    for manifest in pools[1].glob("*/manifest.jsonl"):
        lines = [json.loads(each) for each in manifest.read_text().splitlines()]
        for line in lines:
            if line["event"] == "candidate":
                file = manifest.parent / line["file"]
                line["digest"] = digest(open_weights(file))
            line.pop("check")
        manifest.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert main(["inspect", "--verify", str(pools[1])]) == 0
    merge_adapters("average", read_pool(pools[1]), tmp_path / "o.safetensors")
