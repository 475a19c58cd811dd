"""The studies that docs/ has for SpeechBrain's LibriSpeech CTC recipe.

They run in `tests/upstream/check_studies.py`, which needs a SpeechBrain
checkout. Here they are planned, beside a YAML with the recipe's keys.
"""

import shutil
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

DOCS = Path(__file__).resolve().parents[2] / "docs/librispeech_ctc_study"
KEYS = "seed output_folder data_folder train_splits freeze_wav2vec".split()


def planned(folder, name, keys):
    """The study of a YAML in the recipe's folder."""
    (folder / "hparams").mkdir()
    recipe = folder / "hparams" / "train_hf_wav2vec.yaml"
    recipe.write_text("".join(f"{key}: 1\n" for key in keys))
    shutil.copy(DOCS / f"{name}.yaml", folder)
    with open(folder / f"{name}.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file, {"data_folder": "LibriSpeech"})["study"]


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "aode",
            {
                "original": (),
                "train-clean-100": ("original",),
                "train-other-500": ("original",),
                "aode": ("train-clean-100", "train-other-500"),
            },
        ),
        (
            "smact",
            {"original": (), "best": ("original",), "smact": ("best",)},
        ),
    ],
)
def test_the_yaml_is_a_study_of_the_recipe(
    tmp_path, monkeypatch, name, expected
):
    monkeypatch.chdir(tmp_path)
    study = planned(tmp_path, name, [*KEYS, "number_of_epochs"])
    [nodes] = study.plans.values()
    assert {node.name: node.parents for node in nodes} == expected
    training = study.trainings["expert"]
    assert training.key("domains") == "train_splits"
    assert training.settings["data_folder"] == "LibriSpeech"


def test_a_recipe_without_these_keys_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="has no key `number_of_epochs`"):
        planned(tmp_path, "aode", KEYS)
