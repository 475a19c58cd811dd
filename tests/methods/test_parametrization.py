"""Attention that is part another model's: what it computes, learns and stores."""

import copy

import pytest
import torch
from methods.test_attention_merge import beats_model
from tiny_models import (
    FEATURES,
    tiny_bert,
    tiny_conformer,
    tiny_hubert,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)
from torch.nn.utils.parametrize import is_parametrized

from speechbrain_merge.methods import (
    AttentionMerge,
    LearnableAttentionMerge,
    create,
    fold_attention,
    learned_ratio,
    parametrize_attention,
    source_ratios,
)
from speechbrain_merge.methods.bounds import bounded
from speechbrain_merge.weights import (
    IncompatibleWeights,
    fold,
    open_weights,
    plain_state,
)


def hugging_face(make, model_class):
    """Makes a model from its folder."""

    def load(folder, seed):
        import transformers

        path = make(folder / f"{make.__name__}{seed}", seed=seed)
        return getattr(transformers, model_class).from_pretrained(path)

    return load


def hear(model):
    """What a speech encoder makes of a quarter of a second of noise."""
    wav = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    return model(wav.to(model.dtype)).last_hidden_state


def trainable(beats):
    """SpeechBrain's BEATs is frozen unless it was told otherwise."""
    beats.freeze = False
    return beats.requires_grad_()


def transcribe(model):
    """Whisper's logits."""
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 2, 3]])
    return model(input_features=mel, decoder_input_ids=tokens).logits


def frames(model):
    """CTC logits of a Conformer, and its decoder's output where it has one."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(2, 10, FEATURES, generator=draw)
    if not hasattr(model.Transformer, "decoder"):
        return model(features, torch.ones(2))
    tokens = torch.tensor([[1, 2], [3, 4]])
    encoded, decoded = model.Transformer(features, tokens, torch.ones(2))
    return torch.cat([encoded.flatten(), decoded.flatten()])


SPEECH = ["encoder.layers.0.attention", "encoder.layers.1.attention"]
# name: (model of a seed, its output, where λ is)
MODELS = {
    "hubert": (hugging_face(tiny_hubert, "HubertModel"), hear, SPEECH),
    "wav2vec2": (hugging_face(tiny_wav2vec2, "Wav2Vec2Model"), hear, SPEECH),
    "wavlm": (hugging_face(tiny_wavlm, "WavLMModel"), hear, SPEECH),
    "whisper": (
        hugging_face(tiny_whisper, "WhisperForConditionalGeneration"),
        transcribe,
        SPEECH
        + [
            f"decoder.layers.{layer}.{role}"
            for layer in range(2)
            for role in ("attention", "cross_attention")
        ],
    ),
    "beats": (
        lambda folder, seed: trainable(beats_model(seed)),
        lambda model: model(torch.ones(1, 16000), torch.ones(1))[0],
        SPEECH,
    ),
    "conformer": (
        lambda folder, seed: tiny_conformer(seed, decoder_layers=1),
        frames,
        [
            *SPEECH,
            "decoder.layers.0.attention",
            "decoder.layers.0.cross_attention",
        ],
    ),
}


@pytest.fixture(params=MODELS)
def case(request, tmp_path):
    """Target, source, output and places of one kind of model."""
    make, output, places = MODELS[request.param]
    return make(tmp_path, 0).eval(), make(tmp_path, 1).eval(), output, places


def test_real_models_compute_learn_and_fold(case):
    """All that L-MAM promises, on each kind of attention."""
    target, source, output, places = case
    before = {name: one.clone() for name, one in plain_state(target).items()}
    untouched = output(target).detach()
    number = len(list(target.parameters()))
    ratios = parametrize_attention(target, source, ratio=0.0)
    assert sorted(ratios) == sorted(places)
    # λ = 0 is the target, to the bit, in its weights and in what it computes
    state = plain_state(target)
    assert set(state) == set(before)
    assert all(torch.equal(state[name], one) for name, one in before.items())
    assert torch.equal(output(target), untouched)

    with torch.no_grad():
        for index, ratio in enumerate(ratios.values()):
            ratio.value.fill_(0.1 + 0.1 * index)
    mixed = output(target)
    assert not torch.equal(mixed, untouched)

    # gradients reach λ and the target, and nothing else
    mixed.square().sum().backward()
    assert all(ratio.value.grad.abs() > 0 for ratio in ratios.values())
    parameters = dict(target.named_parameters())
    assert len(parameters) == number + len(places)
    attention = [name for name in parameters if name.endswith("original")]
    for name in attention:
        assert parameters[name].grad.abs().max() > 0, name
    assert not any(one.requires_grad for one in target.buffers())
    assert all(one.grad is None for one in source.parameters())

    # on weights, the method comes to the same but for rounding
    method = LearnableAttentionMerge(ratio=learned_ratio(target))
    merged = method([source], base=before)
    state = plain_state(target)
    for name, one in merged.items():
        torch.testing.assert_close(state[name], one, rtol=1e-6, atol=1e-7)
    unlike = [n for n in before if not torch.equal(before[n], state[n])]
    assert len(unlike) == len(attention)

    # folded, it is plain and computes exactly the same
    kept = {name: one.clone() for name, one in state.items()}
    assert fold_attention(target) is target
    assert source_ratios(target) == {}
    folded = target.state_dict()
    assert set(folded) == set(kept) == set(before)
    assert all(torch.equal(folded[name], one) for name, one in kept.items())
    assert torch.equal(output(target), mixed)
    assert len(list(target.parameters())) == number


def test_merged_as_attention_merge_does(tmp_path):
    """Given λ, the registered method is `attention_merge` with the same."""
    target = tiny_conformer(0, decoder_layers=2)
    bert = tiny_bert(tmp_path / "bert")
    for ratio, more in (
        ([0.2, 0.7], {}),
        (0.3, {"layers": [1]}),
        ({"parts": {"encoder.layers.0": 1.0}, "default": 0.1}, {}),
    ):
        more["include"] = "encoder"
        ours = create("learnable_attention_merge", ratio=ratio, **more)
        theirs = create("attention_merge", ratio=ratio, **more)
        made, expected = (
            method([bert], base=target) for method in (ours, theirs)
        )
        assert list(made) == list(expected)
        for name, one in expected.items():
            assert torch.equal(made[name], one), name
        again = create("learnable_attention_merge", **ours.configuration())
        assert again.configuration() == ours.configuration()
    with pytest.raises(ValueError, match="give `base`"):
        ours([bert])
    with pytest.raises(ValueError, match="at most 1"):
        ours([bert, bert], base=target)
    # a free λ may leave what a share can be
    state = target.state_dict()
    name = "Transformer.encoder.layers.0.mha_layer.in_proj_weight"
    twice = {key: 2 * one for key, one in state.items()}
    beyond = LearnableAttentionMerge(ratio=-1.0, lambda_param="free")
    made = beyond([twice], base=state)
    assert made[name].abs().max() < 1e-7


def test_only_the_chosen_layers(tmp_path):
    hubert = MODELS["hubert"][0](tmp_path, 0)
    bert = tiny_bert(tmp_path / "bert", layers=4)
    with pytest.raises(IncompatibleWeights, match="4 in the source"):
        parametrize_attention(hubert, bert)
    method = LearnableAttentionMerge(
        ratio=0.5, layers=[1], layer_map="even", lambda_param="sigmoid"
    )
    ratios = method.attach(hubert, bert)
    assert list(ratios) == ["encoder.layers.1.attention"]
    with open_weights(bert) as source:
        given = source["encoder.layer.3.attention.self.value.weight"]
    layer = hubert.encoder.layers[1].attention.v_proj
    own = layer.parametrizations.weight.original
    torch.testing.assert_close(layer.weight, (own + given) / 2)
    expected = {"parts": {"encoder.layers.1.attention": 0.5}, "default": 0.0}
    assert learned_ratio(hubert) == expected
    assert method.learned(hubert).ratio == expected
    assert not is_parametrized(hubert.encoder.layers[0].attention.v_proj)
    # in a Brain's modules, it is found all the same
    modules = torch.nn.ModuleDict({"hubert": hubert})
    assert learned_ratio(modules) == expected


@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("lambda_param", ["free", "clamp", "sigmoid"])
def test_gradients_are_those_of_the_formula(tmp_path, start, lambda_param):
    """In float64, against differences, also at the bounds."""
    target = MODELS["hubert"][0](tmp_path, 0).double().eval()
    source = MODELS["hubert"][0](tmp_path, 1).double().state_dict()
    if lambda_param == "sigmoid" and start in (0.0, 1.0):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            parametrize_attention(target, source, start, lambda_param)
        return
    ratios = parametrize_attention(target, source, start, lambda_param)

    def loss():
        return hear(target)[..., 0].square().mean()

    loss().backward()
    for ratio in ratios.values():
        value, step = ratio.value, 1e-6
        assert value.dtype == torch.float64
        found = {}
        for side in (-1, 1):
            with torch.no_grad():
                value += side * step
                found[side] = loss()
                value -= side * step
        if lambda_param == "clamp" and start == 0.0:
            slope = (found[1] - loss().detach()) / step
        elif lambda_param == "clamp" and start == 1.0:
            slope = (loss().detach() - found[-1]) / step
        else:
            slope = (found[1] - found[-1]) / (2 * step)
        torch.testing.assert_close(value.grad, slope, rtol=1e-4, atol=1e-9)
        assert value.grad != 0


def test_a_clamped_ratio_comes_back_from_beyond_its_bounds():
    value = torch.nn.Parameter(torch.tensor([0.02, 0.98]))
    optimizer = torch.optim.SGD([value], lr=0.1)

    def descend(direction, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (bounded(value, "clamp") * torch.tensor(direction)).sum().backward()
            optimizer.step()
        return bounded(value, "clamp").tolist()

    assert descend([1.0, -1.0], 20) == [0.0, 1.0]
    # it has not gone further than one step, and so is back after two
    assert (value - 0.5).abs().max() < 0.6
    inside = descend([-1.0, 1.0], 2)
    assert 0 < inside[0] < 1 and 0 < inside[1] < 1


def test_checkpoints_hold_no_source_and_know_it_again():
    source = tiny_conformer(1)
    model = tiny_conformer(0)
    names = set(model.state_dict())
    parametrize_attention(model, source, ratio=0.25)
    state = model.state_dict()
    added = sorted(set(state) - names)
    assert len(added) == 2 * 3 and len(names - set(state)) == 2
    assert sum(one.numel() for one in state.values()) == (
        sum(one.numel() for one in tiny_conformer().state_dict().values())
        + 2 * (1 + 8)
    )
    again = tiny_conformer(2)
    parametrize_attention(again, source, ratio=0.9)
    again.load_state_dict(state)
    plain, expected = plain_state(again), plain_state(model)
    assert all(torch.equal(plain[name], one) for name, one in expected.items())
    other = tiny_conformer(0)
    parametrize_attention(other, tiny_conformer(3), ratio=0.25)
    with pytest.raises(RuntimeError, match="another source"):
        other.load_state_dict(state)
    # weights that go to a merge are plain; the stored ones cannot be folded
    with fold(model) as folded:
        assert set(folded) == names
    with pytest.raises(ValueError, match="parametrisation"):
        fold(state)


def test_plain_weights_are_loaded_as_they_are():
    """A merge is put into a module that still has its ratios."""
    for lambda_param in ("clamp", "sigmoid", "free"):
        model, plain = tiny_conformer(0).eval(), tiny_conformer(2).eval()
        parametrize_attention(model, tiny_conformer(1), 0.5, lambda_param)
        learned = copy.deepcopy(model.state_dict())
        model.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(frames(model), frames(plain))
        assert set(learned_ratio(model)["parts"].values()) == {0.0}
        model.load_state_dict(learned, strict=True)
        assert set(learned_ratio(model)["parts"].values()) == {0.5}
        missing = plain.state_dict()
        del missing["Transformer.encoder.layers.0.mha_layer.in_proj_weight"]
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(missing)


def test_copies_and_moves_keep_one_ratio_a_layer(tmp_path):
    """Queries, keys and values follow the one λ that the model knows."""
    hubert = MODELS["hubert"][0](tmp_path, 0)
    parametrize_attention(hubert, tiny_bert(tmp_path / "bert"), ratio=0.5)
    for model in (copy.deepcopy(hubert), hubert.double()):
        ratios = source_ratios(model)
        assert list(ratios) == SPEECH
        with torch.no_grad():
            ratios[SPEECH[0]].value.fill_(1.0)
        attention = model.encoder.layers[0].attention
        for projection in ("q_proj", "k_proj", "v_proj"):
            layer = getattr(attention, projection)
            source = layer.parametrizations.weight[0].source
            assert torch.equal(layer.weight, source)
            assert source.dtype == layer.weight.dtype
    assert hubert.dtype == torch.float64


def test_what_cannot_be_attached(tmp_path):
    from speechbrain.nnet.adapters import AdaptedModel, LoRA

    model = tiny_conformer(0)
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="`ratio` must be between 0 and 1"):
        parametrize_attention(model, tiny_conformer(1), ratio=1.5)
    assert set(model.state_dict()) == before
    parametrize_attention(model, tiny_conformer(1))
    with pytest.raises(ValueError, match="already"):
        parametrize_attention(model, tiny_conformer(1))
    adapted = AdaptedModel(tiny_conformer(0), LoRA, all_linear=True)
    with pytest.raises(ValueError, match="has LoRA"):
        parametrize_attention(adapted, tiny_conformer(1))
    hubert = MODELS["hubert"][0](tmp_path, 0)
    uneven = {"parts": {"attention.q": 0.1}, "default": 0.2}
    with pytest.raises(ValueError, match="share one"):
        parametrize_attention(hubert, hubert.state_dict(), ratio=uneven)
    with pytest.raises(ValueError, match="lambda_param"):
        LearnableAttentionMerge(lambda_param="tanh")
    with pytest.raises(ValueError, match="ratio"):
        AttentionMerge(ratio=2)
    with pytest.raises(ValueError, match="ratio"):
        LearnableAttentionMerge(ratio=2)
