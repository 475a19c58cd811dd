"""Whatever is wrong, the command says so in one line and ends with 2."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_wav2vec2

from speechbrain_merge.cli import main
from speechbrain_merge.command.plan import Plan


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
        "cut.txt": "'a' => 0\n================\n",  # a label encoder
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


def tree(folder):
    """All that is in a folder, with its content."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "line, words",
    [
        ("merge nothing a.safetensors -o m.safetensors", "no merge method"),
        ("merge average gone.pt -o m.safetensors", "gone.pt"),
        ("compare a.safetensors gone.pt -o before", "gone.pt"),
        ("compare a.safetensors torn.yaml", "torn.yaml"),
        ("export ctc a.safetensors -o o", "needs --ssl"),
        ("export ctc gone.pt --ssl index --labels l -o o", "gone.pt"),
        (
            "export ctc a.safetensors --ssl index --labels torn.yaml -o o",
            "torn.yaml holds no labels",
        ),
        (
            "export ctc a.safetensors --ssl index --labels cut.txt -o o",
            "cut.txt cannot be read as the labels",
        ),
        ("export whisper a.safetensors --whisper w --head h -o o", "no --head"),
        (
            "export whisper a.safetensors --whisper w --dtype int3 -o o",
            "int3",
        ),
        (
            "export whisper a.safetensors --whisper w --max-shard-size 2 -o o",
            "--max-shard-size 2: expected",
        ),
        (
            "export recipe a.safetensors --hparams torn.yaml --interface "
            "EncoderASR --encoder a --tokenizer empty.yaml -o o",
            "torn.yaml cannot be read",
        ),
        (
            "export recipe a.safetensors --hparams number.yaml --interface "
            "EncoderASR --encoder a --tokenizer gone -o o",
            "--tokenizer gone",
        ),
        (
            "export recipe a.safetensors --hparams number.yaml --interface "
            "WhisperASR --encoder a --tokenizer empty.yaml -o o",
            "interface is 'WhisperASR'",
        ),
        (
            "export recipe a.safetensors --hparams number.yaml --interface "
            "EncoderASR --encoder a --tokenizer empty.yaml --file x -o o",
            "--file x: expected KEY=PATH",
        ),
        ("export ctranslate2 index -o o", "index"),
        ("export ggml index --dtype float16 -o o", "takes no --dtype"),
        ("verify a.safetensors", "key"),
        ("again a.safetensors -o m.safetensors", "no record of a merge"),
        ("again a.safetensors -o b.safetensors", "is there already"),
        ("again gone -o m.safetensors", "gone"),
        (
            "evaluate gone.py number.yaml --weights a.safetensors",
            "gone.py is not there",
        ),
        ("study index", "no folder of a study"),
        ("study gone --page", "gone is no folder"),
        ("methods nothing", "nothing"),
        ("fragments nothing -o o", "nothing"),
    ],
)
def test_wrong_input_changes_nothing(folder, capsys, line, words):
    before = tree(folder)
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    lines = [
        each
        for each in printed.err.splitlines()
        if each.startswith("speechbrain-merge ")
    ]
    assert len(lines) == 1 and words in lines[0], printed.err
    assert "--traceback" not in lines[0]
    assert printed.out == "" and tree(folder) == before


def test_completion_takes_no_words(folder, capsys):
    before = tree(folder)
    with pytest.raises(SystemExit) as stop:
        main(["completion", "zsh"])
    assert stop.value.code == 2
    assert capsys.readouterr().out == "" and tree(folder) == before


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


@pytest.mark.parametrize(
    "stage, words",
    [
        ({"output": ["a", "b"]}, "`output` is a file or folder"),
        ({"experts": ["a.pt"] * 2000}, "2000 experts are listed"),
        ({"parameters": {"name": "x"}}, "has no parameter 'name'"),
    ],
)
def test_a_plan_says_what_is_wrong_in_a_stage(stage, words):
    whole = {"method": "average", "experts": ["a.pt"], "output": "m"}
    with pytest.raises(ValueError, match=words):
        Plan({"mean": {**whole, **stage}})
