"""A candidate that is not what its pool recorded is merged by no one."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from filled_pool import collect
from safetensors.torch import load_file, save_file

from speechbrain.nnet.attention import MultiheadAttention
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.brain.weight_plane import squared_distances
from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.export.folder import export_folder
from speechbrain_merge.methods import create
from speechbrain_merge.methods.parametrization import parametrize_attention
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.report.comparison import compare_models
from speechbrain_merge.training import FrozenModels
from speechbrain_merge.weights import ChangedContent, digest, fold, open_weights


def flip_a_bit(path):
    """The last bit of a file: that of a weight."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage(path, how, other):
    """Another content under the same name."""
    if how == "flipped":
        flip_a_bit(path)
    elif how == "swapped":
        shutil.copy(other, path)
    else:
        tensors = load_file(path)
        save_file({name: each + 1 for name, each in tensors.items()}, path)


@pytest.mark.parametrize("how", ["flipped", "swapped", "rewritten"])
def test_a_changed_candidate_is_refused_with_both_digests(tmp_path, how):
    collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}, {"WER": 1.0}])
    candidates = read_pool(tmp_path / "pool")
    damage(candidates[1].path, how, candidates[0].path)
    changed = [*candidates[:2], candidates[2]]
    output = tmp_path / "merged.safetensors"
    digests = [each.digest for each in candidates]
    for arguments in ({}, {"output": output, "hashes": digests}):
        with pytest.raises(ValueError, match="run/epoch-0002") as caught:
            merge("average", changed, progress=False, **arguments)
        assert candidates[1].digest in str(caught.value)
        assert "content has the hash" in str(caught.value)
    assert not output.exists()
    merge("average", candidates[::2], output=output, progress=False)


def test_a_changed_base_is_refused(tmp_path):
    """One that candidates name, and no manifest."""
    collect(tmp_path, [{"WER": 3.0}] * 2)
    candidates = read_pool(tmp_path / "pool")
    base = tmp_path / "base.safetensors"
    shutil.copy(candidates[0].path, base)
    candidates = [
        dataclasses.replace(each, base=base, base_digest="0" * 64)
        for each in candidates
    ]
    with pytest.raises(ValueError, match="base.safetensors: its content"):
        merge("task_arithmetic", candidates, base, progress=False)


def with_a_base(folder):
    """A pool with a base, of whose file the last bit was flipped."""
    collect(folder, [{"WER": 3.0}] * 2, based=True)
    base = folder / "pool" / "run" / "base.safetensors"
    candidates = read_pool(folder / "pool")
    assert {each.base for each in candidates} == {base}
    flip_a_bit(base)
    return base, candidates


@pytest.mark.parametrize(
    "given",
    [str, Path, os.path.relpath, open_weights, lambda base: fold(str(base))],
)
def test_a_base_on_record_is_known_however_it_is_given(
    tmp_path, given, monkeypatch
):
    base, candidates = with_a_base(tmp_path)
    monkeypatch.chdir(tmp_path)
    method = create("task_arithmetic")
    flip_a_bit(base)  # whole again
    method(candidates, given(base))
    merge(method, candidates, given(base), progress=False)
    flip_a_bit(base)
    with pytest.raises(ChangedContent, match="base.safetensors: its content"):
        merge(method, candidates, given(base), progress=False)
    with pytest.raises(ChangedContent, match="base.safetensors: its content"):
        method(candidates, given(base))


@pytest.mark.parametrize("more", [[], ["--base", "pool/run/base.safetensors"]])
def test_a_changed_base_is_refused_by_the_command_line(
    tmp_path, more, capsys, monkeypatch
):
    base, candidates = with_a_base(tmp_path)
    monkeypatch.chdir(tmp_path)
    merging = ["merge", "ties", "pool", *more, "-o", "out.safetensors"]
    assert main(merging) == 2
    assert "base.safetensors: its content has" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    flip_a_bit(base)
    assert main(merging) == 0


@pytest.mark.parametrize("given", [str, Path, os.path.relpath, open_weights])
def test_a_candidate_is_known_by_its_path(tmp_path, given, monkeypatch):
    """As an expert, and as the base of others; by a link as well."""
    collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}, {"WER": 1.0}])
    monkeypatch.chdir(tmp_path)
    first, second, third = [each.path for each in read_pool("pool")]
    create("average")([given(first), third])
    merge("average", [given(first), third], progress=False)
    link = tmp_path / "link.safetensors"
    link.symlink_to(first.absolute())
    (candidate,) = read_pool(link)
    assert candidate.name == "run/epoch-0001"
    damage(first, "swapped", second)
    for source in (candidate, *read_pool(["link*"])):
        with pytest.raises(ChangedContent, match="run/epoch-0001"):
            merge("average", [source, third], progress=False)
    copied = dataclasses.replace(candidate, known_digest=digest(second))
    with pytest.raises(ChangedContent, match="run/epoch-0001"):
        merge("average", [copied, third], progress=False)
    for place in ("link.safetensors", "link*.safetensors"):
        line = ["merge", "average", place, str(third), "-o", "out.safetensors"]
        assert main(line) == 2
    for place in (first.absolute(), link):
        mean, ties = create("average"), create("task_arithmetic")
        for merging in (
            lambda: merge(mean, [given(place), third], progress=False),
            lambda: mean([given(place), third]),
            lambda: merge(ties, [third], given(place), progress=False),
            lambda: ties([third], given(place)),
            lambda: compare_models([given(place), third], progress=False),
        ):
            with pytest.raises(ChangedContent, match="is on record"):
                merging()
    line = ["merge", "task_arithmetic", str(third), "--base", str(first)]
    assert main([*line, "-o", "out.safetensors"]) == 2
    assert main(["compare", str(first), str(third)]) == 2


@pytest.mark.parametrize("given", [str, lambda path: read_pool("pool")[0]])
def test_a_changed_teacher_or_source_of_attention_is_refused(
    tmp_path, given, monkeypatch
):
    """What computes beside a model in training, or mixes into it."""
    monkeypatch.chdir(tmp_path)
    attention = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([MultiheadAttention(2, 8)])}
    )
    pool = CheckpointPool("pool", {"model": attention})
    Checkpointer("save", {"pool": pool}).save_checkpoint(meta={"epoch": 1})
    (path,) = (each.path for each in read_pool("pool"))
    FrozenModels({"model": attention}, [given(path)])
    squared_distances([given(path), given(path)])
    flip_a_bit(path)
    for using in (
        lambda: FrozenModels({"model": attention}, [given(path)]),
        lambda: parametrize_attention(attention, given(path)),
        lambda: squared_distances([given(path), given(path)]),
    ):
        with pytest.raises(ChangedContent, match="run/epoch-0001"):
            using()


def test_a_link_in_the_place_of_a_base_is_not_the_base(tmp_path):
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    pool.store_base(resuming=False)
    saver = Checkpointer(tmp_path / "save", {"pool": pool})
    for epoch in (1, 2):
        torch.nn.init.constant_(model.weight, float(epoch))
        saver.save_checkpoint(meta={"epoch": epoch})
    first, second = read_pool(tmp_path / "pool")
    ties = create("task_arithmetic")
    merge(ties, [first, second], first.base, progress=False)
    first.base.unlink()
    first.base.symlink_to(second.path)
    for base in (first.base, str(first.base), open_weights(first.base)):
        with pytest.raises(ChangedContent, match="base.safetensors"):
            merge(ties, [first], base, progress=False)
        with pytest.raises(ChangedContent, match="base.safetensors"):
            ties([first], base)
    for expert in (first.base, *read_pool(first.base)):
        with pytest.raises(ChangedContent, match="base.safetensors"):
            merge("average", [expert, first], progress=False)
    first.path.unlink()
    first.path.symlink_to(second.path)
    for expert in (first.path, *read_pool(first.path)):
        with pytest.raises(ChangedContent, match="run/epoch-0001"):
            merge("average", [expert, second], progress=False)


def test_a_changed_candidate_is_not_exported(tmp_path):
    collect(tmp_path, [{"WER": 3.0}])
    path = tmp_path / "pool" / "run" / "epoch-0001.safetensors"
    flip_a_bit(path)
    for source in (path, str(path), *read_pool(tmp_path / "pool")):
        with pytest.raises(ChangedContent, match="run/epoch-0001"):
            with export_folder(tmp_path / "out", source, None, None):
                pass
    assert not (tmp_path / "out").exists()


def test_a_pool_is_verified_from_the_command_line(tmp_path, capsys):
    collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}])
    assert main(["inspect", "--verify", str(tmp_path / "pool")]) == 0
    assert capsys.readouterr().out.count("as recorded") == 2
    flip_a_bit(tmp_path / "pool" / "run" / "epoch-0002.safetensors")
    assert main(["inspect", "--verify", str(tmp_path / "pool")]) == 2
    shown = capsys.readouterr()
    assert "run/epoch-0001" in shown.out and "changed" in shown.out
    assert "epoch-0002.safetensors: its content has the hash" in shown.err
