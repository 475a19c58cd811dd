"""What a second attack found at the command line, each as a test.

The others are in `tests/report/test_card.py`,
`tests/pool/test_foreign_files_in_pools.py` and
`tests/records/test_open_to_append.py`.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import re
import resource
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import save_file

from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.report import merge_card
from speechbrain_merge.weights import (
    open_weights,
    verify_own_hash,
    write_weights,
)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Three models that were trained, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        tensors = {"fc.weight": torch.full((2, 3), float(number))}
        write_weights(tmp_path / f"{name}.safetensors", tensors)
    return tmp_path


def test_a_trained_model_is_not_replaced_by_a_merge(models, capsys):
    trained = models / "c.safetensors"
    content = trained.read_bytes()
    line = ["merge", "average", "a.safetensors", "b.safetensors", "--quiet"]
    assert main([*line, "-o", "c.safetensors"]) == 2
    assert "weights that no merge made" in capsys.readouterr().err
    assert trained.read_bytes() == content
    # A merge is replaced by another
    assert main([*line, "-o", "m.safetensors"]) == 0
    line.insert(2, "c.safetensors")
    assert main([*line, "-o", "m.safetensors"]) == 0


@pytest.mark.parametrize("made", ["trained further", "by another program"])
def test_metadata_that_were_handed_on_make_no_merge(
    models, capsys, caplog, made
):
    """A model that was saved with those of a merge was replaced."""
    line = ["merge", "average", "a.safetensors", "b.safetensors", "--quiet"]
    assert main([*line, "-o", "m.safetensors"]) == 0
    with open_weights("m.safetensors") as weights:
        metadata = dict(weights.metadata)
        assert verify_own_hash(weights)
    if made == "by another program":
        metadata = {"merge": "made by another program"}
    own = models / "own.safetensors"
    save_file({"fc.weight": torch.full((2, 3), 42.0)}, own, metadata)
    content = own.read_bytes()
    status = main([*line, "-o", "own.safetensors"])
    if made == "by another program":
        assert status == 2 and own.read_bytes() == content
        assert "weights that no merge made" in capsys.readouterr().err
    else:  # it says that this very command made it, and was changed since
        kept = models / "own.damaged.safetensors"
        assert status == 0 and kept.read_bytes() == content
        assert f"is moved to {kept.name}" in caplog.text
    # another command does not take it for its own
    save_file({"fc.weight": torch.full((2, 3), 42.0)}, own, metadata)
    content = own.read_bytes()
    line.insert(2, "c.safetensors")
    assert main([*line, "-o", "own.safetensors"]) == 2
    assert own.read_bytes() == content


@pytest.mark.parametrize("role", ["expert", "base"])
def test_what_is_merged_is_not_replaced(models, role):
    merged = models / "m.safetensors"
    experts = [models / "a.safetensors", models / "b.safetensors"]
    merge("average", experts, output=merged, progress=False)
    content = merged.read_bytes()
    (models / "link").symlink_to(models)
    base = None
    if role == "expert":
        experts[0] = merged
    else:
        base = merged
    with pytest.raises(FileExistsError, match="is among the models"):
        merge(
            "average",
            experts,
            base,
            output=models / "link" / "m.safetensors",
            progress=False,
        )
    assert merged.read_bytes() == content


def test_a_full_disk_is_named(models, capsys):
    write_weights("big.safetensors", {"fc.weight": torch.zeros(300, 300)})
    (models / "h.yaml").write_text("pretrainer: {loadables: {fc: 1}}")
    line = "export pretrained big.safetensors --hparams h.yaml -o out"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        status = main(line.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 2
    assert "out/fc.ckpt could not be written" in capsys.readouterr().err
    assert not [each for each in models.iterdir() if "out" in each.name]


def test_two_outputs_of_a_plan_that_are_one_by_a_link(models, capsys):
    (models / "link").symlink_to(models)
    stages = {
        name: {"method": "average", "experts": [f"{name}.safetensors"] * 2}
        for name in "ab"
    }
    stages["a"]["output"] = "m.safetensors"
    stages["b"]["output"] = "link/m.safetensors"
    (models / "plan.yaml").write_text(json.dumps({"stages": stages}))
    assert main(["merge", "plan.yaml", "--quiet"]) == 2
    assert "have the same output" in capsys.readouterr().err


def _record(path, **more):
    record = {"method": "average", **more}
    metadata = {"format": "pt", "merge": json.dumps(record)}
    write_weights(path, {"fc.weight": torch.ones(2, 3)}, metadata)


def test_a_file_that_names_itself_many_times(models, capsys):
    """It was read and hashed as often: 25 s for 400 kB."""
    path = models / "bomb.safetensors"
    sources = [
        {"label": str(each), "path": path.name, "digest": f"{each:064x}"}
        for each in range(3000)
    ]
    _record(path, sources=sources)
    begun = time.process_time()
    assert main(["inspect", "--verify", str(path)]) == 2
    assert time.process_time() - begun < 10
    assert capsys.readouterr().out.count("changed") == 3000


CONTROL = "\x1b[2J\x9b31m\u202e\x7f"


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_no_control_characters_reach_the_terminal(models, capsys, options):
    path = models / "m.safetensors"
    source = {"label": f"x{CONTROL}\nm.safetensors: as signed", "path": "no"}
    _record(path, sources=[source], parameters={CONTROL: CONTROL})
    assert main(["inspect", *options, str(path)]) == 0
    assert main(["inspect", f"no{CONTROL}"]) == 2
    shown = "".join(capsys.readouterr())
    assert not set(CONTROL) - set("[2J31m") & set(shown)
    assert "\nm.safetensors: as signed" not in shown


def test_a_strangers_text_in_a_card_is_only_text():
    text = "x\n# Title\n\n<img src=//evil>[a](//evil)`<b>`\x1b"
    card = merge_card(
        {
            "method": text,
            "sources": [{"label": text, "path": text, "digest": text}],
            "chain": [
                {
                    "digest": "0" * 64,
                    "method": text,
                    "sources": [{"path": text}],
                }
            ],
            "parameters": {text: text},
            "versions": {text: text[:90]},
            "created": "\n# Title",
        }
    )
    assert "\n# Title" not in card
    assert "\x1b" not in card
    # The front matter is YAML in quotes, the rest Markdown
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"][-1] == text
    # Outside of code, what would be HTML, an image or a link is escaped
    words = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert not set("<[`") & set(words)


@pytest.mark.parametrize(
    "command",
    [
        "merge average m.safetensors a.safetensors --quiet -o n.safetensors",
        "compare m.safetensors a.safetensors",
        "inspect --verify m.safetensors",
        "export pretrained m.safetensors --hparams h.yaml -o out",
    ],
)
def test_a_bit_of_a_merged_file(models, capsys, command):
    """It has a hash of its own, as that of a plan or a stage."""
    line = "merge average a.safetensors b.safetensors --quiet -o m.safetensors"
    assert main(line.split()) == 0
    (models / "h.yaml").write_text("pretrainer: {loadables: {fc: 1}}")
    content = bytearray((models / "m.safetensors").read_bytes())
    content[-1] ^= 1
    (models / "m.safetensors").write_bytes(content)
    assert main(command.split()) == 2
    assert "is on record" in capsys.readouterr().err
    assert not (models / "n.safetensors").exists()
    assert not (models / "out").exists()


def test_a_link_to_a_merged_file_stays(models, capsys):
    """It was replaced by a file, and what it led to was the old merge."""
    line = "merge average a.safetensors b.safetensors --quiet -o".split()
    (models / "disk").mkdir()
    assert main([*line, "disk/m.safetensors"]) == 0
    before = (models / "disk" / "m.safetensors").read_bytes()
    (models / "best.safetensors").symlink_to("disk/m.safetensors")
    line.insert(2, "c.safetensors")
    assert main([*line, "best.safetensors"]) == 2
    assert "is a link to disk/m.safetensors. Nothing" in capsys.readouterr().err
    assert (models / "best.safetensors").is_symlink()
    assert (models / "disk" / "m.safetensors").read_bytes() == before
