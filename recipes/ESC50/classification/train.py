#!/usr/bin/env python3
"""Recipe for classifying the sounds of ESC-50, with a ViT's attention in BEATs.

BEATs and a linear layer on the mean of its states are fine-tuned on ESC-50 in
SpeechBrain's folds; each validation saves a checkpoint, of which a pool keeps
the weights, to be merged.

To train the classifier:
> python train.py hparams/train.yaml --data_folder ESC-50 \
>     --beats_path BEATs_iter3.pt

The attention of an image Transformer in that of BEATs (Sundar et al., arXiv
2312.14378), without training, fine-tuned, and with λ learned; the command goes
on where it was stopped:
> python train.py hparams/mam.yaml --data_folder ESC-50 \
>     --beats_path BEATs_iter3.pt

Authors
 * The speechbrain_merge authors 2026
"""

import json
import sys
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
import torchaudio
from attention_study import run_study
from esc50_prepare import prepare_esc50
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_merge import MergeMixin
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.evaluation import from_tracker, total, write_scores
from speechbrain_merge.methods import (
    learned_ratio,
    ratio_optimizer,
    source_ratios,
)
from speechbrain_merge.pool import read_pool, select

logger = get_logger(__name__)


class ESC50Brain(MergeMixin, sb.Brain):
    """Trains a sound classifier, and merges what comes of it."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities of the classes."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        states = self.modules.embedding_model(wavs, lens)[0]
        return self.modules.classifier(states.mean(dim=1)).log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        """The negative log-likelihood; outside of training, errors."""
        loss = torch.nn.functional.nll_loss(predictions, batch.classID)
        if stage != sb.Stage.TRAIN:
            # A clip is an utterance of one word, its class: so an error rate
            # is what merge stages count
            self.error_metric.append(
                batch.id,
                [[str(label)] for label in predictions.argmax(-1).tolist()],
                [[str(label)] for label in batch.classID.tolist()],
            )
        return loss

    def on_fit_batch_start(self, batch, should_step):
        """The learning rate changes with every step."""
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        """Forgets the errors counted before."""
        if stage != sb.Stage.TRAIN:
            self.error_metric = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["error"] = self.error_metric.summarize("error_rate")
        stats["acc"] = 100 - stats["error"]
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "lr": self.hparams.lr_annealing.current_lr,
                },
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            meta = {"error": stats["error"], "epoch": epoch}
            if source_ratios(self.modules.embedding_model):
                # Candidates have plain weights, which do not tell λ
                learned = learned_ratio(self.modules.embedding_model)
                meta["ratios"] = learned["parts"]
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["error"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"tested": self.test_name}, test_stats=stats
            )

    def start_from(self, source):
        """Loads weights, which the pool then keeps as what training began with.

        Arguments
        ---------
        source : str or Path
            Weights as the pool names them, or a run in a pool, of which the
            best candidate is taken.
        """
        if (Path(source) / "manifest.jsonl").is_file():
            source = select(read_pool(source), per_run="best", metric="error")[
                0
            ]
        self.load_weights(source)

    def evaluate_domains(self, test_sets, folder):
        """Evaluates the weights in use.

        Arguments
        ---------
        test_sets : dict
            Name to dataset.
        folder : str
            Gets the predictions ``error_NAME.txt``, the error of every clip
            ``NAME.jsonl``, and the rates ``error.json``.

        Returns
        -------
        dict
            Name to ``error`` in percent, ``errors`` and ``clips``.
        """
        folder, rates = Path(folder), {}
        folder.mkdir(parents=True, exist_ok=True)
        for name, test_set in test_sets.items():
            self.test_name = f"{folder.name} on {name}"
            self.evaluate(
                test_set,
                min_key="error",
                test_loader_kwargs=self.hparams.valid_loader_kwargs,
            )
            scores = from_tracker(self.error_metric)
            counts = total(scores)
            rates[name] = {
                "error": counts.rate,
                "errors": counts.errors,
                "clips": counts.utterances,
            }
            if if_main_process():
                write_scores(folder / f"{name}.jsonl", scores)
                with open(folder / f"error_{name}.txt", "w") as file:
                    self.error_metric.write_stats(file)
        if if_main_process():
            text = json.dumps(rates, indent=2)
            (folder / "error.json").write_text(text, encoding="utf-8")
        return rates


def dataio_prepare(hparams):
    """Makes the datasets of clips.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    dict
        ``train``, ``valid`` and ``test``.
    """
    folder, rate = Path(hparams["audio_data_folder"]), hparams["sample_rate"]
    length = int(rate * hparams["signal_length_s"])

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        path = str(folder / wav)
        sig = sb.dataio.dataio.read_audio(path)
        if sig.dim() > 1:
            sig = sig.mean(dim=1)
        stored = sb.dataio.dataio.read_audio_info(path).sample_rate
        sig = torchaudio.functional.resample(sig, stored, rate)[:length]
        # Some clips are silent but for an instant
        return sig / sig.abs().max().clamp(min=1e-4)

    return {
        split: sb.dataio.dataset.DynamicItemDataset.from_json(
            json_path=hparams[f"{split}_annotation"],
            dynamic_items=[audio_pipeline],
            output_keys=["id", "sig", "classID"],
        )
        for split in ("train", "valid", "test")
    }


def build(hparams, run_opts):
    """Prepares one run: its manifests, its datasets and its Brain.

    Arguments
    ---------
    hparams : dict
        The loaded YAML of a run.
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    brain : ESC50Brain
    fit : callable
        Trains it, from where it was.
    sets : dict
        ``train``; ``valid``; ``valid_sets`` and ``test_sets``: name to set.
    """
    run_on_main(
        prepare_esc50,
        kwargs={
            "data_folder": hparams["data_folder"],
            "audio_data_folder": hparams["audio_data_folder"],
            "save_json_train": hparams["train_annotation"],
            "save_json_valid": hparams["valid_annotation"],
            "save_json_test": hparams["test_annotation"],
            "train_fold_nums": hparams["train_fold_nums"],
            "valid_fold_nums": hparams["valid_fold_nums"],
            "test_fold_nums": hparams["test_fold_nums"],
            "skip_manifest_creation": hparams["skip_manifest_creation"],
        },
    )
    datasets = dataio_prepare(hparams)
    opt_class = hparams["opt_class"]
    if hparams["attention_source"] is not None:
        opt_class = partial(
            ratio_optimizer,
            modules=hparams["modules"],
            optimizer=opt_class,
            lambda_learning_rate=hparams["lr_ratio"],
        )
    brain = ESC50Brain(
        modules=hparams["modules"],
        opt_class=opt_class,
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    if hparams["start_from"] is not None:
        brain.start_from(hparams["start_from"])
    if hparams["attention_source"] is not None:
        hparams["attention"].attach(
            brain.modules.embedding_model, hparams["attention_source"]
        )

    def fit():
        """Trains, validates and collects."""
        brain.fit(
            brain.hparams.epoch_counter,
            datasets["train"],
            datasets["valid"],
            train_loader_kwargs=hparams["train_loader_kwargs"],
            valid_loader_kwargs=hparams["valid_loader_kwargs"],
        )

    # Merge stages know sets by domain; ESC-50 is one
    (domain,) = hparams["domains"]
    sets = {
        "train": datasets["train"],
        "valid": datasets["valid"],
        "valid_sets": {domain: datasets["valid"]},
        "test_sets": {domain: datasets["test"]},
    }
    return brain, fit, sets


def load_and_build(hparams_file, overrides, run_opts):
    """One run of a study: the classifier's YAML, with the run's own settings."""
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    return build(hparams, run_opts)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    study = "merge_stages" in hparams
    sb.create_experiment_directory(
        experiment_directory=hparams[
            "results_folder" if study else "output_folder"
        ],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    # A target, what is merged into it, and what is fine-tuned from there
    if study:
        run_study(hparams, run_opts, load_and_build)
        sys.exit()

    # One classifier, and a merge of the checkpoints of its training
    brain, fit, sets = build(hparams, run_opts)
    fit()
    output_folder = Path(hparams["output_folder"])
    brain.evaluate_domains(sets["test_sets"], output_folder / "best")
    stage, loader_kwargs = (
        hparams["merge_stage"],
        hparams["valid_loader_kwargs"],
    )
    if stage.needs_statistics:
        # What such a method has to know of the candidates, data say
        collect_statistics(brain, stage, sets["valid"], loader_kwargs)
    brain.merge(stage, sets["valid_sets"], loader_kwargs)
    rates = brain.evaluate_domains(sets["test_sets"], output_folder / "merged")
    for domain, counts in rates.items():
        logger.info(f"{domain}, merged: error {counts['error']:.2f} %")
