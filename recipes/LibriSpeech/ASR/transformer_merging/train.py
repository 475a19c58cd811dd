#!/usr/bin/env python3
"""Recipe for training a Conformer on LibriSpeech, and merging its checkpoints.

A Conformer encoder and a Transformer decoder are trained from scratch with CTC
and the negative log-likelihood, and decoded jointly with a language model, as in
``LibriSpeech/ASR/transformer``. That recipe keeps the last checkpoints,
optimizer and all, and evaluates their mean. Here a pool keeps their weights,
and a merge stage weighs them as by a decay of the learning rate (arXiv
2507.17634), which is chosen after the training.

> python train.py hparams/conformer_small.yaml \
>     --data_folder /path/to/LibriSpeech

Another decay; this merges and tests, and does not train again:
> python train.py hparams/conformer_small.yaml \
>     --data_folder /path/to/LibriSpeech --decay cosine

Authors
 * The speechbrain_merge authors 2026
"""

import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain_merge import MergeMixin, Run

import speechbrain as sb
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class ASR(MergeMixin, sb.Brain):
    """Trains a Conformer; ``MergeMixin`` merges, and evaluates the merge."""

    test_name = "test"
    test_wer_file = None  # where a test writes its alignments

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities, at times to tokens."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        tokens_bos, _ = batch.tokens_bos
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(
            feats, wav_lens, epoch=self.hparams.epoch_counter.current
        )
        if stage == sb.Stage.TRAIN:
            feats, wav_lens = self.hparams.fea_augment(feats, wav_lens)
            tokens_bos = self.hparams.fea_augment.replicate_labels(tokens_bos)

        enc_out, pred = self.modules.Transformer(
            self.modules.CNN(feats),
            tokens_bos,
            wav_lens,
            pad_idx=self.hparams.pad_index,
        )
        p_ctc = self.hparams.log_softmax(self.modules.ctc_lin(enc_out))
        p_seq = self.hparams.log_softmax(self.modules.seq_lin(pred))

        hyps = None
        if stage == sb.Stage.TEST:
            hyps, *_ = self.hparams.test_search(enc_out.detach(), wav_lens)
        elif stage == sb.Stage.VALID and self.is_searched():
            hyps, *_ = self.hparams.valid_search(enc_out.detach(), wav_lens)
        return p_ctc, p_seq, wav_lens, hyps

    def is_searched(self):
        """Whether the development set is decoded in this epoch."""
        epoch = self.hparams.epoch_counter.current
        return epoch % self.hparams.valid_search_interval == 0

    def compute_objectives(self, predictions, batch, stage):
        """The two losses; outside training, accuracy and errors in words."""
        p_ctc, p_seq, wav_lens, hyps = predictions
        labels = (*batch.tokens, *batch.tokens_eos)
        if stage == sb.Stage.TRAIN:
            labels = self.hparams.fea_augment.replicate_multiple_labels(*labels)
        tokens, tokens_lens, tokens_eos, tokens_eos_lens = labels
        loss_seq = self.hparams.seq_cost(
            p_seq, tokens_eos, length=tokens_eos_lens
        ).sum()
        loss_ctc = self.hparams.ctc_cost(
            p_ctc, tokens, wav_lens, tokens_lens
        ).sum()
        if stage != sb.Stage.TRAIN:
            self.acc_metric.append(p_seq, tokens_eos, tokens_eos_lens)
        if hyps is not None:
            texts = [self.hparams.tokenizer.decode_ids(hyp) for hyp in hyps]
            self.wer_metric.append(
                batch.id,
                [text.split() for text in texts],
                [text.split() for text in batch.wrd],
            )
        weight = self.hparams.ctc_weight
        return weight * loss_ctc + (1 - weight) * loss_seq

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """The learning rate changes with every step."""
        if should_step:
            self.hparams.noam_annealing(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        """Fresh counters."""
        if stage != sb.Stage.TRAIN:
            self.acc_metric = self.hparams.acc_computer()
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves a checkpoint after each validation."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["ACC"] = self.acc_metric.summarize()
        if self.wer_metric.scores:
            stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.hparams.noam_annealing.current_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            # The pool is a recoverable, and collects here. Here the best one
            # and the last one are enough
            self.checkpointer.save_and_keep_only(
                meta={"ACC": stats["ACC"], "epoch": epoch}, max_keys=["ACC"]
            )
        else:
            self.hparams.train_logger.log_stats(
                {"tested": self.test_name}, test_stats=stats
            )
            if self.test_wer_file is not None and if_main_process():
                with open(self.test_wer_file, "w", encoding="utf-8") as w:
                    self.wer_metric.write_stats(w)


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
    test_sets : dict
        Name of a split to its DynamicItemDataset.
    """
    tokenizer = hparams["tokenizer"]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline_train(wav):
        # Here the workers of the loader do it
        sig = sb.dataio.dataio.read_audio(wav)
        return hparams["speed_perturb"](sig.unsqueeze(0)).squeeze(0)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos", "tokens")
    def text_pipeline(wrd):
        tokens = tokenizer.encode_as_ids(wrd)
        yield torch.LongTensor([hparams["bos_index"], *tokens])
        yield torch.LongTensor([*tokens, hparams["eos_index"]])
        yield torch.LongTensor(tokens)

    def dataset(splits, audio=audio_pipeline):
        rows = {}
        for split in splits:
            path = Path(hparams["manifest_folder"], f"{split}.csv")
            rows.update(
                load_data_csv(path, {"data_root": hparams["data_folder"]})
            )
        data = sb.dataio.dataset.DynamicItemDataset(
            rows,
            [audio, text_pipeline],
            ["id", "sig", "wrd", "tokens_bos", "tokens_eos", "tokens"],
        )
        return data.filtered_sorted(sort_key="duration")

    return (
        dataset(hparams["train_splits"], audio_pipeline_train),
        dataset(hparams["dev_splits"]),
        {split: dataset([split]) for split in hparams["test_splits"]},
    )


def test_all(asr_brain, test_sets, folder):
    """Tests the weights in use on all sets, and writes the alignments.

    Arguments
    ---------
    asr_brain : ASR
        What is tested.
    test_sets : dict
        Name to DynamicItemDataset.
    folder : Path
        Gets ``wer_<set>.txt``.
    """
    run_on_main(folder.mkdir, kwargs={"exist_ok": True})
    for name, test_set in test_sets.items():
        asr_brain.test_name = f"{folder.name} on {name}"
        asr_brain.test_wer_file = folder / f"wer_{name}.txt"
        asr_brain.evaluate(
            test_set,
            max_key="ACC",
            test_loader_kwargs=asr_brain.hparams.test_dataloader_opts,
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
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    train_data, valid_data, test_sets = dataio_prepare(hparams)
    asr_brain = ASR(
        modules=hparams["modules"],
        opt_class=hparams["Adam"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )

    def fit():
        """Trains, validates and collects."""
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs={
                "batch_sampler": DynamicBatchSampler(
                    train_data,
                    length_func=lambda row: row["duration"],
                    **hparams["dynamic_batch_sampler"],
                ),
                "num_workers": hparams["num_workers"],
            },
            valid_loader_kwargs=hparams["valid_dataloader_opts"],
        )

    return Run(asr_brain, fit, train_data, {"dev": valid_data}, test_sets)


def build(hparams_file, overrides, run_opts):
    """Prepares one run from its YAML, for a study and for other weights.

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
        save_env_desc=False,  # once a training is enough
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
    run = prepare(hparams, run_opts)
    run.fit()

    # The best checkpoint, and the merge
    output_folder = Path(hparams["output_folder"])
    if hparams["test_best"]:
        test_all(run.brain, run.test_sets, output_folder / "best")
    stage = hparams["merge_stage"]
    run.brain.merge(stage, run.valid_sets["dev"])
    test_all(run.brain, run.test_sets, output_folder / stage.name)
