#!/usr/bin/env python3
"""Recipe for fine-tuning wav2vec 2.0, HuBERT or WavLM with CTC on LibriSpeech.

The outputs are characters, decoded greedily. Each epoch leaves a checkpoint and
a candidate in a pool; after the training, the last candidates are merged, and
the best checkpoint and the merge are tested.

> python train.py hparams/train_ssl.yaml --data_folder /path/to/LibriSpeech
> python train.py hparams/train_ssl.yaml --data_folder /path/to/LibriSpeech \
>     --ssl_hub microsoft/wavlm-large

A text Transformer's attention merged into the encoder's (MAM, arXiv 2312.14378):
> python train.py hparams/mam.yaml --data_folder /path/to/LibriSpeech

Authors
 * The speechbrain_merge authors 2026
"""

import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains

import speechbrain as sb
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class ASR(MergeMixin, sb.Brain):
    """Trains encoder and head; ``MergeMixin`` merges, and evaluates."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities of characters, per frame."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN:
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        feats = self.modules.wav2vec2(wavs, wav_lens)
        logits = self.modules.ctc_lin(self.modules.enc(feats))
        return self.hparams.log_softmax(logits), wav_lens

    def compute_objectives(self, predictions, batch, stage):
        """The CTC loss; outside training, errors in words."""
        p_ctc, wav_lens = predictions
        labels = batch.tokens
        if stage == sb.Stage.TRAIN:
            labels = self.hparams.wav_augment.replicate_multiple_labels(*labels)
        tokens, tokens_lens = labels
        loss = self.hparams.ctc_cost(p_ctc, tokens, wav_lens, tokens_lens)
        if stage != sb.Stage.TRAIN:
            found = sb.decoders.ctc_greedy_decode(
                p_ctc, wav_lens, blank_id=self.hparams.blank_index
            )
            texts = ["".join(self.tokenizer.decode_ndim(t)) for t in found]
            self.wer_metric.append(
                batch.id,
                [text.split() for text in texts],
                [text.split() for text in batch.wrd],
            )
        return loss

    def init_optimizers(self):
        """An optimizer for the encoder, and one for the layers on top."""
        self.optimizers_dict = {
            "wav2vec_opt": self.hparams.wav2vec_opt_class(
                self.modules.wav2vec2.parameters()
            ),
            "model_opt": self.hparams.model_opt_class(
                self.hparams.model.parameters()
            ),
        }
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(name, optimizer)

    def on_stage_start(self, stage, epoch=None):
        """A fresh error counter."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            rates = {}
            for name, annealing in (
                ("wav2vec_opt", self.hparams.lr_annealing_wav2vec),
                ("model_opt", self.hparams.lr_annealing_model),
            ):
                rates[f"lr_{name}"], new_rate = annealing(stage_loss)
                update_learning_rate(self.optimizers_dict[name], new_rate)
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, **rates},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            # The pool is a recoverable, and collects here
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"], "epoch": epoch}, min_keys=["WER"]
            )
        else:
            self.hparams.train_logger.log_stats(
                {"tested": self.test_name}, test_stats=stats
            )


def label_encoder(characters, blank_index):
    """Characters to labels, the same for all models, so that they can merge.

    Arguments
    ---------
    characters : str
        All that LibriSpeech's transcripts have.
    blank_index : int
        The label of CTC's blank.

    Returns
    -------
    CTCTextEncoder

    Example
    -------
    >>> label_encoder(" AB", 0).encode_sequence("A B")
    [2, 1, 3]
    """
    encoder = sb.dataio.encoder.CTCTextEncoder()
    encoder.insert_blank(index=blank_index)
    encoder.update_from_iterable(characters, sequence_input=False)
    encoder.expect_len(len(characters) + 1)
    return encoder


def dataio_prepare(hparams, tokenizer):
    """Makes the datasets of the splits.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.
    tokenizer : CTCTextEncoder
        Makes labels of characters.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        Of all training and of all development splits.
    valid_sets, test_sets : dict
        Name of a split to its DynamicItemDataset.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return torch.LongTensor(tokenizer.encode_sequence(wrd))

    def dataset(splits):
        rows = {}
        for split in splits:
            path = Path(hparams["manifest_folder"], f"{split}.csv")
            rows.update(
                load_data_csv(path, {"data_root": hparams["data_folder"]})
            )
        data = sb.dataio.dataset.DynamicItemDataset(
            rows,
            [audio_pipeline, text_pipeline],
            ["id", "sig", "wrd", "tokens"],
        )
        return data.filtered_sorted(sort_key="duration")

    return (
        dataset(hparams["train_splits"]),
        dataset(hparams["dev_splits"]),
        {split: dataset([split]) for split in hparams["dev_splits"]},
        {split: dataset([split]) for split in hparams["test_splits"]},
    )


def prepare(hparams, run_opts):
    """Prepares one run: its manifests, its datasets and its Brain.

    Arguments
    ---------
    hparams : dict
        The loaded YAML of a training.
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    Run
    """
    run_on_main(
        prepare_librispeech,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "tr_splits": hparams["train_splits"],
            "dev_splits": hparams["dev_splits"],
            "te_splits": hparams["test_splits"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    tokenizer = label_encoder(hparams["characters"], hparams["blank_index"])
    train_data, valid_data, valid_sets, test_sets = dataio_prepare(
        hparams, tokenizer
    )
    asr_brain = ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = tokenizer

    def fit():
        """Trains, validates and collects."""
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=hparams["train_dataloader_opts"],
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )

    return Run(asr_brain, fit, train_data, valid_sets, test_sets)


def build(hparams_file, overrides, run_opts):
    """Prepares one run of a study from the YAML of its training.

    Arguments
    ---------
    hparams_file : str
        The YAML.
    overrides : dict or str
        What is different in it.
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    Run
    """
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
        save_env_desc=False,  # once a study is enough
    )
    return prepare(hparams, run_opts)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # A target, and what is merged into it
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One training: its best checkpoint, and its last ones merged
    run = prepare(hparams, run_opts)
    run.fit()
    output_folder = Path(hparams["output_folder"])
    loader_kwargs = hparams["test_dataloader_opts"]
    evaluate_domains(
        run.brain, run.test_sets, output_folder / "best", loader_kwargs
    )
    run.merge(hparams["merge_stage"])
    rates = evaluate_domains(
        run.brain, run.test_sets, output_folder / "merged", loader_kwargs
    )
    for split, counts in rates.items():
        logger.info(f"{split}, merged: WER {counts['wer']:.2f} %")
