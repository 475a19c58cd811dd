"""A common start is seen from stretches of large matrices."""

import pytest
import torch

from speechbrain_merge.weights import WeightWriter, open_weights
from speechbrain_merge.weights.kinship import strangers

SHAPE = (40000, 384)


def table(seed):
    """As large as the embeddings of a small Whisper."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator).half()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One table, the same fine-tuned, and another."""
    folder = tmp_path_factory.mktemp("tables")
    base, other = table(0), table(1)
    paths = []
    for name, values in (
        ("base", base),
        ("tuned", base + 0.5 * other),
        ("other", other),
    ):
        paths.append(folder / f"{name}.safetensors")
        specification = {"embed_tokens.weight": (torch.float16, SHAPE)}
        with WeightWriter(paths[-1], specification) as writer:
            writer.write("embed_tokens.weight", values)
    return paths


def mapped_memory():
    """Pages of files that this process has mapped, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["RssFile"].split()[0]) * 1024


def test_stretches_tell_what_the_whole_table_tells(files):
    base, tuned, other = map(open_weights, files)
    assert strangers(base, tuned) == []
    assert [row.name for row in strangers(base, other)] == [
        "embed_tokens.weight"
    ]
    assert abs(strangers(base, other)[0].cosine) < 0.01


def test_no_table_stays_in_memory(files):
    base, tuned, _ = map(open_weights, files)
    before = mapped_memory()
    strangers(base, tuned)
    both = 2 * 2 * SHAPE[0] * SHAPE[1]
    assert mapped_memory() - before < both / 10
