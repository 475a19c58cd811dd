#!/usr/bin/env python3
"""Studies with SpeechBrain's LibriSpeech CTC recipe, by its own functions.

It stands in the recipe's folder, `LibriSpeech/ASR/CTC`, beside
`train_with_wav2vec.py` with `librispeech_ctc_wav2vec2.diff` applied:
> python study_with_wav2vec.py aode.yaml --data_folder /path/to/LibriSpeech
> python study_with_wav2vec.py smact.yaml --data_folder /path/to/LibriSpeech

Authors
 * The speechbrain_merge authors 2026
"""

import os
import sys
from pathlib import Path

import train_with_wav2vec as recipe
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech

import speechbrain as sb
from speechbrain.decoders.ctc import CTCBeamSearcher
from speechbrain.utils.distributed import run_on_main
from speechbrain_merge import Run

CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def build(hparams_file, overrides, run_opts):
    """Prepares one run from the recipe's YAML, with overrides of it."""
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        hparams["output_folder"], hparams_file, overrides
    )
    run_on_main(
        prepare_librispeech,
        kwargs={
            "data_folder": hparams["data_folder"],
            "tr_splits": hparams["train_splits"],
            "dev_splits": hparams["dev_splits"],
            "te_splits": hparams["test_splits"],
            "save_folder": hparams["output_folder"],
            "merge_lst": hparams["train_splits"],
            "merge_name": "train.csv",
            "skip_prep": hparams["skip_prep"],
        },
    )
    # Models that are merged need the same labels, whatever they are trained
    # on: the recipe loads this file and does not number the characters itself
    labels = sb.dataio.encoder.CTCTextEncoder()
    labels.insert_blank(hparams["blank_index"])
    labels.update_from_iterable(CHARACTERS, sequence_input=False)
    path = os.path.join(hparams["save_folder"], "label_encoder.txt")
    os.makedirs(hparams["save_folder"], exist_ok=True)
    run_on_main(labels.save, args=[path])

    train_data, valid_data, test_sets, tokenizer = recipe.dataio_prepare(
        hparams
    )
    brain = recipe.ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.tokenizer = tokenizer
    brain.hparams.test_wer_file = os.path.join(
        hparams["output_wer_folder"], "wer.txt"
    )
    # the recipe's compute_forward reads it from its script
    recipe.test_searcher = CTCBeamSearcher(
        **hparams["test_beam_search"],
        vocab_list=[tokenizer.ind2lab[i] for i in range(len(tokenizer))],
    )

    def fit():
        brain.fit(
            brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=hparams["train_dataloader_opts"],
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )

    valid_sets = {Path(hparams["valid_csv"]).stem: valid_data}
    return Run(brain, fit, train_data, valid_sets, test_sets)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    hparams["study"].run(build, run_opts)
