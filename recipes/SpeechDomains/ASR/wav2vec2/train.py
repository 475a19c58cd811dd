#!/usr/bin/env python3
"""Recipe for training a pretrained speech encoder with CTC on speech domains.

Any wav2vec 2.0, HuBERT or WavLM by its name on the hub, or Whisper's encoder;
the outputs are characters, decoded greedily. Each validation saves a
checkpoint, of which a pool keeps the weights, to be merged.

To train on DATA/csv/DOMAIN_{train,valid,test}.csv:
> python train.py hparams/train.yaml --data_folder DATA \
>     --domains "[digits, telephony]" --test_domains "[digits, telephony]"

From any weights of this shape, or from the best of a run in a pool:
> python train.py hparams/train.yaml --data_folder DATA --domains "[digits]" \
>     --run_name digits --start_from results/model/pool/model

The attention of a text Transformer in that of the speech encoder (Sundar et
al., arXiv 2312.14378); each command goes on where it was stopped:
> python train.py hparams/mam.yaml --data_folder DATA
> python train.py hparams/mam_layers.yaml --data_folder DATA
> python train.py hparams/lmam.yaml --data_folder DATA

Authors
 * The speechbrain_merge authors 2026
"""

import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speech_domains_prepare import prepare_speech_domains
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


class ASR(MergeMixin, sb.Brain):
    """Trains an encoder with CTC, and merges its checkpoints."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities of characters, per frame."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        states = self.modules.encoder(wavs, wav_lens)
        states = self.hparams.dropout(states)
        return self.modules.ctc_lin(states).log_softmax(-1), wav_lens

    def compute_objectives(self, predictions, batch, stage):
        """The CTC loss, and the errors in words outside of training."""
        log_probs, lengths = predictions
        tokens, tokens_lens = batch.tokens
        loss = self.hparams.ctc_cost(log_probs, tokens, lengths, tokens_lens)
        if stage != sb.Stage.TRAIN:
            found = sb.decoders.ctc_greedy_decode(
                log_probs, lengths, blank_id=self.hparams.blank_index
            )
            texts = ["".join(self.tokenizer.decode_ndim(t)) for t in found]
            self.wer_metric.append(
                batch.id,
                [text.split() for text in texts],
                [text.split() for text in batch.wrd],
            )
        return loss

    def init_optimizers(self):
        """An optimizer for the encoder, and one for the head.

        Where λ is learned, it has a learning rate of its own in the encoder's.
        """
        encoder = self.modules.encoder
        if source_ratios(encoder):
            encoder_optimizer = ratio_optimizer(
                encoder.parameters(),
                {"encoder": encoder},
                self.hparams.encoder_opt_class,
                self.hparams.lr_ratio,
            )
        else:
            encoder_optimizer = self.hparams.encoder_opt_class(
                encoder.parameters()
            )
        self.optimizers_dict = {
            "encoder": encoder_optimizer,
            "head": self.hparams.head_opt_class(
                self.modules.ctc_lin.parameters()
            ),
        }
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"{name}_optimizer", optimizer
                )

    def on_fit_batch_start(self, batch, should_step):
        """The learning rates change with every step."""
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            for name, optimizer in self.optimizers_dict.items():
                self.schedules()[name](optimizer)

    def schedules(self):
        """Each optimizer's schedule of learning rates."""
        return {
            "encoder": self.hparams.encoder_annealing,
            "head": self.hparams.head_annealing,
        }

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
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "steps": self.optimizer_step,
                    "lr_encoder": self.hparams.encoder_annealing.current_lr,
                    "lr_head": self.hparams.head_annealing.current_lr,
                },
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            meta = {"WER": stats["WER"], "epoch": epoch}
            if source_ratios(self.modules.encoder):
                # Candidates have plain weights, which do not tell λ
                learned = learned_ratio(self.modules.encoder)
                meta["ratios"] = learned["parts"]
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["WER"])
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
            source = select(read_pool(source), per_run="best")[0]
        self.load_weights(source)


def character_encoder(characters, blank_index=0):
    """Characters to labels: always the same, whatever the training data.

    Models of different data have to agree on them to be merged.

    Arguments
    ---------
    characters : str
        All characters that can be written.
    blank_index : int
        The label of CTC's blank.

    Returns
    -------
    CTCTextEncoder

    Example
    -------
    >>> character_encoder(" AB").encode_sequence("A B")
    [2, 1, 3]
    """
    tokenizer = sb.dataio.encoder.CTCTextEncoder()
    tokenizer.insert_blank(index=blank_index)
    tokenizer.update_from_iterable(characters, sequence_input=False)
    tokenizer.expect_len(len(characters) + 1)
    return tokenizer


def dataio_prepare(hparams, tokenizer):
    """Makes the datasets: training, selection by domain, test by domain.

    Arguments
    ---------
    hparams : dict
        The recipe's hyperparameters.
    tokenizer : CTCTextEncoder
        Makes labels of characters.

    Returns
    -------
    train_data : DynamicItemDataset
    valid_data : DynamicItemDataset
        All selection sets.
    valid_sets : dict
        Domain to selection set.
    test_sets : dict
        Domain to test set.

    Raises
    ------
    ValueError
        When a transcript has a character that the model cannot write.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return torch.LongTensor(tokenizer.encode_sequence(wrd))

    def dataset(csv_path, domains=True):
        if not domains:
            return None  # nothing is trained, but something merged
        data = sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=str(csv_path),
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, text_pipeline],
            output_keys=["id", "sig", "wrd", "duration", "tokens"],
        )
        for name, row in data.data.items():
            unknown = set(row["wrd"]) - set(hparams["characters"])
            if unknown:
                raise ValueError(
                    f"{csv_path}: the transcript of {name} has "
                    f"{''.join(sorted(unknown))!r}, which is not among "
                    f"`characters` ({hparams['characters']!r}): add it there, "
                    "or write the transcript without."
                )
        return data.filtered_sorted(sort_key="duration")

    manifests = Path(hparams["manifest_folder"])
    tests = Path(hparams["data_folder"]) / "csv"
    return (
        dataset(manifests / "train.csv", hparams["domains"]),
        dataset(manifests / "valid.csv", hparams["valid_domains"]),
        {
            domain: dataset(manifests / f"valid_{domain}.csv")
            for domain in hparams["valid_domains"]
        },
        {
            domain: dataset(tests / f"{domain}_test.csv")
            for domain in hparams["test_domains"]
        },
    )


def prepare(hparams, run_opts):
    """Prepares one run: its manifests, its datasets and its Brain.

    Arguments
    ---------
    hparams : dict
        The loaded YAML of a model.
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
            "seed": hparams["data_seed"],
            "domain_files": hparams["domain_files"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    tokenizer = character_encoder(hparams["characters"], hparams["blank_index"])
    train_data, valid_data, valid_sets, test_sets = dataio_prepare(
        hparams, tokenizer
    )
    asr_brain = ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = tokenizer
    if hparams["start_from"] is not None:
        asr_brain.start_from(hparams["start_from"])
    if hparams["attention_source"] is not None:
        hparams["attention"].attach(
            asr_brain.modules.encoder, hparams["attention_source"]
        )

    def fit():
        """Trains, validates and collects."""
        loader_kwargs = dict(hparams["train_loader_kwargs"], shuffle=True)
        if hparams["steps_per_epoch"] is not None:
            # Short epochs are validated more often. The loop goes on where the
            # last one stopped, so that all is seen before any is seen twice
            loader_kwargs["looped_nominal_epoch"] = hparams["steps_per_epoch"]
        asr_brain.fit(
            asr_brain.hparams.epoch_counter,
            train_data,
            valid_data,
            train_loader_kwargs=loader_kwargs,
            valid_loader_kwargs=hparams["valid_loader_kwargs"],
        )

    return Run(asr_brain, fit, train_data, valid_sets, test_sets)


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
    # Without a model of its own, the YAML prepares the embedded ones
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

    # One model, and a merge of the checkpoints of its training
    run = prepare(hparams, run_opts)
    run.fit()
    output_folder = Path(hparams["output_folder"])
    loader_kwargs = hparams["test_loader_kwargs"]
    evaluate_domains(
        run.brain, run.test_sets, output_folder / "best", loader_kwargs
    )
    run.merge(hparams["merge_stage"])
    rates = evaluate_domains(
        run.brain, run.test_sets, output_folder / "merged", loader_kwargs
    )
    for domain, counts in rates.items():
        logger.info(f"{domain}, merged: WER {counts['wer']:.2f} %")
