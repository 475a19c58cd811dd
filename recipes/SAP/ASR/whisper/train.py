#!/usr/bin/env python3
"""Recipe for fine-tuning Whisper on the Speech Accessibility Project's corpus,
and merging its checkpoints.

The loss is the negative log-likelihood of what was said. Errors are counted
against the better of two transcripts, with and without disfluencies, and no more
in an utterance than it has words. Every few steps a checkpoint and a candidate
in a pool are saved.

> python train.py hparams/train.yaml --data_folder /path/to/SAP

MAST, MAcT and SMAcT (arXiv 2505.20477), tested by category and duration:
> python train.py hparams/smact.yaml --data_folder /path/to/SAP

Authors
 * The speechbrain_merge authors 2026
"""

import math
import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from sap_prepare import prepare_sap
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains

import speechbrain as sb
from speechbrain.dataio.dataio import length_to_mask, load_data_csv
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
        # The decoder has a token of its own for padding, and so many positions
        known = length_to_mask(bos_lens * bos_tokens.shape[1]).bool()
        bos_tokens = bos_tokens.masked_fill(~known, self.tokenizer.pad_token_id)
        longest = self.hparams.whisper.config.max_target_positions
        enc_out, logits, _ = self.modules.whisper(wavs, bos_tokens[:, :longest])
        log_probs = self.hparams.log_softmax(logits)

        hyps = None
        if stage != sb.Stage.TRAIN:
            search = self.hparams.valid_search
            if stage == sb.Stage.TEST:
                search = self.hparams.test_search
            if wavs.shape[1] > 30 * self.hparams.sampling_rate:
                hyps = self.hparams.whisper.transcribe_long(
                    search, wavs, wav_lens
                )
            else:
                hyps, *_ = search(enc_out.detach(), wav_lens)
        return log_probs, hyps

    def compute_objectives(self, predictions, batch, stage):
        """The negative log-likelihood; outside training, errors in words."""
        log_probs, hyps = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        loss = self.hparams.nll_loss(
            log_probs,
            tokens_eos[:, : log_probs.shape[1]],
            length=tokens_eos_lens,
        )
        if stage != sb.Stage.TRAIN:
            heard = self.tokenizer.batch_decode(hyps, skip_special_tokens=True)
            self.wer_metric.append(
                batch.id,
                self.words_of(heard),
                self.words_of(batch.wrd),
                others=[self.words_of(batch.fluent)],
            )
        return loss

    def words_of(self, texts):
        """The words of texts, in one spelling."""
        normalize = self.hparams.text_normalizer
        return [normalize(text).lower().split() for text in texts]

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
    """Makes the datasets.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    train_data : DynamicItemDataset
        Utterances of at most 30 s.
    valid_data : DynamicItemDataset
        What is selected on.
    valid_sets, test_sets : dict
        Name of a part to its DynamicItemDataset.
    """
    tokenizer = hparams["whisper"].tokenizer

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(wrd):
        # As Whisper itself writes: after a space
        tokens = tokenizer.build_inputs_with_special_tokens(
            tokenizer.encode(f" {wrd}", add_special_tokens=False)
        )
        yield torch.LongTensor(tokens[:-1])
        yield torch.LongTensor(tokens[1:])

    def dataset(names, split=None, longest=math.inf):
        rows = {}
        for name in names:
            asked = dict(hparams["parts"][name])
            own = asked.pop("split")
            table = Path(hparams["manifest_folder"], f"{split or own}.csv")
            root = {"data_root": hparams["data_folder"]}
            found = {
                utterance: row
                for utterance, row in load_data_csv(str(table), root).items()
                if all(row[column] == asked[column] for column in asked)
                and row["duration"] <= longest
            }
            if not found:
                raise ValueError(
                    f"`parts`: {table} has no utterance of '{name}' ({asked})."
                )
            rows.update(found)
        data = sb.dataio.dataset.DynamicItemDataset(
            rows,
            [audio_pipeline, text_pipeline],
            ["id", "sig", "wrd", "fluent", "tokens_bos", "tokens_eos"],
        )
        return data.filtered_sorted(sort_key="duration")

    domains = hparams["domains"]
    return (
        dataset(domains, longest=30.0),
        dataset(domains, "select"),
        {name: dataset([name], "select") for name in domains},
        {name: dataset([name]) for name in hparams["test_domains"]},
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
    needed = [*hparams["domains"], *hparams["test_domains"]]
    splits = [hparams["parts"][name]["split"] for name in needed]
    run_on_main(
        prepare_sap,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "splits": [*splits, hparams["select_from"]],
            "select_from": hparams["select_from"],
            "select_fraction": hparams["select_fraction"],
            "seed": hparams["data_seed"],
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
        loader_kwargs = dict(hparams["train_loader_kwargs"])
        if hparams["steps_per_epoch"] is not None:
            # Short epochs leave more checkpoints to merge
            loader_kwargs["looped_nominal_epoch"] = hparams["steps_per_epoch"]
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=loader_kwargs,
            valid_loader_kwargs=hparams["valid_loader_kwargs"],
        )

    return Run(
        asr_brain,
        fit,
        train_data,
        valid_sets,
        test_sets,
        test_loader_kwargs=hparams["test_loader_kwargs"],
    )


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

    # One training: its best checkpoint on every part
    run = prepare(hparams, run_opts)
    run.fit()
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        Path(hparams["output_folder"], "best"),
        run.loader_kwargs("test"),
        measures=hparams["measures"],
    )
    for name, counts in rates.items():
        shown = [
            f"{key} {100 * counts[key]:.1f}" for key in hparams["measures"]
        ]
        shown = ", ".join([f"WER {counts['wer']:.2f} %", *shown])
        logger.info(f"{name}: {shown}")
