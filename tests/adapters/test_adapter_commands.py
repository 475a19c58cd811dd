"""Adapters from a shell: merged as adapters, and extracted of full models."""

import copy
import json

import pytest
import torch

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import extract_lora, merge_adapters
from speechbrain_merge.cli import main
from speechbrain_merge.methods import create
from speechbrain_merge.weights import fold, open_weights

peft = pytest.importorskip("peft")


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """Two adapters, a base and an expert in the folder of the commands."""
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        options = {"rank": 2, "alpha": 4.0}
        adapted = AdaptedModel(
            net(), LoRA, all_linear=True, adapter_kwargs=options
        )
        torch.manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        adapted.saver(f"{seed}.ckpt")
    torch.save(net().state_dict(), "base.ckpt")
    expert = copy.deepcopy(net())
    torch.nn.init.normal_(expert[0].weight)
    torch.save(expert.state_dict(), "expert.ckpt")
    return ["1.ckpt", "2.ckpt"]


def assert_same(path, other):
    with fold(path, base=net()) as one, fold(other, base=net()) as two:
        for name in one:
            assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize(
    "method, how, more",
    [
        ("ties", "core", ["--rank", "3", "--parameters", "{scale: 0.5}"]),
        ("average", "svd", ["--rank", "3"]),
        ("task_arithmetic", "concatenate", []),
    ],
)
def test_the_command_does_what_the_function_does(models, method, how, more):
    given = ["merge", method, *models, "--adapter", how, "--alpha", "4", *more]
    assert main([*given, "--format", "peft", "-o", "merged"]) == 0
    assert main([*given, "-o", "merged.safetensors"]) == 0
    made = merge_adapters(
        create(method, **({"scale": 0.5} if method == "ties" else {})),
        models,
        "again",
        how=how,
        rank=3 if more else None,
        alpha=4.0,
        format="peft",
        progress=False,
    )
    assert_same("merged", made)
    inputs = torch.randn(5, 6)
    loaded = peft.PeftModel.from_pretrained(net(), "merged")
    plain = net()
    with fold("merged.safetensors", base=net()) as weights:
        plain.load_state_dict(dict(weights))
    # float32, and not the same order of sums
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(loaded(inputs), plain(inputs), **close)


def test_what_the_rank_leaves_out_is_said(models, capsys):
    given = ["merge", "average", *models, "--adapter", "svd", "--rank", "1"]
    given += ["--alpha", "4", "--format", "peft", "-o", "out"]
    assert main(given) == 0
    assert "% left out by the rank" in capsys.readouterr().out
    assert main([*given[:-1], "other", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["state"] == "merged" and 0 < stage["left_out"] < 1


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_an_adapter_is_extracted(output, capsys):
    given = ["extract", "expert.ckpt", "--base", "base.ckpt", "--rank", "2"]
    assert main([*given, "-o", output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    form = "speechbrain" if output.endswith("safetensors") else "peft"
    assert found["format"] == form and 0 < found["left_out"] < 1
    made = extract_lora(
        "expert.ckpt", "base.ckpt", "again", rank=2, progress=False
    )
    assert_same(output, made)
    assert main([*given, "-o", output]) == 0
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--adapter", "core", "--dtype", "float16"], "--dtype"),
        (["--adapter", "core", "--include", "encoder"], "--include"),
        (["--adapter", "svd"], "needs the `rank`"),
        (["--rank", "2"], "--rank goes with adapters"),
        (["--adapter", "concatenate"], "alpha"),
    ],
)
def test_what_does_not_go_together(models, more, message, capsys, tmp_path):
    output = tmp_path / "out.safetensors"
    assert main(["merge", "average", *models, *more, "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_method_that_does_not_add_up_needs_core_space(models, capsys):
    given = ["merge", "ties", *models, "--adapter", "concatenate"]
    assert main([*given, "--alpha", "4", "-o", "out"]) == 2
    assert "how='core'" in capsys.readouterr().err


def test_weights_of_adapters_are_read_as_such(models):
    """One adapter alone is itself, to the bit."""
    given = ["merge", "average", models[0], "--adapter", "concatenate"]
    assert main([*given, "--alpha", "4", "-o", "one.safetensors"]) == 0
    with (
        open_weights(models[0]) as one,
        open_weights("one.safetensors") as other,
    ):
        for name in one:
            assert torch.equal(one[name], other[name])
