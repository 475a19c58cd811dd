"""Merging on a GPU gives what the CPU gives.

Without a GPU all methods merge on a device of the tests' own (`OtherDevice`),
which refuses what CUDA refuses; with one, on that as well.
"""

import logging
import time

import pytest
import torch
from methods.method_table import ROWS, Row
from methods.transport_models import build
from other_device import OtherDevice

import speechbrain_merge.methods as methods
from speechbrain_merge import MergeStage, merge, merge_adapters
from speechbrain_merge.adapters import CoreSpace
from speechbrain_merge.cli import main
from speechbrain_merge.methods import Average, MergeMethod, create, merge_method
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.methods.matrices import MatrixMethod
from speechbrain_merge.methods.transport import align, symmetry
from speechbrain_merge.weights import fold, open_weights, write_weights

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

SHAPES = {
    "encoder.layers.0.self_attn.q_proj.weight": (24, 24),
    "encoder.layers.0.self_attn.k_proj.weight": (24, 24),
    "encoder.layers.0.self_attn.v_proj.weight": (24, 24),
    "encoder.layers.0.self_attn.q_proj.bias": (24,),
    "encoder.layers.0.fc1.weight": (40, 24),
    "encoder.layers.0.fc2.weight": (24, 40),
    "encoder.layers.1.mha_layer.in_proj_weight": (72, 24),
    "encoder.layers.1.mha_layer.pos_bias_u": (6, 4),
    "encoder.layers.1.mha_layer.pos_bias_v": (6, 4),
    "encoder.conv.weight": (8, 3, 5),
    "encoder.norm.running_mean": (8,),
    # in two pieces
    "decoder.embed_tokens.weight": (1500, 24),
    "decoder.empty.weight": (0, 3),
    "decoder.scale": (),
}
HIDDEN = {
    "names": ["mine"],
    "tensors": {
        "fc1.weight": ["hidden", "fixed"],
        "fc1.bias": ["hidden"],
        "fc2.weight": ["fixed", "hidden"],
    },
}
CASES = [
    *ROWS,
    Row(
        "attention_merge",
        {"merge_bias": True, "heads": 0.5, "number_of_heads": 6},
        experts=1,
    ),
    Row(
        "attention_merge",
        {"noise": "target", "include": "encoder.layers.0"},
        experts=1,
    ),
    Row(
        "attention_merge", {"space": "task_vectors", "schedule": 0.2}, experts=2
    ),
    Row("learnable_attention_merge", {"ratio": 0.3}, experts=1),
]


def models(number, dtype=torch.float32, shapes=SHAPES):
    """A base, and experts that were fine-tuned from it."""
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return {
            name: torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        }

    base = drawn()
    states = [base]
    for _ in range(number):
        change = drawn()
        states.append({name: base[name] + 0.1 * change[name] for name in base})
    for state in states:
        for name in state:
            state[name] = state[name].to(dtype)
        state["encoder.norm.num_batches_tracked"] = torch.tensor(7)
    return states


def merged_on(device, row, states, workers=1, **options):
    base, *experts = states
    return merge(
        row.make(experts),
        experts,
        base,
        workers=workers,
        progress=False,
        device=device,
        **options,
    )


def check_same(found, expected, tolerance=1e-5):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].device.type == "cpu"
        torch.testing.assert_close(
            found[name], tensor, atol=tolerance, rtol=tolerance, msg=name
        )


def test_every_method_has_a_case():
    known = {
        entry.name
        for entry in vars(methods).values()
        if isinstance(entry, type) and issubclass(entry, MergeMethod)
    }
    # transport has a test of its own
    assert known - {"", "optimal_transport"} == {row.name for row in CASES}


@pytest.fixture
def apart(monkeypatch):
    """Each tensor is a task of its own, as large ones are."""
    monkeypatch.setattr("speechbrain_merge.engine.TASK", 1)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("row", CASES, ids=str)
def test_another_device_gives_what_the_cpu_gives(row):
    states = models(row.experts)
    expected = merged_on("cpu", row, states)
    with OtherDevice() as other:
        found = merged_on("cuda", row, states, workers=2)
    check_same(found, expected)
    # it computed there, exactly, and took away the result and hardly more
    assert other.computed.total() > 0
    assert not other.rough
    size = sum(tensor.numel() for tensor in expected.values())
    assert other.brought_back < 1.5 * size


@needs_gpu
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("row", CASES, ids=str)
def test_the_gpu_gives_what_the_cpu_gives(row):
    states = models(row.experts)
    expected = merged_on("cpu", row, states)
    check_same(merged_on("cuda", row, states, workers=2), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize("name", ["dare", "tsv_m", "model_stock"])
def test_types_are_those_of_the_cpu(name, dtype):
    row = Row(name)
    states = models(row.experts, dtype)
    expected = merged_on("cpu", row, states)
    with OtherDevice():
        found = merged_on("cuda", row, states)
    # of float16, one step where a value lies between two of them
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    check_same(found, expected, tolerance)
    assert all(found[name].dtype == expected[name].dtype for name in found)


def test_methods_inside_others_compute_there():
    """Experts are moved as they are read; what merges them is elsewhere."""
    shapes = {"fc1.weight": (16, 9), "fc1.bias": (16,), "fc2.weight": (7, 16)}
    row = Row(
        "optimal_transport", {"architecture": HIDDEN, "method": "karcher"}
    )
    base, *states = models(row.experts, shapes=shapes)
    for state in [base, *states]:
        del state["encoder.norm.num_batches_tracked"]
    expected = merged_on("cpu", row, [None, *states])
    with OtherDevice() as other:
        found = merged_on("cuda", row, [None, *states])
    check_same(found, expected)
    assert other.computed["matmul"] > 0 and not other.rough


ADAPTER = {"fc.adapter_down_proj": (3, 20), "fc.adapter_up_proj": (30, 3)}


def adapters():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            f"{name}.weight": torch.randn(shape, generator=generator)
            for name, shape in ADAPTER.items()
        }
        for _ in range(2)
    ]


def test_adapters_are_decomposed_there():
    base = {"fc.weight": torch.zeros(30, 20), "fc.bias": torch.zeros(30)}
    method = CoreSpace("tsv_m", rank=4, alpha=3.0)
    expected = merge(method, adapters(), base, progress=False)
    with OtherDevice() as other:
        found = merge(method, adapters(), base, progress=False, device="cuda")
    check_same(found, expected)
    # both of Core Space, and the nearest of rank 4
    assert other.computed["linalg_svd"] == 3 and not other.rough
    # what is decomposed for TSV-M
    assert other.computed["linalg_eigh"] > 0


@pytest.mark.parametrize("how, least", [("svd", 1), ("core", 3)])
def test_merged_adapters(how, least, tmp_path):
    files = []
    for device in ("cpu", "cuda"):
        with OtherDevice() as other:
            path = merge_adapters(
                "average",
                adapters(),
                tmp_path / f"{device}.safetensors",
                how=how,
                rank=2,
                alpha=3.0,
                format="speechbrain",
                progress=False,
                device=device,
            )
        files.append(path)
    assert other.computed["linalg_svd"] == least
    folded = []
    base = {"fc.weight": torch.zeros(30, 20)}
    for path in files:
        # vectors may have another sign, their products not
        with open_weights(path) as adapter, fold(adapter, base=base) as model:
            folded.append(dict(model))
    check_same(folded[1], folded[0])


@pytest.fixture(scope="module")
def conformers():
    """Two from different starts, in float32."""
    return [
        build("conformer-RelPosMHAXL-ctc", seed).float().state_dict()
        for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ({}, 0.0),
        # Sinkhorn divides the rounding of costs by its `reg`
        ({"hard": False, "residual": "mean"}, 1e-4),
    ],
    ids=str,
)
def test_distances_of_an_alignment(conformers, options, tolerance):
    expected = align(*conformers, **options)
    with OtherDevice() as other:
        found = align(*conformers, **options, device="cuda")
    check_same(found, expected, tolerance)
    assert other.computed["addmm"] > 0 and not other.rough


def test_distances_of_positions_inside_groups():
    """The convolution of positions of wav2vec 2.0 has such."""
    models = [build("wav2vec2", seed) for seed in (1, 2)]
    expected = align(*models, heads=3, sweeps=1)
    with OtherDevice() as other:
        found = align(*models, heads=3, sweeps=1, device="cuda")
    check_same(found, expected, 0.0)
    assert other.computed["gather"] > 0


def test_distances_between_activations(conformers, caplog):
    draw = torch.Generator().manual_seed(0)
    cost = {
        which: {"stream": torch.randn(24, 50, generator=draw)}
        for which in ("anchor", "source")
    }
    assert "stream" in symmetry(open_weights(conformers[0])).spaces
    expected = align(*conformers, cost=cost)
    with OtherDevice() as other:
        found = align(*conformers, cost=cost, device="cuda")
        check_same(found, expected, 0.0)
        computed = other.computed.total()
        assert computed > 0
    with OtherDevice(room=1000):
        found = align(*conformers, cost=cost, device="cuda")
    check_same(found, expected, 0.0)
    assert (
        "cuda has no room for activations of stream of shape (24, 50): "
        "'align' computes on the CPU there." in caplog.text
    )


class Watched(MatrixMethod):
    """The first task vector; notes by how many threads, and how many at once."""

    name = "watched"

    def __init__(self):
        super().__init__()
        self.notes = {"threads": set(), "now": 0, "most": 0}

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula."""
        notes = self.notes  # all copies of the method share them
        notes["threads"].add(threads)
        notes["now"] += 1
        notes["most"] = max(notes["most"], notes["now"])
        time.sleep(0.005)
        notes["now"] -= 1
        return vectors[0]


@pytest.mark.usefixtures("apart")
def test_one_computes_at_a_time(monkeypatch):
    """Others read meanwhile: threads of the CPU are no help to a GPU."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    base, *experts = models(2)
    for workers in (1, 4):
        method = Watched()
        with OtherDevice():
            merge(
                method,
                experts,
                base,
                workers=workers,
                progress=False,
                device="cuda",
            )
        assert method.notes == {"threads": {1}, "now": 0, "most": 1}


def test_a_solver_that_fails_there_gives_way_to_the_cpu(monkeypatch):
    row = Row("boosted", {"method": "task_arithmetic"})
    states = models(row.experts)
    expected = merged_on("cpu", row, states)

    def fails(*arguments, **options):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr("torch.linalg.eigh", fails)
    monkeypatch.setattr("torch.linalg.svd", fails)
    with OtherDevice():
        check_same(merged_on("cuda", row, states), expected)


def test_little_memory(caplog):
    """What does not fit is merged on the CPU, the rest is not."""
    row = Row("tsv_m", {"rank_fraction": 1})
    states = models(row.experts)
    expected = merged_on("cpu", row, states)
    # the matrices fit, but not the singular vectors of three side by side
    with OtherDevice(room=1000) as other:
        found = merged_on("cuda", row, states, workers=2)
    check_same(found, expected)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    assert f"cuda has no room for {name} of shape (24, 24)" in caplog.text
    assert torch.equal(found[name], expected[name])
    assert "encoder.conv.weight of shape" not in caplog.text
    assert other.computed["linalg_eigh"] > 0


def test_a_first_pass_by_the_formula_has_little_memory(caplog):
    row = Row("opcm")
    states = models(row.experts)
    expected = merged_on("cpu", row, states)
    with OtherDevice(room=1000):
        check_same(merged_on("cuda", row, states), expected)
    assert "decoder.embed_tokens.weight of shape (1500, 24)" in caplog.text


def test_functions_of_others(caplog):
    """They compute there, or say that they do not."""

    def formula(experts):
        total = sum(expert.numpy() for expert in experts)
        return torch.as_tensor(total)

    careless = merge_method("sum_by_numpy_unsaid")(formula)
    said = merge_method("sum_by_numpy", on_device=False)(formula)
    plain = merge_method("sum_by_torch")(lambda experts: sum(experts))
    experts = models(2)[1:]
    expected = merge(plain(), experts, progress=False)
    with OtherDevice() as other:
        found = merge(said(), experts, progress=False, device="cuda")
        assert not other.computed
        check_same(found, expected)
        again = merge(
            create("restricted", method=said(), include="encoder"),
            experts,
            progress=False,
            device="cuda",
        )
        assert not other.computed
        assert again.keys() == found.keys()
        check_same(
            merge(plain(), experts, progress=False, device="cuda"), expected
        )
        assert other.computed["add"] + other.computed["radd"] > 0
        with pytest.raises(RuntimeError, match="on_device = False") as error:
            merge(careless(), experts, progress=False, device="cuda")
    assert "to numpy" in str(error.value)
    assert caplog.text.count("'sum_by_numpy' computes on the CPU") == 1


@needs_gpu
def test_auto_takes_the_gpu():
    assert device_of("auto").type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for no CUDA device")
def test_without_a_gpu(tmp_path, capsys):
    """The automatic choice is the CPU, to the bit; to ask for one is an error."""
    paths = [
        write_weights(tmp_path / f"{number}.safetensors", model)
        for number, model in enumerate(models(3))
    ]
    outputs = []
    for device in ("cpu", "auto"):
        output = tmp_path / f"{device}.safetensors"
        line = ["merge", "average", *map(str, paths), "-o", str(output)]
        assert main([*line, "--quiet", "--device", device]) == 0
        with open_weights(output) as merged:
            outputs.append(dict(merged))
    for name, tensor in outputs[0].items():
        assert torch.equal(tensor, outputs[1][name])
    capsys.readouterr()
    for ask in (
        lambda: merge("average", models(3), device="cuda", progress=False),
        lambda: MergeStage("average", [], device="cuda:1"),
    ):
        with pytest.raises(ValueError, match="torch sees 0 CUDA devices"):
            ask()
    output = tmp_path / "none.safetensors"
    line = ["merge", "average", str(paths[0]), "-o", str(output)]
    assert main([*line, "--device", "cuda"]) == 2
    assert "use device='auto'" in capsys.readouterr().err
    assert not output.exists()


class WithoutRoom(Average):
    """An average on a device that has no memory left."""

    def merge_pieces(self, name, experts, base):
        if experts[0].device == self.device:
            raise torch.OutOfMemoryError("out of memory")
        return super().merge_pieces(name, experts, base)


def test_a_gpu_without_room(caplog):
    """Tensors are merged on the CPU, which is said of each."""
    with caplog.at_level(logging.WARNING):
        method = WithoutRoom().using(torch.device("meta"))
        merged = method(models(3))
    for name, tensor in Average()(models(3)).items():
        assert torch.equal(merged[name], tensor)
    assert "no room for encoder.conv.weight of shape (8, 3, 5)" in caplog.text
