"""How much decoding racing saves, on errors that were decoded once.

Errors are deterministic, so a search can be run again without decoding. First
the errors of each utterance are recorded, of all merges of a greedy search in
full, with a recipe's own Brain:

    cd recipes/SpeechDomains/ASR/whisper
    python ../../../../tests/benchmarks/racing_speed.py record errors.json \
        --data_folder DATA --pools results/*/pool

then the merge stage's own scorer answers from the record, and counts:

    python tests/benchmarks/racing_speed.py replay errors.json

Both can be called again: a record is continued.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import speechbrain as sb
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.scorer import Scorer
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import Average
from speechbrain_merge.pool import read_pool
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.search.trials import error_of

WINDOWS = [4.0, 6.0, 8.0, 12.0, 16.0]


def key_of(members):
    """The name of a merge in the record: a mean has no order."""
    return "|".join(sorted(members))


def searches(names, epochs):
    """Greedy searches over few candidates and over all of them, without and
    with each single one decoded first, as for the picture of a search."""
    few = [n for n in names if any(f"epoch-{e}" in n for e in epochs)]
    for some, singles in ((few, True), (few, False), (names, False)):
        title = f"{len(some)} candidates" + ", singles first" * singles
        search = GreedySearch("shuffled", seed=1986, score_singles=singles)
        yield some, search, title


def record(asked):
    """Decodes all trials of the searches in full."""
    sys.path.insert(0, os.getcwd())
    import train  # the recipe's
    from hyperpyyaml import load_hyperpyyaml

    changes = {
        "results_folder": str(asked.results),
        "run_name": "record",
        "data_folder": asked.data_folder,
        "window": WINDOWS,
        "each_alone": True,
        "domains": asked.domains,
        "test_domains": asked.domains,
    }
    with open("hparams/train.yaml", encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, changes)
    sb.create_experiment_directory(hparams["output_folder"])
    run = train.prepare(hparams, {"device": "cpu"})
    brain = run.brain
    loaders = brain.validation_loader.loaders(
        brain, run.valid_sets, sb.Stage.VALID, hparams["valid_loader_kwargs"]
    )
    scorer = Scorer(brain, FixedBatches(brain, loaders), average="macro")
    candidates = {
        one.name: one for pool in asked.pools for one in read_pool([pool])
    }
    known = {}
    if asked.errors.exists():
        known = json.loads(asked.errors.read_text())["trials"]

    def score(selection, incumbent):
        del incumbent
        names = [one.name for one in selection]
        if key_of(names) not in known:
            brain.load_weights(merge(Average(), selection, progress=False))
            with brain._candidates_scored():
                tally = scorer.score()
            order = [row for batch in walked[0] for row in batch]
            rows = dict(zip(order, brain.wer_metric.scores))
            known[key_of(names)] = [
                rows[row]["num_edits"] for row in range(len(rows))
            ]
            content = {
                "trials": known,
                "words": [
                    rows[row]["num_ref_tokens"] for row in range(len(rows))
                ],
                "seconds": scorer.seconds,
                "domains": scorer.domains,
                "batches": [len(b) for _, b in scorer.batches.places],
                "paddings": scorer.batches.paddings(),
                "candidates": list(candidates),
            }
            asked.errors.write_text(json.dumps(content))
            return tally
        return Stored(json.loads(asked.errors.read_text())).score(names)

    # the order that each trial was decoded in
    walked, batches = [None], scorer.order.batches

    def noted():
        walked[0] = batches()
        return walked[0]

    scorer.order.batches = noted
    for some, search, _ in searches(list(candidates), asked.few):
        search.run([candidates[n] for n in some], score, racing=False)


class Stored:
    """A Brain and its batches, whose errors are those on record."""

    stage, hparams = sb.Stage.VALID, SimpleNamespace()

    def __init__(self, content):
        self.content = content
        self.modules = torch.nn.ModuleDict()
        self.step = 0
        self.dataset, self.places = range(len(content["words"])), []
        at = 0
        for size in content["batches"]:
            rows = list(range(at, at + size))
            self.places.append((content["domains"][at], rows))
            at += size
        self.loaders = dict.fromkeys(content["domains"])
        self.scorer = Scorer(self, self, average="macro")

    def on_stage_start(self, stage, epoch=None):
        """Begins to count."""
        self.wer_metric = ErrorRateStats()

    def words(self):
        """Not needed before the first trial."""

    def durations(self):
        """Seconds of each utterance."""
        return self.content["seconds"]

    def paddings(self):
        """As the model pads, if utterances may be exchanged."""
        known = [
            tuple(each) if isinstance(each, list) else each  # as in JSON
            for each in self.content["paddings"]
        ]
        return known if self.exchange else [None] * len(known)

    exchange = True

    def load_utterances(self, batches):
        """Their numbers."""
        return batches

    def evaluate_batch(self, batch, stage):
        """Answers from the record."""
        self.wer_metric.scores += [
            {
                "num_edits": self.errors[row],
                "num_ref_tokens": self.content["words"][row],
            }
            for row in batch
        ]
        return 0.0

    def score(self, names, incumbent=None, racing=True):
        """The tally of a merge."""
        self.errors = self.content["trials"][key_of(names)]
        return self.scorer.score(incumbent, "lt", error=error_of(racing))


class AsTheyCame(Stored):
    """The same, with the recipe's batches."""

    exchange = False


def replay(asked):
    """Runs the searches on the record, and prints what racing saved."""
    content = json.loads(asked.errors.read_text())
    print(
        "| search | racing | of rejected trials: audio | utterances | of the "
        "search: audio | stopped, of them as hardly winning | picks |\n"
        "|---|---|---:|---:|---:|---|---|"
    )
    for some, search, title in searches(content["candidates"], asked.few):
        whole = None
        for kind, racing, called in (
            (Stored, False, "none"),
            (AsTheyCame, True, "exact, batches as they come"),
            (Stored, True, "exact"),
            (Stored, 0.01, "statistical, 0.01"),
        ):
            brain = kind(content)

            def score(selection, incumbent, brain=brain, racing=racing):
                names = [one.name for one in selection]
                return brain.score(names, incumbent, racing)

            pool = [SimpleNamespace(name=name) for name in some]
            result = search.run(pool, score, progress=False, racing=racing)
            saved = result.savings
            whole = whole or result
            same = (result.selected, result.tally) == (
                whole.selected,
                whole.tally,
            )
            skipped = saved.skipped_utterances
            print(
                f"| {title} | {called} "
                f"| {100 * saved.fraction_of_rejected:.0f} % "
                f"| {100 * skipped / saved.rejected_utterances:.0f} % "
                f"| {100 * saved.fraction:.0f} % "
                f"| {saved.stopped} of {saved.rejected}, {saved.given_up} "
                f"| {'same' if same else 'other'}, {len(result.selected)}, "
                f"{result.tally.value:.2f} % |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "replay"))
    parser.add_argument("errors", type=Path)
    parser.add_argument("--pools", nargs="+", default=[])
    parser.add_argument("--data_folder")
    parser.add_argument("--results", default="results/racing")
    parser.add_argument(
        "--domains", nargs="+", default=["child_l2", "digits", "telephony"]
    )
    parser.add_argument("--few", nargs="+", default=["0006", "0008", "0010"])
    given = parser.parse_args()
    {"record": record, "replay": replay}[given.what](given)
