"""A study knows the data of its trainings by content, not by path."""

import contextlib
import json
import re

import killed_stages
import pytest
from killed_stages import STUDY_YAML

from speechbrain_merge.search import LayerDistances
from speechbrain_merge.study import Study

YAML = (
    STUDY_YAML.replace("number_of_epochs: 2", "number_of_epochs: 1")
    + """\
data_folder: !PLACEHOLDER
train_json: null
test_csv: null
domain_files:
    domains: "csv/{domain}_train.csv"
    test_domains: "csv/{domain}_test.csv"
"""
)


class Kill(Exception):
    """Ends a study where a killed process would."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe with data: the text that a CSV has is not read by it."""
    (tmp_path / "train.yaml").write_text(YAML)
    (tmp_path / "data/csv").mkdir(parents=True)
    for name in ("a_train", "a_test", "b_train", "b_test"):
        (tmp_path / f"data/csv/{name}.csv").write_text("ID,wrd\n1,one\n")
    (tmp_path / "list.json").write_text('{"1": "one"}')
    (tmp_path / "test.csv").write_text("ID,wrd\n1,one\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(build=killed_stages.build, only=None, plan=False, data="data"):
    """The study: two experts, a second round of the first, and an average."""
    return Study(
        "results",
        {
            "a": {"train": "a"},
            "second-a": {"train": "a", "from": "a"},
            "b": {"train": "b"},
            "mean": {"merge": "average", "of": ["a", "b"]},
        },
        {
            "expert": {
                "hparams": "train.yaml",
                "with": {
                    "data_folder": data,
                    "train_json": "list.json",
                    "test_csv": "test.csv",
                },
            }
        },
        domains=["a", "b"],
        tests=["a", "b"],
        only=only,
        plan=plan,
    ).run(build, {})


def stamps(folder):
    """Time of writing of all candidates."""
    return {
        path: path.stat().st_mtime_ns
        for path in (folder / "results").rglob("epoch-*.safetensors")
    }


def test_changed_data_are_refused_before_anything_is_trained(folder):
    run(only=["second-a"])
    trained = stamps(folder)
    assert len(trained) == 2
    changed = folder / "data/csv/a_train.csv"
    before = changed.read_text()
    changed.write_text(before.replace("one", "two"))
    for plan in (True, False):
        with pytest.raises(ValueError, match="Data have changed") as raised:
            run(plan=plan)
        assert "data/csv/a_train.csv (a, second-a)" in str(raised.value)
        for name in ("a", "second-a"):
            assert f"results/seed-0/models/{name}" in str(raised.value)
    assert stamps(folder) == trained  # b was to be trained
    changed.write_text(before)
    run(only=["a", "b"])
    assert len(stamps(folder)) == 3


def test_a_file_that_a_setting_names_counts(folder):
    run(only=["a"])
    (folder / "list.json").write_text('{"1": "two"}')
    with pytest.raises(ValueError, match=r"list\.json \(a\)"):
        run(only=["mean"])
    # nothing is known of what was made before there were such records
    for record in (folder / "results").rglob("data.json"):
        record.unlink()
    run(only=["a", "b"])
    (folder / "list.json").write_text('{"1": "three"}')
    with pytest.raises(ValueError, match=r"list\.json \(b\)"):
        run()


def edited(part):
    """Prepares a run of which the first row of a set says something else."""

    def build(*given):
        prepared = killed_stages.build(*given)
        sets = {"train": prepared.train_set, **prepared.test_sets}
        row = next(iter(sets[part].data.values()))
        row["wrd"] = row["wrd"][::-1]
        return prepared

    return build


def scores_of(folder):
    """The file of the scores of model a on each of two sets."""
    results = json.loads((folder / "results/results.json").read_text())
    [row] = [row for row in results["rows"] if row["name"] == "a"]
    return {one: c["scores"] for one, c in row["sets"]["0"]["usual"].items()}


def test_a_changed_test_set_is_decoded_again(folder):
    run(only=["a"])
    first, trained = scores_of(folder), stamps(folder)
    run(edited("b"), only=["a"])
    second = scores_of(folder)
    assert second["a"] == first["a"] and second["b"] != first["b"]
    # the files of tests are none that a training reads, nor are data that
    # were put away
    for name in ("test.csv", "data/csv/a_test.csv", "data/csv/b_test.csv"):
        (folder / name).write_text("ID,wrd\n1,two\n")
    (folder / "list.json").unlink()
    run(only=["a"])
    assert stamps(folder) == trained


def test_counts_that_contradict_one_another_are_refused(folder):
    run(only=["a"])
    record = (folder / "results" / scores_of(folder)["a"]).with_suffix(".json")
    before = record.read_text()
    for key in ("errors", "wer"):
        known = json.loads(before)
        known["outcome"][key] += 1
        del known["check"]  # as of a version that wrote none
        record.write_text(json.dumps(known))
        with pytest.raises(ValueError, match="key 'wer': expected") as raised:
            run(only=["a"])
        assert str(record.name) in str(raised.value)
    record.unlink()
    run(only=["a"])
    assert json.loads(record.read_text()) == json.loads(before)


def test_layers_are_compared_again_on_other_data(folder):
    asked = []

    def measure(prepared, domain):
        asked.append(domain)
        return [LayerDistances("procrustes", ((1.0, 2.0),))]

    for build in (killed_stages.build, edited("b"), edited("train")) * 2:
        Study(
            "results",
            {"alike": {"similarity": measure, "of": "original", "domain": "a"}},
            {
                "expert": {
                    "hparams": "train.yaml",
                    "with": {"data_folder": "data"},
                }
            },
            domains=["a", "b"],
            jobs=0,
        ).run(build, {})
    assert asked == ["a"] * 4


def test_the_folder_may_be_moved(folder):
    data = folder / "results/data"
    data.parent.mkdir()
    (folder / "data").rename(data)
    run(only=["a"], data="results/data")
    [record] = (folder / "results").rglob("data.json")
    assert (
        "<study>/data/csv/a_train.csv"
        in json.loads(record.read_text())["files"]
    )
    (data / "csv/a_train.csv").write_text("ID,wrd\n1,two\n")
    with pytest.raises(ValueError, match=r"a_train\.csv \(a\)"):
        run(only=["a"], data="results/data")


def test_a_changed_record_of_the_data(folder):
    run(only=["a"])
    [record] = (folder / "results").rglob("data.json")
    text = record.read_text()
    place = re.search(r'csv": "(?:blake3:)?', text).end()
    other = "1" if text[place] != "1" else "2"
    record.write_text(text[:place] + other + text[place + 1 :])
    with pytest.raises(ValueError, match="data.json is not as it was written"):
        run(only=["a"])


def test_a_data_folder_that_the_yaml_makes_counts(folder):
    made = YAML.replace("!PLACEHOLDER", "!apply:os.path.join [data]")
    (folder / "train.yaml").write_text(made)

    def study():
        return Study(
            "results",
            {"a": {"train": "a"}},
            {"expert": {"hparams": "train.yaml"}},
            domains=["a"],
        ).run(killed_stages.build, {})

    study()
    (folder / "data/csv/a_train.csv").write_text("ID,wrd\n1,two\n")
    with pytest.raises(ValueError, match=r"a_train\.csv \(a\)"):
        study()


def killed(folder):
    """Begins the training of a, and ends after its first epoch."""

    def build(*given):
        prepared = killed_stages.build(*given)
        fit = prepared.fit

        def killed_fit():
            fit()
            raise Kill

        prepared.fit = killed_fit
        return prepared

    with contextlib.suppress(Kill):
        run(build, only=["a"])
    assert len(stamps(folder)) == 1
    assert not list(folder.rglob("finished.json"))


def test_a_stopped_training_goes_on_with_its_data_and_settings(folder):
    killed(folder)
    before = (folder / "data/csv/a_train.csv").read_text()
    (folder / "data/csv/a_train.csv").write_text("ID,wrd\n1,two\n")
    with pytest.raises(ValueError, match=r"a_train\.csv \(a\)"):
        run()
    (folder / "data/csv/a_train.csv").write_text(before)
    (folder / "train.yaml").write_text(YAML.replace("lr: 0.03", "lr: 0.01"))
    with pytest.raises(ValueError, match=r"begun with .*\(yaml\.lr\).*delete"):
        run()
    (folder / "train.yaml").write_text(YAML)
    run(only=["a"])
    assert len(list(folder.rglob("finished.json"))) == 1
