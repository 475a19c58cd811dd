"""The scale of the features, the same for all models that are to be merged.

SpeechBrain's ``InputNormalization`` gathers the mean and deviation of the
features while a model trains. They are no part of the model's weights, and two
trainings come to two pairs. Models that heard features of different scales have
no average, so here the statistics are taken once, before the first training,
and kept for every run under the same results folder.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.checkpoints import Checkpointer


def measure_features(hparams, train_data):
    """Takes the statistics of the features, or finds those that were taken.

    Arguments
    ---------
    hparams : dict
        With ``compute_features``, the ``normalize`` that gets the statistics,
        and the ``normalizer_folder`` that keeps them.
    train_data : DynamicItemDataset
        What they are taken from: the training set of the first run.

    Raises
    ------
    ValueError
        When those that were taken are of features of another size.
    """
    normalize = hparams["normalize"]
    keeper = Checkpointer(
        hparams["normalizer_folder"], {"normalizer": normalize}
    )
    if keeper.find_checkpoint() is None:
        normalize.train()
        for batch in make_dataloader(
            train_data, **hparams["valid_loader_kwargs"]
        ):
            wavs, wav_lens = batch.sig
            normalize(hparams["compute_features"](wavs), wav_lens, epoch=0)
        keeper.save_checkpoint(name="statistics")
    keeper.recover_if_possible()
    bands = normalize.glob_mean.shape[-1]
    if bands != hparams["n_mels"]:
        raise ValueError(
            f"{hparams['normalizer_folder']} has the statistics of {bands} mel "
            f"bands, expected n_mels: {hparams['n_mels']}. Models that are "
            "merged hear the same features: choose another results_folder."
        )
