"""A recipe that averages its checkpoints, as SpeechBrain's own do.

Authors
 * The speechbrain_merge authors 2026
"""

from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

import speechbrain as sb
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.train_logger import FileTrainLogger
from speechbrain_merge import CheckpointPool, MergeMixin

TEST_SET = tiny_ctc_data(6, seed=50)


class Recording(MergeMixin, TinyCTC):
    """Notes with which weights each test batch is evaluated."""

    def compute_forward(self, batch, stage):
        """Notes, then computes."""
        if stage == sb.Stage.TEST:
            state = self.hparams.model.state_dict()
            self.evaluated.append({n: t.clone() for n, t in state.items()})
        return super().compute_forward(batch, stage)


def load_average(brain, max_key=None, min_key=None):
    """What averaging recipes do when evaluation starts."""
    found = brain.checkpointer.find_checkpoints(
        max_key=max_key, min_key=min_key
    )
    brain.hparams.model.load_state_dict(
        average_checkpoints(found, recoverable_name="model"), strict=True
    )
    brain.hparams.model.eval()


class Averaging(Recording):
    """As LibriSpeech's transformer, CTC and transducer recipes."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        """The latest checkpoint, then an average over it."""
        super().on_evaluate_start()
        load_average(self, max_key, min_key)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """All checkpoints until testing; then the average is all there is."""
        if stage == sb.Stage.VALID:
            wer = self.wer_metric.summarize("error_rate")
            self.checkpointer.save_checkpoint({"WER": wer, "epoch": epoch})
        elif stage == sb.Stage.TEST:
            # With an epoch it looks like any checkpoint of a training
            self.checkpointer.save_and_keep_only(
                meta={"WER": -0.1, "epoch": self.hparams.epoch_counter.current},
                min_keys=["WER"],
                num_to_keep=1,
            )
            self.checkpointer.delete_checkpoints(
                num_to_keep=1, min_keys=["WER"], importance_keys=[]
            )


def trained(folder, recipe, epochs=3, model=None, **arguments):
    """A Brain that has trained and collected."""
    model = tiny_network(0) if model is None else model
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder,
        model,
        recipe,
        epochs=epochs,
        recoverables={"pool": pool},
        output_folder=str(folder),
        train_logger=FileTrainLogger(str(folder / "train_log.txt")),
        **arguments,
    )
    brain.evaluated, brain.pool = [], pool
    train(brain)
    return brain


def train(brain):
    """Training, or what is left of it."""
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=1),
        TEST_SET,
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs={"batch_size": 2},
    )


def evaluate(brain):
    """The test loss."""
    return brain.evaluate(
        TEST_SET, min_key="WER", test_loader_kwargs={"batch_size": 2}
    )
