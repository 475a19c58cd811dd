"""What a moving average costs, as a share of a training step of Whisper-tiny.

    python tests/benchmarks/moving_average_cost.py [--every 1 10] [--steps 12]

Steps with and without the average take turns, on one thread, so that both see
the same machine. Weights are random: their values do not change the time.
"""

import argparse
import statistics
import time

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from speechbrain_merge.training import MovingAverage

# Whisper-tiny (openai/whisper-tiny, config.json)
TINY = {
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
}


def measure(every, steps, batch):
    """Medians of the seconds of a step, and of the update after it."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**TINY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    average = MovingAverage({"whisper": model}, decay=0.999, every=every)
    update, spent = average.after_step, []

    def timed(optimizer):
        """The update, timed."""
        started = time.perf_counter()
        update(optimizer)
        spent.append(time.perf_counter() - started)

    average.after_step = timed
    features = torch.randn(batch, 80, 3000)
    labels = torch.randint(0, 50000, (batch, 30))
    taken = []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        model(input_features=features, labels=labels).loss.backward()
        optimizer.step()
        taken.append(time.perf_counter() - started - spent[-1])
    per_step = sum(spent[every:]) / len(spent[every:])
    return statistics.median(taken[1:]), per_step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.steps <= max(arguments.every):
        parser.error("--steps must be more than the largest of --every")
    torch.set_num_threads(1)
    for every in arguments.every:
        step, update = measure(every, arguments.steps, arguments.batch)
        print(
            f"every {every}: step {step:.3f} s, update {update:.4f} s in the "
            f"mean, {100 * update / step:.2f} %"
        )
