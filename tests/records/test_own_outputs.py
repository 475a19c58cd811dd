"""Tables, pictures and pages replace only what was written here before."""

import json
import os

import killed_stages
import pytest
from counted_scorings import VALID, trained
from tiny_models import tiny_ctc_data

from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.cli import main
from speechbrain_merge.records.own_outputs import (
    NOTE,
    is_output,
    outputs_of,
    write_outputs,
)

NAMES = ("results.json", "results.md", "results.csv", "results.tex")


def test_a_study_keeps_what_somebody_wrote_in_its_folder(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    names = (*NAMES, "report.html")
    for name in names:
        (results / name).write_text(f"my own {name}")
    study = killed_stages.study_of_loaded_weights(tmp_path)
    study()
    for name in names:
        first, last = name.split(".")
        kept = results / f"{first}.before.{last}"
        assert kept.read_text() == f"my own {name}"
        assert f"it is kept as {kept.name}" in caplog.text
    assert json.loads((results / "results.json").read_text())["rows"]
    before = sorted(path.name for path in results.iterdir())
    study()
    assert sorted(path.name for path in results.iterdir()) == before
    # also what one edited, and where the page alone is written
    (results / "report.html").write_text("edited")
    assert main(["study", str(results), "--page"]) == 0
    assert (results / "report.before-2.html").read_text() == "edited"
    assert "<html" in (results / "report.html").read_text()


def test_the_alignments_of_a_recipe_are_not_replaced(tmp_path):
    """SpeechBrain's recipes write them under the same name."""
    folder = tmp_path / "results"
    brain, sets = trained(folder, epochs=1), {"test": tiny_ctc_data(3)}
    before = sorted(folder.iterdir())
    path = folder / "wer_test.txt"
    path.write_text("those of the recipe's own model")
    with pytest.raises(FileExistsError, match="wer_test.txt holds alignments"):
        evaluate_domains(brain, sets, folder, VALID)
    assert sorted(folder.iterdir()) == sorted([*before, path])
    path.unlink()
    for _ in range(2):  # those of this function are
        evaluate_domains(brain, sets, folder, VALID)
    assert path.read_text().startswith("%WER")


@pytest.mark.parametrize("what", ["a link", "a folder", "another"])
def test_whatever_is_in_its_place_is_kept(tmp_path, what):
    target = tmp_path / "a.txt"
    (tmp_path / "else").write_text("precious")
    if what == "a link":
        target.symlink_to(tmp_path / "else")
    elif what == "a folder":
        target.mkdir()
        (target / "mine").write_text("precious")
    else:
        target.write_text("precious")
    write_outputs(tmp_path, {"a.txt": "new"})
    assert target.read_text() == "new" and not target.is_symlink()
    kept = tmp_path / "a.before.txt"
    place = kept / "mine" if what == "a folder" else kept
    assert place.read_text() == (tmp_path / "else").read_text() == "precious"


def test_a_kill_between_the_note_and_the_file(tmp_path, monkeypatch):
    """What is there is known, whichever it is."""
    write_outputs(tmp_path, {"a.txt": "1", "b.txt": "1"})

    def killed(path, content):
        if path.name == "b.txt":
            raise KeyboardInterrupt
        writing(path, content)

    from speechbrain_merge.records import own_outputs

    writing = own_outputs.write_whole
    monkeypatch.setattr(own_outputs, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(tmp_path, {"a.txt": "2", "b.txt": "2"})
    monkeypatch.undo()
    assert is_output(tmp_path / "a.txt") and is_output(tmp_path / "b.txt")
    write_outputs(tmp_path, {"a.txt": "3", "b.txt": "3"})
    assert {path.name for path in tmp_path.iterdir()} == {
        NOTE,
        "a.txt",
        "b.txt",
    }


def test_without_its_note_nothing_is_replaced(tmp_path):
    write_outputs(tmp_path, {"a.txt": "1"})
    (tmp_path / NOTE).write_text("{")
    with outputs_of(tmp_path) as drawn:
        (drawn / "a.txt").write_text("2")
    assert (tmp_path / "a.before.txt").read_text() == "1"
    # but what is the same
    (tmp_path / NOTE).unlink()
    write_outputs(tmp_path, {"a.txt": "2"})
    assert len(list(tmp_path.glob("a*"))) == 2


@pytest.mark.parametrize("what", ["text", "another note", "a link", "a pipe"])
def test_a_note_of_somebody_else_is_kept(tmp_path, what):
    note = tmp_path / NOTE
    (tmp_path / "else").write_text('{"sha256": {}}')
    if what == "a link":
        note.symlink_to(tmp_path / "else")
    elif what == "a pipe":
        os.mkfifo(note)
    else:
        note.write_text("mine" if what == "text" else '{"sha256": 3}')
    write_outputs(tmp_path, {"a.txt": "1"})
    write_outputs(tmp_path, {"a.txt": "2"})
    [kept] = tmp_path.glob(".outputs.before*")
    if what == "a link":
        assert kept.readlink() == tmp_path / "else"
    elif what == "a pipe":
        assert kept.is_fifo()
    else:
        assert kept.read_text() in ("mine", '{"sha256": 3}')
    assert is_output(tmp_path / "a.txt") and not note.is_symlink()
    assert (tmp_path / "else").read_text() == '{"sha256": {}}'


def test_rates_that_a_person_wrote_are_not_replaced(tmp_path):
    """Of whatever form; those of earlier versions are known by the scores."""
    folder = tmp_path / "results"
    brain, sets = trained(folder, epochs=1), {"test": tiny_ctc_data(3)}
    path = folder / "wer.json"
    for text in ("{}", '{"dev": {"errors": 41}}', '{"test": {"errors": 41}}'):
        path.write_text(text)
        with pytest.raises(FileExistsError, match="wer.json holds no scores"):
            evaluate_domains(brain, sets, folder, VALID)
        assert path.read_text() == text
        assert not (folder / "test.jsonl").exists()
    path.unlink()
    rates = evaluate_domains(brain, sets, folder, VALID)
    (folder / NOTE).unlink()
    (folder / "wer_test.txt").unlink()
    assert evaluate_domains(brain, sets, folder, VALID) == rates
    path.write_text(path.read_text().replace('"errors"', '"mine": 1, "errors"'))
    (folder / "wer.before.json").unlink(missing_ok=True)
    evaluate_domains(brain, sets, folder, VALID)
    assert json.loads(path.read_text()) == rates
    # what was edited is kept
    assert '"mine"' in (folder / "wer.before.json").read_text()
