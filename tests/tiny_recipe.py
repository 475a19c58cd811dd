"""A recipe in small: made-up data, a Brain that learns it, and wav files.

`TinyCTC` trains, decodes and checkpoints as SpeechBrain's recipes do, in
about a second, so that collecting and merging are tested on the real thing.

Example
-------
>>> brain = tiny_ctc_brain(getfixture("tmp_path"))
>>> train, valid = tiny_ctc_data(12), tiny_ctc_data(6, seed=1)
>>> brain.fit(brain.hparams.epoch_counter, train, valid)
>>> len(brain.checkpointer.list_checkpoints()) >= 1
True

Authors
 * The speechbrain_merge authors 2026
"""

import csv
from pathlib import Path
from typing import Optional

import numpy
import soundfile
import torch

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.metric_stats import ErrorRateStats

WORDS = ("one", "two", "three", "four", "five", "six")
"""Words of the made-up speech. Word w is CTC label 1 + w; label 0 is blank."""

FEATURES = 8
"""Size of the made-up feature vectors of `tiny_ctc_data`."""

SAMPLE_RATE = 16000


class TinyNetwork(torch.nn.Module):
    """The smallest CTC model with BatchNorm, hence with an integer buffer.

    Not for DDP on CPU, where SpeechBrain cannot synchronise BatchNorm.
    """

    def __init__(self, features: int = FEATURES, labels: int = len(WORDS) + 1):
        super().__init__()
        self.hidden = torch.nn.Linear(features, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.ctc_lin = torch.nn.Linear(16, labels)

    def forward(self, features, lengths):
        """CTC logits, shape [batch, frames, labels]."""
        del lengths  # every frame for itself
        hidden = self.norm(self.hidden(features).transpose(1, 2))
        return self.ctc_lin(torch.relu(hidden.transpose(1, 2)))


def tiny_network(seed: int = 0) -> TinyNetwork:
    """A seeded `TinyNetwork`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNetwork()


def tiny_ctc_data(
    utterances: int = 12, seed: int = 0, shift: float = 0.0
) -> DynamicItemDataset:
    """Made-up utterances that a `TinyCTC` learns in a few epochs.

    A word is three noisy frames of its own direction, between frames of
    silence.

    Arguments
    ---------
    utterances : int
        How many.
    seed : int
        Seed of the words and the noise; the words' directions never change.
    shift : float
        Rotates the directions, which makes another domain: what was learned
        at shift 0 fails more, the further away.

    Returns
    -------
    DynamicItemDataset
        Items: id, wrd, feats [frames, FEATURES], tokens [words].

    Example
    -------
    >>> tiny_ctc_data(3)[0]["feats"].shape[1]
    8
    """
    directions = torch.randn(
        len(WORDS), FEATURES, generator=torch.Generator().manual_seed(7)
    )
    directions = torch.nn.functional.normalize(directions, dim=1)
    directions = directions + shift * directions.roll(1, dims=0)
    generator = torch.Generator().manual_seed(seed)
    data = {}
    for index in range(utterances):
        count = int(torch.randint(2, 6, (1,), generator=generator))
        words = torch.randint(0, len(WORDS), (count,), generator=generator)
        frames = [torch.zeros(1, FEATURES)]
        for word in words:
            frames += [directions[word].expand(3, -1), frames[0]]
        clean = torch.cat(frames)
        noise = 0.2 * torch.randn(clean.shape, generator=generator)
        data[f"utterance-{seed}-{index:03d}"] = {
            "wrd": " ".join(WORDS[word] for word in words),
            "feats": clean + noise,
            "tokens": words + 1,
            "duration": len(clean) / 100,
        }
    return DynamicItemDataset(
        data, output_keys=["id", "wrd", "feats", "tokens"]
    )


class TinyCTC(sb.Brain):
    """A recipe's Brain, as small as it gets.

    It does what the recipes do where merging meets them: a fresh
    `ErrorRateStats` at each evaluation stage, a checkpoint with the error
    rate as its meta after each validation, and (`save_on_test`, as every
    averaging recipe) a checkpoint with a fake error rate after each test.
    `self.stats` gathers (stage name, epoch, loss, WER) for the tests.
    """

    def compute_forward(self, batch, stage):
        """CTC log-probabilities."""
        feats, lengths = batch.feats
        feats, lengths = feats.to(self.device), lengths.to(self.device)
        feats = self.modules.normalize(
            feats, lengths, epoch=self.hparams.epoch_counter.current
        )
        return self.modules.model(feats, lengths).log_softmax(-1), lengths

    def compute_objectives(self, predictions, batch, stage):
        """CTC loss; word errors outside training."""
        log_probabilities, lengths = predictions
        tokens, token_lengths = batch.tokens
        loss = sb.nnet.losses.ctc_loss(
            log_probabilities,
            tokens.to(self.device),
            lengths,
            token_lengths.to(self.device),
            blank_index=0,
        )
        if stage != sb.Stage.TRAIN:
            found = ctc_greedy_decode(log_probabilities, lengths, blank_id=0)
            self.wer_metric.append(
                batch.id,
                [[WORDS[label - 1] for label in labels] for labels in found],
                [words.split() for words in batch.wrd],
            )
        return loss

    def on_stage_start(self, stage, epoch=None):
        """A fresh error counter."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.wer_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keeps the best and the last checkpoint."""
        self.stats = getattr(self, "stats", [])
        if stage == sb.Stage.TRAIN:
            self.stats.append((stage.name, epoch, stage_loss, None))
            return
        wer = self.wer_metric.summarize("error_rate")
        self.stats.append((stage.name, epoch, stage_loss, wer))
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(
                meta={"WER": wer, "epoch": epoch}, min_keys=["WER"]
            )
        elif self.hparams.save_on_test:
            self.checkpointer.save_and_keep_only(
                meta={"WER": -0.1, "epoch": epoch},
                min_keys=["WER"],
                num_to_keep=1,
            )


def tiny_ctc_brain(
    folder,
    model: Optional[torch.nn.Module] = None,
    brain_class: type = TinyCTC,
    epochs: int = 2,
    learning_rate: float = 0.02,
    save_on_test: bool = False,
    recoverables: Optional[dict] = None,
    run_opts: Optional[dict] = None,
    **hparams,
) -> TinyCTC:
    """A `TinyCTC` with checkpointer, as a recipe's main part makes it.

    Arguments
    ---------
    folder : str or Path
        Checkpoints go to `<folder>/save`.
    model : torch.nn.Module, optional
        Called as model(features, lengths). Default: `tiny_network()`.
    brain_class : type
        `TinyCTC`, or a class that mixes something into it.
    epochs : int
        Limit of the epoch counter.
    learning_rate : float
        Of Adam.
    save_on_test : bool
        Save a fake checkpoint after each test set, as averaging recipes do.
    recoverables : dict, optional
        More recoverables, e.g. {"pool": CheckpointPool(...)}.
    run_opts : dict, optional
        SpeechBrain's run options; default: CPU, no progress bar.
    **hparams
        More hyperparameters.

    Returns
    -------
    TinyCTC
        Ready for `fit`, then `evaluate` (the normalizer needs data first).

    Example
    -------
    >>> brain = tiny_ctc_brain(getfixture("tmp_path"), epochs=10)
    >>> data = tiny_ctc_data(24)
    >>> brain.fit(brain.hparams.epoch_counter, data, data)
    >>> loss = brain.evaluate(data, min_key="WER")
    >>> brain.wer_metric.summarize("error_rate") < 50
    True
    """
    model = tiny_network() if model is None else model
    counter = EpochCounter(limit=epochs)
    normalize = InputNormalization(norm_type="global", update_until_epoch=2)
    checkpointer = Checkpointer(
        Path(folder) / "save",
        {
            "model": model,
            "normalizer": normalize,
            "counter": counter,
            **(recoverables or {}),
        },
    )
    return brain_class(
        modules={"model": model, "normalize": normalize},
        opt_class=lambda parameters: torch.optim.Adam(
            parameters, lr=learning_rate
        ),
        hparams={
            "model": model,
            "epoch_counter": counter,
            "wer_computer": ErrorRateStats,
            "save_on_test": save_on_test,
            **hparams,
        },
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=checkpointer,
    )


def make_speech(
    folder, utterances: int = 4, seed: int = 0, seconds: float = 1.0
) -> str:
    """Writes small synthetic wav files and their SpeechBrain CSV.

    A word is a tone of its own pitch under light noise.

    Arguments
    ---------
    folder : str or Path
        Where to write `*.wav` and `speech.csv`.
    utterances : int
        How many.
    seed : int
        Seed of the words and the noise.
    seconds : float
        Rough duration; utterance i lasts `seconds * (1 + i / 10)`.

    Returns
    -------
    str
        Path of the CSV, with columns ID, duration, wav, spk_id, wrd.

    Example
    -------
    >>> from speechbrain.dataio.dataio import load_data_csv
    >>> data = load_data_csv(make_speech(getfixture("tmp_path"), 2))
    >>> sorted(data["speech-0-000"])
    ['duration', 'spk_id', 'wav', 'wrd']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    path = folder / "speech.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for index in range(utterances):
            name = f"speech-{seed}-{index:03d}"
            words = generator.integers(0, len(WORDS), size=2 + index % 3)
            samples = int(seconds * (1 + index / 10) * SAMPLE_RATE)
            time = numpy.arange(samples // len(words)) / SAMPLE_RATE
            tones = [numpy.sin(440 * (1 + word) * time) for word in words]
            audio = 0.3 * numpy.concatenate(tones)
            audio += 0.01 * generator.standard_normal(len(audio))
            wav = folder / f"{name}.wav"
            soundfile.write(wav, audio.astype("float32"), SAMPLE_RATE)
            duration = len(audio) / SAMPLE_RATE
            text = " ".join(WORDS[word] for word in words)
            table.writerow([name, duration, wav, f"speaker-{index % 2}", text])
    return str(path)
