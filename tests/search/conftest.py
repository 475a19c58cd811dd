"""A selection set as a table of errors: what a decoder would have counted."""

import hashlib
import random
from collections import namedtuple
from fractions import Fraction

import pytest

from speechbrain_merge.search import Race, Tally, decisive_first

Candidate = namedtuple("Candidate", "name digest score")


class ErrorTable:
    """Scores any proposal with random, fixed errors of each utterance.

    Stops early when racing says so, going through the utterances in an order
    of its own, as a Brain would.
    """

    def __init__(self, seed, utterances=12, average="micro", accept="lt"):
        self.seed = seed
        self.average = average
        self.accept = accept
        generator = random.Random(seed)
        self.words = [generator.randint(1, 6) for _ in range(utterances)]
        self.domains = [generator.choice("abc") for _ in range(utterances)]
        # halves: a metric that averages two references counts in halves
        self.unit = generator.choice([1, Fraction(1, 2)])
        self.order = list(range(utterances))
        generator.shuffle(self.order)
        self.calls = []
        self.decoded = 0

    def errors(self, proposal, utterance):
        # few distinct values, so that ties between proposals are common
        text = f"{self.seed} {proposal} {utterance}".encode()
        return hashlib.sha256(text).digest()[0] % 3 * self.unit

    def tally(self, proposal, utterances, complete):
        domains = {}
        for utterance in utterances:
            errors, words = domains.get(self.domains[utterance], (0, 0))
            domains[self.domains[utterance]] = (
                errors + self.errors(proposal, utterance),
                words + self.words[utterance],
            )
        return Tally.of_domains(
            domains,
            average=self.average,
            complete=complete,
            utterances=len(utterances),
            seconds=float(len(utterances)),
        )

    def full(self, proposal):
        return self.tally(proposal, range(len(self.words)), True)

    def __call__(self, proposal, incumbent):
        name = self.name_of(proposal)
        self.calls.append(name)
        race = Race(incumbent, self.accept)
        for count in range(len(self.order)):
            part = self.tally(name, self.order[:count], False)
            if race.lost(part):
                return part
            self.decoded += 1
        self.order = decisive_first(
            [self.errors(name, u) for u in range(len(self.words))]
        )
        return self.full(name)

    @staticmethod
    def name_of(proposal):
        if isinstance(proposal, dict):
            return str(sorted(proposal.items()))
        return "+".join(candidate.name for candidate in proposal)


class Killed(Exception):
    """Stands for the end of the process."""


class KilledAfter:
    """A scorer that dies when called once more than allowed."""

    def __init__(self, score, calls):
        self.score = score
        self.left = calls

    def __call__(self, proposal, incumbent):
        if not self.left:
            raise Killed
        self.left -= 1
        return self.score(proposal, incumbent)


@pytest.fixture
def error_table():
    return ErrorTable


@pytest.fixture
def killed_after():
    return KilledAfter


@pytest.fixture
def killed():
    return Killed


@pytest.fixture
def make_pool():
    def make(names, scores=None):
        scores = scores or [None] * len(names)
        return [
            Candidate(name, f"digest of {name}", score)
            for name, score in zip(names, scores)
        ]

    return make
