#!/usr/bin/env python3
"""Recipe for training Whisper experts on speech domains.

The whole model is fine-tuned on one or several domains (DOMAIN_train.csv),
validated every few steps on a named part of their development sets, and
evaluated on every domain. Each validation saves a checkpoint, of which a pool
keeps the weights, to be merged.

To train one expert:
> python train.py hparams/train.yaml --domains [reverb]

On data of your own, in DATA/csv/DOMAIN_SPLIT.csv:
> python train.py hparams/train.yaml --data_folder DATA --domains [child_l2] \
>     --test_domains [child_l2,digits,telephony,read] --window 30

To train several experts and merge them; the other YAMLs are such studies, too:
> python train.py hparams/demo.yaml

Authors
 * The speechbrain_merge authors 2026
"""

import os
import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speech_domains_prepare import prepare_speech_domains
from speechbrain_merge import CheckpointPool, MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.export import export_whisper
from speechbrain_merge.training import (
    ClipAllGroups,
    LearningWithoutForgetting,
    balanced_sampler,
    freeze,
)

import speechbrain as sb
from speechbrain.inference.ASR import WhisperASR
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.seed import seed_everything

logger = get_logger(__name__)


class ASR(ClipAllGroups, MergeMixin, sb.Brain):
    """Fine-tunes Whisper, and merges its checkpoints."""

    distillation = None  # LearningWithoutForgetting, where it is asked for

    def compute_forward(self, batch, stage):
        """From waveforms to output probabilities, and to hypotheses."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        bos_tokens, bos_tokens_lens = batch.tokens_bos

        # The decoder expects its own padding token.
        lengths = torch.round(bos_tokens_lens * bos_tokens.shape[1]).long()
        places = torch.arange(bos_tokens.shape[1], device=self.device)
        bos_tokens = torch.where(
            places[None, :] < lengths[:, None],
            bos_tokens,
            self.tokenizer.pad_token_id,
        )
        # Only the transcript of a long recording has more tokens than the
        # decoder has positions. The loss is then of its beginning.
        longest = self.hparams.whisper.config.max_target_positions
        enc_out, logits, _ = self.modules.whisper(wavs, bos_tokens[:, :longest])
        log_probs = self.hparams.log_softmax(logits)

        hyps, original = None, None
        if stage == sb.Stage.TRAIN and self.distillation is not None:
            _, original, _ = self.distillation.original_outputs(
                wavs, bos_tokens[:, :longest]
            )
        if stage != sb.Stage.TRAIN:
            search = self.hparams.valid_search
            if stage == sb.Stage.TEST:
                search = self.hparams.test_search
            if wavs.shape[1] > 30 * self.hparams.sampling_rate:
                hyps = self.hparams.whisper.transcribe_long(
                    search, wavs, wav_lens
                )
            else:
                hyps, _, _, _ = search(enc_out.detach(), wav_lens)
        return log_probs, hyps, original

    def compute_objectives(self, predictions, batch, stage):
        """The loss, and the errors in words outside of training."""
        log_probs, hyps, original = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        tokens_eos = tokens_eos[:, : log_probs.shape[1]]
        loss = self.hparams.nll_loss(
            log_probs, tokens_eos, length=tokens_eos_lens
        )
        if original is not None:
            loss = loss + self.distillation(
                log_probs, original, tokens_eos_lens
            )
        if stage != sb.Stage.TRAIN:
            normalize = self.hparams.text_normalizer
            predicted = self.tokenizer.batch_decode(
                hyps, skip_special_tokens=True
            )
            self.wer_metric.append(
                batch.id,
                [normalize(text).split() for text in predicted],
                [normalize(text).split() for text in batch.wrd],
            )
        return loss

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

    def prepare_test(self, window):
        """Hears the next tests with a window of its own, in seconds."""
        self.hparams.whisper.use_window(window)


def dataio_prepare(hparams, tokenizer):
    """Makes the datasets: training, selection by domain, test by domain.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.
    tokenizer : WhisperTokenizer
        Makes tokens of transcripts.

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
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(wrd):
        # As Whisper itself writes: after a space, and not in capitals, of
        # which it would need many more tokens
        tokens = tokenizer.encode(" " + wrd.lower(), add_special_tokens=False)
        tokens = tokenizer.build_inputs_with_special_tokens(tokens)
        yield torch.LongTensor(tokens[:-1])
        yield torch.LongTensor(tokens[1:])

    def dataset(csv_path, domains=True):
        if not domains:
            return None  # nothing is trained, but something merged
        data = sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=str(csv_path),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, text_pipeline],
            output_keys=[
                "id",
                "sig",
                "wrd",
                "duration",
                "tokens_bos",
                "tokens_eos",
            ],
        )
        return data.filtered_sorted(sort_key="duration")

    manifests = Path(hparams["manifest_folder"])
    return (
        dataset(manifests / "train.csv", hparams["domains"]),
        dataset(manifests / "valid.csv", hparams["valid_domains"]),
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
    """Prepares a run from its loaded YAML: manifests, datasets and Brain."""
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
    tokenizer = hparams["whisper"].tokenizer
    train_data, valid_data, valid_sets, test_sets = dataio_prepare(
        hparams, tokenizer
    )
    asr_brain = ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        opt_class=hparams["opt_class"],
    )
    asr_brain.tokenizer = tokenizer
    prepare_fine_tuning(asr_brain, hparams)

    def fit():
        """Trains, validates and collects."""
        loader_kwargs = dict(hparams["train_loader_kwargs"])
        if hparams["balanced"]:
            sampler = balanced_sampler(train_data, hparams["seed"])
            # The Brain tells it the epoch, so that each draws other data
            asr_brain.train_sampler = loader_kwargs["sampler"] = sampler
        else:
            loader_kwargs["shuffle"] = True
        if hparams["steps_per_epoch"] is not None:
            # Short epochs leave more checkpoints to merge. The loop goes on
            # where the last epoch stopped, so that all is heard once before
            # anything is heard twice
            loader_kwargs["looped_nominal_epoch"] = hparams["steps_per_epoch"]
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=loader_kwargs,
            valid_loader_kwargs=hparams["valid_loader_kwargs"],
        )

    def export(weights, folder, texts):
        """Writes a model that loads anywhere, and has it transcribe."""
        export_whisper(weights, hparams["whisper"], folder, texts=texts)
        transcribe_one(folder, test_sets)

    return Run(
        asr_brain,
        fit,
        train_data,
        valid_sets,
        test_sets,
        test_loader_kwargs=hparams["test_loader_kwargs"],
        export=export,
    )


def prepare_fine_tuning(asr_brain, hparams):
    """Loads, distils, adapts and freezes as the YAML says.

    Before the optimizer is made: ``start_from`` are weights to start from,
    ``lwf_weight`` asks for Learning without Forgetting, ``lora_rank`` trains
    adapters alone, and ``frozen`` names parts that are not trained.
    """
    if hparams["start_from"] is not None:
        asr_brain.load_weights(hparams["start_from"])
    if hparams["lwf_weight"]:
        # Of the model as it is now, before anything is trained
        asr_brain.distillation = LearningWithoutForgetting(
            hparams["whisper"],
            weight=hparams["lwf_weight"],
            temperature=hparams["lwf_temperature"],
        )
    if hparams["lora_rank"] is not None:
        # In place; scaled by 2 whatever the rank. The pool folds it.
        AdaptedModel(
            hparams["whisper"],
            LoRA,
            all_linear=True,
            adapter_kwargs={
                "rank": hparams["lora_rank"],
                "alpha": 2 * hparams["lora_rank"],
            },
        )
        # Beside the pool, one of the adapters alone, to be merged as such
        adapters = CheckpointPool(
            Path(hparams["pool_folder"]).parent / "adapters",
            {"whisper": hparams["whisper"]},
            run=hparams["run_name"],
            keep_best=hparams["keep_best"],
            epoch_counter=hparams["epoch_counter"],
            adapters=True,
        )
        adapters.attach(hparams["checkpointer"], "adapters")
    if hparams["frozen"]:
        freeze(hparams["modules"], hparams["frozen"])


def transcribe_one(folder, test_sets):
    """Has SpeechBrain's own interface transcribe a test recording."""
    domain, data = list(test_sets.items())[-1]
    row = data.data[data.data_ids[len(data.data_ids) // 2]]
    model = WhisperASR.from_hparams(source=str(folder), savedir=str(folder))
    segments = model.transcribe_file(row["wav"])
    words = " ".join(segment.words for segment in segments).strip()
    print(f"\nWhisperASR hears ({domain}): {words}")
    print(f"The speaker says ({domain}): {row['wrd']}")


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
    # Without a model and data of its own, the YAML prepares the embedded ones
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # Several experts and their merges
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One expert, evaluated on every domain
    run = prepare(hparams, run_opts)
    run.fit()
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        os.path.join(hparams["output_folder"], "expert"),
        run.loader_kwargs("test"),
    )
    for domain, counts in rates.items():
        logger.info(f"{domain}: WER {counts['wer']:.2f} %")
