"""AdaMerging with a real Brain: gradients, learning, resuming."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
    tiny_wav2vec2,
)
from torch.nn.modules.module import register_module_forward_pre_hook

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain_merge import MergeMixin, MergeStage, learn_coefficients, merge
from speechbrain_merge.brain.coefficient_gradients import MergeInModules
from speechbrain_merge.methods import AdaMerging, Average, parametrize_attention
from speechbrain_merge.pool import Candidate
from speechbrain_merge.weights import (
    ChangedContent,
    open_weights,
    tree_hash,
    write_weights,
)

REFERENCE = (
    Path(__file__).parents[1] / "methods/references/adamerging.safetensors"
)


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges."""


class Plain(MergeMixin, sb.Brain):
    """A Brain whose model takes what the data hold, and gives logits."""

    def compute_forward(self, batch, stage):
        """Logits and lengths."""
        inputs, lengths = batch.inputs
        return self.modules.model(inputs), lengths

    def compute_objectives(self, predictions, batch, stage):
        """Something to have a gradient of."""
        return predictions[0].square().mean()


def plain_brain(model):
    return Plain(
        {"model": model},
        run_opts={"device": "cpu", "noprogressbar": True},
    )


def named(module):
    return {f"model.{n}": t.clone() for n, t in module.state_dict().items()}


# --- gradients ---------------------------------------------------------------


class Speech(torch.nn.Module):
    """wav2vec2's last layer."""

    def __init__(self, folder, seed):
        super().__init__()
        from transformers import Wav2Vec2Model

        folder = tiny_wav2vec2(folder / str(seed), seed=seed)
        self.wav2vec2 = Wav2Vec2Model.from_pretrained(folder).double()

    def forward(self, wavs):
        return self.wav2vec2(wavs).last_hidden_state


def loss_of(module, wavs):
    return module(wavs)[..., 0].square().mean()


@pytest.mark.parametrize("lambda_param", ["clamp", "sigmoid"])
@pytest.mark.parametrize("by", ["expert", "layer", "tensor"])
def test_gradients_are_those_of_differences(tmp_path, by, lambda_param):
    """In float64, through weight norm, for a real encoder."""
    base, *experts = (Speech(tmp_path, seed).eval() for seed in range(3))
    models = [named(each) for each in experts]
    anchor = named(base)
    wavs = torch.randn(1, 2000, dtype=torch.float64)
    method = AdaMerging(by=by, lambda_param=lambda_param)
    brain = plain_brain(Speech(tmp_path, 0).eval())
    frozen = brain.modules.model.wav2vec2.feature_extractor
    frozen.requires_grad_(False)
    with MergeInModules(brain, method, models, anchor, ["a", "b"]) as inside:
        inside.fill()
        loss = loss_of(brain.modules.model, wavs)
        loss.backward()
        inside.backward()
    assert not any(each.requires_grad for each in frozen.parameters())
    assert all(each.grad is None for each in brain.modules.parameters())
    slopes = method.coefficients.grad
    assert slopes.shape == (2, len(method.groups)) and (slopes != 0).any()

    copy_of = Speech(tmp_path, 0).eval()

    def at(values):
        with torch.no_grad():
            method.coefficients.copy_(values)
            merged = method(models, anchor)
            copy_of.load_state_dict(
                {name.removeprefix("model."): t for name, t in merged.items()}
            )
            return loss_of(copy_of, wavs)

    start = method.coefficients.detach().clone()
    torch.testing.assert_close(at(start), loss.detach())
    columns = range(len(method.groups))
    if by == "tensor":
        found = [
            column
            for column, name in enumerate(method.groups)
            if "pos_conv" in name or "layers.1.attention" in name
        ]
        assert len(found) > 8
        columns = found[:3] + found[-3:]
    for row in range(2):
        for column in columns:
            step = torch.zeros_like(start)
            step[row, column] = 1e-5
            slope = (at(start + step) - at(start - step)) / 2e-5
            torch.testing.assert_close(
                slopes[row, column], slope, rtol=1e-5, atol=1e-10
            )


def test_gradients_are_those_of_autograd():
    """The same as through ``functional_call`` on the formula itself."""
    base, *experts = (
        named(tiny_network(seed).double().eval()) for seed in range(4)
    )
    anchor = base
    features = torch.randn(1, 7, 8, dtype=torch.float64)
    model = tiny_network(9).double().eval()
    brain = plain_brain(model)
    method = AdaMerging(by="tensor", scale=[0.1, 0.5, 0.9])
    with MergeInModules(brain, method, experts, anchor, list("abc")) as inside:
        inside.fill()
        model(features, None).logsumexp(-1).sum().backward()
        inside.backward()
    ratios = method.coefficients.detach().clone().requires_grad_()
    merged = dict(tiny_network(9).double().eval().state_dict())
    for column, name in enumerate(method.groups):
        merged[name.removeprefix("model.")] = anchor[name] + sum(
            ratios[row, column] * (expert[name] - anchor[name])
            for row, expert in enumerate(experts)
        )
    for statistic in ("running_mean", "running_var"):
        merged[f"norm.{statistic}"] = Average()(experts)[
            f"model.norm.{statistic}"
        ]
    out = torch.func.functional_call(model, merged, (features, None))
    out.logsumexp(-1).sum().backward()
    torch.testing.assert_close(
        method.coefficients.grad, ratios.grad, rtol=1e-10, atol=1e-12
    )


def test_tied_weights_count_once(tmp_path):
    """A table of words that is the output layer, too, and an idle buffer."""

    class Tied(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.words = torch.nn.Embedding(5, 3)
            self.output = torch.nn.Linear(3, 5, bias=False)
            self.output.weight = self.words.weight
            self.register_buffer("scale", torch.rand(()))
            self.register_buffer("count", torch.tensor(seed))
            self.double()

        def forward(self, words):
            return self.output(self.words(words)) * self.scale

    words = torch.tensor([[1, 2, 4]])
    base, *experts = (named(Tied(seed)) for seed in range(3))
    # what shares memory in a module does so in its files
    for state in (base, *experts):
        state["model.output.weight"] = state["model.words.weight"]
    brain = plain_brain(Tied(7))
    method = AdaMerging(by="tensor")
    with MergeInModules(brain, method, experts, base, ["a", "b"]) as inside:
        inside.fill()
        brain.modules.model(words).square().sum().backward()
        inside.backward()
    assert method.groups == ["model.scale", "model.words.weight"]
    model = brain.modules.model
    assert model.output.weight is model.words.weight
    assert model.count == 1  # the first expert's
    ratios = torch.full((2, 2), 0.3, dtype=torch.float64, requires_grad=True)
    scale, table = (
        base[name]
        + sum(ratios[k, c] * (experts[k][name] - base[name]) for k in range(2))
        for c, name in enumerate(method.groups)
    )
    (table[words] @ table.T * scale).square().sum().backward()
    torch.testing.assert_close(
        method.coefficients.grad[:, 1], ratios.grad[:, 1]
    )
    # a buffer is merged as it is scaled, and nothing can be learned of it
    torch.testing.assert_close(model.scale, scale.detach())
    assert (method.coefficients.grad[:, 0] == 0).all()


@pytest.mark.parametrize(
    "by, answer", [("expert", "task_wise"), ("tensor", "layer_wise")]
)
def test_agrees_with_fusion_bench(by, answer):
    """Twenty steps of entropy; see references/make_adamerging.py."""
    stored = load_file(REFERENCE)
    found = {}
    for key, tensor in stored.items():
        what, _, name = key.partition("/")
        if name:
            found.setdefault(what, {})[f"model.{name}"] = tensor
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)
    ).double()
    data = DynamicItemDataset(
        {"all": {"inputs": stored["inputs"]}}, output_keys=["id", "inputs"]
    )
    method = AdaMerging(by=by)
    history = learn_coefficients(
        plain_brain(model),
        method,
        [found[f"expert{index}"] for index in range(3)],
        found["base"],
        data,
        steps=20,
        learning_rate=0.01,
    )
    ours = torch.stack(
        [
            torch.tensor(
                [
                    list(row.values()) if by == "tensor" else row["everything"]
                    for row in each["coefficients"].values()
                ],
                dtype=torch.float64,
            )
            for each in history
        ]
    )
    order = list(range(ours.shape[-1]))
    if by == "tensor":
        # a state dict opens in the order of its names, a module in its own
        order = [
            method.groups.index(f"model.{name}") for name in model.state_dict()
        ]
        ours = ours[..., order]
    # theirs adds 1e-8 to each probability
    torch.testing.assert_close(ours, stored[answer], rtol=0, atol=2e-6)
    assert (ours[-1] - 0.3).abs().min() > 0.02


# --- learning ----------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base, and experts of two domains that it does not know."""
    folder = tmp_path_factory.mktemp("experts")

    def train(name, shift, start, epochs):
        brain = tiny_ctc_brain(folder / name, start, MergingCTC, epochs=epochs)
        data = tiny_ctc_data(24, seed=3, shift=shift)
        brain.fit(
            brain.hparams.epoch_counter,
            data,
            train_loader_kwargs={"batch_size": 8},
        )
        return brain.modules.model

    base = train("base", 0.0, tiny_network(), 30)
    experts = [
        train(f"expert{shift}", shift, copy.deepcopy(base), 30)
        for shift in (0.8, -0.8)
    ]
    return named(base), [named(each) for each in experts]


def domains(utterances=16, seed=40):
    return {
        "left": tiny_ctc_data(utterances, seed=seed, shift=0.8),
        "right": tiny_ctc_data(utterances, seed=seed + 1, shift=-0.8),
    }


def fresh_brain(folder):
    brain = tiny_ctc_brain(folder, tiny_network(9), MergingCTC)
    for item in tiny_ctc_data(24, seed=3):  # a recipe restores a checkpoint
        brain.modules.normalize(item["feats"][None], torch.ones(1), epoch=0)
    return brain


def learn(trained, place, steps, method=None, **more):
    """A fresh Brain learns; what it comes to."""
    base, experts = trained
    brain = fresh_brain(place)
    method = AdaMerging(by="tensor") if method is None else method
    settings = {
        "data": domains(),
        "loader_kwargs": {"batch_size": 4},
        "learning_rate": 0.02,
        **more,
    }
    history = learn_coefficients(
        brain, method, experts, base, steps=steps, **settings
    )
    return brain, method, history


@pytest.mark.parametrize("objective", ["loss", "entropy"])
def test_learning_lowers_its_objective(trained, tmp_path, objective):
    base, experts = trained
    brain, method, history = learn(
        trained, tmp_path, 40, objective=objective, learning_rate=0.05
    )
    assert [row["step"] for row in history] == list(range(1, 41))
    first = sum(row["objective"] for row in history[:8])
    last = sum(row["objective"] for row in history[-8:])
    assert last < 0.9 * first
    assert set(history[0]["coefficients"]) == {"expert 0", "expert 1"}
    assert set(history[0]["coefficients"]["expert 0"]) == set(method.groups)
    assert history[-1]["coefficients"]["expert 0"] == {
        group: values[0] for group, values in method.learned.items()
    }
    # the experts lie where they lay, and the modules hold the merge
    merged = method(experts, base)
    for name, tensor in brain.modules.model.state_dict().items():
        assert torch.equal(tensor, merged[f"model.{name}"]), name
    counter = "norm.num_batches_tracked"
    assert merged[f"model.{counter}"] == experts[0][f"model.{counter}"]
    assert all(each.grad is None for each in brain.modules.parameters())
    if objective == "loss":
        # on other utterances of the same domains it is better, too
        tallies = [
            brain.score_weights(weights, domains(seed=80))
            for weights in (AdaMerging()(experts, base), merged)
        ]
        assert tallies[1].errors < tallies[0].errors


def test_an_interrupted_learning_goes_on_to_the_bit(trained, tmp_path):
    """Coefficients, Adam's moments, the order of batches."""
    more = {"folder": tmp_path / "state", "save_every": 3}
    _, whole, history = learn(trained, tmp_path / "a", 10, seed=5)
    learn(trained, tmp_path / "b", 4, seed=5, **more)
    _, resumed, after = learn(trained, tmp_path / "c", 10, seed=5, **more)
    assert after == history
    assert torch.equal(resumed.coefficients, whole.coefficients)
    # a finished one is found, not repeated
    brain = fresh_brain(tmp_path / "d")

    def refuse(module, batch):
        raise AssertionError("it is learned again")

    # torch's, as a hook of the model would decide what it computes
    hook = register_module_forward_pre_hook(refuse)
    method = AdaMerging(by="tensor")
    again = learn_coefficients(
        brain,
        method,
        trained[1],
        trained[0],
        domains(),
        {"batch_size": 4},
        steps=10,
        learning_rate=0.02,
        seed=5,
        **more,
    )
    hook.remove()
    assert again == history
    assert torch.equal(method.coefficients, whole.coefficients)
    # and so is the beginning of it
    _, early, start = learn(trained, tmp_path / "e", 4, seed=5, **more)
    assert start == history[:4]
    torch.testing.assert_close(
        early.values()[0].tolist(),
        list(history[3]["coefficients"]["expert 0"].values()),
    )
    # a bit of Adam's moments, which would lead elsewhere
    [path] = (tmp_path / "state").iterdir()
    content = path.read_bytes()
    kept = torch.load(path)["optimizer"]["state"][0]["exp_avg"]
    values = kept.numpy().tobytes()
    assert content.count(values) == 1
    other = values[:-1] + bytes([values[-1] ^ 1])
    path.write_bytes(content.replace(values, other))
    with pytest.raises(ChangedContent, match="not as it was.*Delete the file"):
        learn(trained, tmp_path / "g", 12, seed=5, **more)
    path.write_bytes(content)
    # another setting is another learning
    _, _, other = learn(trained, tmp_path / "f", 4, seed=6, **more)
    assert other != history[:4]
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_every_batch_of_each_domain_takes_its_turn(trained, tmp_path):
    seen = []

    def watch(predictions, batch):
        seen.append(batch.id)
        return predictions

    data = domains(6)
    data["left"] = tiny_ctc_data(4, seed=40, shift=0.8)
    learn(
        trained,
        tmp_path,
        6,
        data=data,
        loader_kwargs={"batch_size": 2},
        outputs=watch,
    )
    left, right = seen[0::2], seen[1::2]
    assert all(name.startswith("utterance-40") for ids in left for name in ids)
    for turn, size, count in ((left, 2, 4), (right, 3, 6)):
        for start in range(0, 6, size):
            names = {n for ids in turn[start : start + size] for n in ids}
            assert len(names) == count


def test_the_merge_stage_merges_what_was_learned(trained, tmp_path):
    """From learning to a file, with its provenance."""
    base, experts = trained
    brain, method, _ = learn(trained, tmp_path / "brain", 5)
    paths = []
    for index, expert in enumerate(experts):
        paths.append(tmp_path / f"expert{index}.ckpt")
        torch.save(expert, paths[-1])
    torch.save(base, tmp_path / "base.ckpt")
    stage = MergeStage(
        method, paths, base=tmp_path / "base.ckpt", folder=tmp_path / "merge"
    )
    result = brain.merge(stage)
    assert result.method["learned"] == method.learned
    assert len(method.learned) == len(method.groups)
    brain.load_weights(result.path)
    with open_weights(result.path) as merged:
        for name, tensor in method(experts, base).items():
            assert torch.equal(merged[name], tensor), name
    remade = merge(
        AdaMerging(**{k: v for k, v in result.method.items() if k != "name"}),
        paths,
        tmp_path / "base.ckpt",
        progress=False,
    )
    for name, tensor in method(experts, base).items():
        assert torch.equal(remade[name], tensor), name


@pytest.mark.parametrize("which", ["expert", "base"])
def test_nothing_is_learned_on_what_was_exchanged(trained, tmp_path, which):
    base, (expert, other) = trained
    place = write_weights(tmp_path / "base.safetensors", base)
    path = write_weights(tmp_path / "expert.safetensors", expert)
    experts = [
        Candidate(
            f"run/{number}",
            path,
            "run",
            base=place,
            base_digest=tree_hash(place),
            known_digest=tree_hash(path),
        )
        for number in range(2)
    ]
    write_weights(path if which == "expert" else place, other)
    folder = tmp_path / "learned"
    with pytest.raises(ChangedContent, match="is on record"):
        learn((place, experts), tmp_path, 1, folder=folder)
    assert not list(folder.glob("*.json"))


def test_what_cannot_be_learned(trained, tmp_path):
    base, experts = trained
    with pytest.raises(ValueError, match="of an AdaMerging, got Average"):
        learn(trained, tmp_path, 1, Average())
    for wrong in ({"objective": "wer"}, {"learning_rate": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            learn(trained, tmp_path, 1, **wrong)
    with pytest.raises(ValueError, match="entropy of .* is nan"):
        learn(
            trained,
            tmp_path,
            1,
            outputs=lambda found, batch: (found[0] * torch.nan, found[1]),
        )

    with pytest.raises(ValueError, match="No merged weight has a gradient"):
        learn(
            trained,
            tmp_path,
            1,
            # as from a model that runs frozen
            outputs=lambda found, batch: (
                found[0].detach().requires_grad_(),
                found[1],
            ),
        )
    model = tiny_conformer(0)
    state = named(model)
    parametrize_attention(model, tiny_conformer(1))
    brain = tiny_ctc_brain(tmp_path, model, MergingCTC)
    with pytest.raises(ValueError, match="learnable ratio"):
        learn_coefficients(
            brain, AdaMerging(), [state], state, tiny_ctc_data(2), steps=1
        )
