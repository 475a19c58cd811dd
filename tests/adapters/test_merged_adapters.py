"""Adapters of SpeechBrain and PEFT merge into one adapter."""

import itertools
import json

import pytest
import torch

from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA
from speechbrain_merge import merge_adapters, provenance
from speechbrain_merge.lineage import check_lineage
from speechbrain_merge.methods import TaskArithmetic, create
from speechbrain_merge.methods.low_rank import core_space, thin_svd
from speechbrain_merge.weights import fold, open_weights
from speechbrain_merge.weights.adapter_scales import adapter_arguments

peft = pytest.importorskip("peft")


class Net(torch.nn.Module):
    """A layer of every kind that can be adapted."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)
        self.fc = torch.nn.Linear(6, 8)
        self.conv = torch.nn.Conv1d(8, 4, 3, stride=2, padding=1)
        self.image = torch.nn.Conv2d(1, 2, (3, 1), padding=(1, 0))
        self.head = torch.nn.Linear(4, 5)

    def forward(self, tokens):
        """Token numbers (batch, time) to (batch, 2, time / 2, 5)."""
        hidden = self.fc(self.table(tokens)).relu().transpose(1, 2)
        hidden = self.conv(hidden).relu().transpose(1, 2)
        return self.head(self.image(hidden[:, None]))


TOKENS = torch.arange(22).reshape(2, 11) % 11
LAYERS = ["table", "fc", "conv", "image"]
WEIGHTS = [0.5, -0.75, 2.0]


def net():
    """The same base every time."""
    torch.manual_seed(0)
    return Net().eval()


def base_state():
    return {name: t.clone() for name, t in net().state_dict().items()}


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / 2)
    return module


def peft_folder(path, seed, **settings):
    settings = {"r": 2, "lora_alpha": 3, "target_modules": LAYERS, **settings}
    model = peft.get_peft_model(net(), peft.LoraConfig(**settings)).eval()
    randomise(model, seed).save_pretrained(path)
    return path


def speechbrain_module(seed, rank=2, alpha=3.0, **settings):
    settings = {"target_layers": ["fc", "conv"], **settings}
    model = AdaptedModel(
        net(), LoRA, adapter_kwargs={"rank": rank, "alpha": alpha}, **settings
    )
    return randomise(model, seed).eval()


def task_vectors(folders, **settings):
    base = base_state()
    vectors = []
    for folder in folders:
        with fold(folder, base=base, **settings) as plain:
            vectors.append(
                {name: plain[name].double() - base[name] for name in base}
            )
    return vectors


def weighted(vectors, weights):
    base = base_state()
    return {
        name: base[name].double()
        + sum(w * vector[name] for w, vector in zip(weights, vectors))
        for name in base
    }


def assert_near(one, other, atol=2e-5):
    assert set(one) == set(other)
    for name in other:
        torch.testing.assert_close(
            one[name].double(), other[name].double(), rtol=1e-5, atol=atol
        )


def loaded(folder):
    """As PEFT loads it."""
    return peft.PeftModel.from_pretrained(net(), folder).eval()


def delta(model, layer, adapter):
    return dict(model.named_modules())[layer].get_delta_weight(adapter)


def merge(method, adapters, output, **settings):
    return merge_adapters(method, adapters, output, progress=False, **settings)


KINDS = {
    "plain": [{}, {"r": 3}, {"r": 4, "lora_alpha": 5}],
    "rank-stabilised": [{"use_rslora": True}, {"use_rslora": True, "r": 4}, {}],
    "patterns": [
        {"rank_pattern": {"fc": 4}, "alpha_pattern": {"conv": 7}},
        {"alpha_pattern": {"fc": 1, "conv": 2}, "use_rslora": True},
        {"target_modules": ["fc", "conv"]},
    ],
    "biases": [
        {"target_modules": ["fc", "conv"], "lora_bias": True, "r": 3},
        {"target_modules": ["fc"], "lora_bias": True, "use_rslora": True},
        {"target_modules": ["conv"]},
    ],
    "trained in full": [
        {"modules_to_save": ["head"]},
        {"modules_to_save": ["head"], "bias": "all"},
        {"bias": "lora_only"},
    ],
}
ALL = pytest.mark.parametrize("kind", KINDS)


def folders_of(kind, tmp_path):
    return [
        peft_folder(tmp_path / f"{kind}-{seed}", seed, **settings)
        for seed, settings in enumerate(KINDS[kind])
    ]


@ALL
@pytest.mark.parametrize("how", ["concatenate", "svd", "core"])
def test_the_merge_is_the_weighted_sum_of_the_folded(kind, how, tmp_path):
    """By hand on the folded weights, in our reading and in PEFT's."""
    folders = folders_of(kind, tmp_path)
    expected = weighted(task_vectors(folders), WEIGHTS)
    out = merge(
        TaskArithmetic(scale=WEIGHTS),
        folders,
        tmp_path / "merged",
        how=how,
        base=base_state(),
        rank=99 if how == "svd" else None,
    )
    with fold(out, base=base_state()) as plain:
        assert_near(dict(plain), expected)
    whole = net()
    whole.load_state_dict({n: t.float() for n, t in expected.items()})
    model = loaded(out)
    torch.testing.assert_close(
        model(TOKENS), whole(TOKENS), rtol=1e-4, atol=1e-4
    )
    record = provenance(out / "adapter_model.safetensors")
    assert record["method"] == "task_arithmetic"
    assert record["parameters"]["how"] == how
    assert record["parameters"]["scale"] == WEIGHTS
    assert [row.state for row in check_lineage(out)[1:4]] == ["as recorded"] * 3


@ALL
def test_one_adapter_of_weight_one_is_itself(kind, tmp_path):
    """To the bit, in its factors and in what PEFT computes."""
    for folder in folders_of(kind, tmp_path):
        out = merge("average", [folder], tmp_path / f"{folder.name}-one")
        before, after = open_weights(folder), open_weights(out)
        # where PEFT stores biases of trained modules three times, we do once
        twice = {n for n in before if ".modules_to_save." in n}
        twice |= {n for n in before if ".original_module." in n}
        assert set(before) - twice <= set(after)
        for name in set(before) - twice:
            assert torch.equal(after[name], before[name]), name
        for name in set(after) - set(before):
            assert name.endswith("lora_B.bias") and not after[name].any()
        one, other = loaded(folder)(TOKENS), loaded(out)(TOKENS)
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["svd", "core"])
@ALL
def test_equal_adapters_are_one(kind, how, tmp_path):
    """Of a rank that is no more than that of one."""
    for folder in folders_of(kind, tmp_path):
        out = merge("average", [folder] * 3, tmp_path / "same", how=how, rank=4)
        torch.testing.assert_close(
            loaded(out)(TOKENS), loaded(folder)(TOKENS), rtol=1e-4, atol=1e-4
        )
        parameters = provenance(out / "adapter_model.safetensors")["parameters"]
        assert parameters["error"] < 1e-7


def test_order_does_not_matter(tmp_path):
    folders = folders_of("patterns", tmp_path)
    for how, method in itertools.product(
        ("concatenate", "svd", "core"), ("average", "ties")
    ):
        if how != "core" and method == "ties":
            continue
        made = [
            dict(
                fold(
                    merge(
                        method,
                        order,
                        tmp_path / "order",
                        how=how,
                        rank=3 if how == "svd" else None,
                    ),
                    base=base_state(),
                )
            )
            for order in (folders, folders[::-1])
        ]
        assert_near(*made)


def test_by_hand():
    """Two adapters of rank 1 at right angles, worked out on paper."""
    down = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    up = [torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0], [4.0]])]
    both = torch.cat(up, 1), torch.cat(down)
    near = thin_svd(*both, rank=1)
    torch.testing.assert_close(
        near.up @ near.down, torch.tensor([[0.0, 0.0], [0.0, 4.0]]).double()
    )
    assert (near.error, near.norm) == (pytest.approx(3), pytest.approx(5))
    space = core_space(up, down)
    for b, a, core in zip(up, down, space.cores):
        assert core.abs().sum() == b.sum()  # one entry, at its own place
        torch.testing.assert_close(
            space.left @ core @ space.right, (b @ a).double()
        )


def test_a_lower_rank_is_the_best_there_is(tmp_path):
    """Eckart and Young: against the singular values of the full matrix."""
    folders = folders_of("plain", tmp_path)
    vectors = weighted(task_vectors(folders), WEIGHTS)
    base = base_state()
    out = merge(
        TaskArithmetic(scale=WEIGHTS),
        folders,
        tmp_path / "rank-2",
        how="svd",
        rank=2,
    )
    lost = total = 0.0
    with fold(out, base=base) as plain:
        for layer in LAYERS:
            name = f"{layer}.weight"
            full = (vectors[name] - base[name]).flatten(1)
            values = torch.linalg.svdvals(full)
            error = (plain[name].double() - vectors[name]).norm()
            assert error == pytest.approx(values[2:].norm().item(), abs=1e-5)
            lost += values[2:].square().sum().item()
            total += values.square().sum().item()
    parameters = provenance(out / "adapter_model.safetensors")["parameters"]
    assert parameters["error"] == pytest.approx((lost / total) ** 0.5, rel=1e-5)
    assert parameters["error"] > 0.05


@pytest.mark.parametrize(
    "name, settings",
    [
        ("ties", {"density": 0.5}),
        ("tsv_m", {}),
        ("iso_c", {}),
        ("dare", {"drop_rate": 0.5}),
        ("extreme", {"reference": "base"}),
        ("karcher", {}),
    ],
)
def test_core_space_takes_the_methods_of_the_registry(name, settings, tmp_path):
    """The formula of the paper, with the method on the small matrices."""
    folders = [
        peft_folder(tmp_path / str(seed), seed, target_modules=["fc"], r=rank)
        for seed, rank in enumerate((1, 2, 3))
    ]
    out = merge(create(name, **settings), folders, tmp_path / "out", how="core")
    ups, downs = [], []
    for folder, rank in zip(folders, (1, 2, 3)):
        weights = open_weights(folder)
        ups.append(
            weights["base_model.model.fc.lora_B.weight"].double() * 3 / rank
        )
        downs.append(weights["base_model.model.fc.lora_A.weight"].double())
    left = torch.linalg.svd(torch.cat(ups, 1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat(downs), full_matrices=False)[2]
    cores = [
        {"fc.weight": left.T @ b @ a @ right.T} for b, a in zip(ups, downs)
    ]
    method = create(name, **settings)
    zero = {"fc.weight": torch.zeros_like(cores[0]["fc.weight"])}
    merged = method(cores, zero)["fc.weight"]
    with fold(out, base=base_state()) as plain:
        found = plain["fc.weight"].double() - base_state()["fc.weight"]
    torch.testing.assert_close(
        found, left @ merged @ right, rtol=1e-4, atol=1e-5
    )


# --- PEFT's own -------------------------------------------------------------


def with_adapters(folders):
    model = peft.PeftModel.from_pretrained(net(), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    return model.eval()


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_as_peft_does_where_peft_is_right(how, tmp_path):
    folders = [
        peft_folder(tmp_path / str(seed), seed, r=rank, target_modules=layers)
        for seed, (rank, layers) in enumerate(
            [(2, LAYERS[:3]), (3, LAYERS[:3])]
        )
    ]
    if how == "svd":  # PEFT's svd does not do convolutions of one dimension
        folders = [
            peft_folder(
                tmp_path / f"fc-{seed}", seed, target_modules=["fc", "image"]
            )
            for seed in range(2)
        ]
    model = with_adapters(folders)
    model.add_weighted_adapter(
        ["0", "1"],
        WEIGHTS[:2],
        "merged",
        combination_type=how,
        svd_rank=2 if how == "svd" else None,
    )
    ours = merge(
        TaskArithmetic(scale=WEIGHTS[:2]),
        folders,
        tmp_path / "merged",
        how="svd" if how == "svd" else "concatenate",
        rank=2 if how == "svd" else None,
    )
    model.load_adapter(ours, adapter_name="ours")
    layers = [
        name
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    ]
    assert layers
    for layer in layers:
        torch.testing.assert_close(
            delta(model, layer, "ours"),
            delta(model, layer, "merged"),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("setting", ["lora_bias", "use_rslora"])
def test_right_where_peft_is_not(setting, tmp_path):
    """Its issue 3761: one adapter of weight 1 is not itself."""
    folder = peft_folder(
        tmp_path / "one", 1, target_modules=["fc"], **{setting: True}
    )
    model = with_adapters([folder])
    expected = model(TOKENS)
    model.add_weighted_adapter(["0"], [1.0], "theirs", combination_type="cat")
    ours = merge("average", [folder], tmp_path / "ours")
    model.load_adapter(ours, adapter_name="ours")
    model.set_adapter("ours")
    assert torch.equal(model(TOKENS), expected)
    model.set_adapter("theirs")
    if peft.__version__ == "0.21.2":  # a later one may have cured it
        assert (model(TOKENS) - expected).abs().max() > 0.01


# --- SpeechBrain ------------------------------------------------------------


def adapted(path):
    """An AdaptedModel as the merged file says."""
    model = AdaptedModel(net(), LoRA, **adapter_arguments(path))
    missing, unexpected = model.load_state_dict(
        dict(open_weights(path)), strict=False
    )
    assert not unexpected and not any("adapter_" in name for name in missing)
    return model.eval()


@pytest.mark.parametrize("how", ["concatenate", "svd", "core"])
def test_speechbrain_in_and_out(how, tmp_path):
    """Modules, the files that they save, and other layers in each."""
    modules = [
        speechbrain_module(1, rank=2, unfrozen_layers=["head"]),
        speechbrain_module(2, rank=3, alpha=1.0, unfrozen_layers=["head"]),
        speechbrain_module(3, target_layers=["fc"], unfrozen_layers=["head"]),
    ]
    expected = weighted(task_vectors(modules), WEIGHTS)
    files = []
    for number, module in enumerate(modules):
        files.append(tmp_path / f"{number}.ckpt")
        module.saver(files[-1])
    for sources, alpha in ((modules, None), (files, [3.0, 1.0, 3.0])):
        out = merge(
            TaskArithmetic(scale=WEIGHTS),
            sources,
            tmp_path / "merged.safetensors",
            how=how,
            rank=99 if how == "svd" else None,
            base=base_state(),
            alpha=alpha,
        )
        with fold(out, base=base_state()) as plain:
            assert_near(dict(plain), expected)
        whole = net()
        whole.load_state_dict({n: t.float() for n, t in expected.items()})
        torch.testing.assert_close(
            adapted(out)(TOKENS), whole(TOKENS), rtol=1e-4, atol=1e-4
        )
        # what was merged can be merged again
        again = merge("average", [out], tmp_path / "again.safetensors")
        for name, tensor in open_weights(out).items():
            assert torch.equal(open_weights(again)[name], tensor), name


def test_one_speechbrain_adapter_is_itself(tmp_path):
    module = speechbrain_module(1, rank=3, alpha=2.0)
    out = merge("average", [module], tmp_path / "one.safetensors")
    assert adapter_arguments(out)["adapter_kwargs"] == {"rank": 3, "alpha": 2.0}
    assert torch.equal(adapted(out)(TOKENS), module(TOKENS))


def test_from_one_to_the_other(tmp_path):
    module = speechbrain_module(1)
    folder = peft_folder(tmp_path / "peft", 2, target_modules=["fc", "conv"])
    expected = weighted(task_vectors([module, folder]), [0.5, 0.5])
    with pytest.raises(ValueError, match="say by format="):
        merge("average", [module, folder], tmp_path / "none")
    for form, name in (("peft", "out"), ("speechbrain", "out.safetensors")):
        out = merge("average", [module, folder], tmp_path / name, format=form)
        with fold(out, base=base_state()) as plain:
            assert_near(dict(plain), expected)
        model = loaded(out) if form == "peft" else adapted(out)
        whole = net()
        whole.load_state_dict({n: t.float() for n, t in expected.items()})
        torch.testing.assert_close(
            model(TOKENS), whole(TOKENS), rtol=1e-4, atol=1e-4
        )


# --- refused ----------------------------------------------------------------


def test_what_cannot_be_exact_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    dora = peft_folder(
        tmp_path / "dora", 1, use_dora=True, target_modules=["fc"]
    )
    with pytest.raises(ValueError, match="lora_magnitude_vector.*merge_and_un"):
        merge("average", [dora], out)
    plain = peft_folder(tmp_path / "plain", 1)
    config = plain / "adapter_config.json"
    content = json.loads(config.read_text())
    for key, value, match in (
        ("init_lora_weights", "pissa", "initialised by 'pissa'"),
        ("layer_replication", [[0, 1]], "'layer_replication'"),
        ("peft_type", "ADALORA", "not plain LoRA"),
    ):
        config.write_text(json.dumps({**content, key: value}))
        with pytest.raises(ValueError, match=match):
            merge("average", [plain], out)
    config.write_text(json.dumps(content))
    houlsby = AdaptedModel(
        net(),
        HoulsbyAdapterLinear,
        all_linear=True,
        adapter_kwargs={"projection_size": 2},
    )
    with pytest.raises(ValueError, match="Houlsby"):
        merge("average", [houlsby.state_dict()], out, alpha=1.0)
    with pytest.raises(ValueError, match="no LoRA factors"):
        merge("average", [net().state_dict()], out)
    with pytest.raises(ValueError, match="but not their alpha"):
        state = speechbrain_module(1).state_dict()
        merge("average", [state], out)
    assert not out.exists()


def test_ways_and_methods_that_do_not_go_together(tmp_path):
    out = tmp_path / "out"
    plain = peft_folder(tmp_path / "plain", 1)
    for method, settings, match in (
        ("ties", {}, "'ties' does not: give 'task_arithmetic'"),
        ("average", {"how": "svd"}, "needs the `rank`"),
        ("average", {"rank": 2}, "sum of their ranks"),
        ("average", {"how": "best"}, "`how`"),
        ("average", {"alpha": [1.0, 2.0]}, "2 `alpha`"),
        ("fisher", {"how": "core"}, "statistics of whole models"),
        ("optimal_transport", {"how": "core"}, "whole models"),
        ("average", {"format": "speechbrain"}, "is an embedding"),
    ):
        with pytest.raises(ValueError, match=match):
            merge(method, [plain], out, **settings)
    other = peft_folder(
        tmp_path / "other",
        2,
        target_modules=["fc"],
        modules_to_save=["head"],
    )
    with pytest.raises(ValueError, match="has no 'head.bias'.* `base`"):
        merge("average", [plain, other], out)
    with pytest.raises(ValueError, match="give the `base`, or 'average'"):
        merge("task_arithmetic", [other, other], out)
    bias = peft_folder(
        tmp_path / "bias", 3, target_modules=["fc"], lora_bias=True
    )
    with pytest.raises(ValueError, match="'table' is an embedding.*lora_bias"):
        merge("average", [plain, bias], out)
    with pytest.raises(ValueError, match="'fc' has a bias.*format='peft'"):
        merge("average", [bias], out, format="speechbrain")
    state = dict(open_weights(plain))
    state["base_model.model.fc.lora_B.weight"] = torch.full((8, 2), torch.nan)
    with pytest.raises(ValueError, match="'fc' has a NaN"):
        merge("average", [state], out, alpha=1.0)
    assert not out.exists()


def test_other_bases_and_shapes(tmp_path):
    folders = [peft_folder(tmp_path / str(seed), seed) for seed in range(2)]
    for folder in folders:
        config = folder / "adapter_config.json"
        content = json.loads(config.read_text())
        content["base_model_name_or_path"] = f"whisper-{folder.name}"
        config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'whisper-0' and 'whisper-1'"):
        merge("average", folders, tmp_path / "out")
    assert merge("average", folders, tmp_path / "out", same_base=False).is_dir()
    state = dict(open_weights(folders[0]))
    state["base_model.model.fc.lora_A.weight"] = torch.ones(2, 7)
    with pytest.raises(ValueError, match="'fc' maps .*different models"):
        merge("average", [folders[1], state], tmp_path / "no", alpha=[3.0, 3.0])
