"""Utterances in fixed batches, loaded as the recipe loads them.

Whatever is compared on a set of utterances has to see the same batches: padding
changes what a model hears, and with it its errors. So the batches are made
once, by the recipe's own sampler, and are known by their place from then on.
Only the order in which they are loaded may differ.

Example
-------
>>> import speechbrain as sb
>>> brain = sb.Brain(run_opts={"device": "cpu"})
>>> data = {"read": [1, 2, 3], "spoken": [4]}
>>> batches = FixedBatches(brain, data, {"batch_size": 2})
>>> batches.places
[('read', [0, 1]), ('read', [2]), ('spoken', [3])]
>>> [batch.tolist() for batch in batches.load([2, 0])]
[[4], [1, 2]]

Authors
 * The speechbrain_merge authors 2026
"""

import bisect
import hashlib
import json
from typing import Optional

from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset

import speechbrain as sb
from speechbrain.dataio.dataloader import LoopedLoader, SaveableDataLoader
from speechbrain_merge.brain.dataset_content import rows_of
from speechbrain_merge.brain.decisive import data_settings
from speechbrain_merge.brain.ranks import require_same, unwrapped

TRANSCRIPTS = ("wrd", "words", "transcript", "text")
"""The columns in which the host's recipes keep transcripts."""

ROUNDING = 0.01
"""How far a duration in a CSV may be from that of the audio, in seconds."""


class FixedBatches:
    """Utterances of one or several domains, in batches that stay the same.

    Arguments
    ---------
    brain : speechbrain.Brain
        Makes the loaders.
    data : Dataset, DataLoader or dict
        The utterances; a dict names one such set for each domain.
    loader_kwargs : dict, optional
        As for ``Brain.evaluate``.
    stage : speechbrain.Stage
        What the loaders are for.

    Attributes
    ----------
    loaders : dict
        Domain to loader; the domain is None where `data` is no dict.
    dataset : ConcatDataset
        All utterances, domain after domain.
    places : list of tuple
        For each batch its domain and the indices of its utterances.

    Raises
    ------
    ValueError
        When there is no utterance, or, under ``torchrun``, the processes have
        different ones. So all processes make these together.
    """

    def __init__(
        self,
        brain,
        data,
        loader_kwargs: Optional[dict] = None,
        stage: sb.Stage = sb.Stage.VALID,
    ):
        self.brain, self.stage = brain, stage
        self.modules = list(getattr(brain, "modules", {}).values())
        domains = data if isinstance(data, dict) else {None: data}
        self.loaders = {
            domain: _loader(brain, dataset, stage, loader_kwargs or {})
            for domain, dataset in domains.items()
        }
        _check_workers(self.loaders)
        self.dataset: ConcatDataset = ConcatDataset(
            [loader.dataset for loader in self.loaders.values()]
        )
        require_same(self._utterances)
        self.places, start = [], 0
        for domain, loader in self.loaders.items():
            _begin(loader)
            self.places += [
                (domain, [start + index for index in batch])
                for batch in loader.batch_sampler
            ]
            start += len(loader.dataset)
        if not self.places:
            raise ValueError(
                "The selection set has no utterance: candidates cannot be "
                "compared. Check the CSV of the validation data."
            )

    def __len__(self):
        return len(self.places)

    def one_by_one(self):
        """Makes each utterance a batch of its own, without a domain."""
        self.places = [(None, [index]) for index in range(len(self.dataset))]

    def load(self, order) -> DataLoader:
        """Loads batches in a given order, with the recipe's own collation.

        Arguments
        ---------
        order : list of int
            Places of batches.

        Returns
        -------
        DataLoader
        """
        return self.load_utterances([self.places[place][1] for place in order])

    def load_utterances(self, batches) -> DataLoader:
        """Loads utterances that are batched anew.

        Arguments
        ---------
        batches : list of list of int
            Indices of the utterances of each batch.

        Returns
        -------
        DataLoader
            Each batch is made by the collation of the domain that it is from.

        Raises
        ------
        ValueError
            When a batch has utterances of domains that are collated in
            different ways.
        """
        loaders = list(self.loaders.values())
        dataset: Dataset = self.dataset
        collate = loaders[0].collate_fn
        if self._collate_differs():
            dataset = _Numbered(self.dataset)
            collate = _OfEach([loader.collate_fn for loader in loaders])
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=max(loader.num_workers for loader in loaders),
            pin_memory=any(loader.pin_memory for loader in loaders),
            worker_init_fn=loaders[0].worker_init_fn,
        )

    def _collate_differs(self):
        """Whether domains make batches in different ways."""
        first, *others = (each.collate_fn for each in self.loaders.values())
        return any(other != first for other in others)

    def key(self, *settings) -> str:
        """A hash of the utterances, with their audio, and of their batches.

        Results that were measured on these batches are stored under it. Files
        count by their content, wherever they are.

        Arguments
        ---------
        *settings : str
            What else decides such a result.

        Returns
        -------
        str
            A SHA-256 in hexadecimal.
        """
        content = []
        for domain, loader in self.loaders.items():
            ids, rows = rows_of(loader.dataset)
            code = data_settings(
                self.brain, loader.dataset, collate_fn=loader.collate_fn
            )
            content.append([domain, ids, rows, code])
        content.append([self.stage.name, *settings])
        content.append([batch for _, batch in self.places])
        text = json.dumps(content, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _utterances(self) -> dict:
        """What each utterance is called, and a hash of its content."""
        found = {}
        for domain, loader in self.loaders.items():
            where = "" if domain is None else f"set '{domain}', "
            ids, rows = rows_of(loader.dataset)
            for one, row in zip(ids if rows else [], rows or []):
                code = hashlib.sha256(row.encode()).hexdigest()
                found[f"{where}utterance '{one}'"] = code
            found[f"{where}the number of utterances"] = str(len(loader.dataset))
        return found

    def words(self) -> Optional[dict]:
        """Reference words of each domain, as far as the data tell them.

        Returns
        -------
        dict or None
            Domain to number of words; None where the data have no column that
            is known to hold transcripts.
        """
        words = {}
        for domain, loader in self.loaders.items():
            rows = getattr(loader.dataset, "data", None)
            ids = getattr(loader.dataset, "data_ids", None)
            if not isinstance(rows, dict) or not ids:
                return None
            columns = [
                name
                for name in TRANSCRIPTS
                if all(name in rows[one] for one in ids)
            ]
            if not columns:
                return None
            said = [rows[one][columns[0]] for one in ids]
            words[domain] = sum(
                len(text.split() if isinstance(text, str) else text)
                for text in said
            )
        return words

    def paddings(self) -> list:
        """How long the model makes the batch of each utterance.

        A model says it by its method `padded_seconds`: of the seconds of the
        longest utterance, or None where it cannot tell. What a model computes
        for an utterance must not depend on the rest of its batch but by this.

        Returns
        -------
        list of tuple or None
            For each utterance, batch after batch, its domain and the seconds. None
            where the model would make it shorter by itself, as it then hears it
            otherwise; and where it is not known: one of the Brain's modules does
            not say it, or the data have no durations.
        """
        found = [
            getattr(unwrapped(module), "padded_seconds", None)
            for module in self.modules
            if any(True for _ in module.parameters())
        ]
        rules = [rule for rule in found if rule is not None]
        durations = self.durations()
        if not rules or len(rules) < len(found):
            return [None for _, batch in self.places for _ in batch]

        def padded(seconds):
            """None near where it changes, as durations are rounded."""
            ends = {
                rule(seconds + margin)
                for rule in rules
                for margin in (-ROUNDING, ROUNDING)
            }
            return ends.pop() if len(ends) == 1 and seconds > 0 else None

        paddings: list = []
        for domain, batch in self.places:
            seconds = [durations[index] for index in batch]
            whole = padded(max(seconds)) if min(seconds) > 0 else None
            for each in seconds:
                alike = whole is not None and padded(each) == whole
                paddings.append((domain, whole) if alike else None)
        return paddings

    def durations(self) -> list:
        """Audio of each utterance.

        Returns
        -------
        list of float
            In seconds; zeros where the data have no durations.
        """
        durations = []
        for loader in self.loaders.values():
            data = getattr(loader.dataset, "data", None)
            for index in range(len(loader.dataset)):
                seconds = 0.0
                if isinstance(data, dict):
                    row = data[loader.dataset.data_ids[index]]
                    seconds = float(row.get("duration", 0.0))
                durations.append(seconds)
        return durations


class _Numbered(Dataset):
    """The rows of several sets, each with the number of its set."""

    def __init__(self, sets: ConcatDataset):
        self.sets = sets

    def __len__(self):
        return len(self.sets)

    def __getitem__(self, index):
        ends = self.sets.cumulative_sizes
        return bisect.bisect_right(ends, index), self.sets[index]


class _OfEach:
    """Makes a batch as the set does that its rows are from."""

    def __init__(self, functions: list):
        self.functions = functions

    def __call__(self, rows):
        functions = [self.functions[number] for number, _ in rows]
        if any(function != functions[0] for function in functions):
            raise ValueError(
                "A batch would have utterances of two domains whose loaders "
                "have a different `collate_fn`: give them loaders with one."
            )
        return functions[0]([row for _, row in rows])


def _loader(brain, dataset, stage, loader_kwargs):
    """A loader to learn from how the recipe batches and collates."""
    if not isinstance(dataset, (DataLoader, LoopedLoader)):
        kwargs = dict(loader_kwargs, ckpt_prefix=None)
        dataset = brain.make_dataloader(dataset, stage, **kwargs)
    if isinstance(dataset, LoopedLoader):  # an epoch of it has no end
        dataset = dataset.loader
    if isinstance(dataset, DataLoader):
        flows = isinstance(dataset.dataset, IterableDataset)
        if flows or dataset.batch_sampler is None:
            raise ValueError(
                f"A loader of {type(dataset.dataset).__name__} tells no places "
                "of its utterances, and what is compared needs the same batches "
                "each time. Give a DataLoader over a set with a length and "
                "items by number, with a `batch_size` or a `batch_sampler`."
            )
        kinds = (DataLoader, SaveableDataLoader)
        if any(
            getattr(type(dataset), name)
            not in [vars(k).get(name) for k in kinds]
            for name in ("__iter__", "_get_iterator")
        ):
            raise ValueError(
                f"A {type(dataset).__qualname__} changes what it loads on the "
                "way (in its `__iter__`), and what is compared is loaded from "
                "the set itself, batch by batch. Do what it does in the set's "
                "pipeline or in a `collate_fn`."
            )
    return dataset


def _check_workers(loaders):
    """Raises where the workers of domains are prepared in different ways."""
    first = next(iter(loaders.values()))
    for domain, loader in loaders.items():
        if loader.worker_init_fn != first.worker_init_fn or (
            loader.worker_init_fn is not None
            and bool(loader.num_workers) != bool(first.num_workers)
        ):
            raise ValueError(
                f"The loader of the domain '{domain}' prepares its workers in "
                "another way (`worker_init_fn`) than the first one, and all are "
                "loaded together. Give all loaders the same."
            )


def _begin(loader):
    """Brings samplers back to their first epoch: the same batches each time.

    A sampler of dynamic batches orders them anew whenever it was walked
    through, and one that ``fit`` has used is not as it was.
    """
    for sampler in (loader.sampler, loader.batch_sampler):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(0)
