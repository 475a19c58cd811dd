"""What a fourth attack found, each as a test.

Authors
 * The speechbrain_merge authors 2026
"""

import json

import pytest
import torch
from sandbox import run_in_sandbox

from speechbrain_merge.adapters import merge_adapters
from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.weights import digest, fold, open_weights, write_weights
from speechbrain_merge.weights.adapter_scales import ADAPTER_KEY

# --- adapters ----------------------------------------------------------------

BASE = {"fc.weight": torch.zeros(4, 3)}


def peft_folder(folder, **config):
    """An adapter of rank 2, as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    write_weights(
        folder / "adapter_model.safetensors",
        {
            "base_model.model.fc.lora_A.weight": torch.ones(2, 3),
            "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
        },
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "config", [{"r": 8}, {"r": 8, "rank_pattern": {"other": 2}}]
)
def test_factors_of_another_rank_are_not_scaled_by_their_own(tmp_path, config):
    """The alpha on record was chosen for the rank on record."""
    folder = peft_folder(tmp_path / "a", **config)
    with pytest.raises(ValueError, match="rank 8 on record"):
        fold(folder, base=BASE)
    with pytest.raises(ValueError, match="rank 8 on record"):
        merge_adapters("average", [folder, folder], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_rank_of_a_pattern_counts(tmp_path):
    folder = peft_folder(tmp_path / "a", r=8, rank_pattern={"fc": 2})
    folded = fold(folder, base=BASE)["fc.weight"]
    assert torch.equal(folded, torch.full((4, 3), 4.0))


def test_an_adapter_of_speechbrain_with_another_rank_on_record(tmp_path):
    names = "adapted_model.fc.adapter_{}_proj.weight"
    arguments = {
        "target_layers": ["fc"],
        "adapter_kwargs": {"rank": 16, "alpha": 16.0},
    }
    path = write_weights(
        tmp_path / "a.safetensors",
        {names.format("down"): torch.ones(2, 3)}
        | {names.format("up"): torch.ones(4, 2)},
        {ADAPTER_KEY: json.dumps(arguments)},
    )
    with pytest.raises(ValueError, match="rank 16 on record"):
        fold(path, base=BASE)


@pytest.mark.parametrize(
    "key, value",
    [
        ("bias", ["all"]),
        ("bias", "some"),
        ("base_model_name_or_path", {"a": 1}),
        ("modules_to_save", 7),
        ("modules_to_save", [[1]]),
        ("task_type", 7),
        ("auto_mapping", [1]),
        # in PEFT, too, "false" would be true
        ("use_rslora", "false"),
        ("fan_in_fan_out", "false"),
        ("r", "2"),
        ("rank_pattern", {"fc": 0}),
    ],
)
def test_entries_of_an_adapters_configuration_are_checked(tmp_path, key, value):
    folder = peft_folder(tmp_path / "a", **{key: value})
    other = peft_folder(tmp_path / "b")
    with pytest.raises(ValueError, match=f"adapter_config.json, key '{key}'"):
        merge_adapters("average", [folder, other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_alpha_that_is_not_the_adapters_own_is_refused(tmp_path):
    """It had silently replaced alpha, rank stabilisation and transposition."""
    folder = peft_folder(tmp_path / "a", use_rslora=True)
    with pytest.raises(ValueError, match="multiplied by 2.82843 as it was"):
        fold(folder, base=BASE, alpha=4.0)
    with pytest.raises(ValueError, match="multiplied by 2.82843 as it was"):
        merge_adapters("average", [folder], tmp_path / "m", alpha=4.0)
    own = fold(folder, base=BASE, alpha=4.0, rank_stabilised=True)
    assert torch.equal(own["fc.weight"], fold(folder, base=BASE)["fc.weight"])


# --- statistics --------------------------------------------------------------


@pytest.fixture
def experts(tmp_path):
    """Two experts in files, and the statistics of each."""
    for number in range(2):
        path = tmp_path / f"expert-{number}.safetensors"
        write_weights(path, {"fc.weight": torch.eye(3) * (number + 1)})
        about = {"statistics": "fisher", "weights": digest(path)}
        write_weights(
            tmp_path / f"fisher-{number}.safetensors",
            {"fc.weight": torch.full((3, 3), number + 1.0)},
            {"statistics": json.dumps(about)},
        )
    return tmp_path


def both(folder, name):
    """The files of both experts."""
    return [folder / f"{name}-{number}.safetensors" for number in range(2)]


@pytest.mark.parametrize("method", ["regmean", "optimal_transport"])
def test_statistics_of_another_kind_are_refused(experts, method):
    options = {"cost": "activations"} if method == "optimal_transport" else {}
    method = create(method, statistics=both(experts, "fisher"), **options)
    with pytest.raises(ValueError, match="kind 'fisher', and merge method"):
        merge(method, both(experts, "expert"), progress=False)


def test_statistics_of_another_expert_are_refused(experts):
    files = both(experts, "fisher")
    right = create("fisher", statistics=files)
    merged = merge(right, both(experts, "expert"), progress=False)
    assert merged["fc.weight"][0, 0] == pytest.approx(5 / 3)
    wrong = create("fisher", statistics=files[::-1])
    with pytest.raises(ValueError, match="in the order of the experts"):
        merge(wrong, both(experts, "expert"), progress=False)


def test_statistics_of_other_weights_are_warned_of(experts, caplog):
    write_weights(
        experts / "expert-1.safetensors", {"fc.weight": torch.zeros(3, 3)}
    )
    method = create("fisher", statistics=both(experts, "fisher"))
    with caplog.at_level("WARNING"):
        merge(method, both(experts, "expert"), progress=False)
    assert "expert-1.safetensors, for which they were given" in caplog.text
