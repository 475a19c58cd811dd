"""SpeechBrain's Whisper, faster on short utterances, and able to read long ones.

Whisper hears 30 seconds at once, and short utterances are padded with silence.
All that silence costs as much as speech. Cutting it off makes the model fast
but lost: it was never trained without, and repeats itself. ``WindowedWhisper``
keeps every position of the first ``window`` seconds; of the silence that
follows it keeps every ``silence_step``-th position, each at its own place in the
30 seconds, and always the last. That last position is what matters: it is where
Whisper sees that the recording ends. So the model needs no adaptation to the
window. Word error rates in % of tiny.en, zero-shot, 40 clips of 1 to 5 s each:

===================================== ======= ======= ======== ========
positions                             prompts stories codes    s / clip
===================================== ======= ======= ======== ========
1500, plain Whisper                   8.4     8.9     34.5     0.34
300, cut off after 6 s                132.3   159.9   71.0     0.09
302 of 6 s, every 10th of the silence 8.4     7.4     34.5     0.07
302 of 6 s, every 30th of the silence 8.4     7.4     35.5     0.06
===================================== ======= ======= ======== ========

The weights, their names and shapes are those of SpeechBrain's Whisper; the
window is only a way to compute. A batch with an utterance longer than the
window is computed in full. An utterance of more than 30 seconds is cut where
it is quietest, and its parts are transcribed one by one (``split_long``).

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional, Union

import torch
from torch.nn import functional as F

from speechbrain.integrations.huggingface.whisper import (
    N_SAMPLES,
    SAMPLE_RATE,
    Whisper,
)

POSITIONS_PER_SECOND = 50
SAMPLES_PER_POSITION = SAMPLE_RATE // POSITIONS_PER_SECOND
# Positions after the window that still hear its end, through the overlap of
# the spectrogram's frames and the two convolutions; the next hears silence
ECHO = 2
MARGIN = ECHO + 3


class WindowedWhisper(Whisper):
    """Whisper with a window, dropouts and SpecAugment that a recipe can set.

    Arguments
    ---------
    source : str
        Hub name or folder.
    save_path : str
        Where a model from the hub is kept.
    window : float or list of float
        Seconds that are computed densely; of several, the smallest that a
        batch fits into. 30 is SpeechBrain's Whisper.
    silence_step : int
        After the window, one position of so many is computed. 1 computes all.
    dropout : float
        Dropout of the embeddings and of each block's output.
    attention_dropout : float
        Dropout of the attention weights.
    activation_dropout : float
        Dropout inside the feed-forward blocks.
    mask_time_prob : float
        SpecAugment: part of the spectrogram's frames to mask in training.
    mask_feature_prob : float
        SpecAugment: part of its mel bands to mask in training.
    each_alone : bool
        Whether an utterance's spectrogram is cut off below its own loudest
        point, as Whisper's own is, and not below that of its batch, as
        SpeechBrain's. Then what is heard of an utterance does not depend on
        its company, and a search may batch utterances as it needs them
        (``padded_seconds``).
    **kwargs : dict
        As for ``speechbrain.integrations.huggingface.whisper.Whisper``.

    Example
    -------
    >>> model_hub = "openai/whisper-tiny"
    >>> model = WindowedWhisper(
    ...     model_hub, "savedir", window=6
    ... )  # doctest: +SKIP
    >>> tokens = torch.tensor([[model.bos]])  # doctest: +SKIP
    >>> model(torch.randn(1, 16000), tokens)[0].shape  # doctest: +SKIP
    torch.Size([1, 422, 384])
    """

    def __init__(
        self,
        source: str,
        save_path: str,
        window: Union[float, list[float]] = 30.0,
        silence_step: int = 10,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        mask_time_prob: float = 0.0,
        mask_feature_prob: float = 0.0,
        each_alone: bool = False,
        **kwargs,
    ):
        if silence_step < 1:
            raise ValueError(f"silence_step is {silence_step}, expected >= 1")
        self.settings = {
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
            "mask_time_prob": mask_time_prob,
            "mask_feature_prob": mask_feature_prob,
            "apply_spec_augment": mask_time_prob > 0 or mask_feature_prob > 0,
        }
        super().__init__(source, save_path, **kwargs)
        self.use_window(window)
        self.silence_step, self.each_alone = silence_step, each_alone

    def use_window(self, window):
        """Changes the window, for a test at 30 seconds, say.

        Arguments
        ---------
        window : float or list of float
            As in the constructor.

        Raises
        ------
        ValueError
            When it is not between 0 and 30 seconds.
        """
        windows = sorted(window if isinstance(window, list) else [window])
        if not windows or not 0 < windows[0] <= windows[-1] <= 30:
            raise ValueError(
                f"window is {window}, expected seconds: more than 0, at most 30"
            )
        self.windows = [int(seconds * SAMPLE_RATE) for seconds in windows]

    def override_config(self, config):
        """Puts the recipe's settings into the model's configuration."""
        for name, value in self.settings.items():
            setattr(config, name, value)
        return config

    def positions(self, heard):
        """Positions that are computed: the first ones, and thin silence.

        Arguments
        ---------
        heard : int
            Number of positions that hear the window, or its end.

        Returns
        -------
        torch.Tensor
            Rising positions, the last of the 30 s among them.
        """
        last = self.config.max_source_positions - 1
        silence = torch.arange(last, heard - 1, -self.silence_step).flip(0)
        return torch.cat([torch.arange(heard), silence])

    def padded_seconds(self, seconds):
        """How long a batch is that the model computes.

        Utterances may be exchanged between batches of equal lengths
        (``speechbrain_merge.search.decoding_order``).

        Arguments
        ---------
        seconds : float
            The longest utterance of the batch.

        Returns
        -------
        float or None
            The window that it fits into, or 30. None for longer ones, which
            are cut, and without `each_alone`.
        """
        if not self.each_alone:
            return None
        ends = [each / SAMPLE_RATE for each in self.windows] + [30.0]
        return next((end for end in ends if seconds <= end), None)

    def log_mel_spectrogram(self, audio, padding=0):
        """Spectrograms of a batch, or of each utterance by itself.

        Arguments
        ---------
        audio : torch.Tensor
            Waveforms of shape (batch, samples).
        padding : int
            Samples of silence to add.

        Returns
        -------
        torch.Tensor
            Of shape (batch, mel bands, frames).
        """
        spectrogram = super().log_mel_spectrogram
        if not self.each_alone:
            return spectrogram(audio, padding)
        return torch.cat([spectrogram(one, padding) for one in audio.split(1)])

    def _get_mel(self, wav):
        """Spectrogram of the window and a little silence, or of 30 s."""
        fitting = [each for each in self.windows if wav.shape[-1] <= each]
        samples = N_SAMPLES
        if fitting:
            samples = fitting[0] + MARGIN * SAMPLES_PER_POSITION
        mel = self.log_mel_spectrogram(
            self.pad_or_trim(wav, min(samples, N_SAMPLES))
        )
        if self.training:  # SpecAugment
            mel = self.model._mask_input_features(mel)
        return mel

    def forward_encoder(self, mel):
        """Encodes a spectrogram, of a window or of 30 s.

        Arguments
        ---------
        mel : torch.Tensor
            Spectrogram of shape (batch, mel bands, frames).

        Returns
        -------
        torch.Tensor
            Encoder states of shape (batch, positions, width).
        """
        encoder = self.model.encoder
        if mel.shape[-1] == 2 * self.config.max_source_positions:
            return super().forward_encoder(mel)
        states = F.gelu(encoder.conv1(mel))
        states = F.gelu(encoder.conv2(states)).transpose(1, 2)
        heard = states.shape[1] - MARGIN + ECHO
        positions = self.positions(heard).to(mel.device)
        # positions that hear only silence hear the same, but for the last
        silence = states[:, heard : heard + 1]
        silence = silence.expand(-1, len(positions) - heard - 1, -1)
        states = torch.cat([states[:, :heard], silence, states[:, -1:]], dim=1)
        states = states + encoder.embed_positions(positions)
        states = F.dropout(states, encoder.dropout, self.training)
        for layer in encoder.layers:
            states = layer(states, None)
            # up to Transformers 4 a layer gave a tuple
            states = states[0] if isinstance(states, tuple) else states
        return encoder.layer_norm(states)

    @torch.no_grad()
    def transcribe_long(self, search, wavs, wav_lens):
        """Transcribes utterances of any length, part by part.

        Arguments
        ---------
        search : callable
            A SpeechBrain Whisper searcher.
        wavs : torch.Tensor
            Signals of shape (batch, samples).
        wav_lens : torch.Tensor
            Relative lengths of shape (batch,).

        Returns
        -------
        list of list of int
            The tokens of each utterance, its parts joined.
        """
        hypotheses = []
        samples = (wav_lens * wavs.shape[1]).round().long()
        for wav, number in zip(wavs, samples):
            tokens = []
            for part in split_long(wav[:number]):
                states = self.forward_encoder(self._get_mel(part[None]))
                one = torch.ones(1, device=wavs.device)
                tokens.extend(search(states, one)[0][0])
            hypotheses.append(tokens)
        return hypotheses


def split_long(
    wav: torch.Tensor,
    longest: int = N_SAMPLES,
    search: Optional[int] = None,
) -> list:
    """Cuts a signal into parts that Whisper can hear, where it is quietest.

    Arguments
    ---------
    wav : torch.Tensor
        A signal of shape (samples,).
    longest : int
        Samples of a part at most.
    search : int, optional
        A cut is looked for in so many samples before a part would be full
        (default: a sixth of it, 5 s of 30 s).

    Returns
    -------
    list of torch.Tensor
        The parts; joined they are the signal.

    Example
    -------
    >>> wav = torch.ones(100_000)
    >>> wav[40_000:44_000] = 0
    >>> [len(part) for part in split_long(wav, longest=48_000, search=16_000)]
    [41600, 48000, 10400]
    """
    search = search or longest // 6
    frame = min(SAMPLE_RATE // 5, search)
    parts = []
    while len(wav) > longest:
        energy = wav[longest - search : longest].square()
        energy = energy.unfold(0, frame, max(frame // 4, 1)).mean(dim=1)
        cut = longest
        if energy.min() < energy.mean():
            start = energy.argmin().item() * max(frame // 4, 1)
            cut = longest - search + start + frame // 2
        parts.append(wav[:cut])
        wav = wav[cut:]
    return parts + [wav]
