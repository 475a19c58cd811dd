"""Tables, pictures and pages replace only what was written here before."""

import json

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
