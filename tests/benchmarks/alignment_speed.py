"""How long alignment takes, and what it needs.

Run by hand, on a quiet machine:

    python tests/benchmarks/alignment_speed.py conformer
    python tests/benchmarks/alignment_speed.py whisper
    python tests/benchmarks/alignment_speed.py solvers

``conformer``: two Conformers of 12 layers and width 512 from different starts,
at most 60 s on two cores. ``whisper``: the shapes of Whisper small, at most 180
s. Both: at most three models of memory, those two and the result, and some room
to work in. ``solvers``: the assignment against POT's exact plan on the cost
matrices of a Conformer's layer, at least 3 times faster, with the same result.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import resource
import time

import torch

from speechbrain_merge.methods.transport import find_alignment, symmetry
from speechbrain_merge.methods.transport.assignment import Assignment, ExactPlan
from speechbrain_merge.methods.transport.matching import Matching
from speechbrain_merge.weights import open_weights

# MB beside the two models and the result: matrices of costs, and their solver
WORK_SPACE = 150


def conformer(layers=12, width=512, seed=0):
    """A Conformer-CTC as in the paper, 2 convolutions before 12 layers."""
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import (
        TransformerASR,
    )
    from speechbrain.nnet.linear import Linear

    torch.manual_seed(seed)
    return torch.nn.ModuleDict(
        {
            "CNN": ConvolutionFrontEnd(
                input_shape=(8, 10, 80),
                num_blocks=2,
                num_layers_per_block=1,
                out_channels=(64, 32),
                kernel_sizes=(3, 3),
                strides=(2, 2),
                residuals=(False, False),
            ),
            "Transformer": TransformerASR(
                tgt_vocab=5000,
                input_size=640,
                d_model=width,
                nhead=8,
                num_encoder_layers=layers,
                num_decoder_layers=0,
                d_ffn=4 * width,
                kernel_size=31,
                encoder_module="conformer",
                attention_type="RelPosMHAXL",
                normalize_before=True,
                causal=False,
            ),
            "ctc_lin": Linear(5000, input_size=width),
        }
    ).state_dict()


def whisper(seed=0):
    """A random model in the shapes of Whisper small."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=768,
        encoder_layers=12,
        decoder_layers=12,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    )
    return WhisperForConditionalGeneration(config).state_dict()


def randomised(state, seed):
    """A state none of whose tensors is constant: as if it had been trained."""
    draw = torch.Generator().manual_seed(seed)
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw))
    return state


def measure(make, heads, limit):
    """Aligns two models and prints time and memory."""
    # What is imported at first use is not alignment's
    find_alignment(*(randomised(conformer(1, 64, s), s) for s in (0, 1)))
    models = [randomised(make(seed=seed), seed) for seed in (0, 1)]
    size = sum(t.numel() * t.element_size() for t in models[0].values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = find_alignment(*models, heads=heads, progress=True)
    aligned = found.apply(models[0])
    result = {name: aligned[name] for name in aligned.names()}
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = (after - before) / 2**10 + 2 * size / 2**20
    work = used - 3 * size / 2**20
    print(
        f"{len(result)} tensors, {size / 2**20:.0f} MB a model: {seconds:.1f} "
        f"s (limit {limit} s), {found.sweeps} sweeps, {used:.0f} MB of memory: "
        f"three models {'and' if work > 0 else 'less'} {abs(work):.0f} MB "
        f"(limit {WORK_SPACE} MB)"
    )
    if seconds > limit or work > WORK_SPACE:
        raise SystemExit("Over the limit.")


def solvers(width=512):
    """The assignment against POT's exact plan, on the same costs."""
    first, second = (
        randomised(conformer(1, width, seed), seed) for seed in (0, 1)
    )
    found = symmetry(first)
    with open_weights(first) as one, open_weights(second) as other:
        matching = Matching(found, one, other, Assignment(), Assignment())
        costs = {
            name: matching.cost(name)
            for name in matching.free()
            if not found.spaces[name].blocks
        }
    taken = {Assignment: 0.0, ExactPlan: 0.0}
    for name, cost in costs.items():
        orders = []
        for kind in taken:
            start = time.perf_counter()
            orders.append(kind()(cost))
            seconds = time.perf_counter() - start
            taken[kind] += seconds
            print(f"{name}, {len(cost)} units, {kind.__name__}: {seconds:.3f}")
        if not torch.equal(*orders):
            raise SystemExit(f"{name}: the results differ.")
    ratio = taken[ExactPlan] / taken[Assignment]
    print(f"the assignment is {ratio:.1f} times faster (at least 3)")
    if ratio < 3:
        raise SystemExit("Too slow.")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=["conformer", "whisper", "solvers"])
    what = arguments.parse_args().what
    torch.set_num_threads(2)
    if what == "solvers":
        solvers()
    elif what == "conformer":
        measure(conformer, None, 60)
    else:
        measure(whisper, 12, 180)
