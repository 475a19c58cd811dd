"""Results that were edited since they were written are not believed.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import re
from pathlib import Path

import killed_stages
import pytest
from counted_scorings import ask, trained

from speechbrain_merge.brain.evaluated import described
from speechbrain_merge.records.once import once
from speechbrain_merge.study.results import read_results


def edit(path, change):
    """Changes a JSON file as a person does who does not know of its check."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_value_of_a_stage(tmp_path, caplog):
    brain = trained(tmp_path / "results")
    first, _ = ask(brain)
    record = first.path.parent / "result.json"
    edit(record, lambda r: r["result"].update(value=1.5))
    with pytest.raises(ValueError, match=r"result\.json is not as it was"):
        described(first.path)
    again, scored = ask(brain)
    assert str(record) in caplog.text and not again.reused
    # from the trials in the journal
    assert again.value == first.value and scored == 0
    assert ask(brain)[0].reused
    # whoever takes the check away is not believed either
    edit(record, lambda r: (r["result"].update(value=1.5), r.pop("check")))
    again, scored = ask(brain)
    assert again.value == first.value and scored == 0
    assert "has no check" in caplog.text


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one model that is loaded and tested on one set."""
    monkeypatch.chdir(tmp_path)
    return killed_stages.study_of_loaded_weights(tmp_path)


def test_the_counts_of_a_study(study):
    before = study()
    scores = Path("results", before["scores"])
    record = scores.with_suffix(".json")
    whole = record.read_text()
    # errors and the rate that they make: all that was looked at before
    edit(
        record,
        lambda r: r["outcome"].update(
            errors=0, wer=0.0, buckets={}, substitutions=0
        ),
    )
    with pytest.raises(ValueError, match=re.escape(record.name)) as raised:
        study()
    assert f"Delete it and {scores.name}" in str(raised.value)
    record.write_text(whole)
    # the errors of two utterances exchanged: the sums are as before
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    rows[0]["id"], rows[1]["id"] = rows[1]["id"], rows[0]["id"]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=re.escape(scores.name)):
        study()
    record.unlink()
    assert study() == before
    scores.unlink()
    assert study() == before and scores.is_file()


def test_the_results_of_a_study(study):
    study()
    path = Path("results/results.json")

    def better(results):
        [row] = results["rows"]
        row["sets"]["0"]["usual"]["a"].update(errors=0, wer=0.0, buckets={})

    edit(path, better)
    with pytest.raises(ValueError, match=r"results\.json.* Run the study"):
        read_results("results")
    study()
    assert read_results("results")["rows"]


def test_the_record_of_finished_work(tmp_path):
    path = tmp_path / "finished.json"
    once(path, {"lr": 1}, lambda: {"steps": 3})
    edit(path, lambda r: r["outcome"].update(steps=4))
    with pytest.raises(ValueError, match=r"finished\.json.*Delete its folder"):
        once(path, {"lr": 1}, lambda: {"steps": 3}, advice="delete its folder.")
