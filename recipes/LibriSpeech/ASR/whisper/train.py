#!/usr/bin/env python3
"""Recipe for fine-tuning Whisper on LibriSpeech, and merging what is trained.

The loss is the negative log-likelihood of the transcript. Each epoch leaves a
checkpoint and a candidate in a pool; after the training, the last candidates
are merged, and the best checkpoint and the merge are tested.

> python train.py hparams/train.yaml --data_folder /path/to/LibriSpeech

Several trainings and their merges, MAST, MAcT and SMAcT (arXiv 2505.20477):
> python train.py hparams/trajectories.yaml --data_folder /path/to/LibriSpeech

Experts of clean and of other speech, and their average (AoDE), with what is
forgotten of other speech, of which a CSV is given:
> python train.py hparams/aode.yaml --data_folder /path/to/LibriSpeech \
>     --retention_csv /path/to/test.csv

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
from speechbrain.dataio.dataio import length_to_mask, load_data_csv
from speechbrain.utils.data_utils import undo_padding
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class ASR(MergeMixin, sb.Brain):
    """Fine-tunes Whisper; ``MergeMixin`` merges, and evaluates the merge."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities, outside training to tokens."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        bos_tokens, bos_lens = batch.tokens_bos
        # The decoder has a token of its own for padding
        number = bos_tokens.shape[1]
        known = length_to_mask((bos_lens * number).round(), number).bool()
        bos_tokens = bos_tokens.masked_fill(~known, self.tokenizer.pad_token_id)

        enc_out, logits, _ = self.modules.whisper(wavs, bos_tokens)
        log_probs = self.hparams.log_softmax(logits)

        hyps = None
        if stage == sb.Stage.VALID:
            hyps, *_ = self.hparams.valid_search(enc_out.detach(), wav_lens)
        elif stage == sb.Stage.TEST:
            hyps, *_ = self.hparams.test_search(enc_out.detach(), wav_lens)
        return log_probs, hyps

    def compute_objectives(self, predictions, batch, stage):
        """The negative log-likelihood; outside training, errors in words."""
        log_probs, hyps = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        loss = self.hparams.nll_loss(
            log_probs, tokens_eos, length=tokens_eos_lens
        )
        if stage != sb.Stage.TRAIN:
            targets = undo_padding(*batch.tokens)
            self.wer_metric.append(
                batch.id, self.words_of(hyps), self.words_of(targets)
            )
        return loss

    def words_of(self, tokens):
        """The words of each utterance, written as Whisper's authors compare."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        if self.hparams.normalized_transcripts:
            texts = [self.tokenizer.normalize(text) for text in texts]
        return [text.split() for text in texts]

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """The learning rate changes with every step."""
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

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
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.hparams.lr_annealing.current_lr},
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


def dataio_prepare(hparams):
    """Makes the datasets of the splits.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        Of all training and of all development splits.
    valid_sets, test_sets : dict
        Name of a split to its DynamicItemDataset.
    """
    tokenizer = hparams["whisper"].tokenizer

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos", "tokens")
    def text_pipeline(wrd):
        if hparams["normalized_transcripts"]:
            wrd = tokenizer.normalize(wrd)
        tokens = tokenizer.build_inputs_with_special_tokens(
            tokenizer.encode(wrd, add_special_tokens=False)
        )
        yield torch.LongTensor(tokens[:-1])
        yield torch.LongTensor(tokens[1:])
        yield torch.LongTensor(tokens)

    def dataset(paths):
        rows = {}
        for path in paths:
            rows.update(
                load_data_csv(path, {"data_root": hparams["data_folder"]})
            )
        data = sb.dataio.dataset.DynamicItemDataset(
            rows,
            [audio_pipeline, text_pipeline],
            ["id", "sig", "tokens_bos", "tokens_eos", "tokens"],
        )
        return data.filtered_sorted(sort_key="duration")

    def table(split):
        return Path(hparams["manifest_folder"], f"{split}.csv")

    def by_split(splits):
        return {split: dataset([table(split)]) for split in splits}

    test_sets = by_split(hparams["test_splits"])
    if hparams["retention_csv"] is not None:
        test_sets["retention"] = dataset([hparams["retention_csv"]])
    return (
        dataset(map(table, hparams["train_splits"])),
        dataset(map(table, hparams["dev_splits"])),
        by_split(hparams["dev_splits"]),
        test_sets,
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
    train_data, valid_data, valid_sets, test_sets = dataio_prepare(hparams)
    asr_brain = ASR(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = hparams["whisper"].tokenizer
    if hparams["start_from"] is not None:
        asr_brain.load_weights(hparams["start_from"])

    def fit():
        """Trains, validates and collects."""
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=hparams["train_loader_kwargs"],
            valid_loader_kwargs=hparams["valid_loader_kwargs"],
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

    # Several trainings, and what is merged of them
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One training: its best checkpoint, and its last ones merged
    run = prepare(hparams, run_opts)
    run.fit()
    output_folder = Path(hparams["output_folder"])
    loader_kwargs = hparams["test_loader_kwargs"]
    evaluate_domains(
        run.brain, run.test_sets, output_folder / "best", loader_kwargs
    )
    run.merge(hparams["merge_stage"])
    rates = evaluate_domains(
        run.brain, run.test_sets, output_folder / "merged", loader_kwargs
    )
    for split, counts in rates.items():
        logger.info(f"{split}, merged: WER {counts['wer']:.2f} %")
