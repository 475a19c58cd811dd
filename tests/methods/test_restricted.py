"""Any method on parts of a model."""

import pytest
import torch
from tiny_models import tiny_conformer

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import (
    TIES,
    Average,
    LayerScaled,
    Restricted,
    TaskArithmetic,
    create,
)

ENCODER = "encoder.layers.{}.fc1.weight"
DECODER = "decoder.layers.0.fc1.weight"
NAMES = [ENCODER.format(0), ENCODER.format(1), DECODER]


def models(number=2):
    """A base and experts with an encoder and a decoder."""
    generator = torch.Generator().manual_seed(0)
    made = [
        {name: torch.randn(40, generator=generator) for name in NAMES}
        for _ in range(number + 1)
    ]
    return made[0], made[1:]


@pytest.mark.parametrize("otherwise", ["average", "base", "first"])
def test_what_is_not_chosen_is_plain(otherwise):
    base, experts = models()
    method = Restricted(TaskArithmetic(0.3), "encoder", otherwise=otherwise)
    merged = method(experts, base)
    chosen = TaskArithmetic(0.3)(experts, base)
    plain = {
        "average": Average()(experts)[DECODER],
        "base": base[DECODER],
        "first": experts[0][DECODER],
    }[otherwise]
    assert torch.equal(merged[NAMES[0]], chosen[NAMES[0]])
    assert torch.equal(merged[NAMES[1]], chosen[NAMES[1]])
    assert torch.equal(merged[DECODER], plain)
    untouched = [base, *experts]
    assert all(
        merged[DECODER].data_ptr() != one[DECODER].data_ptr()
        for one in untouched
    )


def test_include_exclude_and_lists():
    method = Restricted("average", ["encoder", "decoder"], ["*.1.*", "re:^z"])
    assert [method.chooses(name) for name in NAMES] == [True, False, True]
    method = Restricted("average", exclude="encoder.layers.0")
    assert [method.chooses(name) for name in NAMES] == [False, True, True]


def test_a_whole_model_threshold_sees_the_chosen_part_only():
    base, experts = models()
    merged = Restricted(TIES(), include="encoder")(experts, base)
    part = [{name: one[name] for name in NAMES[:2]} for one in [base, *experts]]
    alone = TIES()(part[1:], part[0])
    assert all(torch.equal(merged[name], alone[name]) for name in alone)


def test_depth_is_that_of_the_whole_model():
    """The first of two layers is the first also where only it is chosen."""
    base, experts = models()
    inner = TaskArithmetic({"depth": [0.0, 1.0]})
    for method in (inner, LayerScaled(TaskArithmetic(), 0, 1)):
        whole = method(experts, base)
        part = Restricted(method, include="encoder.layers.1")(experts, base)
        assert torch.equal(part[NAMES[1]], whole[NAMES[1]])


def test_restrictions_nest():
    base, experts = models()
    inner = Restricted(TaskArithmetic(), "encoder.layers.0", otherwise="first")
    method = Restricted(inner, include="encoder", otherwise="base")
    merged = method(experts, base)
    chosen = TaskArithmetic()(experts, base)
    assert torch.equal(merged[NAMES[0]], chosen[NAMES[0]])
    assert torch.equal(merged[NAMES[1]], experts[0][NAMES[1]])
    assert torch.equal(merged[DECODER], base[DECODER])


def test_a_wrapper_in_a_wrapper_says_how_it_was_made():
    method = create(
        "restricted",
        method=create("layer_scaled", method="ties", first=0.25, last=1),
        include="encoder",
    )
    inner = method.configuration()["method"]
    assert inner["method"] == "layer_scaled"
    assert inner["parameters"]["first"] == 0.25
    assert inner["parameters"]["method"]["method"] == "ties"
    again = create("restricted", **method.configuration())
    assert again.configuration() == method.configuration()
    assert isinstance(again.method.method, type(create("ties")))
    # in a plan, the parameters may stand beside the name
    beside = {"method": "ties", "density": 0.4}
    again = create("restricted", method=beside, include="encoder")
    assert again.method.density == 0.4


def test_attention_of_a_real_model():
    base = tiny_conformer(seed=0).state_dict()
    experts = [tiny_conformer(seed=seed).state_dict() for seed in (1, 2)]
    method = Restricted(TaskArithmetic(), "attention", otherwise="base")
    merged = method(experts, base)
    moved = {
        name
        for name, tensor in base.items()
        if tensor.is_floating_point()
        and "running_" not in name
        and not torch.equal(merged[name], tensor)
    }
    assert moved
    assert all("mha" in name or "attn" in name for name in moved)


def tied_models(names):
    """A base of zeros and experts of 1 and 2, with one tensor of two names."""
    made = []
    for value in (0.0, 1.0, 2.0):
        shared = torch.full((2, 2), value)
        made.append(dict.fromkeys(names, shared))
        made[-1]["encoder.layers.0.fc1.weight"] = shared.clone()
    return made[0], made[1:]


EMBEDDING, OUTPUT = "decoder.embed_tokens.weight", "proj_out.weight"


@pytest.mark.parametrize("names", [(EMBEDDING, OUTPUT), (OUTPUT, EMBEDDING)])
@pytest.mark.parametrize(
    "patterns, expected",
    [
        ({"include": "output"}, 3.0),
        ({"include": "embedding"}, 3.0),
        ({"include": ["encoder", "output"]}, 3.0),
        ({"include": "encoder"}, 0.0),
        ({"exclude": "output"}, 0.0),
        ({"exclude": "embedding"}, 0.0),
        ({"exclude": "encoder"}, 3.0),
        ({"include": "embedding", "exclude": "output"}, 0.0),
    ],
)
def test_a_tied_tensor_goes_by_each_of_its_names(
    names, patterns, expected, tmp_path
):
    base, experts = tied_models(names)
    if patterns == {"include": "embedding", "exclude": "output"}:
        # something is left to choose
        patterns = {**patterns, "include": ["embedding", "encoder"]}
    method = Restricted(TaskArithmetic(), **patterns, otherwise="base")
    merged = method(experts, base)
    for name in names:
        assert merged[name].unique().tolist() == [expected], name
    assert merged[names[0]].data_ptr() == merged[names[1]].data_ptr()
    paths = []
    for index, model in enumerate([*experts, base]):
        paths.append(tmp_path / f"{index}.ckpt")
        torch.save(model, paths[-1])
    streamed = merge(method, paths[:2], paths[2], progress=False)
    assert all(torch.equal(streamed[name], merged[name]) for name in merged)


def test_names_that_only_one_expert_ties_are_two_tensors():
    base, experts = tied_models((EMBEDDING, OUTPUT))
    experts[1][OUTPUT] = experts[1][OUTPUT].clone()
    base[OUTPUT] = base[OUTPUT].clone()
    method = Restricted(TaskArithmetic(), include="output", otherwise="base")
    merged = method(experts, base)
    assert merged[OUTPUT].unique().tolist() == [3.0]
    assert merged[EMBEDDING].unique().tolist() == [0.0]


def test_a_base_is_needed_when_the_method_or_the_rest_needs_it():
    base, experts = models()
    merged = Restricted("average", "encoder", otherwise="first")(experts)
    assert torch.equal(merged[DECODER], experts[0][DECODER])
    for method in (
        Restricted("average", "encoder", otherwise="base"),
        Restricted("ties", "encoder"),
    ):
        with pytest.raises(ValueError, match="give `base`"):
            method(experts)


def test_choosing_nothing_is_refused():
    base, experts = models()
    with pytest.raises(ValueError, match="No tensor matches"):
        Restricted("average", include="encoder.layers.7")(experts)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({}, "give patterns to `include`, `exclude`"),
        ({"include": []}, "`include` must be a pattern or a list"),
        ({"exclude": [3]}, "`exclude` must be a pattern or a list"),
        ({"include": "encodr"}, "encodr"),
        ({"include": "encoder", "otherwise": "zero"}, "'first'; got 'zero'"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        Restricted("average", **parameters)
