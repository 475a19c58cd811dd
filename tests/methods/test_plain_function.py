"""A plain function is a merge method, by whatever door it is reached."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin
from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.methods import (
    Restricted,
    available,
    create,
    merge_method,
    register,
    registry,
)
from speechbrain_merge.study.plan import plan_models
from speechbrain_merge.weights import open_weights, write_weights

ROOT = Path(__file__).parents[2]


@merge_method("middle")
def middle(experts):
    "The median of the experts, entry by entry."
    return torch.stack(experts).median(dim=0).values


@merge_method("middle_change")
def middle_change(experts, base, scale=1.0, *, spare="bias", name=None):
    """The base and the median of the task vectors; no change in some."""
    if name.endswith(spare):
        return base
    return base + scale * (middle.formula(experts) - base)


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe, with merging."""


def models(dtype=torch.float32):
    """A base and three experts, with integers and tied weights."""
    made = []
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        made.append(
            {
                "layer.weight": torch.randn(5, 3, generator=draw).to(dtype),
                "layer.bias": torch.randn(5, generator=draw).to(dtype),
                "steps": torch.tensor(seed),
            }
        )
        made[-1]["tied.weight"] = made[-1]["layer.weight"]
    return made[0], made[1:]


def test_in_memory():
    base, experts = models()
    before = [{k: t.clone() for k, t in model.items()} for model in experts]
    merged = middle()(experts)
    stacked = torch.stack([expert["layer.bias"] for expert in experts])
    assert torch.equal(merged["layer.bias"], stacked.sort(dim=0).values[1])
    assert merged["steps"] == 1  # no formula sees an integer
    assert merged["tied.weight"] is merged["layer.weight"]
    changed = create("middle_change", scale=0.5)(experts, base)
    assert torch.equal(changed["layer.bias"], base["layer.bias"])
    value = merged["layer.weight"]
    torch.testing.assert_close(
        changed["layer.weight"], (base["layer.weight"] + value) / 2
    )
    for model, kept in zip(experts, before):
        assert all(torch.equal(model[name], kept[name]) for name in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_and_memory_agree_to_the_bit(tmp_path, dtype):
    base, experts = models(dtype)
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path, model in zip(paths, [base, *experts]):
        write_weights(path, model)
    method = middle_change(0.3)
    output = tmp_path / "merged.safetensors"
    merge(method, paths[1:], paths[0], output, workers=2, progress=False)
    in_memory = method(experts, base)
    with open_weights(output) as streamed:
        assert streamed.tied == {"tied.weight": "layer.weight"}
        for name, tensor in in_memory.items():
            assert streamed[name].dtype == tensor.dtype
            assert torch.equal(streamed[name], tensor), name
    said = provenance(output)
    assert said["method"] == "middle_change"
    assert said["parameters"] == {"scale": 0.3, "spare": "bias"}
    again = create(said["method"], **said["parameters"])
    assert torch.equal(
        again(experts, base)["layer.weight"], in_memory["layer.weight"]
    )


def test_it_is_a_method_like_the_others():
    base, experts = models()
    assert "middle" in available()
    assert repr(middle()) == "middle()"
    assert inspect.getdoc(middle).startswith("The median of")
    assert repr(middle_change(2.0)) == "middle_change(scale=2.0, spare='bias')"
    inside = Restricted("middle", include="*.bias", otherwise="first")
    assert torch.equal(
        inside(experts)["layer.weight"], experts[0]["layer.weight"]
    )
    copied = pickle.loads(pickle.dumps(middle_change(scale=2.0)))
    assert copied.configuration() == {"scale": 2.0, "spare": "bias"}
    from_yaml = load_hyperpyyaml(
        "method: !new:speechbrain_merge.methods.Restricted\n"
        "    method: {method: middle_change, scale: 0.5}\n"
        "    include: '*.weight'\n"
    )["method"]
    assert from_yaml.method.scale == 0.5 and from_yaml.needs_base


def test_a_stage_in_yaml_names_it(tmp_path):
    """With a Brain that trained, by the words ``method: middle``."""
    torch.manual_seed(0)
    model = tiny_network(0)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path / "run",
        model,
        MergingCTC,
        epochs=3,
        recoverables={"pool": pool},
        output_folder=str(tmp_path / "run"),
    )
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=1),
        tiny_ctc_data(10, seed=50),
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs={"batch_size": 2},
    )
    stage = load_hyperpyyaml(
        "merge_stage: !new:speechbrain_merge.MergeStage\n"
        "    method: middle\n"
        f"    candidates: {tmp_path / 'pool'}\n"
    )["merge_stage"]
    result = brain.merge(stage)
    assert provenance(result.path)["method"] == "middle"
    expected = middle()([candidate.path for candidate in pool.candidates()])
    with open_weights(result.path) as weights:
        for name in weights.names():
            assert torch.equal(weights[name], expected[name]), name


def test_a_package_brings_it_by_its_entry_point(tmp_path):
    """Found by its name on the command line, with nobody importing it."""
    package = tmp_path / "their_merges.py"
    package.write_text(
        "from speechbrain_merge.methods import merge_method\n"
        "@merge_method('smallest')\n"
        "def smallest(experts, above=0.0):\n"
        "    return min(experts, key=lambda one: one.norm()).clamp(min=above)\n"
    )
    info = tmp_path / "their_merges-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: their-merges\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[speechbrain_merge.methods]\nsmallest = their_merges\n"
    )
    for name, value in (("one", -1.0), ("two", 2.0)):
        write_weights(
            tmp_path / f"{name}.safetensors", {"w": torch.tensor([value, 1])}
        )
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1));"
        "from speechbrain_merge.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, str(tmp_path), "merge", "smallest"),
            *("one.safetensors", "two.safetensors"),
            *("--parameters", "{above: 0}", "-o", "merged.safetensors"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with open_weights(tmp_path / "merged.safetensors") as merged:
        assert merged["w"].tolist() == [0.0, 1.0]


def test_a_study_names_it():
    models = {
        "{domain}": {"train": "{domain}"},
        "middle": {"merge": "middle", "of": "{each}"},
        "changed": {"merge": {"middle_change": {"scale": 2}}, "of": "{each}"},
    }
    plan = plan_models(models, ["a", "b", "c"], ["expert"])
    by_name = {node.name: node for node in plan}
    assert isinstance(by_name["middle"].method, middle)
    assert by_name["changed"].method.scale == 2


def test_the_page_of_the_docs(monkeypatch):
    # its methods are there for this test only
    monkeypatch.setattr(registry, "_METHODS", {})
    text = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = {}
    for block in blocks:
        if "@" in block:  # those that define a method
            exec(block, shown)
    base = {"w": torch.zeros(2)}
    experts = [{"w": torch.full((2,), value)} for value in (1.0, 2.0, 5.0)]
    for name, value in (("median_change", 1.0), ("heaviest", 2.5)):
        merged = create(name, scale=0.5)(experts, base)
        assert merged["w"].tolist() == [value, value]
    assert "Heaviest" in shown and "median" in shown


def no_experts(weights):
    return weights[0]


def any_number(*experts):
    return experts[0]


def open_ended(experts, **more):
    return experts[0]


def with_workers(experts, workers=2):
    return experts[0]


@pytest.mark.parametrize(
    "function, message",
    [
        (no_experts, "no argument `experts`"),
        (any_number, r"`\*experts` cannot be a parameter"),
        (open_ended, r"`\*\*more` cannot be a parameter"),
        (with_workers, "`workers` has the name of something"),
    ],
)
def test_a_function_that_is_no_formula(function, message):
    with pytest.raises(ValueError, match=message):
        merge_method("no_formula")(function)
    assert "no_formula" not in available()


def test_two_packages_cannot_have_one_name():
    """Even where both call the function the same; one may be read again."""
    elsewhere = {"__name__": "their_package", "merge_method": merge_method}
    source = "@merge_method('middle')\ndef middle(experts): return experts[0]"
    with pytest.raises(ValueError, match="'middle' is already registered by"):
        exec(source, elsewhere)
    again = merge_method("middle")(middle.formula)
    assert isinstance(create("middle"), again)
    register("middle")(middle)  # as it was, for the other tests


def test_wrong_use():
    base, experts = models()
    with pytest.raises(ValueError, match="give `base`"):
        middle_change()(experts)
    with pytest.raises(ValueError, match="it takes: scale, spare"):
        create("middle_change", scales=1)
    for taken in ("average", "middle"):
        with pytest.raises(ValueError, match="already registered by"):

            @merge_method(taken)
            def mine(experts):
                return experts[0]

    @merge_method("wrong_shape")
    def wrong_shape(experts):
        return experts[0].sum()

    assert inspect.getdoc(wrong_shape).endswith("wrong_shape.")
    with pytest.raises(ValueError, match="'wrong_shape' made .* out of layer"):
        wrong_shape()(experts)
