"""Several processes that do the same at one place, at the same time."""

import json
import os
from collections import Counter

from ranks.test_ranks import LONG, python

ROUNDS = int(os.environ.get("ROUNDS", 30 if LONG else 1))
KINDS = {
    "trainings",
    "same_stage",
    "other_stage",
    "merges",
    "pretrained_exports",
    "whisper_exports",
    "studies",
    "merging_meanwhile",
}


def test_each_ends_whole_or_refuses(tmp_path):
    printed = python("ranks.at_once", tmp_path, ROUNDS, 0)
    rounds = [
        json.loads(line)
        for line in printed.splitlines()
        if line.startswith('{"kind"')
    ]
    counts = Counter(one["kind"] for one in rounds)
    assert counts == dict.fromkeys(KINDS, ROUNDS)
