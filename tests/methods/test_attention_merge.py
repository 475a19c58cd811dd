"""Attention merging: what it puts where, and what it leaves alone."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import (
    tiny_bert,
    tiny_conformer,
    tiny_hubert,
    tiny_vit,
    tiny_whisper,
)

from speechbrain.lobes.models import beats
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL, RoPEMHA
from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.methods import (
    AttentionMerge,
    Restricted,
    attention_projections,
    create,
)
from speechbrain_merge.weights import (
    IncompatibleWeights,
    open_weights,
    part,
    write_weights,
)

QKV = ("q", "k", "v")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of several families, all of 2 layers of width 16."""
    root = tmp_path_factory.mktemp("models")
    makers = {
        "hubert": tiny_hubert,
        "bert": tiny_bert,
        "vit": tiny_vit,
        "whisper": tiny_whisper,
    }
    made = {name: make(root / name) for name, make in makers.items()}
    made["whisper_too"] = tiny_whisper(root / "whisper_too", seed=1)
    made["long_bert"] = tiny_bert(root / "long_bert", layers=4)
    return made


def read(source):
    with open_weights(source) as weights:
        return {name: weights[name].clone() for name in weights}


def loaded(merged, folder, like, model_class):
    """A merged file, loaded by Hugging Face in the target's folder."""
    shutil.copytree(like, folder)
    shutil.copy(merged, Path(folder) / "model.safetensors")
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    problems = ("missing_keys", "unexpected_keys", "mismatched_keys")
    assert not any(info[problem] for problem in problems), info
    return model.eval()


def beats_model(seed=0):
    """A tiny BEATs whose layers have the width of the others here."""
    settings = {
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "embed_dim": 8,
        "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 2,
        "conv_pos": 4,
        "conv_pos_groups": 2,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "num_buckets": 8,
        "deep_norm": True,
    }
    config = beats.BEATsConfig(settings)
    given, beats.BEATsConfig = beats.BEATsConfig, lambda _: config
    try:
        torch.manual_seed(seed)
        return beats.BEATs().eval()
    finally:
        beats.BEATsConfig = given


# --- other families -------------------------------------------------------


def test_bert_in_hubert(folders, tmp_path):
    """All that MAM promises, on files, in memory, and run by Hugging Face."""
    from transformers import HubertModel

    target, source = read(folders["hubert"]), read(folders["bert"])
    output = merge(
        AttentionMerge(ratio=1),
        [folders["bert"]],
        base=folders["hubert"],
        output=tmp_path / "merged.safetensors",
        workers=3,
        progress=False,
    )
    merged = read(output)
    assert list(merged) == list(target)
    theirs = {"q": "query", "k": "key", "v": "value"}
    taken = set()
    for layer in range(2):
        for projection in QKV:
            name = f"encoder.layers.{layer}.attention.{projection}_proj.weight"
            other = f"encoder.layer.{layer}.attention.self.{theirs[projection]}"
            assert torch.equal(merged[name], source[f"{other}.weight"])
            taken.add(name)
    for name in set(target) - taken:
        assert torch.equal(merged[name], target[name]), name
    assert provenance(output)["parameters"]["ratio"] == 1

    model = loaded(output, tmp_path / "hf", folders["hubert"], HubertModel)
    before = HubertModel.from_pretrained(folders["hubert"]).eval()
    wavs = torch.randn(1, 4000)
    with torch.no_grad():
        change = model(wavs)[0] - before(wavs)[0]
    assert change.isfinite().all() and change.abs().max() > 1e-3


def test_no_ratio_is_the_target_to_the_bit(folders, tmp_path):
    output = merge(
        AttentionMerge(ratio=0),
        [folders["bert"]],
        base=folders["hubert"],
        output=tmp_path / "merged.safetensors",
        progress=False,
    )
    target, merged = read(folders["hubert"]), read(output)
    assert list(merged) == list(target)
    for name, tensor in target.items():
        # bits, so that -0 is not 0: also of magnitude and direction
        same = merged[name].numpy().tobytes() == tensor.numpy().tobytes()
        assert same and merged[name].dtype == tensor.dtype, name


@pytest.mark.parametrize(
    "parameters",
    [
        {"ratio": 0.3},
        {"ratio": 0.3, "layers": [1], "merge_bias": True},
        {"ratio": 0.3, "heads": 0.5, "number_of_heads": 2},
        {"ratio": 0.5, "noise": "source"},
        {"ratio": 0.5, "noise": "target", "noise_scope": "global"},
    ],
    ids=str,
)
def test_memory_and_files_agree_to_the_bit(folders, tmp_path, parameters):
    method = AttentionMerge(include="encoder", **parameters)
    in_memory = method([read(folders["bert"])], read(folders["whisper"]))
    for workers in (1, 3):
        output = merge(
            create("attention_merge", **method.configuration()),
            [folders["bert"]],
            base=folders["whisper"],
            output=tmp_path / f"{workers}.safetensors",
            workers=workers,
            progress=False,
        )
        with open_weights(output) as streamed:
            assert streamed.names() == list(in_memory)
            for name, tensor in in_memory.items():
                assert torch.equal(streamed[name], tensor), name


def test_whisper_takes_from_whisper_in_all_three_places(folders, tmp_path):
    from transformers import WhisperForConditionalGeneration

    target, source = read(folders["whisper"]), read(folders["whisper_too"])
    output = merge(
        AttentionMerge(ratio=0.25, merge_bias=True),
        [folders["whisper_too"]],
        base=folders["whisper"],
        output=tmp_path / "merged.safetensors",
        progress=False,
    )
    merged = read(output)
    changed = {
        name
        for name in target
        if not torch.equal(merged[name], target[name])
        and part(name).kind == "weight"
    }
    paths = {part(name).path for name in changed}
    assert paths == {
        f"{place}.{projection}"
        for layer in range(2)
        for place in (
            f"encoder.layers.{layer}.attention",
            f"decoder.layers.{layer}.attention",
            f"decoder.layers.{layer}.cross_attention",
        )
        for projection in QKV
    }
    for name in changed:
        expected = 0.25 * source[name].double() + 0.75 * target[name].double()
        assert torch.equal(merged[name], expected.float()), name
    like = folders["whisper"]
    model = loaded(
        output, tmp_path / "hf", like, WhisperForConditionalGeneration
    )
    with torch.no_grad():
        logits = model(
            input_features=torch.randn(1, 80, 3000),
            decoder_input_ids=torch.tensor([[1, 2]]),
        ).logits
    assert logits.isfinite().all()


def test_biases_only_when_asked_and_keys_of_whisper_have_none(folders):
    whisper, bert = read(folders["whisper"]), read(folders["bert"])
    for name in bert:
        if name.endswith("bias"):
            bert[name] = torch.randn_like(bert[name])
    merge_all = {"ratio": 1.0, "include": "encoder", "merge_bias": True}
    into_whisper = AttentionMerge(**merge_all)([bert], whisper)
    assert list(into_whisper) == list(whisper)
    place = "model.encoder.layers.1.self_attn"
    theirs = "encoder.layer.1.attention.self"
    for ours, other in (("q", "query"), ("v", "value")):
        assert torch.equal(
            into_whisper[f"{place}.{ours}_proj.bias"],
            bert[f"{theirs}.{other}.bias"],
        )
    assert f"{place}.k_proj.bias" not in into_whisper
    # the other way round: a bias that is not there is zero
    into_bert = AttentionMerge(ratio=0.5, merge_bias=True)
    encoder = {name: whisper[name] for name in whisper if ".encoder." in name}
    merged = into_bert([encoder], bert)
    keys = f"{theirs}.key.bias"
    assert torch.equal(merged[keys], bert[keys] / 2)
    merged = AttentionMerge(ratio=0.5)([encoder], bert)
    assert all(
        torch.equal(merged[name], bert[name])
        for name in bert
        if name.endswith("bias")
    )


def test_vit_in_beats(folders):
    model = beats_model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    vit = read(folders["vit"])
    merged = AttentionMerge(ratio=1)([folders["vit"]], base=model)
    for layer in range(2):
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            name = f"encoder.layers.{layer}.self_attn.{ours}_proj.weight"
            other = f"encoder.layer.{layer}.attention.attention.{theirs}.weight"
            assert torch.equal(merged[name], vit[other])
            assert torch.equal(before.pop(name), model.state_dict()[name])
    assert all(torch.equal(merged[name], one) for name, one in before.items())
    # one table of relative positions for all layers
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    assert merged[table.format(0)] is merged[table.format(1)]
    wavs, lengths = torch.randn(1, 16000), torch.ones(1)
    old = model(wavs, lengths)[0]
    model.load_state_dict(merged)
    assert (model(wavs, lengths)[0] - old).abs().max() > 1e-3
    # the newest ViT modules have other names than the files
    from transformers import ViTModel

    module = ViTModel.from_pretrained(folders["vit"])
    again = AttentionMerge(ratio=1)([module], base=beats_model())
    assert all(torch.equal(again[name], merged[name]) for name in merged)


# --- heads: outputs of attention, computed by hand ------------------------


def by_hand(inputs, heads, scale):
    """Attention of heads [(q, k, v), …], each matrix (size, width)."""
    outputs = []
    for query, key, value in heads:
        scores = (inputs @ query.T) @ (inputs @ key.T).transpose(1, 2) * scale
        outputs.append(scores.softmax(dim=-1) @ (inputs @ value.T))
    return torch.cat(outputs, dim=-1)


def plain(attention):
    """Attention without positions and with nothing after it."""
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "out_proj.weight" in name:
                parameter.copy_(torch.eye(len(parameter)))
            elif "in_proj_weight" not in name:
                parameter.zero_()
    return attention


def relative(inputs, attention):
    positions = torch.zeros(1, 2 * inputs.shape[1] - 1, inputs.shape[2])
    return attention(inputs, inputs, inputs, positions)[0]


CASES = {
    "RelPosMHAXL": (
        lambda: RelPosMHAXL(8, 2),
        relative,
        "encoder.layers.0.mha_layer",
        1 / math.sqrt(8),
        {},
    ),
    "MultiheadAttention": (
        lambda: MultiheadAttention(nhead=2, d_model=8),
        lambda inputs, attention: attention(inputs, inputs, inputs)[0],
        "encoder.layers.0.self_att",
        1 / math.sqrt(4),
        {"number_of_heads": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [None, [1]])
def test_outputs_of_fused_attention_are_those_of_its_heads(case, heads):
    """The merged matrix attends as heads do that are merged one by one."""
    make, run, place, scale, parameters = CASES[case]
    torch.manual_seed(0)
    attention = plain(make())
    inputs = torch.randn(2, 5, 8)
    # the target, built out of its heads
    state = {
        f"{place}.{name}": tensor
        for name, tensor in attention.state_dict().items()
    }
    found = attention_projections(state, heads=2)
    ours = [[torch.randn(4, 8) for _ in QKV] for _ in range(2)]
    fused = next(name for name in state if name.endswith("in_proj_weight"))
    for head in range(2):
        for index, projection in enumerate(QKV):
            rows = found["encoder", 0, "attention", projection].rows(head)
            state[fused][rows] = ours[head][index]
    attention.load_state_dict(
        {name[len(place) + 1 :]: tensor for name, tensor in state.items()}
    )
    before = run(inputs, attention)
    torch.testing.assert_close(before, by_hand(inputs, ours, scale))

    source = {
        f"encoder.layer.0.attention.self.{name}.weight": torch.randn(8, 8)
        for name in ("query", "key", "value")
    }
    method = AttentionMerge(ratio=0.3, heads=heads, **parameters)
    merged = method([source], base=state)
    attention.load_state_dict(
        {name[len(place) + 1 :]: tensor for name, tensor in merged.items()}
    )
    mixed = []
    for head in range(2):
        theirs = [matrix[4 * head : 4 * head + 4] for matrix in source.values()]
        share = 0.3 if heads is None or head in heads else 0.0
        mixed.append(
            [
                share * other + (1 - share) * own
                for other, own in zip(theirs, ours[head])
            ]
        )
    after = run(inputs, attention)
    torch.testing.assert_close(after, by_hand(inputs, mixed, scale))
    moved = (after - before).abs().amax(dim=(0, 1)).unflatten(0, (2, 4))
    assert (moved[1] > 1e-3).all()
    if heads == [1]:
        assert (moved[0] == 0).all()


def test_rotary_attention_needs_the_number_of_heads():
    """Nothing in the weights of RoPEMHA says how its rows are ordered."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 5, 8)
    one, two = RoPEMHA(8, 2), RoPEMHA(8, 2)
    place = "encoder.layers.0.mha_layer"
    states = [
        {
            f"{place}.{name}": tensor
            for name, tensor in each.state_dict().items()
        }
        for each in (one, two)
    ]
    with pytest.raises(ValueError, match="give the number of heads"):
        AttentionMerge(ratio=1)([states[1]], states[0])
    merged = AttentionMerge(ratio=1, number_of_heads=2)([states[1]], states[0])
    for name in (f"{place}.out_proj.weight", f"{place}.out_proj.bias"):
        merged[name] = states[1][name]
    one.load_state_dict(
        {name[len(place) + 1 :]: tensor for name, tensor in merged.items()}
    )
    expected = two(inputs, inputs, inputs)[0]
    assert torch.equal(one(inputs, inputs, inputs)[0], expected)


def test_conformer_takes_from_bert_and_gives_back(folders):
    """There, and back again: fused and interleaved, separate, and fused."""
    conformer = tiny_conformer(decoder_layers=1)
    there = AttentionMerge(ratio=1)(
        [conformer.Transformer.encoder], base=folders["bert"]
    )
    blank = tiny_conformer(seed=5, decoder_layers=1)
    back = AttentionMerge(ratio=1, include="encoder")([there], base=blank)
    for layer in range(2):
        name = f"Transformer.encoder.layers.{layer}.mha_layer.in_proj_weight"
        assert torch.equal(back[name], conformer.state_dict()[name])
    blank.load_state_dict(back)


# --- layers and ratios ----------------------------------------------------


def stack(layers, width=4, seed=0, stem="encoder.layers.{}.self_attn.{}_proj"):
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{stem.format(layer, projection)}.{kind}": torch.randn(
            *shape, generator=draw
        )
        for layer in range(layers)
        for projection in QKV
        for kind, shape in (("weight", (width, width)), ("bias", (width,)))
    }


def shares(merged, target, source, origin=None):
    """The ratio of each layer, from what came out."""
    found = []
    for name in target:
        if name.endswith("q_proj.weight"):
            other = name if origin is None else origin(name)
            moved = (merged[name] - target[name]).norm()
            found.append(float(moved / (source[other] - target[name]).norm()))
    return pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"ratio": 0.2}, [0.2] * 6),
        ({"ratio": 0.2, "layers": "2-4"}, [0, 0, 0.2, 0.2, 0.2, 0]),
        ({"ratio": 0.2, "layers": [5, 0]}, [0.2, 0, 0, 0, 0, 0.2]),
        ({"ratio": 0.2, "layers": {"encoder": 3}}, [0, 0, 0, 0.2, 0, 0]),
        (
            {"ratio": [0, 0.1, 0.2, 0.3, 0.4, 1]},
            [0, 0.1, 0.2, 0.3, 0.4, 1],
        ),
        (
            {"ratio": {"parts": {"layers.0-2": 0.1}, "default": 0.3}},
            [0.1, 0.1, 0.1, 0.3, 0.3, 0.3],
        ),
        ({"ratio": {"depth": [0, 1]}}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        # HSA-Merge: λ^(α(i+1)/L)
        (
            {"ratio": 0.5, "schedule": 0.2},
            [0.5 ** (0.2 * (i + 1) / 6) for i in range(6)],
        ),
        # SA-Merge: blocks of layers
        (
            {"ratio": 0.5, "schedule": [1, 2, 0]},
            [0.5, 0.5, 0.25, 0.25, 1, 1],
        ),
        ({"ratio": 0, "schedule": [1, 2, 0]}, [0, 0, 0, 0, 1, 1]),
    ],
    ids=str,
)
def test_ratio_of_each_layer(parameters, expected):
    target, source = stack(6), stack(6, seed=1)
    merged = AttentionMerge(**parameters)([source], target)
    assert expected == shares(merged, target, source)
    assert all(
        torch.equal(merged[name], target[name])
        for name in target
        if name.endswith("bias")
    )


@pytest.mark.parametrize(
    "layer_map, origins",
    [
        ("even", {0: 0, 1: 2, 2: 3, 3: 5}),
        ([0, 0, 5, 5], {0: 0, 1: 0, 2: 5, 3: 5}),
        ({1: 4, 3: 0}, {1: 4, 3: 0}),
        ({"encoder": {1: 4}}, {1: 4}),
    ],
    ids=str,
)
def test_unequal_depth_by_a_map(layer_map, origins):
    target, source = stack(4), stack(6, seed=1)
    merged = AttentionMerge(ratio=1, layer_map=layer_map)([source], target)
    for name, tensor in target.items():
        layer = part(name).layer
        expected = tensor
        if layer in origins and name.endswith("weight"):
            other = name.replace(f".{layer}.", f".{origins[layer]}.")
            expected = source[other]
        assert torch.equal(merged[name], expected), name


def test_another_stack():
    """A single stack can only be meant one way; of two, one is chosen."""
    target = stack(2)
    single = stack(2, seed=1, stem="layers.{}.self_attn.{}_proj")
    merged = AttentionMerge(ratio=1)([single], target)
    name = "encoder.layers.1.self_attn.k_proj.weight"
    assert torch.equal(merged[name], single["layers.1.self_attn.k_proj.weight"])
    both = {
        **stack(2, seed=2),
        **stack(2, seed=3, stem="decoder.layers.{}.self_attn.{}_proj"),
    }
    merged = AttentionMerge(ratio=1)([both], target)
    assert torch.equal(merged[name], both[name])
    method = AttentionMerge(ratio=1, stack_map={"encoder": "decoder"})
    decoder = name.replace("encoder", "decoder")
    assert torch.equal(method([both], target)[name], both[decoder])


def test_half_precision_and_another_precision_of_the_source():
    name = "encoder.layers.1.self_attn.v_proj.weight"
    target = {key: one.half() for key, one in stack(2).items()}
    source = stack(2, seed=1)
    merged = AttentionMerge(ratio=0.25)([source], target)
    assert all(one.dtype == torch.float16 for one in merged.values())
    theirs, ours = source[name].half().double(), target[name].double()
    assert torch.equal(merged[name], (0.25 * theirs + 0.75 * ours).half())


@pytest.mark.parametrize(
    "parameters",
    [{"ratio": 0}, {"ratio": 1}, {"ratio": 0.5, "heads": [0]}],
    ids=str,
)
def test_inputs_are_left_alone_and_not_shared(parameters):
    target, source = stack(2), stack(2, seed=1)
    method = AttentionMerge(
        number_of_heads=2, layers=[0], merge_bias=True, **parameters
    )
    merged = method([source], target)
    for given, seed in ((target, 0), (source, 1)):
        for name, tensor in stack(2, seed=seed).items():
            assert torch.equal(given[name], tensor)
            assert merged[name].data_ptr() != given[name].data_ptr()


def test_inside_another_method():
    target, source = stack(3), stack(3, seed=1)
    method = Restricted(
        AttentionMerge(ratio=1, layers=[0, 1]),
        include="encoder.layers.1-2",
        otherwise="base",
    )
    merged = method([source], target)
    for name, tensor in target.items():
        taken = ".1." in name and name.endswith("weight")
        assert torch.equal(merged[name], source[name] if taken else tensor)


# --- SA-Merge and HSA-Merge -----------------------------------------------


def test_task_vectors_of_two_experts(folders):
    """SA-Merge as published; all else is the first expert's."""
    base, first = read(folders["whisper"]), read(folders["whisper_too"])
    torch.manual_seed(3)
    second = {
        name: one + 0.1 * torch.randn_like(one) for name, one in base.items()
    }
    method = AttentionMerge(
        ratio=0.5, schedule=[1, 2], space="task_vectors", merge_bias=True
    )
    # the base may have the names that a pool gives
    anchor = {f"whisper.{name}": one for name, one in base.items()}
    merged = method([first, second], anchor)
    for name in first:
        where = part(name)
        if where.role.endswith("attention") and where.projection in QKV:
            share = 0.5 ** [1, 2][where.layer]
            vectors = [
                each[name].double() - base[name] for each in (first, second)
            ]
            expected = (
                base[name] + share * vectors[0] + (1 - share) * vectors[1]
            )
            torch.testing.assert_close(merged[name], expected.float())
            assert not torch.equal(merged[name], first[name])
        else:
            assert torch.equal(merged[name], first[name]), name
    # which is MAM with the first expert as the target
    same = AttentionMerge(ratio=[0.5, 0.75], merge_bias=True)([second], first)
    assert all(torch.equal(same[name], merged[name]) for name in merged)


@pytest.mark.parametrize("ratio, kept", [(0, 1), (1, 0)])
def test_ends_of_the_task_vector_space(ratio, kept):
    """λ is the first expert's share; 0 is the limit, the second expert."""
    base, experts = stack(2), [stack(2, seed=1), stack(2, seed=2)]
    method = AttentionMerge(ratio=ratio, schedule=0.2, space="task_vectors")
    merged = method(experts, base)
    for name in merged:
        expected = experts[kept if name.endswith("weight") else 0][name]
        assert torch.equal(merged[name], expected), name


def test_the_heads_that_moved_most():
    """HSA-Merge: the score of a head is ‖(|τ1| + |τ2|) of its rows‖."""
    base = stack(1, width=10)
    first, second = (stack(1, width=10, seed=seed) for seed in (1, 2))
    name = "encoder.layers.0.self_attn.k_proj.weight"
    scores = [1.0, 3.0, 0.5, 2.0, 2.5]
    for head, score in enumerate(scores):
        rows = slice(2 * head, 2 * head + 2)
        # opposite signs: a sum of task vectors would see nothing
        first[name][rows] = base[name][rows] + score
        second[name][rows] = base[name][rows] - score
    method = AttentionMerge(
        ratio=0.25,
        heads=0.6,
        space="task_vectors",
        number_of_heads=5,
        merge_bias=True,
    )
    merged = method([first, second], base)
    bias = name.replace("weight", "bias")
    for head in range(5):
        rows = slice(2 * head, 2 * head + 2)
        for key in (name, bias):
            expected = first[key][rows]
            if head in (1, 3, 4):
                expected = 0.25 * expected + 0.75 * second[key][rows]
            torch.testing.assert_close(merged[key][rows], expected)
            if head not in (1, 3, 4):
                assert torch.equal(merged[key][rows], first[key][rows])


# --- noise ----------------------------------------------------------------


def wide_models():
    """Two models whose matrices have means and deviations of their own."""
    target, source = stack(2, width=200), stack(2, width=200, seed=1)
    for number, name in enumerate(target):
        target[name] = target[name] * (1 + number) - number
        source[name] = source[name] * (2 + number) + 3 * number
    return target, source


def assert_drawn_like(drawn, mean, deviation):
    """Normal, as far as 40,000 numbers tell."""
    bound = 5 * deviation / math.sqrt(drawn.numel())
    assert abs(float(drawn.double().mean()) - mean) < bound
    assert float(drawn.double().std()) == pytest.approx(deviation, rel=0.02)
    kurtosis = ((drawn.double() - mean) / deviation).pow(4).mean()
    assert float(kurtosis) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("kind", ["source", "target", "standard"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_noise_has_the_statistics_it_should(kind, scope):
    target, source = wide_models()
    method = AttentionMerge(ratio=1, noise=kind, noise_scope=scope)
    merged = method([source], target)
    model = {"source": source, "target": target}.get(kind)
    names = [name for name in target if name.endswith("weight")]
    for name in names:
        mean, deviation = 0.0, 1.0
        if model is not None:
            those = [name] if scope == "tensor" else names
            values = torch.cat([model[each].flatten() for each in those])
            mean = float(values.double().mean())
            deviation = float(values.double().std(unbiased=False))
        assert_drawn_like(merged[name], mean, deviation)
        assert not torch.equal(merged[name], source[name])
    assert all(
        torch.equal(merged[name], target[name])
        for name in target
        if name.endswith("bias")
    )


def test_noise_depends_on_the_seed_and_the_place_alone():
    target, source = wide_models()
    noisy = {"ratio": 0.5, "noise": "standard"}
    drawn = AttentionMerge(**noisy)([source], target)
    turned = dict(reversed(list(target.items())))
    again = AttentionMerge(**noisy)([source], turned)
    names = [name for name in target if name.endswith("weight")]
    assert all(torch.equal(drawn[name], again[name]) for name in names)
    other = AttentionMerge(**noisy, seed=1)([source], target)
    assert not any(torch.equal(drawn[name], other[name]) for name in names)
    some = AttentionMerge(**noisy, layers=[1])([source], target)
    name = "encoder.layers.1.self_attn.q_proj.weight"
    assert torch.equal(some[name], drawn[name])
    # the same matrix, fused with others
    fused = {
        f"encoder.layers.{layer}.self_att.att.in_proj_weight": torch.zeros(
            600, 200
        )
        for layer in range(2)
    }
    mixed = AttentionMerge(ratio=1, noise="standard")([source], fused)
    plain = AttentionMerge(ratio=1, noise="standard")([source], target)
    third = mixed["encoder.layers.1.self_att.att.in_proj_weight"][:200]
    assert torch.equal(third, plain[name])


# --- errors ---------------------------------------------------------------


def refused(target, source, **parameters):
    """The one error of a merge, which must name both models."""
    with (
        open_weights(target) as taking,
        open_weights(source) as giving,
        pytest.raises(IncompatibleWeights) as error,
    ):
        merge(
            AttentionMerge(**parameters), [giving], base=taking, progress=False
        )
    message = str(error.value)
    assert taking.label in message and giving.label in message
    return message


def test_depth_width_and_layers_that_do_not_fit(folders, tmp_path):
    message = refused(folders["hubert"], folders["long_bert"])
    assert "2 layers in the target, 4 in the source" in message
    assert "`layer_map`" in message
    message = refused(folders["hubert"], folders["bert"], layers=[1, 7])
    assert "no layer 7 in the target: it has 2, 0 to 1" in message
    message = refused(folders["hubert"], folders["bert"], layer_map={0: 5})
    assert "no layer 5 in the source" in message
    wide = tiny_hubert(tmp_path / "wide", hidden_size=32)
    message = refused(folders["hubert"], wide)
    assert "is 16×16" in message and "is 32×32" in message
    # all that is wrong at once
    assert message.count("the same width is needed") == 6


def test_models_without_what_is_asked_for(folders, tmp_path):
    message = refused(folders["whisper"], folders["bert"])
    assert "has no decoder cross-attention" in message
    assert "encoder self-attention of 2 layers" in message
    strange = write_weights(
        tmp_path / "strange.safetensors", {"rnn.weight_ih": torch.ones(2, 2)}
    )
    message = refused(folders["hubert"], strange)
    assert "no attention that is known: names like rnn.weight_ih" in message
    message = refused(strange, folders["bert"])
    assert "no attention that is known" in message
    with pytest.raises(ValueError, match="matches include='decoder'"):
        AttentionMerge(include="decoder")([folders["bert"]], folders["hubert"])


def test_two_models_in_one(folders):
    """A checkpoint with two Transformers does not say which is meant."""
    bert = read(folders["bert"])
    both = {f"{name}.{key}": bert[key] for name in "ab" for key in bert}
    with pytest.raises(
        ValueError, match="a.encoder.* and b.encoder.* are both"
    ):
        AttentionMerge()([both], folders["hubert"])


def test_demands():
    target, source = stack(2), stack(2, seed=1)
    with pytest.raises(ValueError, match="give `base`"):
        AttentionMerge()([source])
    with pytest.raises(ValueError, match="takes at most 1 experts, got 2"):
        AttentionMerge()([source, source], target)
    with pytest.raises(ValueError, match="needs at least 2 experts, got 1"):
        AttentionMerge(space="task_vectors")([source], target)
    with pytest.raises(ValueError, match="give `number_of_heads`"):
        AttentionMerge(heads=[0])([source], target)
    with pytest.raises(ValueError, match="no head 2: there are 2"):
        AttentionMerge(heads=[2], number_of_heads=2)([source], target)
    with pytest.raises(ValueError, match="one for each layer"):
        AttentionMerge(ratio=[0.1])([source], target)
    with pytest.raises(ValueError, match="at most one for each"):
        AttentionMerge(schedule=[1, 2, 3])([source], target)
    for model, name in (
        (source, "encoder.layers.0.self_attn.q_proj.weight"),
        (target, "encoder.layers.0.self_attn.q_proj.bias"),
    ):
        model[name][1] = float("nan")
        with pytest.raises(IncompatibleWeights, match=name):
            AttentionMerge()([source], target)
        model[name][1] = 0


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"ratio": 1.5}, "`ratio` must be a number at least 0 and at most 1"),
        ({"ratio": [0.1, -0.1]}, "`ratio` must be a number"),
        ({"ratio": {"experts": {"a": 1}}}, "not by 'experts'"),
        ({"ratio": "half"}, "`ratio` must be"),
        ({"layers": "4..6"}, "`layers` must be numbers of layers"),
        ({"layers": []}, "`layers` must be numbers"),
        ({"layers": {"middle": [1]}}, "`layers` by stack has keys"),
        ({"schedule": -1}, "`schedule` must be a number at least 0"),
        ({"heads": 0}, "`heads` must be a number above 0"),
        ({"heads": [1, 1]}, "`heads` must name each head once"),
        ({"space": "weights"}, "`space` must be one of"),
        ({"merge_bias": 1}, "`merge_bias` must be True or False"),
        ({"include": "encodr"}, "'encodr' names no part"),
        ({"layer_map": "odd"}, "`layer_map` must be"),
        ({"stack_map": {"encoder": "middle"}}, "`stack_map` must map"),
        ({"number_of_heads": 0}, "`number_of_heads` must be"),
        ({"noise": "pink"}, "`noise` must be one of"),
        ({"noise_scope": "model"}, "`noise_scope` must be one of"),
        ({"seed": -1}, "`seed` must be"),
        ({"noise": "source", "space": "task_vectors"}, "`noise` takes"),
    ],
    ids=str,
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        AttentionMerge(**parameters)


# --- what is known of models ----------------------------------------------

WIDE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
}
SPEECH = {
    **WIDE,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.mark.parametrize(
    "name, settings, stack, heads",
    [
        ("Wav2Vec2", SPEECH, "encoder", None),
        ("Wav2Vec2Conformer", SPEECH, "encoder", 4),
        ("WavLM", SPEECH, "encoder", 4),
        ("AST", WIDE, "encoder", None),
        ("Roberta", {**WIDE, "vocab_size": 9}, "encoder", None),
        (
            "DistilBert",
            {"dim": 16, "n_layers": 2, "n_heads": 4, "vocab_size": 9},
            "",
            None,
        ),
        ("Llama", {**WIDE, "vocab_size": 9}, "", None),
    ],
)
def test_modules_of_hugging_face(name, settings, stack, heads):
    import transformers

    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}Model")(config)
    found = attention_projections(model)
    assert {tuple(key) for key in found} == {
        (stack, layer, "attention", projection)
        for layer in range(2)
        for projection in QKV
    }
    state = model.state_dict()
    for projection in found.values():
        assert (projection.size, projection.width) == (16, 16)
        # a module knows its heads, its tensors only some
        assert projection.heads == 4 and projection.name in state
    for projection in attention_projections(state).values():
        assert projection.heads == heads
        assert projection.take(state[projection.name]).shape == (16, 16)


def test_beats_tells_its_heads():
    assert {
        one.heads for one in attention_projections(beats_model()).values()
    } == {2}


def test_a_method_is_made_again_from_its_record():
    """JSON makes text of the numbers of layers."""
    target, source = stack(4), stack(6, seed=1)
    for layer_map in ({1: 4, 3: 0}, {"encoder": {1: 4, 3: 0}}):
        method = AttentionMerge(
            ratio=0.5, layer_map=layer_map, layers={"encoder": [1]}
        )
        record = json.loads(json.dumps(method.configuration()))
        again = create("attention_merge", **record)
        expected = method([source], target)
        merged = again([source], target)
        assert all(torch.equal(merged[name], expected[name]) for name in target)


# --- by hand and in a recipe ----------------------------------------------


def test_from_the_command_line(folders, tmp_path, capsys):
    from speechbrain_merge.cli import main

    output = tmp_path / "merged.safetensors"
    command = ["merge", "attention_merge", folders["bert"]]
    command += ["--base", folders["hubert"], "-o", str(output), "--quiet"]
    command += ["--parameters", "{ratio: 0.25, layers: 1-1}"]
    assert main([*command, "--dry-run"]) == 0 and not output.exists()
    assert main(command) == 0
    method = AttentionMerge(ratio=0.25, layers=[1])
    expected = method([folders["bert"]], folders["hubert"])
    merged = read(output)
    assert list(merged) == list(expected)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    command[2] = folders["long_bert"]
    assert main(command) == 2
    assert "`layer_map`" in capsys.readouterr().err


def test_a_merge_stage_keeps_the_names_of_the_target(folders, tmp_path):
    """There, a base has the experts' names; here, they have none in common."""
    from speechbrain_merge.stage import MergeStage
    from speechbrain_merge.stage.members import base_of

    target = {
        f"hubert.{name}": x for name, x in read(folders["hubert"]).items()
    }
    path = write_weights(tmp_path / "target.safetensors", target)
    stage = MergeStage(
        method=AttentionMerge(ratio=1), candidates=[folders["bert"]], base=path
    )
    members = stage.chosen()
    base = base_of(stage, members)
    merged = merge(stage.method, members, base=base, progress=False)
    assert list(merged) == list(target)
    bert = read(folders["bert"])
    assert torch.equal(
        merged["hubert.encoder.layers.0.attention.v_proj.weight"],
        bert["encoder.layer.0.attention.self.value.weight"],
    )
