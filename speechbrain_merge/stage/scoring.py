"""Word errors of the weights that a Brain holds, on a selection set, exactly.

Scoring a candidate must leave no trace: no checkpoint, no log line, no learning
rate may change. So this runs the Brain's own ``evaluate_batch`` over the
selection set, between its own ``on_stage_start`` and nothing: ``on_stage_end``,
where recipes do all of the above, is never called. The errors are read from
the metric that the recipe fills anyway.

The batches of a selection set are made once and stay the same for every trial;
only their order changes, so that decisive ones come first and a trial that has
lost stops early (``speechbrain_merge.search.racing``). Under ``torchrun`` the
batches are shared out over the processes and the counts summed.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats
from torch.utils.data import ConcatDataset, DataLoader
from tqdm import tqdm

from speechbrain_merge.search import Race, Tally, decisive_first
from speechbrain_merge.search.tally import require_words

# The columns in which the host's recipes keep transcripts
TRANSCRIPTS = ("wrd", "words", "transcript", "text")


class SelectionSet:
    """The utterances that candidates are compared on, in fixed batches.

    Arguments
    ---------
    brain : speechbrain.Brain
        Whose ``evaluate_batch`` scores.
    data : Dataset, DataLoader or dict
        The utterances; a dict names one such set for each domain.
    loader_kwargs : dict, optional
        As for ``Brain.evaluate``.
    stage : speechbrain.Stage
        What ``evaluate_batch`` is told: with ``VALID``, recipes decode with
        their quick search, with ``TEST`` with their best.
    tracker : str
        Name of the attribute in which the recipe keeps its
        ``ErrorRateStats``.
    average : str
        ``"micro"`` pools the errors of all domains, ``"macro"`` averages the
        domains' error rates.

    Raises
    ------
    ValueError
        When there is no utterance to compare on.
    """

    def __init__(
        self,
        brain,
        data,
        loader_kwargs=None,
        stage=sb.Stage.VALID,
        tracker="wer_metric",
        average="micro",
    ):
        self.brain, self.stage, self.tracker = brain, stage, tracker
        self.average = average
        domains = data if isinstance(data, dict) else {None: data}
        self.loaders = {
            domain: self._loader(dataset, loader_kwargs or {})
            for domain, dataset in domains.items()
        }
        self.dataset = ConcatDataset(
            [loader.dataset for loader in self.loaders.values()]
        )
        self.batches, start = [], 0
        for domain, loader in self.loaders.items():
            _begin(loader)
            self.batches += [
                (domain, [start + index for index in batch])
                for batch in loader.batch_sampler
            ]
            start += len(loader.dataset)
        if not self.batches:
            raise ValueError(
                "The selection set has no utterance: candidates cannot be "
                "compared. Check the CSV of the validation data."
            )
        self._check_transcripts()
        self.seconds = self._seconds()
        self.order = list(range(len(self.batches)))
        self.loss = None

    def _loader(self, dataset, loader_kwargs):
        """A loader to learn from how the recipe batches and collates."""
        if isinstance(dataset, DataLoader):
            return dataset
        kwargs = dict(loader_kwargs, ckpt_prefix=None)
        return self.brain.make_dataloader(dataset, self.stage, **kwargs)

    def _check_transcripts(self):
        """Refuses sets without words, where the data tell, before decoding."""
        words = {}
        for domain, loader in self.loaders.items():
            rows = getattr(loader.dataset, "data", None)
            ids = getattr(loader.dataset, "data_ids", None)
            if not isinstance(rows, dict) or not isinstance(ids, list):
                return
            columns = [
                name
                for name in TRANSCRIPTS
                if ids and all(name in rows[one] for one in ids)
            ]
            if not columns:
                return
            said = [rows[one][columns[0]] for one in ids]
            words[domain] = sum(
                len(text.split() if isinstance(text, str) else text)
                for text in said
            )
        require_words(words, self.average)

    def key(self):
        """A hash of what is in the set, to know results of old trials again.

        Returns
        -------
        key : str
        """
        content = []
        for domain, loader in self.loaders.items():
            data = getattr(loader.dataset, "data", None)
            ids = getattr(loader.dataset, "data_ids", len(loader.dataset))
            rows = None
            if isinstance(data, dict) and isinstance(ids, list):
                rows = [str(sorted(data[one].items())) for one in ids]
            content.append([domain, ids, rows])
        content.append([self.stage.name, self.average, self.tracker])
        content.append([batch for _, batch in self.batches])
        text = json.dumps(content, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def score(self, incumbent=None, accept="lt", progress=False):
        """Decodes the set, as far as it takes to decide.

        Arguments
        ---------
        incumbent : Tally, optional
            What there is to beat. Once the errors so far are too many for
            that, the rest is not decoded.
        accept : str
            ``"lt"`` when fewer errors are needed to win, ``"le"`` when as many
            do.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        tally : Tally
            Exact counts, complete unless the race was lost. The recipe's mean
            loss of an utterance is then in ``loss``, and None if it was lost.
        """
        brain, race = self.brain, Race(incumbent, accept)
        step = brain.step
        brain.on_stage_start(self.stage, epoch=None)
        brain.modules.eval()
        counts = torch.zeros(len(self.batches), 5, dtype=torch.float64)
        total = self._tally(counts, complete=False)
        with torch.no_grad():
            for batch, share in self._steps(progress):
                brain.step += 1
                before = len(self._scores())
                loss = brain.evaluate_batch(batch, stage=self.stage)
                if share is not None:
                    counts[share] = self._count(before, batch, float(loss))
                if incumbent is not None:
                    total = self._tally(_summed(counts), complete=False)
                    if race.lost(total):
                        break
        brain.step = step
        counts = _summed(counts)
        done = bool((counts[:, 3] > 0).all())
        self.loss = None
        if done:
            self.loss = float(counts[:, 4].sum() / counts[:, 2].sum())
            self._reorder(counts)
        return self._tally(counts, complete=done)

    def _steps(self, progress):
        """Yields (batch, index or None): this process's share, in order.

        With several processes all take the same number of steps, since a
        forward pass may wait for the others: who has no batch left decodes an
        old one again, and it does not count.
        """
        rank, world = 0, 1
        if torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
            world = torch.distributed.get_world_size()
        steps = -(-len(self.order) // world)
        mine = self.order[rank::world]
        idle = [None] * (steps - len(mine))
        walk = mine + [(mine or self.order)[0]] * len(idle)
        shares = mine + idle
        bar = tqdm(
            self.load(walk),
            total=steps,
            desc="score",
            leave=False,
            disable=not (progress and if_main_process()),
        )
        yield from zip(bar, shares)

    def load(self, indices):
        """Loads batches in a given order, with the recipe's own collation.

        Arguments
        ---------
        indices : list of int
            Places in ``batches``.

        Returns
        -------
        loader : DataLoader
        """
        loader = next(iter(self.loaders.values()))
        return DataLoader(
            self.dataset,
            batch_sampler=[self.batches[index][1] for index in indices],
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
        )

    def _seconds(self):
        """Audio of each batch in seconds, where the data tell durations."""
        durations = []
        for loader in self.loaders.values():
            data = getattr(loader.dataset, "data", None)
            for index in range(len(loader.dataset)):
                seconds = 0.0
                if isinstance(data, dict):
                    row = data[loader.dataset.data_ids[index]]
                    seconds = float(row.get("duration", 0.0))
                durations.append(seconds)
        return [
            sum(durations[index] for index in batch)
            for _, batch in self.batches
        ]

    def _scores(self):
        """What the recipe's metric has counted so far."""
        metric = getattr(self.brain, self.tracker, None)
        if not isinstance(metric, ErrorRateStats):
            raise ValueError(
                f"The Brain keeps no ErrorRateStats in `{self.tracker}` after "
                f"on_stage_start({self.stage}): name the attribute that your "
                "recipe fills with `tracker` of the merge stage."
            )
        return metric.scores

    def _count(self, before, batch, loss):
        """Errors, words, utterances of the last batch, that it was done, and
        the sum of its utterances' losses."""
        scores = self._scores()[before:]
        if not scores:
            raise ValueError(
                f"`{self.tracker}` counted nothing for a batch of the "
                f"selection set: in {self.stage} the recipe must append every "
                "batch (some decode only every few epochs; set "
                "`decode: test` in the merge stage for those)."
            )
        return torch.tensor(
            [
                sum(score["num_edits"] for score in scores),
                sum(score["num_ref_tokens"] for score in scores),
                len(scores),
                1,
                loss * len(scores),
            ],
            dtype=torch.float64,
        )

    def _tally(self, counts, complete):
        """The tally of all batches counted so far."""
        domains = {}
        for (domain, _), row in zip(self.batches, counts.tolist()):
            if row[3]:
                errors, words = domains.get(domain, (0, 0))
                domains[domain] = (errors + int(row[0]), words + int(row[1]))
        extent = {
            "complete": complete,
            "utterances": int(counts[:, 2].sum()),
            "seconds": sum(
                seconds
                for seconds, row in zip(self.seconds, counts.tolist())
                if row[3]
            ),
        }
        if None in self.loaders:
            return Tally(*domains.get(None, (0, 0)), **extent)
        return Tally.of_domains(domains, self.average, **extent)

    def _reorder(self, counts):
        """Decisive batches first, as the trial just scored shows them."""
        words = {}
        for (domain, _), row in zip(self.batches, counts.tolist()):
            words[domain] = words.get(domain, 0) + int(row[1])
        weight = words if self.average == "macro" else dict.fromkeys(words, 1)
        errors = [
            row[0] / max(weight[domain], 1)
            for (domain, _), row in zip(self.batches, counts.tolist())
        ]
        self.order = decisive_first(errors, counts[:, 2].tolist())


def _begin(loader):
    """Brings samplers back to their first epoch: the same batches each time.

    A sampler of dynamic batches orders them anew whenever it was walked
    through, and one that ``fit`` has used is not as it was.
    """
    for sampler in (loader.sampler, loader.batch_sampler):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(0)


def _summed(counts):
    """Counts of all processes together; each batch is counted by one."""
    if torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts
