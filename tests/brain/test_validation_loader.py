"""Selection sets are loaded as the recipe loads its validation set."""

from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

import speechbrain as sb
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.search import GreedySearch

VALID_SET = tiny_ctc_data(10, seed=50)


class Counting(MergeMixin, TinyCTC):
    """Notes which utterances come together in a batch."""

    def evaluate_batch(self, batch, stage):
        """Notes, then evaluates."""
        self.batches.append(list(batch.id))
        return super().evaluate_batch(batch, stage)


def a_brain(folder, epochs=2, **hparams):
    """A Brain that has not trained yet."""
    model = tiny_network(0)
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder,
        model,
        Counting,
        epochs=epochs,
        recoverables={"pool": pool},
        output_folder=str(folder),
        **hparams,
    )
    brain.pool, brain.batches = pool, []
    return brain


def train(brain, valid_set=VALID_SET, valid_loader_kwargs={}):
    """Trains a Brain."""
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=1),
        valid_set,
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs=valid_loader_kwargs,
    )
    return brain


def merge(brain, valid_set=VALID_SET, given=None, name="greedy", **settings):
    """The result, and the batches of the first trial."""
    brain.batches = []
    stage = MergeStage(
        "average",
        [brain.pool],
        search=GreedySearch(),
        racing=False,
        name=name,
        **settings,
    )
    result = brain.merge(stage, valid_set, given)
    trials = len([t for t in result.trials if not t["reused"]]) or 1
    return result, brain.batches[: len(brain.batches) // trials]


def sizes(batches):
    """Utterances of each batch."""
    return [len(batch) for batch in batches]


def dynamic(data, length=0.5, shuffle=False):
    """SpeechBrain's dynamic batches: as many utterances as fit a length."""
    return DynamicBatchSampler(
        data,
        max_batch_length=length,
        num_buckets=3,
        length_func=lambda row: row["duration"],
        shuffle=shuffle,
        batch_ordering="random" if shuffle else "ascending",
    )


def test_what_fit_was_given_then_the_yaml(tmp_path):
    yaml = {"valid_dataloader_opts": {"batch_size": 4}}
    brain = train(a_brain(tmp_path, **yaml), VALID_SET, {"batch_size": 5})
    _, batches = merge(brain)
    assert sizes(batches) == [5, 5]
    # what is given counts before everything else
    _, batches = merge(brain, given={"batch_size": 3}, name="given")
    assert sizes(batches) == [3, 3, 3, 1]
    brain.batches = []
    brain.score_weights(brain.pool.candidates()[0], VALID_SET)
    assert sizes(brain.batches) == [5, 5]
    # another process, where the training is over: fit() returns at once
    again = train(a_brain(tmp_path, **yaml), VALID_SET, {"batch_size": 5})
    result, batches = merge(again)
    assert result.reused and not batches
    # or is not called at all
    other = a_brain(tmp_path, **yaml)
    _, batches = merge(other, name="yaml")
    assert sizes(batches) == [4, 4, 2]


def test_test_only_runs_know_the_loader_too(tmp_path):
    train(a_brain(tmp_path), VALID_SET, {"batch_size": 5})
    brain = a_brain(tmp_path, run_opts={"test_only": True})
    train(brain, VALID_SET, {"batch_size": 5})
    _, batches = merge(brain)
    assert sizes(batches) == [5, 5]


def test_names_that_recipes_use(tmp_path, caplog):
    train(a_brain(tmp_path))
    names = [
        "valid_loader_kwargs",
        "valid_dataloader_opts",
        "valid_dataloader_options",
        "valid_dataloader_kwargs",
    ]
    for size, name in enumerate(names, start=2):
        brain = a_brain(tmp_path, **{name: {"batch_size": size}})
        _, batches = merge(brain, name=name)
        assert len(batches[0]) == size
    assert "one utterance at a time" not in caplog.text
    _, batches = merge(a_brain(tmp_path), name="none")
    assert sizes(batches) == [1] * 10
    assert "fit() was not called" in caplog.text
    assert "Give `valid_loader_kwargs` to merge()" in caplog.text


def test_dynamic_batches(tmp_path, caplog):
    """A sampler that the script made, shuffled as many recipes have it."""
    kwargs = {"batch_sampler": dynamic(VALID_SET, shuffle=True)}
    brain = train(a_brain(tmp_path), VALID_SET, kwargs)
    expected = {tuple(sorted(batch)) for batch in brain.batches}
    _, batches = merge(brain)
    assert 1 < len(batches) < 10
    assert {tuple(sorted(batch)) for batch in batches} <= expected
    # a new sampler, in another process, is not another selection set
    kwargs = {"batch_sampler": dynamic(VALID_SET, shuffle=True)}
    again = train(a_brain(tmp_path), VALID_SET, kwargs)
    result, _ = merge(again)
    assert result.reused
    # the same utterances, read anew; in a folder that knows no trial of them
    read = tiny_ctc_data(10, seed=50)
    _, fresh = merge(again, read, name="fresh", folder=tmp_path / "fresh")
    assert sorted(map(sorted, fresh)) == sorted(map(sorted, batches))
    assert "one utterance at a time" not in caplog.text
    # the sampler numbers its own utterances: it is not used for others
    others = tiny_ctc_data(4, seed=51)
    _, batches = merge(again, others, name="others")
    assert sizes(batches) == [1] * 4
    assert "a sampler made for other data" in caplog.text
    caplog.clear()
    yaml = {"valid_dataloader_opts": {"batch_size": 2}}
    last = train(a_brain(tmp_path, **yaml), VALID_SET, kwargs)
    domains = {"here": VALID_SET, "there": others}
    _, batches = merge(last, domains, name="domains")
    assert sizes(batches)[-2:] == [2, 2] and max(sizes(batches)[:-2]) > 2
    assert "one utterance at a time" not in caplog.text


def test_a_ready_loader(tmp_path):
    for name, kwargs in (
        ("size", {"batch_size": 5}),
        ("sampler", {"batch_sampler": dynamic(VALID_SET)}),
    ):
        folder = tmp_path / name
        brain = a_brain(folder)
        loader = brain.make_dataloader(
            VALID_SET, sb.Stage.VALID, ckpt_prefix=None, **kwargs
        )
        train(brain, loader)
        expected = brain.batches[: len(loader)]
        _, batches = merge(brain)
        assert sorted(map(sorted, batches)) == sorted(map(sorted, expected))
        _, batches = merge(brain, make_dataloader(VALID_SET, batch_size=7), {})
        assert sizes(batches) == [7, 3]
        if name == "size":
            _, batches = merge(brain, tiny_ctc_data(8, seed=51), name="others")
            assert sizes(batches) == [5, 3]
