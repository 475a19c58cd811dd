"""What a study tells the YAML of a training, and what of it is decisive."""

import pytest

from speechbrain_merge.study.trainings import Training

YAML = """
seed: 1
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
output_folder: !ref results/<seed>
save: !ref <output_folder>/save
train_splits: [clean]
test_csv: [a.csv]
lr: 0.1
betas: [0.9, 0.98]
model: !new:torch.nn.Linear
    in_features: 2
    out_features: 3
optimizer: !name:torch.optim.Adam
    lr: !ref <lr>
"""


@pytest.fixture
def hparams(tmp_path):
    """A YAML like those of SpeechBrain's own recipes."""
    path = tmp_path / "train.yaml"
    path.write_text(YAML)
    return path


VALUES = {
    "seed": 7,
    "output_folder": "there",
    "run": "a",
    "domains": ["a"],
    "tests": [],
    "start_from": "w.safetensors",
}


def test_only_keys_of_the_yaml_are_set(hparams):
    training = Training("expert", hparams, {"lr": 0.2})
    assert training.overrides(VALUES, {"lr": 0.3}) == {
        "seed": 7,
        "output_folder": "there",
        "lr": 0.3,
    }


def test_other_names_of_keys(hparams):
    training = Training(
        "expert", hparams, keys={"domains": "train_splits", "seed": None}
    )
    assert training.overrides(VALUES, {}) == {
        "train_splits": ["a"],
        "output_folder": "there",
    }


def test_a_domain_may_stand_in_any_setting(hparams):
    training = Training("expert", hparams, {"test_csv": ["{domain}.csv"]})
    assert training.overrides(VALUES, {})["test_csv"] == ["a.csv"]
    training.check_domains(["a"], {}, "Model 'a'")
    with pytest.raises(ValueError, match="stands for one domain"):
        training.check_domains(["a", "b"], {}, "Model 'ab'")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"settings": {"learning_rate": 1}}, "has no key `learning_rate`"),
        ({"keys": {"domain": "x"}}, "`keys` has domain; expected any of seed"),
        ({"keys": {"domains": "x"}}, "has no key `x`"),
        ({"hparams": "nowhere.yaml"}, "there is no file nowhere.yaml"),
    ],
)
def test_what_the_yaml_does_not_have_is_named(hparams, arguments, message):
    with pytest.raises(ValueError, match=message):
        Training("expert", **{"hparams": hparams, **arguments})


def test_a_training_that_cannot_know_its_domain_is_refused(hparams):
    training = Training("expert", hparams)
    with pytest.raises(ValueError, match="the same data whatever its domain"):
        training.check_domains(["a"], {}, "Model 'a'")


@pytest.mark.parametrize(
    "change, same",
    [
        (("lr: 0.1", "lr: 0.2"), False),
        (("betas: [0.9, 0.98]", "betas: [0.9, 0.99]"), False),
        (("out_features: 3", "out_features: 4"), False),
        (("torch.optim.Adam", "torch.optim.SGD"), False),
        (("test_csv: [a.csv]", "test_csv: [b.csv]"), True),
        (("lr: 0.1", "lr: 0.1  # a comment"), True),
    ],
)
def test_all_that_decides_a_training_is_known(hparams, change, same):
    before = Training("e", hparams).decisive({}, "study")
    hparams.write_text(YAML.replace(*change))
    after = Training("e", hparams).decisive({}, "study")
    assert (before == after) == same


def test_a_moved_study_has_the_same_settings(hparams):
    training = Training("e", hparams)
    one, other = (
        training.decisive({"output_folder": f"{place}/seed-1/a"}, place)
        for place in ("/here/study", "elsewhere/study")
    )
    assert one == other
    assert one["save"] == "<study>/seed-1/a/save"


def test_nothing_of_the_yaml_is_run(hparams, tmp_path):
    mark = tmp_path / "ran"
    hparams.write_text(YAML + f"evil: !apply:pathlib.Path.touch [{mark}]\n")
    Training("e", hparams).decisive({}, "study")
    assert not mark.exists()
