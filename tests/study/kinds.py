"""The kinds of stored studies: recipe, YAML, material and settings of each.

``stored/KIND.json`` holds what each of these studies gave at the commit that it
names, when every recipe had a study engine of its own: the error counts of all
rows and what every merge selected. A study that runs on the same material with
the same settings must give the same counts.

Of ``whisper_aode`` and ``wav2vec2_lmam`` there are settings, and no counts yet.

The settings are what is different from the recipe's YAML. ``{results}``,
``{data}``, ``{whisper}`` and the like stand for places, which ``filled`` puts
in.

Example
-------
>>> kind = KINDS["whisper_smact"]
>>> places = {"results": "results/smact", "data": "speech", "whisper": "hub"}
>>> kind.command(places)[:4]
['train.py', 'hparams/smact.yaml', '--device=cpu', '--noprogressbar']
>>> filled(kind.settings, places)["data_folder"]
'speech'

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.material import (
    conformer_material,
    esc50_material,
    wav2vec2_material,
    whisper_material,
)

STORED = Path(__file__).resolve().parent / "stored"
"""The folder of ``KIND.json``."""


@dataclass(frozen=True)
class Kind:
    """A kind of study.

    Arguments
    ---------
    recipe : str
        The recipe's folder, from the root of the repository.
    yaml : str
        Name of the YAML in the recipe's ``hparams``.
    material : callable
        Makes the models and the data in a folder, and gives their places.
    settings : dict
        What is different from the YAML.
    """

    recipe: str
    yaml: str
    material: Callable[[Path], dict[str, str]]
    settings: dict[str, Any]

    def command(self, places: dict[str, str]) -> list[str]:
        """The arguments of Python, in the recipe's folder, on one CPU thread.

        Arguments
        ---------
        places : dict
            Of the material, and ``results``.

        Returns
        -------
        list of str
        """
        return [
            "train.py",
            f"hparams/{self.yaml}.yaml",
            "--device=cpu",
            "--noprogressbar",
            *(
                f"--{name}={value if type(value) is str else json.dumps(value)}"
                for name, value in filled(self.settings, places).items()
            ),
        ]


def filled(settings: Any, places: dict[str, str]) -> Any:
    """Settings with paths for the places that they name.

    Arguments
    ---------
    settings : dict, list, str or number
        Places stand in braces.
    places : dict
        Name to path.

    Returns
    -------
    As ``settings``.

    Example
    -------
    >>> filled({"data_folder": "{data}", "epochs": [1]}, {"data": "speech"})
    {'data_folder': 'speech', 'epochs': [1]}
    """
    if isinstance(settings, dict):
        return {name: filled(each, places) for name, each in settings.items()}
    if isinstance(settings, list):
        return [filled(each, places) for each in settings]
    if isinstance(settings, str):
        for name, path in places.items():
            settings = settings.replace(f"{{{name}}}", path)
    return settings


def trained(settings: dict, training: str = "expert") -> dict:
    """An override of a study: other settings of one of its trainings.

    Arguments
    ---------
    settings : dict
        Overrides of the training's YAML.
    training : str
        Its name in the study.

    Returns
    -------
    dict
    """
    return {"trainings": {training: {"with": settings}}}


WHISPER = {
    "output_folder": "{results}",
    "whisper_hub": "{whisper}",
    "data_folder": "{data}",
    "test_domains": ["reverb", "digits", "read"],
}
EXPERT = {
    "number_of_epochs": 3,
    "steps_per_epoch": 30,
    "batch_size": 4,
    "lr": 0.003,
    "lr_decay_steps": 100,
    "warmup_steps": 5,
    "max_decode_ratio": 0.02,
}
# Draws that take no random numbers in training: each epoch now begins with a
# seed of its own, so that a training that was stopped resumes exactly
NO_CHANCE = {
    name: [0.0, 0.0]
    for name in (
        "attention_dropout",
        "activation_dropout",
        "dropout",
        "mask_time_prob",
    )
}
LETTERS = {"characters": " ABCDEF", "output_neurons": 8}
CONFORMER = {
    "d_model": 16,
    "nhead": 2,
    "d_ffn": 32,
    "num_encoder_layers": 1,
    "kernel_size": 3,
    "n_mels": 16,
}
MODEL = {
    **LETTERS,
    "steps_per_epoch": 50,
    "batch_size": 4,
    "window": [2.0, 3.0],
    "lr_encoder": 5e-3,
    "lr_head": 2e-2,
    "warmup_steps_head": 1,
    "warmup_steps_encoder": 10,
    "lr_decay_steps": 420,
    "dropout_rate": 0.0,
}
WAV2VEC2 = {
    "output_folder": "{results}",
    "data_folder": "{data}",
    "encoder_hub": "{wav2vec2}",
    "text_hub": "{bert}",
    "domains": ["digits", "telephony"],
    "target_domains": ["digits", "telephony"],
    "study": trained({**MODEL, "number_of_epochs": 8}, "target"),
}

KINDS = {
    "whisper_demo": Kind(
        "recipes/SpeechDomains/ASR/whisper",
        "demo",
        whisper_material,
        {**WHISPER, "domains": ["reverb", "digits"], "study": trained(EXPERT)},
    ),
    "whisper_speech": Kind(
        "recipes/SpeechDomains/ASR/whisper",
        "speech",
        whisper_material,
        {**WHISPER, "domains": ["reverb", "digits"], "study": trained(EXPERT)},
    ),
    "whisper_smact": Kind(
        "recipes/SpeechDomains/ASR/whisper",
        "smact",
        whisper_material,
        {
            **WHISPER,
            "domains": ["reverb", "digits"],
            "study": trained(EXPERT),
            "draws": {"ranges": {"lr": [2e-3, 5e-3], **NO_CHANCE}},
        },
    ),
    "whisper_benchmark": Kind(
        "recipes/SpeechDomains/ASR/whisper",
        "benchmark",
        whisper_material,
        {
            **WHISPER,
            "domains": ["reverb", "digits"],
            "study": trained(EXPERT),
            "models": {
                "joint": {
                    "with": {"number_of_epochs": 3, "lr_decay_steps": 100}
                }
            },
            "trials": 3,
            "only": [
                "reverb",
                "digits",
                "joint",
                "average",
                "fisher",
                "regmean",
                "task_arithmetic",
                "layer_scaled",
                "ties",
            ],
        },
    ),
    "whisper_aode": Kind(
        "recipes/SpeechDomains/ASR/whisper",
        "aode",
        whisper_material,
        {
            **WHISPER,
            "domains": ["reverb", "digits"],
            "epochs": 2,
            "steps_per_epoch": 15,
            "lr": 0.005,
            "lora_rank": 2,
            "lora_lr": 0.01,
            "test_window": 4,
            "study": trained(
                {"batch_size": 4, "max_decode_ratio": 0.02, "window": 4}
            ),
        },
    ),
    "conformer_aode": Kind(
        "recipes/SpeechDomains/ASR/conformer",
        "aode",
        conformer_material,
        {
            "output_folder": "{results}",
            "data_folder": "{data}",
            "domains": ["tones", "others"],
            "generalist_domains": ["tones", "others"],
            "test_domains": ["tones", "others"],
            "epochs": 1,
            "steps_per_epoch": 40,
            "lr": 0.005,
            "generalist_epochs": 8,
            "models": {"generalist": {"with": {"lr": 0.02}}},
            "study": trained(
                {**CONFORMER, **LETTERS, "batch_size": 4, "warmup_steps": 10}
            ),
        },
    ),
    "conformer_otf": Kind(
        "recipes/SpeechDomains/ASR/conformer",
        "otf",
        conformer_material,
        {
            "output_folder": "{results}",
            "data_folder": "{data}",
            "seeds": [7],
            "domains": ["tones"],
            "pretrain_domains": ["tones"],
            "test_domains": ["tones"],
            "study": {
                "trainings": {
                    "expert": {
                        "with": {
                            **CONFORMER,
                            **LETTERS,
                            "number_of_epochs": 6,
                            "steps_per_epoch": 50,
                            "batch_size": 4,
                            "lr": 0.02,
                            "warmup_steps": 10,
                        }
                    },
                    "pretrain": {
                        "with": {
                            **CONFORMER,
                            "number_of_epochs": 2,
                            "steps_per_epoch": 20,
                            "batch_size": 4,
                            "warmup_steps": 10,
                        }
                    },
                },
                "landscapes": {"fusion": {"points": 3, "plane_points": 2}},
            },
            "moderate": {
                "number_of_epochs": 2,
                "steps_per_epoch": 15,
                "lr": 0.005,
                "warmup_steps": 5,
            },
            "models": {
                "SSL": {"with": {"number_of_epochs": 5}},
                "direct+FFT": {"with": {"number_of_epochs": 4}},
            },
        },
    ),
    "wav2vec2_mam": Kind(
        "recipes/SpeechDomains/ASR/wav2vec2",
        "mam",
        wav2vec2_material,
        {**WAV2VEC2, "ratios": [0.1, 0.3, 0.5]},
    ),
    "wav2vec2_mam_layers": Kind(
        "recipes/SpeechDomains/ASR/wav2vec2",
        "mam_layers",
        wav2vec2_material,
        {
            **WAV2VEC2,
            "similar_numbers": [1],
            "layer_ratios": [0.25, 0.5],
            "blocks": ["0", "0-1"],
        },
    ),
    "wav2vec2_lmam": Kind(
        "recipes/SpeechDomains/ASR/wav2vec2",
        "lmam",
        wav2vec2_material,
        {
            **WAV2VEC2,
            "ratios": [0.1, 0.3, 0.5],
            "study": {
                "trainings": {
                    "target": {"with": {**MODEL, "number_of_epochs": 8}},
                    "fine_tuning": {
                        "with": {
                            **MODEL,
                            "number_of_epochs": 2,
                            "steps_per_epoch": 15,
                            "batch_size": 4,
                            "lr_encoder": 5e-4,
                            "lr_head": 5e-3,
                            "lr_ratio": 2e-2,
                            "warmup_steps_encoder": 1,
                            "lr_decay_steps": 40,
                        }
                    },
                }
            },
        },
    ),
    "esc50_mam": Kind(
        "recipes/ESC50/merging",
        "mam",
        esc50_material,
        {
            "output_folder": "{results}",
            "data_folder": "{data}",
            "beats_path": "{beats}",
            "vit_hub": "{vit}",
            "study": trained(
                {
                    "number_of_epochs": 6,
                    "batch_size": 8,
                    "warmup_steps": 5,
                    "out_n_neurons": 4,
                    "embedding_size": 16,
                },
                "classifier",
            ),
            "models": {
                "target": {"with": {"lr": 0.005}},
                "fine_tuned": {"with": {"lr": 0.002, "lr_ratio": 0.02}},
                "mam_fine_tuned": {"with": {"lr": 0.002, "lr_ratio": 0.02}},
                "lmam": {"with": {"lr": 0.002, "lr_ratio": 0.02}},
            },
            "ratios": [0.1, 0.3, 0.6],
            "blocks": ["0", "0-1"],
        },
    ),
}
"""Name of each study to its kind."""
