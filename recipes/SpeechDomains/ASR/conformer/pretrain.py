#!/usr/bin/env python3
"""Recipe for pretraining a Conformer encoder without transcripts: BEST-RQ.

Spans of the features are replaced by noise, and the encoder tells from what is
around them which entry of a random codebook was nearest to a random projection
of what was there (Chiu et al., arXiv 2202.01855). Projection and codebook are
never trained. The parts are SpeechBrain's. The encoder has the shape of
train.yaml's, and a pool keeps its weights, from which train.py goes on:

> python pretrain.py hparams/pretrain.yaml --data_folder DATA \
>     --domains "[digits, telephony]"
> python train.py hparams/train.yaml --data_folder DATA \
>     --start_from results/pretrained/pool/pretrained

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import sys
from pathlib import Path

import torch
from features import load_statistics
from hyperpyyaml import load_hyperpyyaml
from speech_domains_prepare import prepare_speech_domains
from speechbrain_merge import MergeMixin, Run

import speechbrain as sb
from speechbrain.lobes.models.BESTRQ import brq_mask_collate_fn
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.seed import seed_everything

logger = get_logger(__name__)


class Pretraining(MergeMixin, sb.Brain):
    """Has an encoder tell what was masked."""

    def compute_forward(self, batch, stage):
        """From waveforms to scores and targets of the masked frames.

        Arguments
        ---------
        batch : tuple
            Waveforms [batch, samples], their relative lengths, and the places
            of the masked feature frames, the same for the whole batch.
        stage : speechbrain.Stage
            Whether to train.

        Returns
        -------
        scores : torch.Tensor
            [batch × masked frames, codebook_size].
        targets : torch.Tensor
            [batch × masked frames].
        """
        wavs, wav_lens, mask = (part.to(self.device) for part in batch)
        stacked = self.hparams.stacked_frames
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(
            feats, wav_lens, epoch=self.hparams.epoch_counter.current
        )
        missing = -feats.shape[1] % stacked
        feats = torch.nn.functional.pad(feats, (0, 0, 0, missing))

        # The frames that become one in the encoder have one target
        places = mask[::stacked] // stacked
        groups = feats.unflatten(1, (-1, stacked)).flatten(2)
        targets = self.modules.quantizer(groups[:, places])

        noise = torch.randn_like(feats[:, mask])
        feats = feats.clone()
        feats[:, mask] = (
            self.hparams.noise_mean + self.hparams.noise_std * noise
        )
        chunks = None
        if stage == sb.Stage.TRAIN and self.hparams.streaming:
            chunks = self.hparams.chunk_sampler(stage)
        encoded = self.modules.encoder(
            self.modules.CNN(feats), wav_lens, dynchunktrain_config=chunks
        )
        scores = self.modules.predictor(encoded[:, places])
        return scores.flatten(0, 1), targets.flatten()

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy, and how often the first choice is right."""
        scores, targets = predictions
        if stage != sb.Stage.TRAIN:
            self.right += int((scores.argmax(-1) == targets).sum())
            self.masked += len(targets)
        return torch.nn.functional.cross_entropy(scores, targets)

    def on_fit_batch_start(self, batch, should_step):
        """The learning rate changes with every step."""
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        """Forgets what was counted before."""
        if stage == sb.Stage.TRAIN:
            # So that a training that was stopped draws what it would have
            seed_everything(self.hparams.seed + epoch)
        else:
            self.right = self.masked = 0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        accuracy = 100 * self.right / self.masked
        self.hparams.train_logger.log_stats(
            stats_meta={
                "epoch": epoch,
                "steps": self.optimizer_step,
                "lr": self.hparams.lr_annealing.current_lr,
            },
            train_stats=self.train_stats,
            valid_stats={"loss": stage_loss, "accuracy": accuracy},
        )
        self.checkpointer.save_and_keep_only(
            meta={"loss": stage_loss, "epoch": epoch}, num_to_keep=1
        )


def dataio_prepare(hparams):
    """Makes the datasets, of audio alone.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    train_data : DynamicItemDataset
    valid_data : DynamicItemDataset
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    def dataset(csv_path):
        data = sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=str(csv_path),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline],
            output_keys=["id", "sig"],
        )
        return data.filtered_sorted(
            sort_key="duration",
            key_min_value={"duration": hparams["avoid_if_shorter_than"]},
        )

    manifests = Path(hparams["manifest_folder"])
    return dataset(manifests / "train.csv"), dataset(manifests / "valid.csv")


def masked_batches(hparams):
    """What makes a batch of utterances: SpeechBrain's, with a mask.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    callable
        List of utterances to waveforms, lengths and masked frames.
    """
    hop = hparams["sample_rate"] // 100
    return functools.partial(
        brq_mask_collate_fn,
        get_out_len_fn=lambda samples: samples // hop + 1,
        mask_prob=hparams["mask_prob"],
        mask_length=hparams["mask_length"],
        n_mels=hparams["n_mels"],
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
    )
    run_on_main(
        prepare_speech_domains,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "train_domains": hparams["domains"],
            "valid_domains": hparams["valid_domains"],
            "train_hours": hparams["train_hours"],
            "seed": hparams["data_seed"],
            "domain_files": hparams["domain_files"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    train_data, valid_data = dataio_prepare(hparams)
    load_statistics(
        hparams,
        folder=hparams["normalizer_folder"],
        domains=hparams["normalizer_domains"],
    )
    brain = Pretraining(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        opt_class=hparams["opt_class"],
    )
    collate = {"collate_fn": masked_batches(hparams)}

    def fit():
        """Trains, validates and collects."""
        brain.fit(
            brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs={**hparams["train_loader_kwargs"], **collate},
            valid_loader_kwargs={**hparams["valid_loader_kwargs"], **collate},
        )

    return Run(brain, fit, train_data)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    build(hparams_file, overrides, run_opts).fit()
