"""What is heard of an utterance does not hang on the trials before.

Sets of several domains have their own way to make a batch; and a batch in which
utterances were exchanged is padded as it was.

Authors
 * The speechbrain_merge authors 2026
"""

import random

import pytest
import torch
from counted_scorings import VALID, trained
from tiny_models import tiny_ctc_data, tiny_network
from torch.utils.data import DataLoader, IterableDataset

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain_merge import MergeMixin
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.search import DecodingOrder
from speechbrain_merge.weights import write_weights


def louder(rows):
    """A domain that was recorded at another level."""
    return PaddedBatch([{**row, "feats": 4 * row["feats"]} for row in rows])


def loaders(number=2):
    """As a recipe makes them that has a function for each domain."""
    quiet = tiny_ctc_data(7, seed=12)
    for row in quiet.data.values():
        row["feats"] = row["feats"] / 4
    found = {
        "read": DataLoader(
            tiny_ctc_data(7, seed=11), batch_size=2, collate_fn=PaddedBatch
        ),
        "spoken": DataLoader(quiet, batch_size=2, collate_fn=louder),
    }
    return dict(list(found.items())[-number:])


def test_each_domain_is_decoded_as_its_own_loader_says(tmp_path):
    brain = trained(tmp_path / "results")
    weights = tmp_path / "weights.safetensors"
    state = brain.modules.model.state_dict()
    write_weights(weights, {f"model.{name}": state[name] for name in state})
    both = brain.score_weights(weights, loaders(), VALID).domains
    alone = brain.score_weights(weights, loaders(1), VALID).domains
    assert both["spoken"] == alone["spoken"]
    same = {"spoken": tiny_ctc_data(7, seed=12)}
    settings = {"batch_size": 2, "collate_fn": PaddedBatch}
    loud = brain.score_weights(
        weights, {"spoken": DataLoader(same["spoken"], **settings)}, VALID
    )
    assert both["spoken"] == loud.domains["spoken"]


def test_batches_of_two_domains_are_not_mixed(tmp_path):
    brain = trained(tmp_path / "results")
    batches = FixedBatches(brain, loaders())
    heard = [batch.feats.data for batch in batches.load([6, 1])]
    expected = [list(loaders()["spoken"])[2], list(loaders()["read"])[1]]
    for found, one in zip(heard, expected):
        torch.testing.assert_close(found, one.feats.data)
    assert batches.paddings() == [None] * 14
    with pytest.raises(ValueError, match="`collate_fn`"):
        list(batches.load_utterances([[0, 7]]))


class Windowed(torch.nn.Linear):
    """Hears all utterances of a batch in the window that it fits into."""

    def padded_seconds(self, seconds):
        return next((end for end in (1.0, 2.0, 4.0) if seconds <= end), None)


def test_a_batch_stays_in_its_window():
    """Short utterances came together in batches that were padded to less."""
    lot = random.Random(0)
    seconds = [
        lot.choice([0.5, 0.7, 1.0, 1.4, 1.9, 3.0, 5.0]) for _ in range(60)
    ]
    rows = {str(n): {"duration": length} for n, length in enumerate(seconds)}
    brain = sb.Brain(
        modules={"model": Windowed(1, 1)}, run_opts={"device": "cpu"}
    )
    data = DynamicItemDataset(rows, output_keys=["id"])
    sets = {
        "read": data,
        "spoken": DynamicItemDataset(rows, output_keys=["id", "duration"]),
    }
    batches = FixedBatches(brain, sets, {"batch_size": 3})
    came = [batch for _, batch in batches.places]
    seconds *= 2
    order = DecodingOrder(came, batches.paddings())

    def windows(batches):
        window = Windowed(1, 1).padded_seconds
        return {
            one: window(max(seconds[each] for each in batch))
            for batch in batches
            for one in batch
        }

    exchanged = 0
    for _ in range(5):
        order.learn({one: lot.randint(0, 3) for one in range(120)})
        found = order.batches()
        assert all(max(batch) < 60 or min(batch) >= 60 for batch in found)
        assert windows(found) == windows(came)
        exchanged += sum(sorted(each) not in came for each in found)
    assert exchanged > 10


class Stream(IterableDataset):
    """As webdataset reads a corpus."""

    def __iter__(self):
        return iter(tiny_ctc_data(2))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=2, collate_fn=PaddedBatch),
        DataLoader([1, 2], batch_size=None),
    ],
    ids=["stream", "batches"],
)
def test_a_loader_whose_batches_have_no_places(loader):
    brain = sb.Brain(run_opts={"device": "cpu"})
    with pytest.raises(ValueError, match="`batch_sampler`"):
        FixedBatches(brain, loader)


class Wrapper(torch.nn.Module):
    """A recipe's own, which calls what it wraps as DDP does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


def test_a_wrapper_of_the_recipe_is_a_module(tmp_path):
    """Its weights were loaded into what it wraps, and did not fit."""
    model = Wrapper(tiny_network(0))
    brain = sb.Brain(modules={"model": model}, run_opts={"device": "cpu"})
    assert brain_module(brain) is model
    brain.modules["model"] = torch.nn.DataParallel(model)
    assert brain_module(brain) is model


def brain_module(brain):
    """What weights are loaded into."""
    brain.__class__ = type("Merging", (MergeMixin, sb.Brain), {})
    return brain.module_named("model")


class Skipping(DataLoader):
    """Leaves out what is too long, on the way."""

    def __iter__(self):
        return (batch for batch in super().__iter__() if len(batch) < 2)


def test_a_loader_that_changes_what_it_loads_is_refused():
    """It was decoded without that."""
    brain = sb.Brain(run_opts={"device": "cpu"})
    with pytest.raises(ValueError, match="Skipping changes what it loads"):
        FixedBatches(brain, Skipping([1, 2, 3], batch_size=2))
    looped = LoopedLoader(DataLoader([1, 2, 3], batch_size=2), 2)
    assert len(FixedBatches(brain, looped)) == 2


def test_workers_are_prepared_as_the_loader_says():
    brain = sb.Brain(run_opts={"device": "cpu"})
    loaders = {
        name: DataLoader([1, 2], num_workers=1, worker_init_fn=prepare)
        for name, prepare in (("a", print), ("b", repr))
    }
    one = FixedBatches(brain, loaders["a"]).load([0])
    assert one.worker_init_fn is print
    with pytest.raises(ValueError, match="domain 'b' prepares its workers"):
        FixedBatches(brain, loaders)
