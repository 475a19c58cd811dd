"""Shapes of Whisper's tensors, written down, and synthetic experts of them.

The sizes are those of ``WhisperConfig`` of the published models; the names are
those of ``WhisperModel``. Nothing is downloaded.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

# width, layers of encoder and of decoder, feed-forward width, vocabulary, mels
SIZES = {
    "toy": (64, 2, 256, 500, 80),
    "tiny": (384, 4, 1536, 51865, 80),
    "base": (512, 6, 2048, 51865, 80),
    "large-v3": (1280, 32, 5120, 51866, 128),
}
AUDIO_POSITIONS, TEXT_POSITIONS = 1500, 448


def whisper_shapes(size):
    """Name to shape, for one of ``SIZES``."""
    width, layers, inner, words, mels = SIZES[size]
    shapes = {}

    def linear(name, out, into, bias=True):
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for name, into in (("conv1", mels), ("conv2", width)):
        shapes[f"encoder.{name}.weight"] = (width, into, 3)
        shapes[f"encoder.{name}.bias"] = (width,)
    shapes["encoder.embed_positions.weight"] = (AUDIO_POSITIONS, width)
    shapes["decoder.embed_tokens.weight"] = (words, width)
    shapes["decoder.embed_positions.weight"] = (TEXT_POSITIONS, width)
    for stack in ("encoder", "decoder"):
        attentions = ["self_attn"] + ["encoder_attn"] * (stack == "decoder")
        for layer in range(layers):
            start = f"{stack}.layers.{layer}"
            for attention in attentions:
                for name in ("q", "k", "v", "out"):
                    linear(
                        f"{start}.{attention}.{name}_proj",
                        width,
                        width,
                        bias=name != "k",
                    )
                norm(f"{start}.{attention}_layer_norm")
            linear(f"{start}.fc1", inner, width)
            linear(f"{start}.fc2", width, inner)
            norm(f"{start}.final_layer_norm")
        norm(f"{stack}.layer_norm")
    return shapes


def make_models(folder, size, experts, dtype, pickles):
    """Writes base and experts, if they are not there yet.

    An expert is the base with changes a tenth the size of its weights, half of
    which all experts have in common.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(experts + 1):
        path = folder / ("base" if number == 0 else f"expert-{number}")
        missing = not path.with_suffix(".safetensors").exists()
        if not missing and (not pickles or path.with_suffix(".ckpt").exists()):
            continue
        state = {}
        for place, (name, shape) in enumerate(whisper_shapes(size).items()):
            values = _normal(shape, place, 0) * 0.02
            if number > 0:
                common = _normal(shape, place, 10**6)
                own = _normal(shape, place, 10**6 + number)
                values += 0.001 * (common + own)
            state[name] = values.to(dtype)
        save_file(state, path.with_suffix(".safetensors"))
        if pickles:
            torch.save(state, path.with_suffix(".ckpt"))


def _normal(shape, place, seed):
    generator = torch.Generator().manual_seed(1000 * place + seed)
    return torch.randn(shape, generator=generator)
