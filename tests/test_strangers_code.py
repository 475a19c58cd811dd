"""Code and markup of strangers: what is opened, shown or compiled does nothing."""

import ast
import json
import os
from io import StringIO
from pathlib import Path

import pytest
import torch

from speechbrain_merge.cli import main
from speechbrain_merge.report import markdown_table
from speechbrain_merge.study.written_tables import latex_table
from speechbrain_merge.weights import write_weights

ROOT = Path(__file__).resolve().parents[1]


def calls():
    """Each place that has transformers choose a class by what a folder says."""
    for folder in ("speechbrain_merge", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                loads = name.endswith((".from_pretrained", ".from_config"))
                if loads and ("Auto" in name or "classes[" in name):
                    yield f"{path.name}: {ast.unparse(node)}", node


def test_no_model_brings_its_own_code():
    """transformers asks otherwise, waits 15 seconds, and runs it on a yes."""
    found = dict(calls())
    assert len(found) >= 10
    for where, node in found.items():
        trusted = {key.arg: key.value for key in node.keywords}
        assert "trust_remote_code" in trusted, where
        assert trusted["trust_remote_code"].value is False, where


def test_the_code_of_a_pretrained_folder_is_not_run(
    tmp_path, monkeypatch, capsys
):
    """`export ctc --ssl FOLDER` ran it where somebody typed y."""
    folder = tmp_path / "ssl"
    folder.mkdir()
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": auto})
    )
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PretrainedConfig\n"
        "class Config(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    weights = write_weights(
        tmp_path / "m.safetensors", {"w": torch.zeros(2, 2)}
    )
    labels = tmp_path / "vocab.json"
    labels.write_text(json.dumps({"<blank>": 0, "a": 1}))
    monkeypatch.setattr("sys.stdin", StringIO("y\n" * 9))
    line = ["export", "ctc", weights, "--ssl", folder, "--labels", labels]
    assert main([*map(str, line), "-o", str(tmp_path / "out")]) == 2
    assert "cannot be opened as a wav2vec 2.0" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pipe", "dangling link"])
def test_what_is_no_file_is_no_fragment(tmp_path, kind, capsys):
    """A pipe was read for ever, and a link to nowhere replaced."""
    path = tmp_path / "average.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    before = path.lstat()
    assert main(["fragments", "average", "-o", str(tmp_path)]) == 2
    assert "average.yaml" in capsys.readouterr().err
    assert path.lstat().st_mtime_ns == before.st_mtime_ns


TITLES = {
    r"\input{/etc/passwd}": (
        r"\textbackslash{}input\{/etc/passwd\}",
        r"\input{/etc/passwd}",
    ),
    "a^b~c": (r"a\textasciicircum{}b\textasciitilde{}c", "a^b~c"),
    "<script>x</script>": (
        "<script>x</script>",
        "&lt;script>x&lt;/script>",
    ),
    "[x](javascript:y)": ("[x](javascript:y)", "[x\\](javascript:y)"),
    "![x][y]": ("![x][y]", "![x\\][y]"),
    "a\\|b": (r"a\textbackslash{}|b", "a\\\\\\|b"),
    "`<b>` <b>": ("`<b>` <b>", "`<b>` &lt;b>"),
    "` <b>": ("` <b>", "` &lt;b>"),
    "**9.0**": (r"\textbf{9.0}", "**9.0**"),
    "-0.3 [-0.6, 0.1]": ("-0.3 [-0.6, 0.1]", "-0.3 [-0.6, 0.1]"),
}


@pytest.mark.parametrize("title", TITLES)
def test_titles_are_only_text(title):
    """In LaTeX they were commands, and in Markdown tags and links."""
    latex, markdown = TITLES[title]
    assert f"{latex} & 1" in latex_table(["model", "WER"], [[title, "1"]])
    table = markdown_table(["model", "WER"], [[title, "1"]])
    assert table.splitlines()[-1] == f"| {markdown} | 1 |"
