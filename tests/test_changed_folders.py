"""A folder that this package wrote is used as it was written, or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import inference_yaml, tiny_whisper

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.export import (
    export_ctranslate2,
    export_ggml,
    export_pretrained,
    export_whisper,
)
from speechbrain_merge.records.ownership import MARK, ChangedFolder
from speechbrain_merge.weights import open_weights


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports of Whispers in shards."""
    folder = tmp_path_factory.mktemp("whispers")
    hub = tiny_whisper(folder / "hub", layers=1)
    whisper = Whisper(hub, hub)
    for name, shift in (("one", 0.1), ("other", 0.2)):
        experts = [
            {
                f"whisper.{key}": tensor * scale
                for key, tensor in whisper.state_dict().items()
            }
            for scale in (1, 1 + shift)
        ]
        path = merge("average", experts, output=folder / f"{name}.safetensors")
        export_whisper(path, whisper, folder / name, max_shard_size="100KB")
    return folder


@pytest.fixture
def mixed(exports, tmp_path):
    """A copy of one over the other, interrupted after the first shard."""
    folder = tmp_path / "mixed"
    shutil.copytree(exports / "other", folder)
    shard = sorted(folder.glob("model-*.safetensors"))[0].name
    shutil.copy(exports / "one" / shard, folder / shard)
    return folder, shard, exports / "other"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_mixture_of_two_exports_is_refused(mixed, tmp_path, capsys):
    """It went through every export, with the card and record of one."""
    folder, shard, other = mixed
    target = tmp_path / "target"
    for use in (
        lambda: export_ggml(folder, target),
        lambda: export_ctranslate2(folder, target),
        lambda: open_weights(folder),
        lambda: merge("average", [folder, other], progress=False),
    ):
        with pytest.raises(ChangedFolder) as error:
            use()
        for word in (shard, sha256(folder / shard), sha256(other / shard)):
            assert word in str(error.value)
    assert not target.exists()
    assert main(["inspect", "--verify", str(other)]) == 0
    assert "the merge" in capsys.readouterr().out
    assert main(["inspect", "--verify", str(folder)]) != 0
    told = capsys.readouterr()
    assert sha256(folder / shard) in told.out + told.err
    assert "changed" in told.out


def test_a_file_that_was_edited_has_a_way_out(exports, tmp_path):
    folder = tmp_path / "edited"
    shutil.copytree(exports / "one", folder)
    for name in ("README.md", "notes.txt"):
        with open(folder / name, "a") as file:
            file.write("heard on Monday")  # a person's
    export_ggml(folder, tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    open_weights(folder).close()  # its weights are those that were written
    with pytest.raises(ChangedFolder, match=f"config.json has .*remove {MARK}"):
        export_ggml(folder, tmp_path / "second")
    (folder / MARK).unlink()
    export_ggml(folder, tmp_path / "second")
    assert (tmp_path / "second" / "merge.json").is_file()


@pytest.mark.parametrize("name", ["tokenizer.json", "merge.json"])
def test_files_that_are_gone_or_of_another_are_refused(
    exports, tmp_path, name, capsys
):
    folder = tmp_path / "copied"
    shutil.copytree(exports / "one", folder)
    if name == "merge.json":
        shutil.copy(exports / "other" / name, folder / name)
    else:
        (folder / name).unlink()
    with pytest.raises(ChangedFolder, match=f"{name} (is missing|has the SHA)"):
        export_ggml(folder, tmp_path / "exported")
    assert main(["inspect", "--verify", str(folder)]) != 0
    assert name in capsys.readouterr().err


def test_a_pretrained_folder_with_another_models_file(tmp_path):
    weights = {f"{key}.weight": torch.ones(2, 3) for key in ("enc", "lm")}
    (tmp_path / "h.yaml").write_text(inference_yaml(weights))
    for number in range(2):
        state = {name: each * number for name, each in weights.items()}
        folder = tmp_path / str(number)
        export_pretrained(state, tmp_path / "h.yaml", folder)
    shutil.copy(tmp_path / "0" / "lm.ckpt", folder / "lm.ckpt")
    with pytest.raises(ChangedFolder, match="lm.ckpt has the SHA-256"):
        open_weights(folder)
    with pytest.raises(ChangedFolder, match="lm.ckpt has the SHA-256"):
        open_weights(folder, recoverable="lm")
    with open_weights(folder, recoverable="enc") as part:
        assert torch.equal(part["weight"], weights["enc.weight"])


def test_a_mark_of_a_stranger_names_no_file_elsewhere(exports, tmp_path):
    folder = tmp_path / "strange"
    shutil.copytree(exports / "one", folder)
    mark = json.loads((folder / MARK).read_text())
    mark["files"]["../secret"] = mark["files"]["config.json"]
    del mark["check"]
    (folder / MARK).write_text(json.dumps(mark))
    Path(tmp_path / "secret").write_text("private")
    with pytest.raises(ValueError, match="file inside .*'../secret'"):
        export_ggml(folder, tmp_path / "exported")


@pytest.mark.parametrize("name", ["tokenizer.json", "normalizer.json"])
@pytest.mark.parametrize("option", ["--whisper", "--labels", "--file"])
def test_a_changed_export_is_no_model_of_another(
    exports, tmp_path, capsys, name, option
):
    """Its tokens would have gone into the new export."""
    shutil.copytree(exports / "one", tmp_path / "last")
    path = tmp_path / "last" / name
    path.write_text(path.read_text() + " ")
    line = {
        "--whisper": ["whisper", "--whisper", tmp_path / "last"],
        "--labels": [
            *("ctc", "--ssl", exports / "one"),
            *("--labels", tmp_path / "last" / "config.json"),
        ],
        "--file": [
            *("pretrained", "--hparams", exports / "none.yaml"),
            *("--file", f"normalizer={path}"),
        ],
    }[option]
    source, output = exports / "one.safetensors", tmp_path / "new"
    line = ["export", line[0], source, *line[1:], "-o", output]
    assert main(list(map(str, line))) == 2
    error = capsys.readouterr().err.strip()
    assert f"{path} has the SHA-256" in error and "\n" not in error
    assert not output.exists()
