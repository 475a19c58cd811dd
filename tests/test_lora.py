"""LoRA experts in a recipe: collected, merged, evaluated, trained on."""

import copy

import pytest
import torch
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage, merge
from speechbrain_merge.methods import Extreme
from speechbrain_merge.pool import read_pool
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import fold, open_weights

peft = pytest.importorskip("peft")

VALID = {"batch_size": 2}
DEV = tiny_ctc_data(8, seed=50)


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def speechbrain_lora(network, rank):
    """As in a SpeechBrain YAML; SpeechBrain saves its factors alone."""
    return AdaptedModel(
        network,
        LoRA,
        all_linear=True,
        adapter_kwargs={"rank": rank, "alpha": 2 * rank},
    )


def peft_lora(network, rank):
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["hidden", "ctc_lin"]
    )
    return peft.get_peft_model(network, config)


MAKERS = {
    "full": lambda network: network,
    "lora-2": lambda network: speechbrain_lora(network, 2),
    "lora-4": lambda network: speechbrain_lora(network, 4),
    "peft-3": lambda network: peft_lora(network, 3),
}


def recipe(folder, run, epochs=2, seed=0):
    """A Brain with a pool; all runs start from one original."""
    torch.manual_seed(seed)  # of the factors
    model = MAKERS[run](tiny_network(0))
    pool = CheckpointPool(folder / "pool", {"model": model}, run=run)
    brain = tiny_ctc_brain(
        folder / run,
        model,
        MergingCTC,
        epochs=epochs,
        recoverables={"pool": pool},
        output_folder=str(folder / run),
    )
    brain.pool = pool
    return brain


def fit(brain, seed=1):
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=seed),
        DEV,
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs=dict(VALID),
    )
    return brain


def own_state(brain):
    return copy.deepcopy(dict(brain.hparams.model.state_dict()))


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, tensor in other.items():
        assert torch.equal(one[name], tensor), name


def plain_network(source):
    """A network without adapters that holds a merge."""
    network = tiny_network(7)
    with open_weights(source, recoverable="model") as weights:
        network.load_state_dict(dict(weights), strict=True)
    return network.eval()


def outputs(model):
    features = torch.stack([DEV[0]["feats"]])
    with torch.no_grad():
        return model.eval()(features, torch.ones(1))


@pytest.fixture
def brains(tmp_path):
    """Experts of all kinds in one pool."""
    return {
        run: fit(recipe(tmp_path, run), seed)
        for seed, run in enumerate(MAKERS, start=1)
    }


def test_experts_of_all_kinds_and_ranks_merge(brains, tmp_path):
    candidates = read_pool(tmp_path / "pool")
    assert [each.run for each in candidates[::2]] == list(MAKERS)
    names = [f"model.{name}" for name in tiny_network().state_dict()]
    for candidate in candidates:
        with open_weights(candidate) as weights:
            assert sorted(weights) == sorted(names)
    # the last candidate of a run is what its module computes with
    for run, brain in brains.items():
        last = [each for each in candidates if each.run == run][-1]
        torch.testing.assert_close(
            outputs(plain_network(last.path)), outputs(brain.hparams.model)
        )
    # one original, that of the full expert: to the bit, and stored once
    assert len({each.base_digest for each in candidates}) == 1
    assert len({each.base.stat().st_ino for each in candidates}) == 1

    # one stage merges them in any of the Brains, with the same result
    results = []
    for brain in brains.values():
        stage = MergeStage(
            Extreme(reference="base"), tmp_path / "pool", per_run="last"
        )
        results.append(brain.merge(stage))
        brain.evaluate(DEV, min_key="WER", test_loader_kwargs=dict(VALID))
        plain = plain_network(results[-1].path)
        assert torch.equal(outputs(brain.hparams.model), outputs(plain))
    first, *others = (dict(open_weights(each.path)) for each in results)
    for other in others:
        assert_equal(other, first)


def test_a_folded_expert_and_a_full_one_with_its_weights_merge_equally(
    brains, tmp_path
):
    """Equal to the bit where the stored float32 weights are equal.

    Weights worked out in another way (PEFT's own merging, or float64) differ
    from ours in the last bit before anything is merged, and the merge of them
    by as much.
    """
    last = {each.run: each for each in read_pool(tmp_path / "pool")}
    other = last.pop("full")
    peft_model = copy.deepcopy(brains["peft-3"].hparams.model)
    by_hand = {"peft-3": peft_model.merge_and_unload().state_dict()}
    for run in ("lora-2", "lora-4"):
        state = brains[run].hparams.model.state_dict()
        plain = dict(fold(brains[run].hparams.model))
        for layer in ("hidden", "ctc_lin"):
            start = f"adapted_model.{layer}"
            weight, up, down = (
                state[f"{start}.{part}.weight"].double()
                for part in (
                    "pretrained_module",
                    "adapter_up_proj",
                    "adapter_down_proj",
                )
            )
            plain[f"{layer}.weight"] = (weight + 2 * up @ down).float()
        by_hand[run] = plain
    for run, candidate in last.items():
        merged = merge("average", [candidate, other], progress=False)
        model = brains[run].hparams.model
        with fold(model) as folded:
            full = {f"model.{name}": folded[name] for name in folded}
        assert_equal(merge("average", [full, other], progress=False), merged)
        full = {f"model.{name}": t for name, t in by_hand[run].items()}
        again = merge("average", [full, other], progress=False)
        for name, tensor in merged.items():
            torch.testing.assert_close(
                again[name], tensor, rtol=1e-6, atol=1e-6
            )


def test_averaging_the_factors_is_wrong(brains, tmp_path):
    """The mean of products is not the product of means."""
    model = brains["lora-2"].hparams.model
    other = fit(recipe(tmp_path / "other", "lora-2", seed=1), seed=9)
    fitted = other.hparams.model
    states = [own.state_dict() for own in (model, fitted)]
    factors = copy.deepcopy(model)
    factors.load_state_dict(
        {
            name: (tensor + states[1][name]) / 2
            if tensor.is_floating_point()
            else tensor
            for name, tensor in states[0].items()
        }
    )
    wrong = fold(factors)
    right = merge("average", [fold(model), fold(fitted)], progress=False)
    original = tiny_network(0).state_dict()
    for layer in ("hidden.weight", "ctc_lin.weight"):
        true = right[layer] - original[layer]
        error = (wrong[layer] - right[layer]).norm() / true.norm()
        assert error > 0.2, (layer, error)
    # where the factors of one are those of the other, there is no difference
    same = merge("average", [fold(model)] * 2, progress=False)
    torch.testing.assert_close(same, dict(fold(model)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("run", ["lora-2", "peft-3"])
def test_a_merge_does_not_harm_the_training(tmp_path, run):
    """Merge, evaluate, then train on: as if nothing had been merged."""
    ends = {}
    for merging in (False, True):
        folder = tmp_path / str(merging)
        brain = fit(recipe(folder, run))
        before = own_state(brain)
        if merging:
            stage = MergeStage(
                "average", [brain.pool], search=GreedySearch(), with_base=True
            )
            result = brain.merge(stage, DEV, VALID)
            assert_equal(own_state(brain), before)  # the search left no trace
            brain.score_weights(result.path, DEV, VALID)
            assert_equal(own_state(brain), before)
            brain.evaluate(DEV, min_key="WER", test_loader_kwargs=dict(VALID))
            merged = outputs(plain_network(result.path))
            assert torch.equal(outputs(brain.hparams.model), merged)

            # a checkpoint loaded by hand finds the frozen weights in place
            brain.checkpointer.recover_if_possible()
            assert_equal(own_state(brain), before)
            assert not brain.checkpointer.custom_load_hooks

            brain.evaluate(DEV, min_key="WER", test_loader_kwargs=dict(VALID))
        brain.hparams.epoch_counter.limit = 4
        torch.manual_seed(3)
        fit(brain)
        ends[merging] = own_state(brain), brain.pool.candidates()
    assert_equal(ends[True][0], ends[False][0])
    digests = [[each.digest for each in pool] for _, pool in ends.values()]
    assert digests[0] == digests[1] and len(digests[0]) == 4


def test_a_new_process_goes_on_where_lora_was(tmp_path):
    brain = fit(recipe(tmp_path, "lora-2"))
    brain.merge(MergeStage("average", [brain.pool]))
    brain.evaluate(DEV, min_key="WER", test_loader_kwargs=dict(VALID))
    again = fit(recipe(tmp_path, "lora-2", epochs=3))
    candidates = again.pool.candidates()
    assert [each.epoch for each in candidates] == [1, 2, 3]
    assert {each.base_digest for each in candidates} == {
        candidates[0].base_digest
    }
    frozen = tiny_network(0).state_dict()["hidden.weight"]
    stored = again.hparams.model.state_dict()
    assert torch.equal(
        stored["adapted_model.hidden.pretrained_module.weight"], frozen
    )


def test_an_adapter_that_cannot_be_folded_is_refused_before_training(tmp_path):
    model = peft.get_peft_model(
        tiny_network(0), peft.LoraConfig(target_modules=["hidden"], use_dora=1)
    )
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path, model, MergingCTC, recoverables={"pool": pool}
    )
    with pytest.raises(ValueError, match="merge_and_unload"):
        fit(brain)
