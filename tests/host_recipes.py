"""Recipes of the shapes of SpeechBrain's own, with the same hooks, in small.

Each is trained on the made-up data of `tiny_recipe`. As upstream, when
evaluation starts they load an average of their checkpoints, and after testing
they save it under a metric that wins always and delete the rest:

- `ConformerRecipe`: LibriSpeech/ASR/transformer. Encoder and decoder in a
  ModuleList, accuracy as the metric, `ACC: 1.1` after testing.
- `CTCRecipe`: LibriSpeech/ASR/CTC. Dynamic batches, `WER: -0.1`.
- `TransducerRecipe`: LibriSpeech/ASR/transducer. An LSTM that reads labels.

Run as a script, under torchrun or alone, the first one trains, merges and
evaluates in the folder given, and says what each process evaluated.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import sys
from pathlib import Path

import torch
from tiny_recipe import FEATURES, WORDS, tiny_ctc_data
from transducer_loss import transducer_loss

import speechbrain as sb
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.transducer import TransducerBeamSearcher
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss, kldiv_loss
from speechbrain.nnet.RNN import LSTM
from speechbrain.nnet.transducer.transducer_joint import Transducer_joint
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.Accuracy import AccuracyStats
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain.utils.train_logger import FileTrainLogger
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import open_weights

LABELS = len(WORDS) + 1
"""Blank and words; where sequences begin and end, the blank does it."""


class HostRecipe(MergeMixin, sb.Brain):
    """What the averaging recipes have in common."""

    METRIC, WINS = "WER", -0.1

    def compute_forward(self, batch, stage):
        """Notes what is evaluated; then the recipe's own forward pass."""
        if stage == sb.Stage.TEST:
            state = self.hparams.model.state_dict()
            self.evaluated.append({n: t.clone() for n, t in state.items()})
        self.sizes.append((stage, len(batch.id)))
        batch = batch.to(self.device)
        feats, lengths = batch.feats
        feats = self.modules.normalize(
            feats, lengths, epoch=self.hparams.epoch_counter.current
        )
        return self.forward(feats, lengths, batch), lengths

    def count(self, batch, hypotheses):
        """Word errors of a batch."""
        self.wer_metric.append(
            batch.id,
            [[WORDS[i - 1] for i in each if i > 0] for each in hypotheses],
            [words.split() for words in batch.wrd],
        )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the average of what `find_checkpoints` finds."""
        super().on_evaluate_start()
        found = self.checkpointer.find_checkpoints(
            max_key=max_key, min_key=min_key
        )
        average = average_checkpoints(found, recoverable_name="model")
        self.hparams.model.load_state_dict(average, strict=True)
        self.hparams.model.eval()

    def on_stage_start(self, stage, epoch=None):
        """Fresh metrics."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = ErrorRateStats()
            self.acc_metric = AccuracyStats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs and saves; after testing nothing but the average is left."""
        if stage == sb.Stage.TRAIN:
            return
        stats = {"loss": stage_loss}
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if self.METRIC == "ACC":
            stats["ACC"] = float(self.acc_metric.summarize())
        keys = "max_keys" if self.METRIC == "ACC" else "min_keys"
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch}, valid_stats=stats
            )
            self.checkpointer.save_and_keep_only(
                meta={self.METRIC: stats[self.METRIC], "epoch": epoch},
                num_to_keep=2,
                **{keys: [self.METRIC]},
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        self.checkpointer.save_and_keep_only(
            meta={self.METRIC: self.WINS, "epoch": epoch},
            num_to_keep=1,
            **{keys: [self.METRIC]},
        )


class ConformerRecipe(HostRecipe):
    """CTC and attention over a Conformer."""

    METRIC, WINS = "ACC", 1.1

    @staticmethod
    def build():
        """The modules, and which of them are the model."""
        transformer = TransformerASR(
            tgt_vocab=LABELS,
            input_size=FEATURES,
            d_model=16,
            nhead=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            d_ffn=32,
            dropout=0.0,
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            kernel_size=3,
            normalize_before=True,
            causal=False,
        )
        return {
            "Transformer": transformer,
            "seq_lin": Linear(input_size=16, n_neurons=LABELS),
            "ctc_lin": Linear(input_size=16, n_neurons=LABELS),
        }

    def forward(self, feats, lengths, batch):
        """Log-probabilities of CTC and of the decoder."""
        tokens, _ = batch.tokens
        begun = torch.nn.functional.pad(tokens, (1, 0))
        encoded, decoded = self.modules.Transformer(
            feats, begun, lengths, pad_idx=-1
        )
        ctc = self.modules.ctc_lin(encoded).log_softmax(-1)
        return ctc, self.modules.seq_lin(decoded).log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        """Both losses."""
        (ctc, attention), lengths = predictions
        tokens, token_lengths = batch.tokens
        ended = torch.nn.functional.pad(tokens, (0, 1))
        loss = ctc_loss(ctc, tokens, lengths, token_lengths, 0)
        loss = loss + kldiv_loss(attention, ended).mean()
        if stage != sb.Stage.TRAIN:
            self.count(batch, ctc_greedy_decode(ctc, lengths, blank_id=0))
            self.acc_metric.append(attention, ended, torch.ones(len(tokens)))
        return loss


class CTCRecipe(HostRecipe):
    """CTC over two layers."""

    @staticmethod
    def build():
        """The modules, and which of them are the model."""
        return {
            "enc": Linear(input_size=FEATURES, n_neurons=16),
            "ctc_lin": Linear(input_size=16, n_neurons=LABELS),
        }

    def forward(self, feats, lengths, batch):
        """Log-probabilities."""
        hidden = torch.relu(self.modules.enc(feats))
        return self.modules.ctc_lin(hidden).log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        """The loss."""
        ctc, lengths = predictions
        tokens, token_lengths = batch.tokens
        if stage != sb.Stage.TRAIN:
            self.count(batch, ctc_greedy_decode(ctc, lengths, blank_id=0))
        return ctc_loss(ctc, tokens, lengths, token_lengths, 0)


class TransducerRecipe(HostRecipe):
    """Encoder, label reader and joint network."""

    @staticmethod
    def build():
        """The modules, and which of them are the model."""
        return {
            "enc": Linear(input_size=FEATURES, n_neurons=16),
            "emb": Embedding(
                num_embeddings=LABELS, consider_as_one_hot=True, blank_id=0
            ),
            "dec": LSTM(input_shape=[None, None, LABELS - 1], hidden_size=16),
            "proj_dec": Linear(input_size=16, n_neurons=16, bias=False),
            "Tjoint": Transducer_joint(joint="sum", nonlinearity=torch.nn.Tanh),
            "transducer_lin": Linear(LABELS, input_size=16, bias=False),
        }

    def forward(self, feats, lengths, batch):
        """Scores of the lattice; outside training what is recognised."""
        modules = self.modules
        encoded = modules.enc(feats)
        tokens, _ = batch.tokens
        begun = torch.nn.functional.pad(tokens, (1, 0))
        read, _ = modules.dec(modules.emb(begun))
        joint = modules.Tjoint(
            encoded.unsqueeze(2), modules.proj_dec(read).unsqueeze(1)
        )
        return modules.transducer_lin(joint), encoded

    def compute_objectives(self, predictions, batch, stage):
        """The loss."""
        (scores, encoded), lengths = predictions
        if stage != sb.Stage.TRAIN:
            modules = self.modules
            search = TransducerBeamSearcher(
                [modules.emb, modules.dec, modules.proj_dec],
                modules.Tjoint,
                [modules.transducer_lin],
                blank_id=0,
                beam_size=1,
                nbest=1,
            )
            self.count(batch, search(encoded)[0])
        return transducer_loss(
            scores, *batch.tokens[:1], *(lengths, batch.tokens[1], 0)
        )


def recipe(kind, folder, epochs=3, run_opts=None, length=0.6):
    """A trained Brain and its sets, by the main part of such a recipe.

    Arguments
    ---------
    kind : type
        One of the classes above.
    folder : Path
        The output folder.
    epochs : int
        How many.
    run_opts : dict, optional
        SpeechBrain's run options.
    length : float
        Seconds of speech in a batch.

    Returns
    -------
    brain : HostRecipe
    valid_data : Dataset
    test_sets : dict
    """
    torch.manual_seed(0)
    modules = kind.build()
    model = torch.nn.ModuleList([torch.nn.ModuleList(modules.values())])
    normalize = InputNormalization(norm_type="global", update_until_epoch=2)
    counter = EpochCounter(limit=epochs)
    pool = CheckpointPool(folder / "pool", {"model": model})
    recoverables = {
        "model": model,
        "normalizer": normalize,
        "counter": counter,
        "pool": pool,
    }
    brain = kind(
        modules={**modules, "normalize": normalize},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        hparams={
            "model": model,
            "epoch_counter": counter,
            "output_folder": str(folder),
            "train_logger": FileTrainLogger(str(folder / "train_log.txt")),
        },
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=Checkpointer(folder / "save", recoverables),
    )
    brain.evaluated, brain.sizes, brain.pool = [], [], pool
    train_data, valid_data = tiny_ctc_data(16), tiny_ctc_data(8, seed=1)
    samplers = [
        DynamicBatchSampler(
            data,
            max_batch_length=length,
            num_buckets=2,
            length_func=lambda row: row["duration"],
            shuffle=True,
        )
        for data in (train_data, valid_data)
    ]
    brain.fit(
        counter,
        train_data,
        valid_data,
        train_loader_kwargs={"batch_sampler": samplers[0]},
        valid_loader_kwargs={"batch_sampler": samplers[1]},
    )
    tests = {"clean": tiny_ctc_data(5, seed=2), "other": tiny_ctc_data(4, 3)}
    return brain, valid_data, tests


def merge(brain, valid_data):
    """What a search finds, and then the mean of all, which is evaluated."""
    search = MergeStage(
        "average", [brain.pool], search=GreedySearch(), name="greedy"
    )
    found = brain.merge(search, valid_data)
    return found, brain.merge(MergeStage("average", [brain.pool], name="all"))


def evaluate(brain, data):
    """The test loss, as the recipe gets it; and with what it was evaluated."""
    brain.evaluated = []
    key = "max_key" if brain.METRIC == "ACC" else "min_key"
    return brain.evaluate(
        data, **{key: brain.METRIC}, test_loader_kwargs={"batch_size": 2}
    )


def strangers(brain, path):
    """Tensors that were not evaluated as the merged file has them."""
    found = set()
    with open_weights(path) as merged:
        for state in brain.evaluated:
            names = {f"model.{name}" for name in state}
            found |= names ^ set(merged.names())
            found |= {
                name
                for name in names & set(merged.names())
                if not torch.equal(state[name[len("model.") :]], merged[name])
            }
    return sorted(found)


class OnOneProcess(ConformerRecipe):
    """Loads its average on the main process alone."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        """The others keep the checkpoint."""
        MergeMixin.on_evaluate_start(self, max_key, min_key)
        if if_main_process():
            super().on_evaluate_start(max_key, min_key)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    options = {"distributed_backend": "gloo", "find_unused_parameters": True}
    sb.utils.distributed.ddp_init_group(options)
    seen = {}
    for each in (ConformerRecipe, OnOneProcess):
        name = each.__name__
        trained, valid, tests = recipe(each, output / name, 2, options)
        _, result = merge(trained, valid)
        losses = [evaluate(trained, tests["clean"]) for _ in range(2)]
        seen[name] = {
            "strangers": strangers(trained, result.path),
            "batches": len(trained.evaluated),
            "losses": losses,
            "merged": len(result.selected),
            "wrapped": type(trained.modules["Transformer"]).__name__,
            "metas": [
                each.meta["ACC"]
                for each in trained.checkpointer.list_checkpoints()
            ],
        }
    rank = os.environ.get("RANK", "0")
    (output / f"rank-{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
