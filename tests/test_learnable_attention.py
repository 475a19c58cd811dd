"""L-MAM in a recipe: it learns λ, resumes to the bit, and leaves plain weights."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import (
    FEATURES,
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
)

from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain_merge import CheckpointPool, MergeMixin
from speechbrain_merge.methods import (
    LearnableAttentionMerge,
    fold_attention,
    learned_ratio,
    parameter_groups,
    ratio_optimizer,
    source_ratios,
)
from speechbrain_merge.training import layerwise_decay
from speechbrain_merge.weights import open_weights, plain_state


class MergingCTC(MergeMixin, TinyCTC):
    """Writes down λ after each epoch."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """λ, before the checkpoint is saved."""
        if stage.name == "VALID":
            self.ratios = getattr(self, "ratios", [])
            self.ratios.append(learned_ratio(self.modules)["parts"])
        super().on_stage_end(stage, stage_loss, epoch)


def recipe(folder, epochs, start=0.2, seed=0):
    """What a train.py makes: a Brain whose model takes from a source."""
    model = tiny_conformer(seed)
    LearnableAttentionMerge(ratio=start).attach(model, tiny_conformer(1))
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder,
        model,
        MergingCTC,
        epochs=epochs,
        recoverables={"pool": pool},
        output_folder=str(folder),
    )
    brain.opt_class = functools.partial(
        ratio_optimizer,
        modules=brain.modules,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        lambda_learning_rate=4e-3,
    )
    return brain, model, pool


def train(brain):
    data = tiny_ctc_data(12)
    brain.fit(brain.hparams.epoch_counter, data, tiny_ctc_data(6, seed=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three epochs in one go."""
    folder = tmp_path_factory.mktemp("trained")
    brain, model, pool = recipe(folder, epochs=3)
    before = plain_state(tiny_conformer(0))
    train(brain)
    return brain, model, pool, before


def test_training_moves_the_ratios_and_the_target(trained):
    brain, model, _, before = trained
    assert len(brain.ratios) == 3
    layers = ["encoder.layers.0.attention", "encoder.layers.1.attention"]
    for epoch in brain.ratios:
        assert list(epoch) == layers
    moves = [abs(brain.ratios[-1][layer] - 0.2) for layer in layers]
    assert min(moves) > 0.005
    assert brain.ratios[0] != brain.ratios[1] != brain.ratios[2]
    # it is learning, not noise
    losses = [stats[2] for stats in brain.stats if stats[0] == "TRAIN"]
    assert losses[0] > losses[1] > losses[2]
    source = tiny_conformer(1).state_dict()
    for index in range(2):
        name = f"encoder.layers.{index}.mha_layer.in_proj_weight"
        layer = model.Transformer.encoder.layers[index].mha_layer
        mixture = layer.parametrizations.in_proj_weight
        assert torch.equal(mixture[0].source, source[f"Transformer.{name}"])
        own = before[f"Transformer.{name}"]
        assert (mixture.original - own).abs().max() > 1e-4
    groups = brain.optimizer.param_groups
    assert [group["name"] for group in groups] == ["weights", "ratios"]
    assert [group["lr"] for group in groups] == [1e-3, 4e-3]
    assert len(groups[1]["params"]) == 2


def test_a_resumed_training_continues_the_same(trained, tmp_path):
    """Stopped after an epoch, in a process that knows nothing any more."""
    brain, model, pool, _ = trained
    first, _, _ = recipe(tmp_path, epochs=1)
    train(first)
    # another start shows that all comes from the checkpoint
    second, resumed, own = recipe(tmp_path, epochs=3, start=0.9, seed=5)
    train(second)
    assert second.ratios == brain.ratios[1:]
    assert second.stats == brain.stats[2:]
    state = model.state_dict()
    for name, one in resumed.state_dict().items():
        assert torch.equal(one, state[name]), name
    assert [candidate.digest for candidate in own.candidates()] == [
        candidate.digest for candidate in pool.candidates()
    ]


def test_pools_hold_what_the_model_computes_with(trained):
    """Plain weights, under plain names, base included."""
    _, model, pool, before = trained
    candidates = pool.candidates()
    assert len(candidates) == 3
    state = plain_state(model)
    with open_weights(candidates[-1]) as stored:
        assert set(stored) == {f"model.{name}" for name in before}
        for name, one in state.items():
            assert torch.equal(stored[f"model.{name}"], one), name
    # what training starts from is the merge with λ at its start
    name = "Transformer.encoder.layers.0.mha_layer.in_proj_weight"
    with open_weights(candidates[0].base) as base:
        start = base[f"model.{name}"]
    mixed = 0.8 * before[name] + 0.2 * tiny_conformer(1).state_dict()[name]
    torch.testing.assert_close(start, mixed)
    plain = tiny_conformer(9)
    plain.load_state_dict(state)  # strictly


def test_merging_what_was_learned_and_going_on(tmp_path):
    """A merge is evaluated, and training afterwards has λ again."""
    brain, model, pool = recipe(tmp_path, epochs=2)
    train(brain)
    learned = learned_ratio(model)
    result = brain.merge(stage_of(pool))
    brain.evaluate(tiny_ctc_data(6, seed=1), min_key="WER")
    with open_weights(result.path) as merged:
        for name, one in plain_state(model).items():
            assert torch.equal(one, merged[f"model.{name}"]), name
    assert set(learned_ratio(model)["parts"].values()) == {0.0}
    brain.hparams.epoch_counter.limit = 3
    train(brain)
    # from the checkpoint, not from the merge
    assert brain.ratios[1] == learned["parts"]
    assert all(
        0 < abs(after - learned["parts"][place]) < 0.2
        for place, after in brain.ratios[2].items()
    )
    # folded for export, the plain model says the same to the bit
    model.eval()
    features = torch.randn(2, 12, FEATURES)
    output = model(features, torch.ones(2))
    plain = tiny_conformer(7).eval()
    plain.load_state_dict(fold_attention(model).state_dict())
    assert torch.equal(plain(features, torch.ones(2)), output)


def stage_of(pool):
    from speechbrain_merge import MergeStage

    return MergeStage("average", [pool])


# --- the optimizer -----------------------------------------------------------


def test_rates_in_yaml_follow_the_schedule(tmp_path):
    """λ keeps its multiple of the rate that a schedule writes everywhere."""
    _, model, _ = recipe(tmp_path, epochs=1)
    text = """
opt_class: !name:speechbrain_merge.methods.ratio_optimizer
    modules: !ref <modules>
    optimizer: !name:torch.optim.SGD
        lr: 0.1
    lambda_learning_rate: 1.0
modules: !PLACEHOLDER
"""
    modules = torch.nn.ModuleDict({"model": model})
    hparams = load_hyperpyyaml(text, {"modules": None})
    optimizer = hparams["opt_class"](modules.parameters(), modules=modules)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    update_learning_rate(optimizer, 0.05)
    ratio = source_ratios(model)["encoder.layers.0.attention"].value
    ratio.grad, start = torch.ones(()), ratio.item()
    optimizer.step()
    torch.testing.assert_close(start - ratio.item(), 0.5)
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_rates_by_layer_as_well(tmp_path):
    """Inside layer-wise decay: each layer's λ has its share of λ's rate."""
    _, model, _ = recipe(tmp_path, epochs=1)
    modules = torch.nn.ModuleDict({"model": model})
    optimizer = layerwise_decay(
        modules.parameters(),
        modules,
        functools.partial(
            ratio_optimizer,
            modules=modules,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            lambda_learning_rate=1.0,
        ),
        decay=0.5,
    )
    rates = {
        id(each): group["lr"]
        for group in optimizer.param_groups
        for each in group["params"]
    }
    trained = [each for each in model.parameters() if each.requires_grad]
    assert set(rates) == {id(each) for each in trained}
    ratios = [each.value for each in source_ratios(model).values()]
    assert [rates[id(each)] for each in ratios] == [0.5, 1.0]
    weight = model.Transformer.encoder.layers[1].norm1.norm.weight
    assert rates[id(weight)] == 0.1
    # a rate written into all groups is still understood
    update_learning_rate(optimizer, 0.01)
    optimizer.step()
    found = {
        id(each): group["lr"]
        for group in optimizer.param_groups
        for each in group["params"]
    }
    for each in trained:
        assert found[id(each)] == pytest.approx(rates[id(each)] / 10)


def test_groups_without_a_brain(tmp_path):
    _, model, _ = recipe(tmp_path, epochs=1)
    weights, ratios = parameter_groups(model, 1e-5)
    assert (weights["lr"], ratios["lr"]) == (1e-5, pytest.approx(1e-3))
    assert ratios["weight_decay"] == 0.0 and len(ratios["params"]) == 2
    every = weights["params"] + ratios["params"]
    assert len(set(map(id, every))) == len(every)
    assert len(every) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="no learnable ratio"):
        parameter_groups(tiny_conformer(), 1e-5)
    with pytest.raises(ValueError, match="lambda_learning_rate"):
        parameter_groups(model, 1e-5, -1)


# --- several processes -------------------------------------------------------


def parallel_step(rank, port, output):
    """One step of DDP over half the data each; what it comes to."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = encoder(seed=0)
    ratios = LearnableAttentionMerge(ratio=0.3).attach(model, encoder(seed=1))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parameter_groups(parallel, 0.1, 0.1))
    inputs = batch()
    for _ in range(2):
        optimizer.zero_grad()
        parallel(inputs[rank : rank + 1]).square().mean().backward()
        optimizer.step()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    torch.save((state, sorted(ratios)), Path(output) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def encoder(seed):
    """An encoder with torch's fused attention; no BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = TransformerEncoder(2, 2, 16, d_model=8, dropout=0.0)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Whole(encoder)


class Whole(torch.nn.Module):
    """Gives the encoder its name."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs):
        return self.encoder(inputs)[0]


def batch():
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


def test_two_processes_learn_as_one(tmp_path):
    """The same λ everywhere, and that of one process with all the data."""
    port = 20000 + os.getpid() % 20000
    code = (
        "import sys; sys.path[:0] = sys.argv[4].split(':');"
        "from test_learnable_attention import parallel_step;"
        "parallel_step(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
    )
    tests = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(port), tmp_path, tests]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    (first, places), (second, _) = (
        torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)
    )
    assert places == [
        "encoder.layers.0.attention",
        "encoder.layers.1.attention",
    ]
    assert all(torch.equal(first[name], one) for name, one in second.items())
    model = encoder(seed=0)
    LearnableAttentionMerge(ratio=0.3).attach(model, encoder(seed=1))
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1, 0.1))
    for _ in range(2):
        optimizer.zero_grad()
        inputs = batch()
        halves = [model(inputs[:1]), model(inputs[1:])]
        torch.stack([half.square().mean() for half in halves]).mean().backward()
        optimizer.step()
    for name, one in model.state_dict().items():
        torch.testing.assert_close(first[name], one, msg=name)
    assert all(
        abs(float(one) - 0.3) > 1e-4
        for name, one in first.items()
        if name.endswith("ratio.value")
    )
