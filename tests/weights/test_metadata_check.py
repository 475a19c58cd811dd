"""What a file of weights says of itself has a check."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechbrain_merge.cli import main
from speechbrain_merge.command.again import merge_again
from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.weights import (
    ChangedContent,
    WeightWriter,
    open_weights,
    write_weights,
)
from speechbrain_merge.weights.metadata_check import KEY
from speechbrain_merge.weights.own_hash import write_with_hash


def metadata_of(path):
    """As safetensors itself reads them."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def change_a_digit(path, before):
    """Changes the digit after some text in a file, and nothing else."""
    content = path.read_bytes()
    found = re.search(re.escape(before) + rb"[^0-9]*([0-9])", content)
    place = found.start(1)
    other = b"1" if content[place : place + 1] != b"1" else b"2"
    path.write_bytes(content[:place] + other + content[place + 1 :])


@pytest.fixture
def merged(tmp_path):
    """The weighted mean of two models, in a folder with them."""
    for value, name in enumerate("ab"):
        write_weights(
            tmp_path / f"{name}.safetensors", {"w": torch.full((2,), value)}
        )
    experts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    output = tmp_path / "merged.safetensors"
    return merge("average", experts, output=output, progress=False)


@pytest.mark.parametrize("before", [b"sources", b"digest", b"created"])
def test_a_changed_digit_of_a_record(merged, capsys, before):
    change_a_digit(merged, before)
    with pytest.raises(ChangedContent, match="merged.safetensors: its metad"):
        provenance(merged)
    other = merged.with_name("other.safetensors")
    for command in (
        ["inspect", str(merged)],
        ["inspect", "--verify", str(merged)],
        ["again", str(merged), "-o", str(other)],
        ["merge", "average", str(merged), str(merged), "-o", str(other)],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err.strip()
        assert "its metadata is not as it was" in error
        assert "\n" not in error
    assert not other.exists()


def test_statistics_of_other_experts(tmp_path):
    path = tmp_path / "fisher.safetensors"
    write_with_hash(path, {"w": torch.ones(2)}, {"statistics": '{"of": 3}'})
    change_a_digit(path, b"of")
    with pytest.raises(ChangedContent, match=KEY):
        open_weights(path)


def test_other_metadata_and_tensors_without_any(tmp_path):
    plain = write_weights(tmp_path / "plain.safetensors", {"w": torch.ones(2)})
    assert metadata_of(plain) is None
    # saved on with what was read, as by a training that goes on
    said = write_weights(plain, {"w": torch.ones(2)}, {"heads": "4"})
    save_file({"w": torch.zeros(2)}, said, metadata_of(said))
    with open_weights(said) as weights:
        assert weights.metadata["heads"] == "4"
    save_file({"w": torch.zeros(2)}, said, {**metadata_of(said), "by": "me"})
    with pytest.raises(ChangedContent, match=f"take out its entry '{KEY}'"):
        open_weights(said)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_merge_is_made_again_to_the_byte(merged, earlier):
    """That of an earlier version too, whose metadata had no check."""
    assert KEY in metadata_of(merged)
    if earlier:
        with open_weights(merged) as weights:
            known = dict(weights.metadata)  # in their order
        del known[KEY]
        tensors = load_file(merged)
        of = {name: (each.dtype, each.shape) for name, each in tensors.items()}
        with WeightWriter(merged, of, known) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
    again = merged.with_name("again.safetensors")
    merge_again(merged, again)
    assert again.read_bytes() == merged.read_bytes()
    assert (KEY in metadata_of(again)) is not earlier


def test_the_output_of_a_plan_is_made_again(merged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(
        "stages:\n  mean:\n    method: average\n"
        "    experts: [a.safetensors, b.safetensors]\n"
        "    output: mean.safetensors\n"
    )
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    output = Path("mean.safetensors")
    before = output.read_bytes()
    change_a_digit(output, b"created")
    changed = output.read_bytes()
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    known = metadata_of(output)
    assert known[KEY] != "" and output.read_bytes() != changed
    [kept] = tmp_path.glob("mean*damaged*")
    assert kept.read_bytes() == changed and len(before) == len(changed)
