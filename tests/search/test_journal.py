import json
import os
import random
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from speechbrain_merge.search import Journal, Tally, trial_key

ROOT = Path(__file__).resolve().parents[2]


def part(errors, words=1):
    return Tally(errors, words, complete=False)


def test_key_depends_on_content_alone():
    context = {"method": "ties", "selection_set": "dev", "base": "b0"}
    key = trial_key(context, ["a", "b"], [0.5, 0.25], {"scale": 0.3})
    same = trial_key(
        dict(reversed(list(context.items()))),
        ["b", "a"],
        [0.25, 0.5],
        {"scale": 0.3},
    )
    assert key == same
    others = [
        trial_key({**context, "method": "average"}, ["a", "b"], [0.5, 0.25]),
        trial_key(context, ["a", "b"], [0.25, 0.5], {"scale": 0.3}),
        trial_key(context, ["a", "c"], [0.5, 0.25], {"scale": 0.3}),
        trial_key(context, ["a", "b"], [0.5, 0.25], {"scale": 0.31}),
        trial_key(context, ["a", "b"], None, {"scale": 0.3}),
        trial_key(context, ["a", "b", "b"], [0.5, 0.25, 0], {"scale": 0.3}),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_order_counts_where_the_method_says_so():
    assert trial_key(digests="ab") == trial_key(digests="ba")
    first = trial_key(digests="ab", ordered=True)
    assert first != trial_key(digests="ba", ordered=True)


def test_keys_take_plain_values_only():
    with pytest.raises(TypeError, match="plain JSON"):
        trial_key(parameters={"scale": Fraction(1, 3)})
    with pytest.raises(ValueError, match="2 candidates but 1 weights"):
        trial_key(digests=["a", "b"], weights=[1.0])


def test_trials_survive_and_are_readable(tmp_path):
    path = tmp_path / "new folder" / "journal.jsonl"
    tally = Tally.of_domains({"a": (Fraction(7, 2), 9), "b": (2, 7)})
    journal = Journal(path)
    assert len(journal) == 0 and not path.exists()
    journal.record("k", tally, candidates=["one", "two"])
    again = Journal(path)
    assert len(again) == 1
    assert again.find("k") == tally
    assert again.find("other") is None
    line = json.loads(path.read_text())
    assert line["candidates"] == ["one", "two"] and line["incumbent"] is None


def test_each_record_is_synced_before_it_returns(tmp_path, monkeypatch):
    # what cannot be seen from outside without pulling a plug
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(file))
    journal = Journal(tmp_path / "j.jsonl")
    journal.record("a", Tally(1, 10))
    after_first = len(synced)
    journal.record("b", Tally(1, 10))
    assert after_first == 2  # the file, and the folder that now names it
    assert len(synced) == 3


def test_a_journal_cut_anywhere_resumes(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    for index in range(3):
        journal.record(str(index), Tally(index, 10))
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        journal = Journal(path)
        # a line that lacks its end alone is whole
        whole = sum(end - 1 <= cut for end in ends)
        assert len(journal) == whole
        journal.record("new", Tally(9, 10))
        again = Journal(path)
        assert len(again) == whole + 1
        assert again.find("new").errors == 9
        for index in range(whole):
            assert again.find(str(index)).errors == index


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.record("a", Tally(1, 10))
    with open(path, "a") as file:
        file.write('{"key": "b", "tal\n')
    with pytest.raises(ValueError, match=r"j\.jsonl, line 2"):
        Journal(path)


def test_a_stopped_trial_answers_only_what_it_can(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.record("k", part(12), incumbent=Tally(12, 100))
    for book in (journal, Journal(journal.path)):
        assert book.find("k") is None
        assert book.find("k", Tally(10, 100)) == part(12)
        assert book.find("k", Tally(12, 100)) == part(12)
        # lost against 12, but may still beat 13
        assert book.find("k", Tally(13, 100)) is None
        # a tie wins under the other rule
        assert book.find("k", Tally(12, 100), accept="le") is None
        assert book.find("k", Tally(11, 100), accept="le") == part(12)
    journal.record("k", part(15), incumbent=Tally(15, 100))
    assert journal.find("k", Tally(13, 100)) == part(15)
    journal.record("k", Tally(17, 100))
    assert journal.find("k").errors == 17
    assert journal.find("k", Tally(10, 100)).complete


def test_reuse_never_contradicts_full_scoring(tmp_path, error_table):
    reused = 0
    for seed in range(60):
        average = ("micro", "macro")[seed % 2]
        table = error_table(seed, average=average)
        journal = Journal(tmp_path / f"{seed}.jsonl")
        generator = random.Random(seed)
        full = table.full("trial")
        for _ in range(8):
            incumbent = table.full(f"incumbent {generator.randrange(6)}")
            table.accept = accept = generator.choice(["lt", "le"])
            found = journal.find("key", incumbent, accept)
            if found is None:
                found = table([_Named("trial")], incumbent)
                journal.record("key", found, incumbent)
            else:
                reused += 1
            wins = (
                full.cost < incumbent.cost
                if accept == "lt"
                else full.cost <= incumbent.cost
            )
            assert found.complete or not wins
            assert not found.complete or found.cost == full.cost
    assert reused > 100


TWO_PROCESSES = """
import sys
import torch.distributed
from speechbrain_merge.search import Journal, Tally

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
path = sys.argv[1] if rank == 0 else "/nowhere/to/be/found"
journal = Journal(path)
assert len(journal) == 1 and journal.find("old").errors == 4
journal.record("new", Tally(5, 10))
assert journal.find("new").errors == 5
torch.distributed.destroy_process_group()
"""


def test_all_processes_know_what_the_main_one_read(tmp_path):
    """Else one would decode a trial that another skips, and wait for ever."""
    path = tmp_path / "j.jsonl"
    Journal(path).record("old", Tally(4, 10))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert len(path.read_text().splitlines()) == 2
    assert len(Journal(path)) == 2


class _Named:
    def __init__(self, name):
        self.name = name


def test_details_of_complete_trials_come_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    lost = Tally(3, 50, complete=False)
    journal.record("lost", lost, incumbent=Tally(2, 90), loss=0.5)
    journal.record("won", Tally(1, 90), incumbent=Tally(2, 90), loss=0.1 + 0.2)
    for known in (journal, Journal(path)):
        assert known.details("won") == {"loss": 0.1 + 0.2}
        assert known.details("lost") == known.details("never") == {}
