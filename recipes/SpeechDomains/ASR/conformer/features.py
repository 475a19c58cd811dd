"""The scale of the features, the same for all models that are to be merged.

SpeechBrain's ``InputNormalization`` gathers the mean and deviation of the
features while a model trains. They are not part of the model's weights, and two
trainings end with different ones. Models of differently scaled features have no
useful average. So here the statistics are taken once, before the first
training, and kept for every run that names the same folder. Beside them stands
of what data they are, by content: those of data that have changed are refused.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import shutil
import uuid
from pathlib import Path

from speech_domains_prepare import prepare_speech_domains
from speechbrain_merge.records.checked import digest_text, mapped
from speechbrain_merge.records.contents import changed_files, contents_of
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json

import speechbrain as sb
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import run_on_main

DATA = "data.json"
_data = mapped(digest_text)


def load_statistics(hparams, folder, domains):
    """Gives the normaliser the statistics of the features.

    They are taken where they were not taken before.

    Arguments
    ---------
    hparams : dict
        With ``compute_features`` and the ``normalize`` that gets the
        statistics.
    folder : str
        Keeps them.
    domains : list of str
        Whose training sets they are taken from.

    Raises
    ------
    ValueError
        When those that were taken are of features of another size, or of data
        that have changed since.
    """
    folder = Path(folder)
    normalize = hparams["normalize"]
    keeper = Checkpointer(folder, {"normalizer": normalize})
    if keeper.find_checkpoint() is None:
        run_on_main(take_statistics, args=[hparams, folder, domains])
    run_on_main(check_data, args=[folder])
    keeper.recover_if_possible()
    bands = normalize.glob_mean.shape[-1]
    if bands != hparams["n_mels"]:
        raise ValueError(
            f"{folder} has the statistics of {bands} mel bands, expected "
            f"n_mels: {hparams['n_mels']}. Models that are merged hear the "
            "same features: choose another results_folder."
        )


def check_data(folder):
    """Raises where the data that statistics were taken from have changed.

    Arguments
    ---------
    folder : Path
        Has the statistics. Those of older versions have no list of their data,
        and are taken as they are.

    Raises
    ------
    ValueError
        Naming the files, and what to do.
    """
    record = folder / DATA
    if not record.is_file():
        return
    changed = changed_files(_data(read_json(record), str(record)))
    if changed:
        raise ValueError(
            f"{folder} has the statistics of features of data that have "
            f"changed since: {', '.join(changed)}. Put back what the files "
            f"were, or delete {folder} and train all models that are to be "
            "merged again."
        )


def take_statistics(hparams, folder, domains):
    """Takes the statistics, and keeps them in a folder.

    Runs that start at the same time all take them, with the same outcome, and
    the first one's are kept.

    Arguments
    ---------
    hparams : dict
        See ``load_statistics``.
    folder : Path
        Gets them, whole.
    domains : list of str
        See ``load_statistics``.
    """
    manifests = Path(hparams["manifest_folder"]) / "normalizer"
    files = hparams["domain_files"]
    prepare_speech_domains(
        data_folder=hparams["data_folder"],
        save_folder=manifests,
        train_domains=domains,
        valid_domains=[],
        train_hours=hparams["train_hours"],
        seed=hparams["data_seed"],
        domain_files={**files, "domains": files["normalizer_domains"]},
    )

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    data = sb.dataio.dataset.DynamicItemDataset.from_csv(
        csv_path=str(manifests / "train.csv"),
        replacements={"data_root": hparams["data_folder"]},
        dynamic_items=[audio_pipeline],
        output_keys=["id", "sig"],
    ).filtered_sorted(sort_key="duration")
    normalize = hparams["normalize"]
    normalize.train()
    for batch in make_dataloader(data, **hparams["valid_loader_kwargs"]):
        wavs, wav_lens = batch.sig
        normalize(hparams["compute_features"](wavs), wav_lens, epoch=0)
    beside = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:12]}")
    Checkpointer(beside, {"normalizer": normalize}).save_checkpoint(
        name="statistics"
    )
    pattern = os.path.join(hparams["data_folder"], files["normalizer_domains"])
    sources = [pattern.replace("{domain}", domain) for domain in domains]
    write_whole(beside / DATA, json.dumps(contents_of(sources), indent=1))
    try:
        # only an empty folder can be replaced
        os.rename(beside, folder)
    except OSError:
        shutil.rmtree(beside)
        if not any(folder.iterdir()):
            raise
