#!/usr/bin/env python3
"""Recipe for fine-tuning Whisper on domains of Common Voice, and merging them.

A domain is a language, or an accent of one. The loss is the negative
log-likelihood of the transcript; each utterance is decoded with the token of its
own language. Each epoch leaves a checkpoint and a candidate in a pool.

> python train.py hparams/train.yaml --data_folder /path/to/cv-corpus-22.0

Experts of accents and their merges by twelve methods, tested in domain, out of
domain, in English and in other languages:
> python train.py hparams/benchmark.yaml --data_folder /path/to/cv-corpus-22.0

Experts of languages, and their merges:
> python train.py hparams/languages.yaml --data_folder /path/to/cv-corpus-22.0

Authors
 * The speechbrain_merge authors 2026
"""

import sys
from pathlib import Path

import torch
import torchaudio
from common_voice_domains_prepare import prepare_common_voice_domains
from hyperpyyaml import load_hyperpyyaml
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains

import speechbrain as sb
from speechbrain.dataio.dataio import (
    length_to_mask,
    load_data_csv,
    read_audio,
    read_audio_info,
)
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
        known = length_to_mask(bos_lens * bos_tokens.shape[1]).bool()
        bos_tokens = bos_tokens.masked_fill(~known, self.tokenizer.pad_token_id)
        enc_out, logits, _ = self.modules.whisper(wavs, bos_tokens)
        log_probs = self.hparams.log_softmax(logits)

        hyps = None
        if stage != sb.Stage.TRAIN:
            search = self.hparams.valid_search
            if stage == sb.Stage.TEST:
                search = self.hparams.test_search
            # The language of an utterance is known: its token is the second
            beams = getattr(search, "beam_size", 1)
            search.set_lang_tokens(bos_tokens[:, 1].repeat_interleave(beams))
            hyps, *_ = search(enc_out.detach(), wav_lens)
        return log_probs, hyps

    def compute_objectives(self, predictions, batch, stage):
        """The negative log-likelihood; outside training, errors."""
        log_probs, hyps = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        loss = self.hparams.nll_loss(
            log_probs, tokens_eos, length=tokens_eos_lens
        )
        if stage != sb.Stage.TRAIN:
            heard = self.tokenizer.batch_decode(hyps, skip_special_tokens=True)
            self.wer_metric.append(
                batch.id,
                [*map(self.units_of, heard, batch.language)],
                [*map(self.units_of, batch.wrd, batch.language)],
            )
        return loss

    def units_of(self, text, language):
        """The words of a text; characters, where words are not parted."""
        words = self.hparams.text_normalizer(text).split()
        if language in self.hparams.languages_by_character:
            return list("".join(words))
        return words

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
    """Makes the datasets of the domains.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        Of all domains to train and to select on.
    valid_sets, test_sets : dict
        Domain to its DynamicItemDataset.
    """
    tokenizer = hparams["whisper"].tokenizer

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        # The clips are MP3 of 32 or 48 kHz
        rate = read_audio_info(wav).sample_rate
        return torchaudio.functional.resample(
            read_audio(wav), rate, hparams["sampling_rate"]
        )

    @sb.utils.data_pipeline.takes("wrd", "language")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(wrd, language):
        # As Whisper itself writes: after a space
        tokens = tokenizer.build_inputs_with_special_tokens(
            tokenizer.encode(f" {wrd}", add_special_tokens=False)
        )
        tokens[1] = language_token(tokenizer, language)
        yield torch.LongTensor(tokens[:-1])
        yield torch.LongTensor(tokens[1:])

    def dataset(domains, split):
        rows = {}
        for domain in domains:
            table = Path(hparams["manifest_folder"], f"{domain}_{split}.csv")
            root = {"data_root": hparams["data_folder"]}
            rows.update(load_data_csv(str(table), root))
        keys = ["id", "sig", "wrd", "language", "tokens_bos", "tokens_eos"]
        data = sb.dataio.dataset.DynamicItemDataset(
            rows, [audio_pipeline, text_pipeline], keys
        )
        return data.filtered_sorted(
            sort_key="duration", key_max_value={"duration": 30.0}
        )

    def by_domain(domains, split):
        return {domain: dataset([domain], split) for domain in domains}

    return (
        dataset(hparams["domains"], "train"),
        dataset(hparams["valid_domains"], "valid"),
        by_domain(hparams["valid_domains"], "valid"),
        by_domain(hparams["test_domains"], "test"),
    )


def language_token(tokenizer, language):
    """Whisper's token of a language."""
    token = tokenizer.convert_tokens_to_ids(f"<|{language}|>")
    if token is None or token == tokenizer.unk_token_id:
        raise ValueError(
            f"This Whisper has no language '{language}': name another `code` "
            "for the domain, or take a multilingual `whisper_hub`."
        )
    return token


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
        prepare_common_voice_domains,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "definitions": hparams["definitions"],
            "train_domains": hparams["domains"],
            "valid_domains": hparams["valid_domains"],
            "test_domains": hparams["test_domains"],
            "train_hours": hparams["train_hours"],
            "most_utterances": hparams["most_utterances"],
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
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=hparams["train_loader_kwargs"],
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

    # Several experts, and what is merged of them
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One expert, tested on every domain
    run = prepare(hparams, run_opts)
    run.fit()
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        Path(hparams["output_folder"], "expert"),
        run.loader_kwargs("test"),
    )
    for domain, counts in rates.items():
        logger.info(f"{domain}: WER {counts['wer']:.2f} %")
