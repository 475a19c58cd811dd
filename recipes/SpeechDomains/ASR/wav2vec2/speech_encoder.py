"""A pretrained speech encoder by name: wav2vec 2.0, HuBERT, WavLM or Whisper.

SpeechBrain has a wrapper for each; which one a hub name or a folder needs, its
configuration says. All are called with waveforms and relative lengths, and give
states of shape (batch, frames, width), 50 frames a second.

Of Whisper only the encoder is kept. It hears 30 seconds at once, and what is
padded costs as much as speech; ``WindowedWhisper`` computes most of that
silence away. Frames after the longest utterance of the batch are cut off, since
CTC must not write there.

Example
-------
>>> encoder = speech_encoder(
...     "openai/whisper-tiny.en", "savedir"
... )  # doctest: +SKIP
>>> encoder(torch.randn(1, 16000), torch.ones(1)).shape  # doctest: +SKIP
torch.Size([1, 50, 384])

Authors
 * The speechbrain_merge authors 2026
"""

import math
from typing import Union

import torch
from speechbrain_merge.training.windowed_whisper import (
    SAMPLES_PER_POSITION,
    WindowedWhisper,
)
from transformers import AutoConfig

from speechbrain.integrations.huggingface.hubert import HuBERT
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.wavlm import WavLM
from speechbrain.integrations.huggingface.whisper import N_SAMPLES

WRAPPERS = {"wav2vec2": Wav2Vec2, "hubert": HuBERT, "wavlm": WavLM}


def speech_encoder(
    source: str,
    save_path: str,
    window: Union[float, list[float]] = 30.0,
    silence_step: int = 10,
    output_norm: bool = False,
    freeze_feature_extractor: bool = False,
    apply_spec_augment: bool = False,
) -> torch.nn.Module:
    """The encoder of a hub name or a folder, in SpeechBrain's wrapper.

    Arguments
    ---------
    source : str
        Hub name, or Hugging Face folder.
    save_path : str
        Where a model from the hub is kept.
    window, silence_step : float or list of float, int
        Of Whisper only; see ``WindowedWhisper``.
    output_norm, freeze_feature_extractor, apply_spec_augment : bool
        Of all others; see ``speechbrain.integrations.huggingface.wav2vec2``.

    Returns
    -------
    torch.nn.Module
        Called with waveforms (batch, samples) and relative lengths (batch,).

    Raises
    ------
    ValueError
        When the model is of none of the known kinds.
    """
    kind = AutoConfig.from_pretrained(
        source, cache_dir=save_path, trust_remote_code=False
    ).model_type
    if kind == "whisper":
        return WhisperEncoder(
            WindowedWhisper(
                source,
                save_path,
                encoder_only=True,
                window=window,
                silence_step=silence_step,
            )
        )
    if kind not in WRAPPERS:
        raise ValueError(
            f"encoder_hub: {source} is of kind '{kind}', expected one of "
            f"{sorted([*WRAPPERS, 'whisper'])}."
        )
    return WRAPPERS[kind](
        source,
        save_path,
        output_norm=output_norm,
        freeze_feature_extractor=freeze_feature_extractor,
        apply_spec_augment=apply_spec_augment,
    )


def width_of(encoder: torch.nn.Module) -> int:
    """The width of an encoder's states."""
    return getattr(encoder, "whisper", encoder).config.hidden_size


class WhisperEncoder(torch.nn.Module):
    """Whisper's encoder, called like SpeechBrain's wav2vec 2.0.

    Arguments
    ---------
    whisper : WindowedWhisper
        Made with ``encoder_only=True``.
    """

    def __init__(self, whisper):
        super().__init__()
        self.whisper = whisper

    def forward(self, wavs, wav_lens=None):
        """States of the utterances, without those of the padding to 30 s.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples), of any length.
        wav_lens : torch.Tensor, optional
            Relative lengths; not needed, since padding is silence to Whisper.

        Returns
        -------
        torch.Tensor
            Shape (batch, frames, width).
        """
        del wav_lens
        parts = []
        for part in wavs.split(N_SAMPLES, dim=1):
            frames = math.ceil(part.shape[1] / SAMPLES_PER_POSITION)
            parts.append(self.whisper(part)[:, :frames])
        return torch.cat(parts, dim=1)
