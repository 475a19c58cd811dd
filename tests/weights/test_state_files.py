"""The state of a learning that goes on is as it was written."""

import zipfile

import pytest
import torch
from torch.serialization import get_crc32_options, set_crc32_options

from speechbrain_merge.weights import ChangedContent
from speechbrain_merge.weights.state_files import load_state, save_state


def trained_state():
    """That of Adam after two steps, with what goes on beside it."""
    weight = torch.nn.Parameter(torch.arange(40.0))
    optimizer = torch.optim.Adam([weight])
    for _ in range(2):
        weight.grad = torch.randn(40)
        optimizer.step()
    return {
        "weight": weight.detach(),
        "optimizer": optimizer.state_dict(),
        "history": [{"loss": 0.25}],
    }


def places_of_parts(path):
    """Name of each part of an archive to the place of its middle byte."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            head = entry.header_offset
            lengths = content[head + 26 : head + 30]
            start = head + 30 + lengths[0] + 256 * lengths[1]
            start += lengths[2] + 256 * lengths[3]
            yield entry.filename, start + entry.file_size // 2


def test_a_bit_of_any_part_is_noticed(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    save_state(path, trained_state())
    whole = path.read_bytes()
    places = dict(places_of_parts(path))
    assert {name.split("/")[1] for name in places} >= {"data.pkl", "data"}
    for name, place in places.items():
        changed = bytearray(whole)
        changed[place] ^= 32
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="state.pt") as error:
            load_state(path, "Learn anew.")
        if name.split("/")[1] == "data":
            assert error.type is ChangedContent
            assert f"'{name}' is not as it" in str(error.value)
            assert str(error.value).endswith("Learn anew.")
    path.write_bytes(whole)
    state = load_state(path)
    assert state["optimizer"]["state"][0]["step"] == 2
    assert state["history"] == [{"loss": 0.25}]


def test_checksums_that_are_switched_off(tmp_path):
    """A program that does so for its large checkpoints has them here."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        save_state(tmp_path / "state.pt", trained_state())
        assert get_crc32_options() is False
    finally:
        set_crc32_options(before)
    assert load_state(tmp_path / "state.pt")["history"]
