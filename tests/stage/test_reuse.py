"""Results and trials of merge stages: used again where nothing that decides
them has changed, and only there.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from counted_scorings import VALID, AnotherDecoder, Decoder, ask, trained
from tiny_models import tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool
from speechbrain_merge.brain.decisive import decisive_settings
from speechbrain_merge.evaluation.text import TextNormalizer
from speechbrain_merge.records.files import temporary_beside
from speechbrain_merge.records.ownership import write_mark
from speechbrain_merge.search import (
    CoordinateSearch,
    GreedySearch,
    GridSearch,
    PrefixSearch,
)

CHANGES = {
    "another decoder": lambda h: setattr(h, "decoder", AnotherDecoder()),
    "a list": lambda h: setattr(h, "words", ["one", "three"]),
    "in a list": lambda h: h.words.append("three"),
    "in an object": lambda h: setattr(h.decoder, "bonus", [9.0]),
    "in a list in an object": lambda h: h.decoder.bonus.append(9.0),
    "an object in it": lambda h: setattr(h.decoder, "inner", Decoder([9.0])),
    "a buffer": lambda h: setattr(h.decoder, "buffer", torch.ones(2)),
    "a number": lambda h: setattr(h, "beam_size", 3),
    "a word with a slash": lambda h: setattr(h, "lm", "speechbrain/lm"),
    "a function": lambda h: setattr(h, "normalizer", str.lower),
}


def frozen(value):
    """A language model that is not trained."""
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.zeros_(model.bias)
    return model


BRAIN_CHANGES = {
    "a number": lambda b, n: setattr(b, "beam_size", n),
    "a list": lambda b, n: setattr(b, "beams", [8, n]),
    "a decoder": lambda b, n: setattr(b, "searcher", Decoder([float(n)])),
    "weights": lambda b, n: setattr(b, "lm", frozen(float(n))),
    "a module": lambda b, n: b.modules.update({"lm": frozen(float(n))}),
    "a module that nobody has frozen": lambda b, n: b.modules.update(
        {"lm": frozen(float(n)).requires_grad_()}
    ),
    "a setting of a module": lambda b, n: b.modules.update(
        {"lm": torch.nn.Dropout(n / 10)}
    ),
    "a setting of a module with weights": lambda b, n: b.modules.update(
        {"lm": torch.nn.BatchNorm1d(2, eps=1e-5 * (1 + n))}
    ),
    "normalisation of text": lambda b, n: setattr(
        b.hparams, "text", TextNormalizer(upper_case=bool(n))
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results folder of a training, to be copied."""
    folder = tmp_path_factory.mktemp("results") / "1986"
    trained(folder)
    return folder


@pytest.fixture
def brain(results, tmp_path):
    """A Brain over results that nobody has merged yet."""
    shutil.copytree(results, tmp_path / "results")
    return trained(tmp_path / "results")


@pytest.mark.parametrize("change", CHANGES)
def test_another_way_to_decode_is_another_question(brain, change):
    first, scored = ask(brain)
    assert scored == 4 and not first.reused
    again, scored = ask(brain)
    assert again.reused and scored == 0
    CHANGES[change](brain.hparams)
    other, scored = ask(brain)
    assert not other.reused and scored > 0, change
    # what is reported is true
    tally = brain.score_weights(other.path, tiny_ctc_data(10, seed=50), VALID)
    assert other.value == tally.value
    if change == "another decoder":
        assert other.value == 100.0 != first.value


@pytest.mark.parametrize("change", BRAIN_CHANGES)
def test_what_a_brain_is_given_counts(brain, change):
    """Beside its hyperparameters: as a recipe's script sets it."""
    found = []
    for number in (0, 1):
        BRAIN_CHANGES[change](brain, number)
        found.append(decisive_settings(brain))
        BRAIN_CHANGES[change](brain, number)  # another object, the same value
        assert decisive_settings(brain) == found[-1]
    assert found[0] != found[1]


def test_what_a_brain_does_or_holds_by_the_way_does_not_count(brain, tmp_path):
    before = decisive_settings(brain)
    brain.other = CheckpointPool(tmp_path / "other", {"model": tiny_network(0)})
    brain.data = tiny_ctc_data(3)
    brain.loader = torch.utils.data.DataLoader([1, 2])
    brain.train_logger = logging.getLogger("train")
    brain.saver = brain.checkpointer
    assert decisive_settings(brain) == before
    brain.evaluate(tiny_ctc_data(6, seed=60), min_key="WER")
    ask(brain)
    assert decisive_settings(brain) == before


def test_notes_that_a_brain_keeps_do_not_count(brain):
    """A Brain that lists what it heard scored all again in the next process."""

    class Noting(type(brain)):
        def evaluate_batch(self, batch, stage):
            self.heard.append(batch.id)
            self.times[len(self.heard)] = stage
            return super().evaluate_batch(batch, stage)

    brain.__class__ = Noting
    brain.heard, brain.times = [], {}
    before = decisive_settings(brain)
    ask(brain)
    brain.test_name = "read"
    assert brain.heard and brain.times
    assert decisive_settings(brain) == before
    brain.words = ["one"]  # nothing writes it: a setting
    assert decisive_settings(brain) != before


def test_a_file_that_changed_is_another_question(brain, tmp_path):
    model = tmp_path / "lm.arpa"
    model.write_text("one")
    brain.hparams.lm = str(model)
    ask(brain)
    assert ask(brain)[0].reused
    model.write_text("two")
    assert not ask(brain)[0].reused
    # also for the selection data
    assert not ask(brain, valid=51)[0].reused


def test_what_has_changed_is_told(brain, caplog):
    """As it takes a while to score all again."""
    ask(brain)
    brain.words_of = ["one"]
    with caplog.at_level(logging.INFO):
        ask(brain, valid=51)
        assert ask(brain, valid=51)[0].reused
    told = [each for each in caplog.messages if "is made again" in each]
    assert len(told) == 1
    assert (
        "in: the recipe's hyperparameters, or what its Brain holds" in told[0]
    )
    assert "the selection set" in told[0] and "code" not in told[0]


def test_what_happens_by_itself_changes_nothing(brain, tmp_path):
    first, _ = ask(brain)
    brain.evaluate(tiny_ctc_data(6, seed=60), min_key="WER")
    (tmp_path / "results" / "wer.txt").write_text("%WER 3.14")
    brain.hparams.epoch_counter.current = 9
    again, scored = ask(brain)
    assert again.reused and scored == 0 and again.value == first.value
    # the folder is moved, and a new Brain made there
    shutil.move(tmp_path / "results", tmp_path / "moved")
    moved = trained(tmp_path / "moved")
    again, scored = ask(moved)
    assert again.reused and scored == 0
    assert again.path == tmp_path / "moved/merge/average/merged.safetensors"


def test_a_new_process(brain, tmp_path):
    first, _ = ask(brain)
    tests = Path(__file__).parents[1]
    paths = map(str, (tests, tests.parent))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from counted_scorings import ask, trained\n"
        "result, scored = ask(trained(Path(sys.argv[1])))\n"
        "print('found', result.reused, scored, result.value)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "results")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"found True 0 {first.value}" in done.stdout


def same_as_fresh(brain, result, folder, search, **settings):
    """Without a journal and without racing it comes to the same."""
    fresh, _ = ask(brain, search, folder=folder, racing=False, **settings)
    assert not any(trial["reused"] for trial in fresh.trials)
    assert result.selected == fresh.selected
    assert result.value == fresh.value
    assert [trial["accepted"] for trial in result.trials] == [
        trial["accepted"] for trial in fresh.trials
    ]


@pytest.mark.parametrize("racing", [True, False])
def test_trials_are_scored_once(brain, tmp_path, racing):
    """A grown pool, another rule, another order, another search and stage."""
    _, scored = ask(brain, racing=racing)
    assert scored == 4
    grown = trained(tmp_path / "results", epochs=5)
    assert len(grown.pool.candidates()) == 5
    result, scored = ask(grown, racing=racing)
    assert scored == 1 and len(result.trials) == 5
    same_as_fresh(grown, result, tmp_path / "a", GreedySearch())

    known = [trial["members"] for trial in result.trials]
    search = GreedySearch(accept="le")
    result, scored = ask(grown, search, racing=racing)
    # a tie that it accepts leads to merges that were not tried; a trial that
    # was stopped at a tie has lost by the one rule alone
    new = [trial for trial in result.trials if not trial["reused"]]
    tried = [trial for trial in new if trial["members"] in known]
    assert scored == len(new) < len(result.trials)
    assert len(tried) <= (1 if racing else 0)
    same_as_fresh(grown, result, tmp_path / "b", search)

    search = GreedySearch("sorted", "le")
    result, scored = ask(grown, search, name="soup", racing=racing)
    singles = [trial for trial in result.trials if trial["kind"] == "single"]
    assert [trial["reused"] for trial in singles].count(False) == 4
    same_as_fresh(grown, result, tmp_path / "c", search)

    search = PrefixSearch(score_singles=True)
    result, scored = ask(grown, search, name="prefixes", racing=racing)
    singles = [trial for trial in result.trials if trial["kind"] == "single"]
    assert all(trial["reused"] for trial in singles)
    same_as_fresh(grown, result, tmp_path / "d", search)

    search = GreedySearch("shuffled", seed=3)
    result, scored = ask(grown, search, name="shuffled", racing=racing)
    assert scored < 5
    same_as_fresh(grown, result, tmp_path / "e", search)
    assert ask(grown, search, name="again", racing=racing)[1] == 0
    assert (tmp_path / "results/merge/trials.jsonl").exists()


def test_methods_and_searches_over_coefficients_share_their_trials(brain):
    names = [each.name for each in brain.pool.candidates()]
    scale = {"experts": dict.fromkeys(names, 0.5)}
    grid = GridSearch("scale", [scale, 0.25])
    _, scored = ask(brain, grid, method="task_arithmetic", name="grid")
    assert scored == 2
    # 0.5 each: by another search, as a coefficient of each run
    search = CoordinateSearch(dict.fromkeys(names, (0.0, 1.0)), evaluations=1)
    result, scored = ask(
        brain, search, method="task_arithmetic", name="coordinates"
    )
    assert scored == 0 and result.trials[0]["reused"]
    # another method with the same parameters
    _, scored = ask(brain, grid, method="ties", name="grid")
    assert scored == 2
    # an average does not depend on the base, task arithmetic does
    ask(brain, name="plain")
    base = {
        f"model.{name}": tensor * 2
        for name, tensor in tiny_network(0).state_dict().items()
    }
    assert ask(brain, base=base, name="with-base")[1] == 0
    _, scored = ask(
        brain, grid, base=base, method="task_arithmetic", name="other-base"
    )
    assert scored == 2


def test_weights_and_single_candidates(brain, tmp_path):
    names = [each.name for each in brain.pool.candidates()]
    search = GreedySearch(score_singles=True)
    ask(brain, search)
    weights = {name: 1 + place for place, name in enumerate(names)}
    result, _ = ask(brain, search, weights=weights, name="weighted")
    # one model alone is itself, whatever it weighs; two are not
    for trial in result.trials:
        assert trial["reused"] == (trial["kind"] == "single")
    same_as_fresh(brain, result, tmp_path / "a", search, weights=weights)


def test_a_torn_line_and_an_old_journal(brain, tmp_path):
    """What cannot be used is scored again, and nothing else."""
    first, _ = ask(brain)
    folder = tmp_path / "results" / "merge"
    journal = folder / "trials.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    shutil.rmtree(folder / "average")
    journal.write_bytes(b"".join(lines)[:-20])
    again, scored = ask(brain)
    assert scored == 1 and again.value == first.value
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    # of an earlier version: in the stage's folder, with keys of its own
    old = folder / "old" / "trials.jsonl"
    old.parent.mkdir()
    row = dict(json.loads(lines[0]), key="0" * 64)
    del row["check"]
    old.write_text(json.dumps(row) + "\n")
    with journal.open("a") as file:
        file.write(json.dumps(row) + "\n")
    _, scored = ask(brain, name="old")
    assert scored == 0 and len(old.read_text().splitlines()) == 1


def test_what_a_killed_stage_left_goes_when_it_begins_again(brain, tmp_path):
    """Also where the stage itself is done; a person's files stay."""
    ask(brain)
    folder = tmp_path / "results/merge/average"
    there = sorted(path.name for path in folder.iterdir())
    remains = [
        temporary_beside(folder / name)
        for name in ("merged.safetensors", "result.json", "trials")
    ]
    remains[0].write_bytes(b"half")
    remains[1].write_text("{")
    remains[2].mkdir()
    write_mark(remains[2], None)
    (remains[2] / "trial.safetensors").write_bytes(b"half")
    theirs = folder / ".mine.partial"
    theirs.write_text("a person's")
    result, scored = ask(brain)
    assert result.reused and scored == 0
    left = sorted(path.name for path in folder.iterdir())
    assert left == sorted([*there, theirs.name])
