"""SpeechBrain's recipes that are checked, and what makes each of them small.

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import dataclass, field

EPOCHS = 3

# Such models all have the same error rate: they are to be merged all the same
SEARCH = "search: !new:speechbrain_merge.search.GreedySearch"
EDITS = {SEARCH: f"{SEARCH} {{accept: le}}"}


@dataclass
class Recipe:
    """A recipe, and what makes it small.

    Arguments
    ---------
    diff : str
        Path of its diff.
    folder : str
        Under `recipes/`.
    script : str
        What is run.
    hparams : str
        Its YAML.
    overrides : dict
        Key to value; `{pieces}`, `{models}` … are filled in.
    edits : dict
        Text of the YAML to the text that takes its place, where overrides
        cannot say it.
    """

    diff: str
    folder: str
    script: str
    hparams: str
    overrides: dict = field(default_factory=dict)
    edits: dict = field(default_factory=lambda: EDITS)


EVERYWHERE = {
    "number_of_epochs": EPOCHS,
    "output_folder": "{output}",
    "data_folder": "{data}",
    "num_workers": 0,
    "precision": "fp32",
}
LIBRISPEECH = {**EVERYWHERE, "train_splits": "[train-clean-100]"}
TABLES = {
    "skip_prep": True,
    "train_csv": "{train}",
    "valid_csv": "{dev}",
    "test_csv": "[{test_clean}, {test_other}]",
}
SMALL = {
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 1,
    "output_neurons": "{pieces}",
    "noam_annealing": "{n_warmup_steps: 3}",
    "lr_adam": 0.01,
    "batch_size": 2,
    "grad_accumulation_factor": 1,
    "avg_checkpoints": 2,
}
DECODED = {
    "num_decoder_layers": 1,
    "valid_search_interval": 1,
    "valid_beam_size": 2,
    "test_beam_size": 2,
    "max_decode_ratio": 0.2,
}
LANGUAGE_MODEL = (
    "{d_model: 16, nhead: 2, num_encoder_layers: 1, d_ffn: 32, dropout: 0.0}"
)
DYNAMIC = {
    "max_batch_length_train": 5,
    "max_batch_length_val": 5,
    "num_bucket": 2,
}

RECIPES = {
    "whisper": Recipe(
        "docs/librispeech_whisper.diff",
        "LibriSpeech/ASR/transformer",
        "train_with_whisper.py",
        "train_hf_whisper.yaml",
        {
            **LIBRISPEECH,
            "whisper_hub": "{models}/whisper",
            "eval_precision": "fp32",
            "batch_size": 2,
            "freeze_encoder": False,
            "lr_whisper": 0.001,
            "warmup_steps": 3,
            "test_beam_size": 2,
            "max_decode_ratio": 0.02,
        },
    ),
    "ctc_wav2vec2": Recipe(
        "docs/librispeech_ctc_wav2vec2.diff",
        "LibriSpeech/ASR/CTC",
        "train_with_wav2vec.py",
        "train_hf_wav2vec.yaml",
        {
            **LIBRISPEECH,
            "wav2vec2_hub": "{models}/wav2vec2",
            "freeze_wav2vec": False,
            "dnn_neurons": 16,
            "output_neurons": "{labels}",
            "batch_size": 2,
            "test_beam_search": "{beam_size: 4}",
        },
    ),
    "conformer": Recipe(
        "docs/librispeech_conformer.diff",
        "LibriSpeech/ASR/transformer",
        "train.py",
        "conformer_large.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            **DECODED,
            **DYNAMIC,
            "d_ffn": 32,
            "lm_model": LANGUAGE_MODEL,
            "pretrained_lm_tokenizer_path": "{models}/lm",
        },
    ),
    "transducer": Recipe(
        "docs/librispeech_transducer.diff",
        "LibriSpeech/ASR/transducer",
        "train.py",
        "conformer_transducer.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            "d_ffn": 32,
            "joint_dim": 16,
            "dec_dim": 16,
            "beam_size": 2,
            "max_batch_len": 5,
            "max_batch_len_val": 5,
            "num_bucket": 2,
            "lm_model": "{embedding_dim: 8, rnn_layers: 1, rnn_neurons: 8, "
            "dnn_neurons: 8}",
            "pretrained_lm_tokenizer_path": "{models}/lm_recurrent",
        },
        # SpeechBrain's loss needs numba and CUDA
        {
            **EDITS,
            "!name:speechbrain.nnet.losses.transducer_loss": ""
            "!name:transducer_loss.transducer_loss",
        },
    ),
    "ctc_conformer": Recipe(
        "tests/upstream/librispeech_ctc_conformer.diff",
        "LibriSpeech/ASR/CTC",
        "train.py",
        "conformer_large.yaml",
        {
            **LIBRISPEECH,
            **SMALL,
            **DYNAMIC,
            "d_ffn": 32,
            "lr_model": 0.01,
            "beam_size": 4,
        },
    ),
    "tedlium2": Recipe(
        "tests/upstream/tedlium2_branchformer.diff",
        "Tedlium2/ASR/transformer",
        "train.py",
        "branchformer_large.yaml",
        {
            **EVERYWHERE,
            **TABLES,
            **SMALL,
            **DECODED,
            **DYNAMIC,
            "csgu_linear_units": 32,
            "csgu_kernel_size": 3,
            "clipped_utt_folder": "{output}/clipped",
            "pretrained_tokenizer_file": "{models}/tokenizer.ckpt",
        },
    ),
    "switchboard": Recipe(
        "tests/upstream/switchboard_transformer.diff",
        "Switchboard/ASR/transformer",
        "train.py",
        "transformer.yaml",
        {
            **EVERYWHERE,
            **TABLES,
            **SMALL,
            **DECODED,
            "d_ffn": 32,
            "normalize_words": False,
            "train_dataloader_opts": "{num_workers: 0}",
            "lm_model": LANGUAGE_MODEL[:-1] + ", d_embedding: 8}",
            "pretrained_lm_tokenizer_path": "{models}/lm_embedding",
        },
    ),
}
