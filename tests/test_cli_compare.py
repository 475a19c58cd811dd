"""Comparisons of weights that are not finite.

Authors
 * The speechbrain_merge authors 2026
"""

import math
import resource
import signal

import pytest
import torch

from speechbrain_merge.cli import main
from speechbrain_merge.command.comparison import compare
from speechbrain_merge.weights import write_weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_have_no_cosine(
    tmp_path, capsys, caplog, value
):
    names = ("encoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight")
    good = {name: torch.ones(3, 3) for name in names}
    bad = {**good, names[0]: torch.ones(3, 3)}
    bad[names[0]][1, 2] = value
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    for path, state in zip(paths, (good, bad)):
        write_weights(path, state)
    rows = {row.part: row for row in compare(*paths)}
    for part, row in rows.items():
        whole = part.startswith("decoder")
        assert (row.cosine, row.distance) == (
            (pytest.approx(1.0), 0.0) if whole else (None, None)
        )
    assert f"b.safetensors: '{names[0]}' is not finite" in caplog.text
    assert "decoder" not in caplog.text
    assert main(["compare", *paths]) == 0
    assert "nan" not in capsys.readouterr().out


def test_a_full_disk_is_named(tmp_path, capsys):
    """A file of the page that is written by Python names none."""
    for number, name in enumerate("ab"):
        tensors = {"encoder.layers.0.fc.weight": torch.randn(8, 8) + number}
        write_weights(tmp_path / f"{name}.safetensors", tensors)
    output = tmp_path / "out"
    line = f"compare {tmp_path}/a.safetensors {tmp_path}/b.safetensors"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        status = main([*line.split(), "-o", str(output)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 2 and not output.exists()
    assert str(output) in capsys.readouterr().err
