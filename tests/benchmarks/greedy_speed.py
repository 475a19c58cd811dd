"""Where the time of a greedy search goes: merging, loading, decoding.

    OMP_NUM_THREADS=1 python tests/benchmarks/greedy_speed.py [--candidates 100]

Goes through a greedy search by a plain mean over candidates of a Whisper's
shapes, in which every other merge is accepted, and takes the time of merging and
of loading, once with the running sum (``speechbrain_merge.stage.running_mean``)
and once as every merge is made, reading all members. Their results are compared
bit by bit. Decoding is greedy, of a batch of made-up spectrograms, so many tokens
each, by the same model: its time is that of a real one. The candidates are few
files under many names, in the page cache.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperModel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from whisper_shapes import SIZES, make_models  # noqa: E402

from speechbrain_merge.engine import merge  # noqa: E402
from speechbrain_merge.methods import Average  # noqa: E402
from speechbrain_merge.stage.running_mean import RunningMean  # noqa: E402

FILES = 4


def whisper(size):
    """A model of the size, with weights that do not matter."""
    width, layers, inner, words, mels = SIZES[size]
    heads = width // 64
    return WhisperModel(
        WhisperConfig(
            vocab_size=words,
            num_mel_bins=mels,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=inner,
            decoder_ffn_dim=inner,
        )
    ).eval()


@torch.no_grad()
def decode(model, spectrograms, tokens):
    """Greedy decoding of a batch, with the keys and values kept."""
    states = model.encoder(spectrograms).last_hidden_state
    known, last = None, torch.zeros(len(states), 1, dtype=torch.long)
    for _ in range(tokens):
        found = model.decoder(
            last,
            encoder_hidden_states=states,
            past_key_values=known,
            use_cache=True,
        )
        known = found.past_key_values
        logits = found.last_hidden_state @ model.decoder.embed_tokens.weight.T
        last = logits.argmax(-1)


def main():
    """Reads the command line, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--utterances", type=int, default=136)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument(
        "--plain-every", type=int, default=1, help="merges between two plain"
    )
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="greedy-speed-"))
    try:
        make_models(folder, asked.size, FILES, torch.float32, False)
        files = []
        for number in range(asked.candidates):
            own = folder / f"candidate-{number:03d}.safetensors"
            os.link(folder / f"expert-{1 + number % FILES}.safetensors", own)
            files.append(own)
        report(asked, files)
    finally:
        shutil.rmtree(folder)


def report(asked, files):
    """Walks through the search."""
    model, method = whisper(asked.size), Average()
    running, members = RunningMean(), files[:1]
    seconds = {"plain": 0.0, "running": 0.0, "loading": 0.0}
    trials = compared = 0
    for number, candidate in enumerate(files[1:]):
        proposal = [*members, candidate]
        started = time.perf_counter()
        merged = running.of(method, proposal)
        seconds["running"] += time.perf_counter() - started
        started = time.perf_counter()
        model.load_state_dict(merged, strict=False)
        seconds["loading"] += time.perf_counter() - started
        trials += 1
        if number % asked.plain_every == 0:
            started = time.perf_counter()
            plain = merge(method, proposal, progress=False)
            seconds["plain"] += time.perf_counter() - started
            compared += 1
            assert all(torch.equal(plain[n], merged[n]) for n in merged)
        if number % 2 == 0:
            members = proposal
    spectrograms = torch.randn(
        asked.batch, SIZES[asked.size][4], 2 * model.config.max_source_positions
    )
    decode(model, spectrograms, 2)
    started = time.perf_counter()
    decode(model, spectrograms, asked.tokens)
    batch = time.perf_counter() - started
    decoding = batch * -(-asked.utterances // asked.batch)
    plain = seconds["plain"] / compared
    print(
        f"{asked.candidates} candidates of Whisper-{asked.size}, {trials} "
        f"merges, up to {len(members)} members; load "
        f"{os.getloadavg()[0]:.1f}; seconds a trial"
    )
    for name, value in (
        ("merging, all members read", plain),
        ("merging, running sum", seconds["running"] / trials),
        ("loading", seconds["loading"] / trials),
        (f"decoding {asked.utterances} utterances in full", decoding),
    ):
        print(f"{name}: {value:.3f}")
    print(
        f"running sum: {plain / (seconds['running'] / trials):.1f} x, equal to "
        f"the bit in {compared} of {compared}"
    )


if __name__ == "__main__":
    main()
