"""A selection set counts by what is heard of it, whatever wraps it.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import sys

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    Subset,
    TensorDataset,
    random_split,
)

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain_merge.brain.batches import FixedBatches

WORDS = ["one", "two", "three", "four", "five", "six"]


def spelled(words):
    """An item of the data."""
    return list(words)


def shortened(words):
    """Another one."""
    return words[:1]


def corpus(words=WORDS, item=spelled):
    """A set of a recipe."""
    rows = {str(n): {"words": word} for n, word in enumerate(words)}
    items = [{"func": item, "takes": "words", "provides": "said"}]
    return DynamicItemDataset(rows, items, ["id", "said"])


class Doubled(Dataset):
    """Of no pipeline; holds another set."""

    def __init__(self, inner, times=2):
        self.inner, self.times = inner, times

    def __len__(self):
        return self.times * len(self.inner)

    def __getitem__(self, place):
        return self.inner[place % len(self.inner)]


def split(seed):
    """A part of a set, by lot."""
    lot = torch.Generator().manual_seed(seed)
    return random_split(corpus(), [3, 3], lot)[0]


def key_of(data):
    """What results on a set are stored under."""
    brain = sb.Brain(run_opts={"device": "cpu"})
    return FixedBatches(brain, data, {"batch_size": 2}).key()


OTHERS = {
    "other places": lambda n: Subset(corpus(), [0, 1, 2 + n]),
    "words of a part": lambda n: Subset(corpus(WORDS[n:]), [0, 1]),
    "an item of a part": lambda n: Subset(
        corpus(item=[spelled, shortened][n]), [0, 1]
    ),
    "another lot": split,
    "a set in a row": lambda n: ConcatDataset(
        [corpus(WORDS[:2]), corpus(WORDS[2 + n : 4 + n])]
    ),
    "an item in a row": lambda n: ConcatDataset(
        [corpus(), corpus(item=[spelled, shortened][n])]
    ),
    "parts in a row": lambda n: ConcatDataset(
        [Subset(corpus(), [0]), Subset(Subset(corpus(), [1, 2, 3]), [n])]
    ),
    "a set within an own one": lambda n: Doubled(corpus(WORDS[n : 3 + n])),
    "an item within an own one": lambda n: Doubled(
        corpus(item=[spelled, shortened][n])
    ),
    "tensors": lambda n: TensorDataset(n + torch.zeros(4)),
    "tensors of a part": lambda n: Subset(
        TensorDataset(n + torch.zeros(4)), [0, 1]
    ),
    "a list": lambda n: [n, 1, 2],
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_set_is_another(name):
    make = OTHERS[name]
    assert key_of(make(0)) == key_of(make(0)) != key_of(make(1))


RECIPE = """
from speechbrain.dataio.dataset import DynamicItemDataset

class Mine(DynamicItemDataset):
    extra = "uh"
    def __getitem__(self, place):
        item = super().__getitem__(place)
        item["words"] = item["words"].replace(self.extra, "")
        return item

def dataio_prepare():
    rows = {"1": {"words": "one"}, "2": {"words": "two"}}
    data = Mine(rows, output_keys=["id", "words"])
    data.mark = "a"
    return data
"""


@pytest.mark.parametrize(
    "old, new",
    [('"")', '"uh")'), ('"uh"\n', '"oh"\n'), ('mark = "a"', 'mark = "b"')],
)
@pytest.mark.parametrize("wrap", [None, Subset])
def test_a_set_of_a_class_of_the_recipe(tmp_path, monkeypatch, old, new, wrap):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in (RECIPE, RECIPE, RECIPE.replace(old, new)):
        (tmp_path / "own_data_recipe.py").write_text(text)
        sys.modules.pop("own_data_recipe", None)
        importlib.invalidate_caches()
        data = importlib.import_module("own_data_recipe").dataio_prepare()
        found.append(key_of(data if wrap is None else wrap(data, [1])))
    sys.modules.pop("own_data_recipe")
    assert found[0] == found[1] != found[2]
