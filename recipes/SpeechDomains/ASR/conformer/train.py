#!/usr/bin/env python3
"""Recipe for training a Conformer with CTC on speech domains, from scratch.

The output is greedy CTC over characters. By dynamic chunk training one model
can be used offline and streaming, and is tested in both modes. The model is
validated every few steps; each validation saves a checkpoint, of which a pool
keeps the weights, to be merged.

To train on DATA/csv/DOMAIN_{train,valid,test}.csv:
> python train.py hparams/train.yaml --data_folder DATA \
>     --domains "[digits, telephony]"

From an encoder pretrained without transcripts (see pretrain.py), or from any
weights of this shape:
> python train.py hparams/train.yaml --data_folder DATA \
>     --start_from results/pretrained/pool/pretrained

To train two models from different starts, and fuse them by optimal transport;
the command goes on where it was stopped (see speechbrain_merge/study):
> python train.py hparams/otf.yaml --data_folder DATA

To train a generalist and continue it on one domain and another, by an average
of domain experts and by all that it is compared with:
> python train.py hparams/aode.yaml --data_folder DATA

Authors
 * The speechbrain_merge authors 2026
"""

import sys
from pathlib import Path

from features import load_statistics
from hyperpyyaml import load_hyperpyyaml
from speech_domains_prepare import prepare_speech_domains
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.training import (
    ClipAllGroups,
    FrozenModels,
    balanced_sampler,
    guided_ctc_loss,
    mean_posterior_loss,
)
from speechbrain_merge.weights import open_weights
from torch.utils.data import ConcatDataset
from units import check_units, tokens_of, units_of, words_of

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.seed import seed_everything

logger = get_logger(__name__)


class ASR(ClipAllGroups, MergeMixin, sb.Brain):
    """Trains a Conformer with CTC, and merges its checkpoints."""

    # How tests are heard, and where their posteriors are kept, if anywhere
    mode = "offline"
    posteriors = None
    # Models that training is guided by, and those that it learns from
    guides = teachers = None

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities of characters, per frame."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(
            feats, wav_lens, epoch=self.hparams.epoch_counter.current
        )
        clean = feats, wav_lens
        if stage == sb.Stage.TRAIN:
            feats, wav_lens = self.hparams.fea_augment(feats, wav_lens)
        chunks = self.chunks(stage)
        if stage == sb.Stage.TRAIN:
            # guides and teachers hear the features before they are masked
            self.heard = (*clean, chunks)
        return log_posteriors(self.modules, feats, wav_lens, chunks), wav_lens

    def chunks(self, stage):
        """How far a frame sees: a ``DynChunkTrainConfig``, or None for all."""
        if stage == sb.Stage.TRAIN and self.hparams.streaming:
            return self.hparams.chunk_sampler(stage)
        if stage == sb.Stage.TEST and self.mode == "streaming":
            return self.hparams.test_chunks
        return None

    def compute_objectives(self, predictions, batch, stage):
        """The CTC loss, and the errors in words outside of training."""
        log_probs, lengths = predictions
        tokens, tokens_lens = batch.tokens
        loss = self.hparams.ctc_cost(log_probs, tokens, lengths, tokens_lens)
        if stage == sb.Stage.TRAIN and self.guides is not None:
            [guide] = self.guides.outputs(log_posteriors, *self.heard)
            loss = loss + self.hparams.guide_weight * guided_ctc_loss(
                log_probs,
                guide,
                lengths,
                self.hparams.blank_index,
                self.hparams.guide_form,
            )
        if stage == sb.Stage.TRAIN and self.teachers is not None:
            known = self.teachers.outputs(log_posteriors, *self.heard)
            loss = loss + self.hparams.teacher_weight * mean_posterior_loss(
                log_probs, known, lengths
            )
        if stage != sb.Stage.TRAIN:
            frames = (lengths * log_probs.shape[1]).round().int().tolist()
            heard = {
                name: of_one[:number].cpu()
                for name, of_one, number in zip(batch.id, log_probs, frames)
            }
            self.wer_metric.append(
                batch.id,
                [self.words_of(heard[name])[0] for name in batch.id],
                [text.split() for text in batch.wrd],
            )
            if self.posteriors is not None:
                self.posteriors.update(heard)
        return loss

    def words_of(self, log_posteriors):
        """Words of an utterance [frames, units], and their confidences."""
        return words_of(log_posteriors, self.units, self.hparams.blank_index)

    def on_fit_batch_start(self, batch, should_step):
        """The learning rate changes with every step."""
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        """Forgets the errors counted before."""
        if stage == sb.Stage.TRAIN:
            # So that a training that was stopped draws what it would have
            seed_everything(self.hparams.seed + epoch)
        else:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer_metric.summarize("WER")
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "steps": self.optimizer_step,
                    "lr": self.hparams.lr_annealing.current_lr,
                },
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"], "epoch": epoch},
                min_keys=["WER"],
            )
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"tested": self.test_name}, test_stats=stats
            )

    def prepare_test(self, mode):
        """Hears the next tests "offline", or "streaming" in chunks."""
        if mode not in ("offline", "streaming"):
            raise ValueError(
                f"The mode of a test is {mode!r}; expected offline or "
                "streaming."
            )
        self.mode = mode

    def start_from(self, source):
        """Loads the modules that a source has; the others stay as they are.

        Arguments
        ---------
        source : str or Path
            Weights as the pool names them, or a run in a pool, of which the
            best candidate is taken.
        """
        source = best_of(source)
        with open_weights(source) as weights:
            found = {name.partition(".")[0] for name in weights.names()}
            fresh = sorted(set(self.hparams.pool.modules) - found)
        logger.info(
            f"Starting from {weights.label}; from scratch: "
            f"{', '.join(fresh) or 'nothing'}."
        )
        self.load_weights(source)

    def listen_to(self, guide, teachers):
        """Takes other models as guide and teachers of the training.

        Arguments
        ---------
        guide : str, Path or None
            Weights of the whole model, or a run in a pool.
        teachers : list or None
            Of such; what is learned is the mean of their posteriors.
        """
        # in one copy, since the encoder is a part of the Transformer
        modules = {**self.modules, **self.hparams.pool.modules}
        if guide is not None:
            self.guides = FrozenModels(modules, [best_of(guide)])
        if teachers:
            self.teachers = FrozenModels(
                modules, [best_of(source) for source in teachers]
            )


def log_posteriors(modules, feats, lengths, chunks):
    """From features to log-posteriors [batch, frames, units] of CTC."""
    encoded = modules["encoder"](
        modules["CNN"](feats), lengths, dynchunktrain_config=chunks
    )
    return modules["ctc_lin"](encoded).log_softmax(-1)


def best_of(source):
    """The best candidate of a run in a pool; other sources as they are."""
    if not (Path(str(source)) / "manifest.jsonl").is_file():
        return source
    candidates = read_pool(source)
    (best,) = select(candidates, best=1, metric=candidates[0].metric)
    return best


def dataio_prepare(hparams, units):
    """Makes the datasets: training, selection, test by domain.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.
    units : list of str
        Characters by their places in the output.

    Returns
    -------
    train_data : DynamicItemDataset
    valid_data : DynamicItemDataset
        All selection sets.
    valid_sets : dict
        Domain to selection set.
    test_sets : dict
        Domain to test set.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return tokens_of(wrd, units)

    def dataset(csv_path):
        data = sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=str(csv_path),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, text_pipeline],
            output_keys=["id", "sig", "wrd", "duration", "tokens"],
        )
        return data.filtered_sorted(sort_key="duration")

    manifests = Path(hparams["manifest_folder"])
    return (
        dataset(manifests / "train.csv"),
        dataset(manifests / "valid.csv"),
        {
            domain: dataset(manifests / f"valid_{domain}.csv")
            for domain in hparams["valid_domains"]
        },
        {
            domain: dataset(manifests / f"test_{domain}.csv")
            for domain in hparams["test_domains"]
        },
    )


def prepare(hparams, run_opts):
    """Prepares one run: its manifests, its datasets and its Brain.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    Run
    """
    run_on_main(
        prepare_speech_domains,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "train_domains": hparams["domains"],
            "valid_domains": hparams["valid_domains"],
            "test_domains": hparams["test_domains"],
            "train_hours": hparams["train_hours"],
            "select_fraction": hparams["select_fraction"],
            "test_fraction": hparams["test_fraction"],
            "seed": hparams["data_seed"],
            "domain_files": hparams["domain_files"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    units = units_of(hparams)
    train_data, valid_data, valid_sets, test_sets = dataio_prepare(
        hparams, units
    )
    load_statistics(
        hparams,
        folder=hparams["normalizer_folder"],
        domains=hparams["normalizer_domains"],
    )
    asr_brain = ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        opt_class=hparams["opt_class"],
    )
    asr_brain.units = units
    if hparams["start_from"] is not None:
        asr_brain.start_from(hparams["start_from"])
    asr_brain.listen_to(hparams["guide"], hparams["teachers"])

    def fit():
        """Trains, validates and collects."""
        loader_kwargs = dict(hparams["train_loader_kwargs"])
        if hparams["balanced"]:
            sampler = balanced_sampler(train_data, hparams["seed"])
            # The Brain tells it the epoch, so that each draws other data
            asr_brain.train_sampler = sampler
            loader_kwargs.update(sampler=sampler, shuffle=False)
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


def test_all(run, hparams, name):
    """Tests the weights in use on every domain, in every mode.

    Arguments
    ---------
    run : Run
        The Brain and its test sets.
    hparams : dict
        With the ``output_folder`` and the ``test_modes``.
    name : str
        What is tested. Folders ``NAME_MODE`` get the rates, the alignments and
        the errors of each utterance.
    """
    for mode in hparams["test_modes"]:
        rates = evaluate_domains(
            run.brain,
            run.test_sets,
            Path(hparams["output_folder"]) / f"{name}_{mode}",
            run.loader_kwargs("test"),
            settings={"mode": mode},
        )
        for domain, counts in rates.items():
            logger.info(f"{name}, {mode}, {domain}: WER {counts['wer']:.2f} %")


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

    # Two models and their fusions, or a generalist and its experts
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One model: its best checkpoint, and its checkpoints merged
    run = prepare(hparams, run_opts)
    run.fit()
    test_all(run, hparams, "expert")
    stage = hparams["merge_stage"]
    if stage is not None:
        check_units(stage.chosen(), hparams)
        loader_kwargs = run.loader_kwargs("valid")
        if stage.needs_statistics:
            # What such a method has to know of the candidates, data say
            valid_data = ConcatDataset(run.valid_sets.values())
            collect_statistics(
                run.brain,
                stage,
                valid_data,
                loader_kwargs,
                train=run.train_set,
            )
        run.brain.merge(stage, run.valid_sets, loader_kwargs)
        test_all(run, hparams, stage.name)
