"""A domain without data is found before anything is planned or trained."""

import pytest
from tiny_domains import make_domains

from speechbrain_merge.study import Study

YAML = """\
data_folder: !PLACEHOLDER
output_folder: results
domains: [a]
valid_domains: !ref <domains>
test_domains: [a]
domain_files:
    domains: "csv/{domain}_train.csv"
    valid_domains: "csv/{domain}_valid.csv"
    test_domains: "csv/{domain}_test.csv"
"""


def study(folder, yaml=YAML, models=None, settings=None, **more):
    """A study of two domains; of a third there is a test set alone."""
    data = folder / "data"
    if not data.exists():
        make_domains(data, ["a", "b", "c"], 2)
        for split in ("train", "valid"):
            (data / "csv" / f"c_{split}.csv").unlink()
    (folder / "train.yaml").write_text(yaml)
    return Study(
        folder / "study",
        models or {"{domain}": {"train": "{domain}"}},
        {
            "expert": {
                "hparams": folder / "train.yaml",
                "with": {"data_folder": str(data), **(settings or {})},
            }
        },
        **{"domains": ["a", "b"], "tests": ["a", "b", "c"], **more},
    )


class Built(Exception):
    """The recipe was asked for a run."""


def build(*_):
    """What a study may not come to while a domain has no data."""
    raise Built


def test_what_is_there_is_planned_and_built(tmp_path, capsys):
    study(tmp_path, plan=True).run(build)
    assert "3 of 3 models are left" in capsys.readouterr().out
    with pytest.raises(Built):
        study(tmp_path).run(build)


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize(
    "more, messages",
    [
        (
            {"tests": ["a", "sea"]},
            ["'sea', which is in `tests` of the study", "/csv/sea_test.csv)"],
        ),
        (
            {"domains": ["a", "bee"], "tests": ["a"]},
            ["'bee', which is in `domains` of the study", "bee_train.csv"],
        ),
        # c can be tested, and not be trained on
        (
            {"models": {"c": {"train": ["a", "c"]}}},
            ["'c', which is in `train` of model 'c'", "there are a, b."],
        ),
        (
            {"models": {"m": {"in_turn": ["a", "bee"]}}},
            ["'bee', which is in `train` of model 'm'", "there are a, b."],
        ),
        (
            {"settings": {"valid_domains": ["c"]}},
            ["'c', which is in `valid_domains` of", "c_valid.csv"],
        ),
        (
            {"tests": ["sea", "see"]},
            ["'sea', which", "'see', which", "there are a, b, c"],
        ),
    ],
)
def test_a_domain_without_data_is_named(tmp_path, capsys, plan, more, messages):
    with pytest.raises(ValueError, match="There are no data of") as raised:
        study(tmp_path, plan=plan, **more).run(build)
    for message in messages:
        assert message in str(raised.value)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "study").exists()


def test_only_what_is_asked_for_needs_data(tmp_path):
    models = {"a": {"train": "a"}, "c": {"train": "c"}}
    with pytest.raises(Built):
        study(tmp_path, models=models, only="a").run(build)
    with pytest.raises(ValueError, match="model 'c'"):
        study(tmp_path, models=models, only="c").run(build)


def test_no_data_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such files of any domain"):
        study(tmp_path, settings={"data_folder": "nowhere"}).run(build)


def test_a_data_folder_that_the_yaml_makes_is_not_looked_into(tmp_path):
    made = YAML.replace("!PLACEHOLDER", "!apply:os.path.join [no, where]")
    (tmp_path / "train.yaml").write_text(made)
    hidden = Study(
        tmp_path / "study",
        {"a": {"train": "a"}},
        {"expert": {"hparams": tmp_path / "train.yaml"}},
        domains=["a"],
    )
    with pytest.raises(Built):
        hidden.run(build)


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("    domains: ", "    places: ", "the YAML has no list `places`"),
        ("/{domain}_train", "/train", "a path with {domain} in it"),
        ("domain_files:", "domain_files: csv\nother:", "expected keys that"),
        ("[a]\nvalid", "a\nvalid", "`valid_domains` is 'a'; expected a list"),
    ],
)
def test_the_yaml_is_checked(tmp_path, before, after, message):
    assert before in YAML
    yaml = YAML.replace(before, after)
    models = {"original": {}}
    more = {} if "[a]" not in before else {"settings": {"valid_domains": "a"}}
    with pytest.raises(ValueError, match=message):
        study(tmp_path, yaml, models=models, **more).run(build)


def test_where_data_are_does_not_decide_a_training(tmp_path):
    before, after = (
        study(tmp_path, yaml)
        .trainings["expert"]
        .decisive({"data_folder": "data"}, tmp_path)
        for yaml in (YAML, YAML[: YAML.index("domain_files")])
    )
    assert before == after and before["domains"] == ["a"]
