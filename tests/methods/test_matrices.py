"""What spectral methods take for a matrix, and what they leave to the mean."""

import pytest
import torch
from methods.transport_models import HEADS, build

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import TSVM, WUDI, BoostedTSVM, IsoC, IsoCTS
from speechbrain_merge.weights import split_projection, write_weights

METHODS = {
    "tsv_m": TSVM,
    "boosted_tsv_m": BoostedTSVM,
    "iso_c": IsoC,
    "iso_cts": IsoCTS,
    "wudi": lambda **more: WUDI(steps=5, **more),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def experts_of(shapes, number=3, dtype=torch.float32, size=0.01):
    """A base and experts near it."""
    base = {name: torch.randn(shape) for name, shape in shapes.items()}
    experts = [
        {
            name: (tensor + size * torch.randn(tensor.shape)).to(dtype)
            for name, tensor in base.items()
        }
        for _ in range(number)
    ]
    return experts, {name: tensor.to(dtype) for name, tensor in base.items()}


def mean_of(name, experts, base, scale=1.0):
    """The mean of the task vectors of one tensor, added."""
    mean = sum(expert[name].double() for expert in experts) / len(experts)
    start = base[name].double()
    return (start + scale * (mean - start)).to(base[name].dtype)


@every_method
def test_all_but_matrices_are_averaged(make):
    shapes = {
        "encoder.layers.0.fc1.bias": (6,),
        "encoder.layers.0.self_attn_layer_norm.weight": (6,),
        "encoder.conv1.weight": (3, 4, 2),
        "scale": (),
        "decoder.embed_tokens.weight": (9, 4),
        "proj_out.weight": (9, 4),
        # of a Conformer's front end, over frames and channels
        "0.convblock_0.convs.norm_0.norm.weight": (4, 3),
        "2.Embedding.weight": (9, 4),  # of a transducer
        "encoder.layers.0.mha_layer.pos_bias_u": (3, 2),
    }
    experts, base = experts_of(shapes)
    merged = make(scale=0.5)(experts, base)
    for name in shapes:
        torch.testing.assert_close(
            merged[name], mean_of(name, experts, base, 0.5), msg=name
        )


@every_method
@pytest.mark.parametrize("excluded", ["embedding", "output"])
def test_exclude_knows_a_tied_tensor_by_each_of_its_names(make, excluded):
    names = ("decoder.embed_tokens.weight", "proj_out.weight")
    experts, base = experts_of({names[0]: (9, 4)})
    for model in (*experts, base):
        model[names[1]] = model[names[0]]
    merged = make(exclude=[excluded])(experts, base)
    for name in names:
        torch.testing.assert_close(
            merged[name], mean_of(names[0], experts, base)
        )


@every_method
def test_exclude_says_what_is_left_to_the_mean(make):
    experts, base = experts_of(
        {
            "decoder.embed_tokens.weight": (9, 4),
            "encoder.layers.0.fc1.weight": (5, 4),
        }
    )
    all_in = make(exclude=[])(experts, base)
    swapped = make(exclude=["encoder"])(experts, base)
    for name in base:
        mean = mean_of(name, experts, base)
        assert not torch.allclose(all_in[name], mean, atol=1e-5)
        assert torch.allclose(swapped[name], mean) == name.startswith("encoder")


@every_method
def test_convolution_as_matrix(make):
    experts, base = experts_of({"encoder.conv1.weight": (4, 3, 2, 2)})
    flat = [
        {"w": expert["encoder.conv1.weight"].reshape(4, 12)}
        for expert in experts
    ]
    as_matrix = make(conv_as_matrix=True)(experts, base)
    expected = make()(flat, {"w": base["encoder.conv1.weight"].reshape(4, 12)})
    torch.testing.assert_close(
        as_matrix["encoder.conv1.weight"].reshape(4, 12), expected["w"]
    )


FUSED = "encoder.layers.0.mha_layer.in_proj_weight"


@every_method
def test_fused_projections_are_merged_apart(make):
    experts, base = experts_of({FUSED: (24, 8)})
    merged = split_projection(FUSED, make(heads=2)(experts, base)[FUSED], 2)
    for projection in "qkv":
        alone = [
            {"w": split_projection(FUSED, model[FUSED], 2)[projection]}
            for model in (*experts, base)
        ]
        expected = make()(alone[:-1], alone[-1])["w"]
        torch.testing.assert_close(merged[projection], expected)
    whole = make(split_projections=False)(experts, base)[FUSED]
    one = make()([{"w": each[FUSED]} for each in experts], {"w": base[FUSED]})
    torch.testing.assert_close(whole, one["w"])


def test_heads_are_read_from_the_position_bias():
    bias = FUSED.replace("in_proj_weight", "pos_bias_u")
    experts, base = experts_of({FUSED: (24, 8), bias: (4, 2)})
    told = TSVM(heads=2)(experts, base)[FUSED]
    assert torch.equal(TSVM()(experts, base)[FUSED], told)


def test_heads_are_what_the_modules_say():
    """SpeechBrain's RoPEMHA, whose weights alone do not tell."""
    models = [build("conformer-RoPEMHA-ctc", seed) for seed in (1, 2, 3)]
    told = TSVM(heads=HEADS)(models[:2], models[2])
    found = TSVM()(models[:2], models[2])
    fused = [name for name in told if name.endswith("mha_layer.in_proj_weight")]
    assert fused
    for name, tensor in told.items():
        assert torch.equal(found[name], tensor), name
    with pytest.raises(ValueError, match="give `heads`"):
        TSVM()([each.state_dict() for each in models[:2]], models[2])


def test_heads_that_nothing_tells():
    experts, base = experts_of({FUSED: (24, 8)})
    with pytest.raises(ValueError, match="give `heads`"):
        TSVM()(experts, base)


def test_rows_whose_order_nothing_tells():
    """torch's own layer and a decoder's RelPosMHAXL have the same name."""
    name = "decoder.layers.0.self_attn.in_proj_weight"
    experts, base = experts_of({name: (12, 4)})
    with pytest.raises(ValueError, match="split_projections=False"):
        TSVM()(experts, base)
    assert TSVM(split_projections=False)(experts, base)[name].shape == (12, 4)
    bias = name.replace("in_proj_weight", "pos_bias_u")
    experts, base = experts_of({name: (24, 8), bias: (4, 2)})
    merged = split_projection(
        name, TSVM()(experts, base)[name], 2, "interleaved"
    )
    queries = [
        {"w": split_projection(name, each[name], 2, "interleaved")["q"]}
        for each in (*experts, base)
    ]
    expected = TSVM()(queries[:-1], queries[-1])["w"]
    torch.testing.assert_close(merged["q"], expected)


def test_torch_attention_needs_no_heads():
    name = "decoder.layers.0.self_attn.att.in_proj_weight"
    experts, base = experts_of({name: (12, 4)})
    merged = TSVM()(experts, base)[name]
    queries = TSVM()(
        [{"w": expert[name][:4]} for expert in experts], {"w": base[name][:4]}
    )
    torch.testing.assert_close(merged[:4], queries["w"])


@every_method
def test_scale_zero_is_the_base_and_scale_scales(make):
    experts, base = experts_of({"w": (6, 5), "fc.bias": (5,)})
    for name, tensor in make(scale=0)(experts, base).items():
        assert torch.equal(tensor, base[name])
    once, twice = make(scale=1)(experts, base), make(scale=2)(experts, base)
    for name in base:
        torch.testing.assert_close(
            twice[name] - base[name],
            2 * (once[name] - base[name]),
            rtol=1e-4,
            atol=1e-6,
        )


@every_method
def test_scale_by_part(make):
    experts, base = experts_of(
        {
            "encoder.layers.0.fc1.weight": (6, 5),
            "decoder.layers.0.fc1.weight": (6, 5),
        }
    )
    merged = make(scale={"parts": {"encoder": 0.0}, "default": 1.0})(
        experts, base
    )
    encoder, decoder = base
    assert torch.equal(merged[encoder], base[encoder])
    assert not torch.equal(merged[decoder], base[decoder])


@every_method
@pytest.mark.parametrize("scale", [[1.0, 0.5], {"experts": {"a": 1.0}}, "x"])
def test_no_scale_for_each_expert(make, scale):
    with pytest.raises(ValueError, match="scale"):
        make(scale=scale)


@every_method
@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"exclude": "embedding"}, "list of patterns"),
        ({"exclude": ["embeding"]}, "names no part"),
        ({"conv_as_matrix": 1}, "True or False"),
        ({"split_projections": "no"}, "True or False"),
        ({"heads": 0}, "at least 1"),
    ],
)
def test_wrong_parameters(make, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters)


@every_method
def test_no_base(make):
    with pytest.raises(ValueError, match="give `base`"):
        make()([{"w": torch.ones(2, 2)}])


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage(make, dtype):
    experts, base = experts_of({"w": (6, 5), "bias": (4,)}, dtype=dtype)
    merged = make()(experts, base)
    widened = make()(
        [{name: t.float() for name, t in each.items()} for each in experts],
        {name: tensor.float() for name, tensor in base.items()},
    )
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, widened[name].to(dtype))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_stay_as_they_are(make, dtype):
    experts, base = experts_of({"w": (6, 5), "bias": (4,)}, dtype=dtype)
    models = [*experts, base]
    before = [{name: t.clone() for name, t in each.items()} for each in models]
    make()(experts, base)
    for model, copy in zip(models, before):
        assert all(torch.equal(model[name], copy[name]) for name in copy)


@every_method
def test_awkward_tensors(make):
    """One row, one column, views with strides, nothing in it, all alike."""
    experts, base = experts_of({"row": (1, 7), "column": (7, 1), "dot": (1, 1)})
    for model in (*experts, base):
        wide = torch.randn(10, 8)
        model["turned"] = wide.T
        model["strided"] = wide[::2, ::2]
        model["expanded"] = torch.randn(1, 5).expand(4, 5)
        model["empty"] = torch.zeros(0, 4)
        model["still"] = torch.ones(5, 5)
        model["count"] = torch.tensor(3)
    merged = make()(experts, base)
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    assert torch.equal(merged["still"], torch.ones(5, 5))
    assert merged["count"].item() == 3
    assert merged["turned"].shape == (8, 10)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_number_of_workers_leaves_no_trace(make, dtype, tmp_path):
    shapes = {f"encoder.layers.{i}.fc1.weight": (70, 48) for i in range(4)}
    shapes |= {"w": (48, 130), "square": (64, 64), "embed": (7,)}
    experts, base = experts_of(shapes, dtype=dtype)
    paths = []
    for index, model in enumerate((*experts, base)):
        paths.append(tmp_path / f"{index}.safetensors")
        write_weights(paths[-1], model)
    expected = make()(experts, base)
    for workers in (1, 4):
        streamed = merge(
            make(), paths[:-1], paths[-1], workers=workers, progress=False
        )
        for name, tensor in expected.items():
            assert torch.equal(streamed[name], tensor), name


@every_method
def test_order_of_experts_leaves_little_trace(make):
    experts, base = experts_of({"w": (12, 9)}, dtype=torch.float64)
    one, other = make()(experts, base), make()(experts[::-1], base)
    torch.testing.assert_close(one["w"], other["w"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [TSVM, BoostedTSVM, IsoC, IsoCTS])
def test_turning_the_spaces_turns_the_merge(make):
    """f(QτR) = Q f(τ) R."""
    experts, base = experts_of({"w": (12, 9)}, dtype=torch.float64)
    turn_out = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    turn_in = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]

    def turned(model):
        return {"w": turn_out @ model["w"] @ turn_in}

    merged = make()([turned(expert) for expert in experts], turned(base))
    expected = turned(make()(experts, base))
    torch.testing.assert_close(merged["w"], expected["w"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [TSVM, IsoC, IsoCTS, BoostedTSVM])
def test_longer_task_vectors_give_a_longer_merge(make):
    experts, base = experts_of({"w": (12, 9)}, dtype=torch.float64)
    longer = [
        {"w": base["w"] + 7 * (expert["w"] - base["w"])} for expert in experts
    ]
    torch.testing.assert_close(
        make()(longer, base)["w"] - base["w"],
        7 * (make()(experts, base)["w"] - base["w"]),
        rtol=0,
        atol=1e-9,
    )
