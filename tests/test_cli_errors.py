"""Whatever is wrong, the command says so in one line and ends with 2."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_wav2vec2

from speechbrain_merge.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two models, and things that are none."""
    monkeypatch.chdir(tmp_path)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    for letter in "ab":
        save_file({name: torch.randn(4, 4)}, f"{letter}.safetensors")
    (tmp_path / "index").mkdir()
    files = {
        "index/model.safetensors.index.json": "{}",
        "number.yaml": "stages: {m.safetensors: {method: average, experts: 3}}",
        "attention.yaml": "stages:\n  m.safetensors:\n"
        "    method: attention_merge\n    parameters: {include: 3}\n"
        "    experts: [a.safetensors, b.safetensors]\n",
        "torn.yaml": "stages: [",
        "words.yaml": "stages: {m.safetensors: {method: ties, base: "
        "a.safetensors, experts: [b.safetensors], parameters: {1: 2}}}",
        "empty.yaml": "",
        "empty.safetensors": "",
        "merges.jsonl": '{"name": 3}\n',
    }
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    save_file(
        {"w": torch.ones(2)}, "record.safetensors", {"merge": "[" * 10_000}
    )
    return tmp_path


@pytest.mark.parametrize(
    "line, words",
    [
        (
            "merge restricted a.safetensors b.safetensors -o m.safetensors",
            "meth",
        ),
        ("inspect index", "index.json: expected 'weight_map'"),
        ("merge number.yaml", "`experts` are a list"),
        ("merge attention.yaml", "`include` must be a pattern"),
        ("merge torn.yaml", "torn.yaml"),
        ("merge words.yaml", "`parameters` are names and values"),
        ("merge empty.yaml", "empty.yaml"),
        ("inspect .", "merges.jsonl, line 1"),
        ("inspect empty.safetensors", "empty.safetensors is empty"),
        ("inspect record.safetensors", "record.safetensors is not JSON"),
        ("inspect --verify index", "index is no pool"),
        (
            "export pretrained a.safetensors --hparams torn.yaml -o o",
            "torn.yaml",
        ),
        ("export whisper a.safetensors --whisper nowhere -o o", "--whisper no"),
        (
            "export whisper a.safetensors --whisper wav2vec2 -o o",
            "--whisper wav",
        ),
        (
            "export whisper a.safetensors --whisper index -o o",
            "--whisper index",
        ),
    ],
)
def test_errors_are_one_line(folder, capsys, line, words):
    tiny_wav2vec2(folder / "wav2vec2")
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    lines = [
        each
        for each in error.splitlines()
        if each.startswith("speechbrain-merge ")
    ]
    assert len(lines) == 1 and words in lines[0], error
    assert "Traceback" not in error
    assert (
        not (folder / "o").exists() and not (folder / "m.safetensors").exists()
    )


@pytest.mark.parametrize("place", ["scale", "experts", "base"])
def test_a_plan_that_stands_for_too_much_is_refused_at_once(
    folder, capsys, place
):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, now in zip("abcdefghi", "bcdefghij")
    )
    keys = {"experts": "[a.safetensors]", "base": "b.safetensors"}
    if place == "scale":
        keys["parameters"] = "{scale: *j}"
    else:
        keys[place] = "*j"
    stage = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    plan = folder / "bomb.yaml"
    for text in (
        f"{bomb}stages:\n  m.safetensors:\n    method: ties\n{stage}",
        "stages: " + "[" * 5000,
        "stages: &a {b: *a}",
    ):
        plan.write_text(text)
        begun = time.process_time()
        assert main(["merge", str(plan)]) == 2
        assert time.process_time() - begun < 10
        assert "bomb.yaml" in capsys.readouterr().err


def test_where_an_error_comes_from_can_be_seen(folder):
    with pytest.raises(ValueError, match="index.json"):
        main(["--traceback", "inspect", "index"])


def test_a_damaged_index_names_what_is_wrong(folder, capsys):
    path = folder / "index" / "model.safetensors.index.json"
    for content, words in (
        ({"weight_map": 3}, "key 'weight_map': expected a mapping"),
        ({"weight_map": {"w": 3}}, "key 'w': expected the plain name"),
        ({"weight_map": {"w": "../a.safetensors"}}, "got '../a.safetensors'"),
        ({"weight_map": {"w": str(folder / "a.safetensors")}}, "plain name"),
        ({"weight_map": {"w": "gone.safetensors"}}, "gone.safetensors"),
    ):
        path.write_text(json.dumps(content))
        assert main(["inspect", "index"]) == 2
        assert words in capsys.readouterr().err
