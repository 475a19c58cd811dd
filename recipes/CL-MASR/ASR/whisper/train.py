#!/usr/bin/env python3
"""Recipe for learning languages one after the other with Whisper, on CL-MASR.

Whisper is fine-tuned on languages that it does not know. Each gets a token of
its own, all of them before any training, so that models of different languages
can be merged. After each language the model is tested on the languages that it
knew before and on those that it has learned.

To train one expert:
> python train.py hparams/train.yaml --data_folder CL-MASR --locales [rw]

To learn ten languages in turn, in several ways, and compare them:
> python train.py hparams/merging.yaml --data_folder CL-MASR

Authors
 * The speechbrain_merge authors 2026
"""

import os
import sys
from pathlib import Path

import torch
from cl_masr_prepare import prepare_cl_masr
from hyperpyyaml import load_hyperpyyaml
from speechbrain_merge import MergeMixin, Run
from speechbrain_merge.brain.domains import evaluate_domains

import speechbrain as sb
from speechbrain.dataio import audio_io
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class ASR(MergeMixin, sb.Brain):
    """Fine-tunes Whisper on new languages, and merges what it learned."""

    def compute_forward(self, batch, stage):
        """From waveforms to output probabilities, and to hypotheses."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        bos_tokens, bos_lens = batch.tokens_bos

        # The decoder expects its own padding token.
        lengths = torch.round(bos_lens * bos_tokens.shape[1]).long()
        places = torch.arange(bos_tokens.shape[1], device=self.device)
        bos_tokens = torch.where(
            places[None, :] < lengths[:, None],
            bos_tokens,
            self.tokenizer.pad_token_id,
        )
        enc_out, logits, _ = self.modules.whisper(wavs, bos_tokens)
        log_probs = self.hparams.log_softmax(logits)

        hyps = None
        if stage != sb.Stage.TRAIN:
            # The language of each utterance is given, as in the benchmark.
            search = self.hparams.test_search
            search.set_lang_tokens(
                torch.tensor(batch.language_token, device=self.device)
            )
            hyps, _, _, _ = search(enc_out.detach(), wav_lens)
        return log_probs, hyps

    def compute_objectives(self, predictions, batch, stage):
        """The loss, and the errors in words outside of training."""
        log_probs, hyps = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        loss = self.hparams.nll_loss(
            log_probs, tokens_eos, length=tokens_eos_lens
        )
        if stage != sb.Stage.TRAIN:
            predicted = self.tokenizer.batch_decode(
                hyps, skip_special_tokens=True
            )
            self.wer_metric.append(
                batch.id,
                self.units_of(predicted, batch.locale),
                self.units_of(batch.wrd, batch.locale),
            )
        return loss

    def units_of(self, texts, locales):
        """What errors are counted in: words, or characters of some locales."""
        units = []
        for text, locale in zip(texts, locales):
            if self.hparams.normalize_transcripts:
                text = self.tokenizer.normalize(text)
            words = text.split()
            if locale in self.hparams.character_locales:
                words = list("_".join(words))
            units.append(words or [" "])
        return units

    def on_stage_start(self, stage, epoch=None):
        """Forgets the errors counted before."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer_metric.summarize("WER")
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(stats["loss"])
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"], "epoch": epoch}, min_keys=["WER"]
            )
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"tested": self.test_name}, test_stats=stats
            )


def language_token(locale):
    """The token of a language: Whisper knows Chinese of all regions as one."""
    code = locale.lower()
    return "<|zh|>" if code.startswith("zh") else f"<|{code}|>"


def add_languages(whisper, locales):
    """Adds a token for each language that Whisper does not know.

    Its embedding is the mean of those of all languages that it knows, which
    is the same in every training.

    Arguments
    ---------
    whisper : Whisper
        A multilingual one; it is changed.
    locales : list of str
        All languages of the benchmark, in their order.

    Raises
    ------
    ValueError
        When the model is not multilingual.
    """
    if not whisper.is_multilingual:
        raise ValueError(
            "whisper_hub is a Whisper for English alone; expected a "
            "multilingual one, such as openai/whisper-tiny."
        )
    tokenizer, known = whisper.tokenizer, whisper.tokenizer.get_vocab()
    new = [language_token(locale) for locale in locales]
    new = [token for token in dict.fromkeys(new) if token not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(new)
    embeddings = whisper.model.get_input_embeddings().weight
    mean = embeddings[list(whisper.all_language_tokens)].detach().mean(dim=0)
    if ids and max(ids) >= len(embeddings):
        whisper.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        whisper.model.get_input_embeddings().weight[ids] = mean


def dataio_prepare(hparams, tokenizer):
    """Makes the datasets of a run.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.
    tokenizer : WhisperTokenizer
        Knows all languages.

    Returns
    -------
    train_data : DynamicItemDataset
    valid_sets : dict
        Locale to development set.
    test_sets : dict
        Locale to test set.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        sig = sb.dataio.dataio.read_audio(wav)
        rate = audio_io.info(wav).sample_rate
        return hparams["resample"](orig_freq=rate)(sig[None])[0]

    @sb.utils.data_pipeline.takes("wrd", "locale")
    @sb.utils.data_pipeline.provides(
        "tokens_bos", "tokens_eos", "language_token"
    )
    def text_pipeline(wrd, locale):
        language = tokenizer.convert_tokens_to_ids(language_token(locale))
        start, _, *task = tokenizer.prefix_tokens
        text = tokenizer.encode(wrd, add_special_tokens=False)
        tokens = [start, language, *task, *text]
        tokens = tokens[: hparams["max_target_length"]]
        yield torch.LongTensor(tokens)
        yield torch.LongTensor([*tokens[1:], tokenizer.eos_token_id])
        yield language

    def dataset(locales, split):
        if not locales:
            return None  # nothing is trained, but something merged
        data = {}
        for locale in locales:
            data.update(
                sb.dataio.dataio.load_data_csv(
                    Path(hparams["manifest_folder"], f"{locale}_{split}.csv"),
                    {"data_root": hparams["data_folder"]},
                )
            )
        return sb.dataio.dataset.DynamicItemDataset(
            data,
            dynamic_items=[audio_pipeline, text_pipeline],
            output_keys=[
                "id",
                "sig",
                "wrd",
                "locale",
                "tokens_bos",
                "tokens_eos",
                "language_token",
            ],
        ).filtered_sorted(sort_key="duration")

    return (
        dataset(hparams["locales"], "train"),
        dataset(hparams["valid_locales"], "dev"),
        {
            locale: dataset([locale], "dev")
            for locale in hparams["valid_locales"]
        },
        {
            locale: dataset([locale], "test")
            for locale in hparams["test_locales"]
        },
    )


def prepare(hparams, run_opts):
    """Prepares a run from its loaded YAML: manifests, datasets and Brain."""
    run_on_main(
        prepare_cl_masr,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["manifest_folder"],
            "train_locales": hparams["locales"],
            "valid_locales": hparams["valid_locales"],
            "test_locales": hparams["test_locales"],
            "max_durations": hparams["max_durations"],
            "avoid_if_longer_than": hparams["avoid_if_longer_than"],
            "seed": hparams["data_seed"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    add_languages(hparams["whisper"], hparams["new_locales"])
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
    """Prepares one run from its YAML, with overrides of it."""
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

    # Languages one after the other, and merges
    if "study" in hparams:
        hparams["study"].run(build, run_opts)
        sys.exit()

    # One expert, tested on every language
    run = prepare(hparams, run_opts)
    run.fit()
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        os.path.join(hparams["output_folder"], "tested"),
        run.loader_kwargs("test"),
    )
    for locale, counts in rates.items():
        logger.info(f"{locale}: WER {counts['wer']:.2f} %")
