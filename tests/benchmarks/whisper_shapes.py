"""Shapes of Whisper's tensors, written down, and synthetic experts of them.

The sizes are those of ``WhisperConfig`` of the published models; the names are
those of ``WhisperModel``. Nothing is downloaded.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

# width, layers of encoder and of decoder, feed-forward width, vocabulary, mels
SIZES = {
    "toy": (64, 2, 256, 500, 80),
    "tiny": (384, 4, 1536, 51865, 80),
    # For FusionBench's WUDI, which squares the vocabulary
    "tiny-512-words": (384, 4, 1536, 512, 80),
    "base": (512, 6, 2048, 51865, 80),
    "small": (768, 12, 3072, 51865, 80),
    "medium": (1024, 24, 4096, 51865, 80),
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


def make_models(folder, size, experts, dtype, pickles, files=None, base=True):
    """Writes base and experts, if they are not there yet.

    An expert is the base with changes a tenth the size of its weights, half of
    which all experts have in common. With ``files``, so many experts have
    content of their own, and the others are links to these.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = whisper_shapes(size)
    room = max(math.prod(shape) for shape in shapes.values()) + (1 << 20)
    for number in range(0 if base else 1, experts + 1):
        path = folder / ("base" if number == 0 else f"expert-{number}")
        if files is not None and number > files:
            link(folder / f"expert-{1 + (number - 1) % files}", path, pickles)
            continue
        pickled = pickles and number > 0  # SpeechBrain averages experts only
        missing = not path.with_suffix(".safetensors").exists()
        if not missing and (not pickled or path.with_suffix(".ckpt").exists()):
            continue
        state = {}
        weights = _normal(room, 0)
        change = _normal(room, 1) + _normal(room, 1 + number)
        for place, (name, shape) in enumerate(shapes.items()):
            count = math.prod(shape)
            # some megabytes of random numbers serve for all tensors
            start = place * 7919 * 131 % (room - count)
            where = slice(start, start + count)
            values = 0.02 * weights[where]
            if number > 0:
                values += 0.001 * change[where]
            state[name] = values.to(dtype).reshape(shape)
        save_file(state, path.with_suffix(".safetensors"))
        if pickled:
            torch.save(state, path.with_suffix(".ckpt"))


def link(kept, path, pickles):
    """Gives the files of one expert another name."""
    for suffix in (".safetensors", ".ckpt") if pickles else (".safetensors",):
        if not path.with_suffix(suffix).exists():
            path.with_suffix(suffix).hardlink_to(kept.with_suffix(suffix))


def _normal(number, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, generator=generator)
