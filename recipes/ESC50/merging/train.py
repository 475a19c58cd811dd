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

import sys
from functools import partial
from pathlib import Path

import torch
import torchaudio
from esc50_prepare import prepare_esc50
from hyperpyyaml import load_hyperpyyaml
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.methods import (
    learned_ratio,
    ratio_optimizer,
    source_ratios,
)
from speechbrain_merge.pool import read_pool, select

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class ESC50Brain(MergeMixin, sb.Brain):
    """Trains a sound classifier, and merges its checkpoints."""

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


def prepare(hparams, run_opts):
    """Prepares one run: its manifests, its datasets and its Brain.

    Arguments
    ---------
    hparams : dict
        The loaded YAML of a classifier.
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    Run
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

    # Sets are known by domain; ESC-50 is one
    (domain,) = hparams["domains"]
    return Run(
        brain,
        fit,
        datasets["train"],
        {domain: datasets["valid"]},
        {domain: datasets["test"]},
    )


def build(hparams_file, overrides, run_opts):
    """Prepares one run from its YAML, with overrides of it.

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

    # A target, what is merged into it, and what is fine-tuned from there
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One classifier, and a merge of the checkpoints of its training
    run = prepare(hparams, run_opts)
    run.fit()
    output_folder = Path(hparams["output_folder"])
    loader_kwargs = hparams["valid_loader_kwargs"]
    evaluate_domains(
        run.brain,
        run.test_sets,
        output_folder / "best",
        loader_kwargs,
        metric="error",
    )
    run.merge(hparams["merge_stage"])
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        output_folder / "merged",
        loader_kwargs,
        metric="error",
    )
    for domain, counts in rates.items():
        logger.info(f"{domain}, merged: error {counts['error']:.2f} %")
