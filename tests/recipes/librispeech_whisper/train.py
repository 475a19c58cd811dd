"""Fine-tunes a Whisper, merges its checkpoints, evaluates the merge.

Run as any recipe: python train.py hparams.yaml --data_folder …
"""

import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml

import speechbrain as sb
from speechbrain.nnet.losses import nll_loss
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge import MergeMixin


class ASR(MergeMixin, sb.Brain):
    """Trains on the transcript's likelihood, validates by word error rate."""

    def compute_forward(self, batch, stage):
        """Log-probabilities, and outside training what is recognised."""
        batch = batch.to(self.device)
        wavs, lengths = batch.sig
        encoded, logits, _ = self.modules.whisper(wavs, batch.tokens_bos.data)
        found = None
        if stage != sb.Stage.TRAIN:
            found, *_ = self.hparams.valid_search(encoded.detach(), lengths)
        return logits.log_softmax(-1), found

    def compute_objectives(self, predictions, batch, stage):
        """Negative log-likelihood; word errors outside training."""
        log_probabilities, found = predictions
        tokens, lengths = batch.tokens_eos
        if stage != sb.Stage.TRAIN:
            words = self.tokenizer.batch_decode(found, skip_special_tokens=True)
            self.wer_metric.append(
                batch.id,
                [text.split() for text in words],
                [text.split() for text in batch.wrd],
            )
        return nll_loss(log_probabilities, tokens, length=lengths)

    def on_stage_start(self, stage, epoch):
        """A fresh error counter."""
        self.wer_metric = ErrorRateStats()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Logs, and keeps the best and the last checkpoint."""
        if stage == sb.Stage.TRAIN:
            return
        stats = {"loss": stage_loss}
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch}, valid_stats=stats
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"]}, min_keys=["WER"]
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        with open(self.hparams.test_wer_file, "w", encoding="utf-8") as file:
            self.wer_metric.write_stats(file)


def dataio_prepare(hparams, tokenizer, name):
    """The set of <data_folder>/<name>/speech.csv."""

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(wrd):
        tokens = tokenizer.encode(wrd, add_special_tokens=False)
        tokens = tokenizer.build_inputs_with_special_tokens(tokens)
        yield torch.tensor(tokens[:-1])
        yield torch.tensor(tokens[1:])

    return sb.dataio.dataset.DynamicItemDataset.from_csv(
        Path(hparams["data_folder"], name, "speech.csv"),
        dynamic_items=[audio_pipeline, text_pipeline],
        output_keys=["id", "sig", "wrd", "tokens_bos", "tokens_eos"],
    )


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    tokenizer = hparams["whisper"].tokenizer
    train_data, valid_data, *test_sets = [
        dataio_prepare(hparams, tokenizer, name)
        for name in ("train", "valid", "test_clean", "test_other")
    ]
    asr_brain = ASR(
        modules=hparams["modules"],
        opt_class=hparams["whisper_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = tokenizer
    asr_brain.fit(
        asr_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=hparams["train_loader_kwargs"],
        valid_loader_kwargs=hparams["valid_loader_kwargs"],
    )
    asr_brain.merge(hparams["merge_stage"], valid_data)

    for name, test_set in zip(("clean", "other"), test_sets):
        asr_brain.hparams.test_wer_file = (
            Path(hparams["output_folder"]) / f"wer_test_{name}.txt"
        )
        asr_brain.evaluate(test_set, min_key="WER")
