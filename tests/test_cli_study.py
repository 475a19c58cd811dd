"""The tables of a study from its folder alone, and how far one has come."""

import json
import shutil

import pytest
from killed_stages import build, study_yaml

from speechbrain_merge.cli import main
from speechbrain_merge.report import markdown_table
from speechbrain_merge.study import Study


def exact(references, hypotheses):
    """A measure: whether an utterance was recognised without an error."""
    return [float(r == h) for r, h in zip(references, hypotheses)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study of two experts and their average, run for real."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        patch.chdir(folder)
        study_yaml(folder)
        Study(
            "results",
            {
                "{domain}": {"train": "{domain}"},
                "average": {"merge": "average", "of": "{each}"},
            },
            {"expert": {"hparams": "train.yaml"}},
            domains=["a", "b"],
            compare=[["a", "average"]],
            measures={"exact": exact},
            costs=True,
        ).run(build, {})
    return folder / "results"


def document(capsys, *arguments):
    """What a command prints as JSON."""
    assert main(["study", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_tables_are_those_of_the_study(study, capsys):
    found = document(capsys, study)
    main_table, measured, _, cost, training = found["tables"]
    written = (study / "results.md").read_text()
    assert [table["title"] for table in found["tables"]] == [
        "WER",
        "exact",
        "Compared",
        "What merging cost",
        "What training took",
    ]
    assert measured["header"][0] == "exact"
    (row,) = [row for row in cost["rows"] if row[0] == "average"]
    assert float(row[cost["header"].index("peak\nMB")]) > 0
    assert len(training["rows"]) == 2
    for table in found["tables"]:
        assert markdown_table(table["header"], table["rows"]) in written
    assert len(main_table["rows"]) == 4  # the original, and three models
    assert found["unreported"] == []
    assert main(["study", str(study)]) == 0
    out = capsys.readouterr().out
    assert "average" in out and "Compared:" in out
    assert out.endswith(f"Seeds: 0. From {study}/results.json.\n")


def test_the_page_is_written_only_where_asked(study, capsys):
    page = study / "report.html"
    text = page.read_text()
    page.unlink()
    document(capsys, study)
    assert not page.exists()
    assert document(capsys, study, "--page")["page"] == str(page)
    assert page.read_text() == text


def test_an_unfinished_study_says_how_far_it_has_come(study, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(study, folder)
    (folder / "results.json").unlink()
    (folder / "seed-0/models/b/finished.json").unlink()
    (folder / "seed-0/merge/average/result.json").unlink()
    found = document(capsys, folder)
    states = {each["model"]: each["state"] for each in found["made"]}
    assert states == {"a": "done", "b": "begun", "average": "begun"}
    assert found["made"][0]["seconds"] > 0
    assert found["tested"] == len(list((folder / "scores").glob("*.json"))) > 0
    assert main(["study", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "1 models are made, 2 are begun" in out
    before = sorted(folder.rglob("*"))
    assert main(["study", str(folder), "--page"]) == 2
    assert "has no results.json yet" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("place", ["", "gone", "study.yaml"])
def test_what_is_no_study_is_refused(tmp_path, capsys, place):
    (tmp_path / "study.yaml").write_text("")
    assert main(["study", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("speechbrain-merge study: ") and place in line
