"""Word errors of the weights that a Brain holds, on a selection set, exactly.

Scoring a candidate must leave no trace: no checkpoint, no log line, no learning
rate may change. So this runs the Brain's own ``evaluate_batch`` over the
selection set, between its own ``on_stage_start`` and nothing: ``on_stage_end``,
where recipes do all of the above, is never called. The errors are read from
the metric that the recipe fills anyway.

Every trial is scored on the same batches (``speechbrain_merge.brain.batches``).
Their order changes, so that decisive ones come first and a trial that has lost
stops early (``speechbrain_merge.search.racing``); and, where the model says that
it makes no difference, utterances are exchanged between them for the same
purpose (``speechbrain_merge.search.decoding_order``). Under ``torchrun`` the
batches are shared out over the processes and the counts summed.

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
from fractions import Fraction
from typing import Optional

import torch
from tqdm import tqdm

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge.brain.ranks import not_distributed
from speechbrain_merge.search import DecodingOrder, Race, Tally
from speechbrain_merge.search.curtailment import chance_of_fewer
from speechbrain_merge.search.tally import require_words


class Scorer:
    """Counts the errors that a Brain makes on fixed batches.

    Arguments
    ---------
    brain : speechbrain.Brain
        Whose ``evaluate_batch`` scores. It is told the stage of the batches:
        with ``VALID``, recipes decode with their quick search, with ``TEST``
        with their best.
    batches : FixedBatches
        The utterances that candidates are compared on.
    tracker : str
        Name of the attribute in which the recipe keeps its
        ``ErrorRateStats``.
    average : str
        ``"micro"`` pools the errors of all domains, ``"macro"`` averages the
        domains' error rates.
    """

    def __init__(
        self,
        brain,
        batches,
        tracker: str = "wer_metric",
        average: str = "micro",
    ):
        self.brain, self.batches = brain, batches
        self.tracker, self.average = tracker, average
        self.stage = batches.stage
        known = batches.words()
        if known is not None:
            require_words(known, average)
        # Rows of what is counted: the utterances, batch after batch
        durations = batches.durations()
        self.utterances = [one for _, batch in batches.places for one in batch]
        self.domains = [
            domain for domain, batch in batches.places for _ in batch
        ]
        self.seconds = [durations[one] for one in self.utterances]
        rows = itertools.count()
        self.order = DecodingOrder(
            [[next(rows) for _ in batch] for _, batch in batches.places],
            batches.paddings(),
            self.seconds if all(self.seconds) else None,
        )

    def key(self) -> str:
        """A hash of the batches and of how they are scored.

        Returns
        -------
        str
        """
        return self.batches.key(self.average, self.tracker)

    def score(
        self,
        incumbent: Optional[Tally] = None,
        accept: str = "lt",
        progress: bool = False,
        error: Optional[float] = None,
    ) -> Tally:
        """Decodes the set, as far as it takes to decide.

        Arguments
        ---------
        incumbent : Tally, optional
            What there is to beat. Once the errors so far are too many for
            that, the rest is not decoded. A tracker with ``words_vary``, such
            as ``BestReferenceStats``, is never stopped.
        accept : str
            ``"lt"`` when fewer errors are needed to win, ``"le"`` when as many
            do.
        progress : bool
            Whether to show a bar.
        error : float, optional
            Trials that win with at most this probability are stopped, too
            (``speechbrain_merge.search.curtailment``).

        Returns
        -------
        tally : Tally
            Exact counts, complete unless the race was lost, and the recipe's
            mean loss of an utterance if they are.
        """
        brain, race = self.brain, Race(incumbent, accept, error)
        step = brain.step
        brain.on_stage_start(self.stage, epoch=None)
        brain.modules.eval()
        # Where the words depend on the hypotheses, a trial is decoded in full
        racing = incumbent is not None and not self._words_vary()
        counts = torch.zeros(len(self.domains), 5, dtype=torch.float64)
        given_up: dict = {}
        with torch.no_grad(), not_distributed(brain):
            for batch, share in self._steps(progress):
                brain.step += 1
                before = len(self._scores())
                loss = brain.evaluate_batch(batch, stage=self.stage)
                self._count(counts, share, before, float(loss))
                if racing:
                    known = _summed(counts)
                    total = self._tally(known, complete=False)
                    if race.lost(total):
                        break
                    given_up = self._given_up(known, total, race)
                    if given_up:
                        break
        brain.step = step
        counts = _summed(counts)
        tally = self._tally(counts, bool((counts[:, 3] > 0).all()), **given_up)
        self._learn(counts, tally if tally.complete else incumbent)
        return tally

    def _given_up(self, counts, total, race):
        """What a tally says of a trial that will hardly win, else nothing."""
        rest = [
            row for row, done in enumerate(counts[:, 3].tolist()) if not done
        ]
        if race.error is None or not rest:
            return {}
        target = race.incumbent.cost
        costs = self._costs(race.incumbent)
        seen = set(range(len(counts))) - set(rest)
        chance = chance_of_fewer(
            float(target - race.floor(total)),
            [self.order.expected(row, cautious=True) for row in rest],
            [costs[row] for row in rest],
            float(counts[:, 0].sum()),
            sum(map(self.order.expected, seen)),
        )
        return (
            {"against": target, "chance": chance}
            if chance <= race.error
            else {}
        )

    def _costs(self, whole):
        """What an error in each row adds to the error rate."""
        if self.average == "macro":
            domains = whole.domains
            each = {
                name: 1 / (float(words) * len(domains))
                for name, (_, words) in domains.items()
            }
        else:
            each = dict.fromkeys(self.domains, 1 / float(whole.words))
        return [each[domain] for domain in self.domains]

    def _steps(self, progress):
        """Yields (batch, its rows or None): this process's share, in order.

        With several processes all take the same number of steps, since a
        recipe may have its processes wait for one another: who has no batch
        left decodes an old one again, and it does not count.
        """
        rank, world = 0, 1
        if torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
            world = torch.distributed.get_world_size()
        batches = self.order.batches()
        steps = -(-len(batches) // world)
        mine = batches[rank::world]
        idle = [None] * (steps - len(mine))
        walk = mine + [(mine or batches)[0]] * len(idle)
        shares = mine + idle
        bar = tqdm(
            self.batches.load_utterances(
                [[self.utterances[row] for row in batch] for batch in walk]
            ),
            total=steps,
            desc="score",
            leave=False,
            disable=not (progress and if_main_process()),
        )
        yield from zip(bar, shares)

    def _words_vary(self):
        """Whether the number of reference words depends on the hypotheses."""
        metric = getattr(self.brain, self.tracker, None)
        return getattr(metric, "words_vary", False)

    def _scores(self):
        """The scores that the recipe's metric has collected so far."""
        metric = getattr(self.brain, self.tracker, None)
        if not isinstance(metric, ErrorRateStats):
            raise ValueError(
                f"The Brain keeps no ErrorRateStats in `{self.tracker}` after "
                f"on_stage_start({self.stage}): name the attribute that your "
                "recipe fills with `tracker` of the merge stage."
            )
        return metric.scores

    def _count(self, counts, share, before, loss):
        """Writes down the last batch: of each of its utterances the errors,
        words and scores, that it was done, and its part of the loss."""
        scores = self._scores()[before:]
        if not scores:
            raise ValueError(
                f"`{self.tracker}` counted nothing for a batch of the "
                f"selection set: in {self.stage} the recipe must append every "
                "batch (some decode only every few epochs; set "
                "`decode: test` in the merge stage for those)."
            )
        if share is None:
            return
        counts[share, 3] = 1
        # Who scores anything but utterances has them all at the first of them
        places = share if len(scores) == len(share) else share[:1] * len(scores)
        for place, score in zip(places, scores):
            counts[place, 0] += score["num_edits"]
            counts[place, 1] += score["num_ref_tokens"]
            counts[place, 2] += 1
            counts[place, 4] += loss

    def _tally(self, counts, complete, **given_up):
        """The tally of all utterances counted so far."""
        domains = {}
        counts = counts.tolist()
        for domain, row in zip(self.domains, counts):
            if row[3]:
                errors, words = domains.get(domain, (0, 0))
                domains[domain] = (
                    errors + _exact(row[0]),
                    words + _exact(row[1]),
                )
        utterances = sum(row[2] for row in counts)
        extent = {
            "complete": complete,
            "loss": sum(row[4] for row in counts) / utterances
            if complete
            else None,
            "utterances": int(utterances),
            "seconds": sum(
                seconds for seconds, row in zip(self.seconds, counts) if row[3]
            ),
            **given_up,
        }
        if None in self.batches.loaders:
            return Tally(*domains.get(None, (0, 0)), **extent)
        return Tally.of_domains(domains, self.average, **extent)

    def _learn(self, counts, whole):
        """What a trial tells about the order of the next."""
        if whole is not None:
            self.order.costs = self._costs(whole)
        self.order.learn(
            {
                row: errors
                for row, (errors, _, _, done, _) in enumerate(counts.tolist())
                if done
            }
        )


def _exact(count):
    """A count without rounding: averages of a few counts are fractions."""
    return Fraction(count).limit_denominator(12)


def _summed(counts):
    """Counts of all processes together; each batch is counted by one."""
    if torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts
