"""Results that were edited since they were written are not believed.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import re
import shutil
from pathlib import Path

import killed_stages
import pytest
import torch
from counted_scorings import ask, trained
from filled_pool import collect, resume, take_checks, train_a_little

from speechbrain_merge import MergeStage, merge
from speechbrain_merge.brain.evaluated import described
from speechbrain_merge.cli import main
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.verification import verify_pool
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


def test_the_lines_of_a_pool(tmp_path, capsys):
    """One bit of an error rate chose another candidate, or deleted the best."""
    collect(tmp_path, [{"WER": 31.5}, {"WER": 20.5}])
    run = tmp_path / "pool" / "run"
    manifest = run / "manifest.jsonl"
    text = manifest.read_text()
    flipped = chr(ord("3") ^ 2)  # 31.5 to 11.5
    manifest.write_text(text.replace('"WER": 31.5', f'"WER": {flipped}1.5'))
    for use in (
        lambda: read_pool(tmp_path / "pool"),
        lambda: resume(tmp_path, torch.nn.Linear(2, 2), keep_best=1),
    ):
        with pytest.raises(ValueError, match="jsonl, line 1 is not as it was"):
            use()
    assert main(["inspect", str(tmp_path / "pool")]) == 2
    # without that line, it comes back from the candidate's own record
    manifest.write_text(text.splitlines(keepends=True)[1])
    model = torch.nn.Linear(2, 2)
    pool, saver = resume(tmp_path, model)
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 40.0, "epoch": 3})
    found = {each.epoch: each.score for each in pool.candidates()}
    assert found == {1: 31.5, 2: 20.5, 3: 40.0}
    # earlier versions wrote no check
    take_checks(manifest)
    assert len(read_pool(tmp_path / "pool")) == 3


def test_the_record_that_a_candidate_carries(tmp_path, capsys):
    collect(tmp_path, [{"WER": 31.5}, {"WER": 20.5}])
    run = tmp_path / "pool" / "run"
    path = run / "epoch-0001.safetensors"
    content = path.read_bytes()
    assert b'WER\\": 31.5' in content
    path.write_bytes(content.replace(b'WER\\": 31.5', b'WER\\": 11.5'))
    assert main(["inspect", "--verify", str(tmp_path / "pool")]) == 2
    assert "is not as it was written" in capsys.readouterr().err
    # nor is it believed where the manifest is lost
    (run / "manifest.jsonl").unlink()
    model = torch.nn.Linear(2, 2)
    pool, saver = resume(tmp_path, model)
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 40.0, "epoch": 3})
    assert [each.epoch for each in pool.candidates()] == [2, 3]
    assert (run / "quarantine" / path.name).is_file()


def test_a_line_that_is_not_the_record_of_its_candidate(tmp_path):
    """Both read well, and say different things."""
    collect(tmp_path, [{"WER": 31.5}])
    manifest = tmp_path / "pool" / "run" / "manifest.jsonl"
    take_checks(manifest)
    edit(manifest, lambda line: line["meta"].update(WER=1.5))
    (row,) = verify_pool(tmp_path / "pool")
    assert "the record in it is not the line of" in row.fault


def test_the_merge_of_another_stage(tmp_path):
    """Copied over the own one, it was taken for that of the result beside it."""
    brain = trained(tmp_path / "results")
    one, two = (
        brain.merge(
            MergeStage("average", [brain.pool], select=chosen, name=name)
        ).path
        for name, chosen in (("one", {"best": 2}), ("two", {"last": 2}))
    )
    candidate = read_pool(brain.pool)[0]
    merge("average", [one, candidate], progress=False)
    shutil.copy(two, one)
    with pytest.raises(ValueError, match="one/merged.safetensors: its content"):
        merge("average", [one, candidate], progress=False)


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


def test_the_page_of_a_study_reads_what_was_written(study, caplog):
    """Words that no model said, and other times, were shown."""
    before = study()
    scores = Path("results", before["scores"])
    whole = scores.read_bytes()
    scores.write_bytes(whole.replace(b"one", b"own"))
    assert scores.read_bytes() != whole
    page = ["study", "results", "--page"]
    assert main(page) == 2
    scores.write_bytes(whole)
    times = Path("results", "times.json")
    text = times.read_text()
    times.write_text(text.replace('"seconds": 0.', '"seconds": 9.'))
    assert times.read_text() != text and main(page) == 2
    times.write_text(text)
    assert main(page) == 0
    scores.unlink()
    assert main(page) == 0 and "shows no transcripts" in caplog.text
