"""The chain of hashes: a merge of merges knows what it goes back to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_whisper

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import lineage, merge, provenance
from speechbrain_merge.cli import main
from speechbrain_merge.export import export_whisper
from speechbrain_merge.lineage import check_lineage
from speechbrain_merge.report import merge_card
from speechbrain_merge.source_hashes import NO_HASH
from speechbrain_merge.weights import digest, tree_hash, write_weights
from speechbrain_merge.weights.metadata_check import with_metadata_check


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Models that are no merges, where commands run."""
    monkeypatch.chdir(tmp_path)
    for value, name in enumerate(("base", "a", "b", "c"), start=1):
        weights = {"layer.weight": torch.full((2, 2), float(value))}
        write_weights(f"{name}.safetensors", weights)
    return tmp_path


def average(output, *names, **options):
    """A merge of files, all by name."""
    return merge(
        options.pop("method", "average"),
        [Path(f"{name}.safetensors") for name in names],
        output=f"{output}.safetensors",
        progress=False,
        **options,
    )


def hash_of(name):
    """As a later merge records it."""
    return tree_hash(f"{name}.safetensors")


def changed(path, change):
    """Changes the record in a merged file, and nothing else, as a forger."""
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    record = json.loads(notes["merge"])
    change(record)
    notes = with_metadata_check({**notes, "merge": json.dumps(record)})
    save_file(load_file(path), path, notes)


def states(path):
    """Label of each row to its state, with its depth."""
    return [
        (row.depth, Path(row.label).stem, row.state)
        for row in check_lineage(path)
    ]


def test_the_chain_reaches_the_originals(folder):
    average("first", "a", "b")
    average("second", "first", "c", base="base.safetensors", method="ties")
    average("third", "second", "first", "c")
    record = provenance("third.safetensors")
    chain = {each["digest"]: each for each in record["chain"]}
    assert list(chain) == [hash_of("second"), hash_of("first")]
    assert "chain_complete" not in record
    for name in ("first", "second"):
        own = provenance(f"{name}.safetensors")
        own.pop("chain", None)
        assert chain[hash_of(name)] == {"digest": hash_of(name), **own}
    # by hashes alone, without any of the files
    found, waiting = set(), [record]
    while waiting:
        each = waiting.pop()
        models = each["sources"] + ([each["base"]] if each["base"] else [])
        for model in models:
            if model["digest"] in chain:
                waiting.append(chain[model["digest"]])
            else:
                found.add(model["digest"])
    assert found == {hash_of(name) for name in ("a", "b", "c", "base")}
    assert states("third.safetensors") == [
        (0, "third", "the merge"),
        (1, "second", "as recorded"),
        (2, "first", "as recorded"),
        (3, "a", "as recorded"),
        (3, "b", "as recorded"),
        (2, "c", "as recorded"),
        (2, "base", "as recorded"),
        (1, "first", "seen above"),
        (1, "c", "as recorded"),
    ]


def test_a_base_that_is_a_merge(folder):
    average("first", "a", "b")
    average("second", "c", base="first.safetensors", method="task_arithmetic")
    (entry,) = provenance("second.safetensors")["chain"]
    assert entry["digest"] == hash_of("first")
    assert [each["label"] for each in entry["sources"]]


def test_what_merges_no_merges_has_no_chain(folder):
    average("first", "a", "b")
    assert "chain" not in provenance("first.safetensors")


def test_a_stage_that_a_plan_does_not_keep(folder, capsys):
    """Its file is gone, and its record is not."""
    Path("plan.yaml").write_text(
        "stages:\n"
        "  hidden: {method: average, experts: [a.safetensors, b.safetensors]}\n"
        "  last: {method: average, experts: [hidden, c.safetensors], "
        "output: last.safetensors}\n"
    )
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    assert main(["inspect", "--verify", "last.safetensors"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ours = [row for row in rows if row and row[0] == "hidden"]
    assert ours[0][1] == "average" and ours[0][3:] == ["not", "here"]
    assert sum(row[-2:] == ["as", "recorded"] for row in rows) == 3


def test_the_hash_of_a_base_is_that_of_its_file(folder):
    """Also where the base goes by other names, and is read under the experts'."""
    for name in ("a", "b"):
        expert = {"model.layer.weight": torch.rand(2, 2)}
        write_weights(f"{name}.safetensors", expert)
    write_weights("hub.safetensors", {"layer.weight": torch.rand(2, 2)})
    line = "merge task_arithmetic a.safetensors b.safetensors --quiet"
    line += " --base hub.safetensors -o m.safetensors"
    assert main(line.split()) == 0
    assert provenance("m.safetensors")["base"] == {
        "path": "hub.safetensors",
        "digest": hash_of("hub"),
    }
    assert main("inspect --verify m.safetensors".split()) == 0


def test_changed_files(folder, capsys):
    average("first", "a", "b")
    average("second", "first", "c")
    write_weights("a.safetensors", {"layer.weight": torch.zeros(2, 2)})
    Path("b.safetensors").unlink()
    assert main(["inspect", "--verify", "second.safetensors"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "a.safetensors: its content" in error
    assert [state for _, _, state in states("second.safetensors")] == [
        "the merge",
        "as recorded",
        "changed",
        "not here",
        "as recorded",
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda record: record["chain"][0].update(method="ties"), "otherwise"),
        (
            lambda record: record["chain"][0]["sources"].pop(),
            "made otherwise than the chain has it",
        ),
        (lambda record: record.pop("chain"), "record is missing in the chain"),
        (
            lambda record: record["sources"][0].update(digest=NO_HASH),
            "its content has the hash",
        ),
        (
            lambda record: record["chain"].append(
                {**record["chain"][0], "digest": record["sources"][1]["digest"]}
            ),
            "c.safetensors is on record as a merge",
        ),
        (lambda record: record["chain"][0].update(digest="x"), "a hash of"),
        (lambda record: record.update(chain=3), "expected a list"),
        (lambda record: record.pop("method"), "'method' is missing"),
    ],
)
def test_a_changed_record(folder, capsys, change, words):
    average("first", "a", "b")
    average("second", "first", "c")
    changed("second.safetensors", change)
    assert main(["inspect", "--verify", "second.safetensors"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error, error


def test_a_chain_that_leads_to_itself_ends(folder):
    """And one that leads in circles is not followed for ever."""
    average("first", "a", "b")
    average("second", "first", "c")

    def circle(record):
        (entry,) = record["chain"]
        entry["sources"] = [{"digest": entry["digest"]}] * 3
        record["sources"] *= 300

    changed("second.safetensors", circle)
    rows = check_lineage("second.safetensors")
    assert len(rows) == 1 + 600 + 3


def test_a_long_chain_loses_the_farthest_and_says_so(folder, monkeypatch):
    monkeypatch.setattr(lineage, "LONGEST_CHAIN", 3)
    average("0", "a", "b")
    for number in range(6):
        average(f"{number + 1}", f"{number}", "c")
    record = provenance("6.safetensors")
    assert [each["digest"] for each in record["chain"]] == [
        hash_of(name) for name in ("5", "4", "3")
    ]
    assert record["chain_complete"] is False
    # that is no fault: the record says it
    assert {row.state for row in check_lineage("6.safetensors")} == {
        "the merge",
        "as recorded",
    }
    # a merge of it says so as well
    monkeypatch.setattr(lineage, "LONGEST_CHAIN", 1000)
    average("7", "6", "a")
    assert provenance("7.safetensors")["chain_complete"] is False


def test_a_chain_is_bounded_in_bytes(folder, monkeypatch):
    average("0", "a", "b")
    size = len(json.dumps(provenance("0.safetensors")))
    monkeypatch.setattr(lineage, "CHAIN_BYTES", 4 * size)
    for number in range(8):
        average(f"{number + 1}", f"{number}", "c")
    record = provenance("8.safetensors")
    assert 1 <= len(record["chain"]) <= 4
    assert record["chain_complete"] is False


def test_a_chain_grows_by_one_a_merge(folder):
    """However often a model is part of what is merged: no doubling."""
    average("0", "a", "b")
    for number in range(12):
        average(f"{number + 1}", f"{number}", f"{max(number - 1, 0)}", "c")
    assert len(provenance("12.safetensors")["chain"]) <= 13


@pytest.mark.parametrize("text", ["{}", "[", '"by hand"', '{"method": 3}'])
def test_the_record_of_another_program_prevents_no_merge(folder, text):
    save_file(
        {"layer.weight": torch.ones(2, 2)}, "d.safetensors", {"merge": text}
    )
    average("first", "a", "d")
    assert "chain" not in provenance("first.safetensors")


def test_what_is_no_merge(folder, capsys):
    for name in ("a.safetensors", "none.safetensors"):
        assert main(["inspect", "--verify", name]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "a.safetensors has no record of a merge" in first
    assert "none.safetensors does not exist" in second


def test_only_weights_are_opened(folder):
    """A record may name any path; most are not looked at."""
    average("first", "a")
    Path("secret.txt").write_text("secret")
    Path("pipe.safetensors").touch()
    for path in ("secret.txt", "/proc/kmsg", "\0", "x" * 5000):
        changed(
            "first.safetensors",
            lambda record, path=path: record["sources"][0].update(path=path),
        )
        assert check_lineage("first.safetensors")[1].state == "not here"


def test_an_exported_merge_is_merged_again(folder, capsys):
    hub = tiny_whisper(folder / "hub", layers=1)
    whisper = Whisper(hub, hub)
    for value in (1, 2):
        state = {
            f"whisper.{name}": tensor + value
            for name, tensor in whisper.state_dict().items()
        }
        write_weights(f"{value}.safetensors", state)
    average("first", "1", "2")
    export_whisper("first.safetensors", whisper, "exported")
    record = json.loads(Path("exported/merge.json").read_text())
    assert record["digest"] == digest(Path("first.safetensors"))
    export_whisper("2.safetensors", whisper, "other")
    merge(
        "average",
        ["exported", "other"],
        output="second.safetensors",
        progress=False,
    )
    (entry,) = provenance("second.safetensors")["chain"]
    assert entry["digest"] == tree_hash("exported")
    assert [each["digest"] for each in entry["sources"]] == [
        hash_of("1"),
        hash_of("2"),
    ]
    capsys.readouterr()
    assert main(["inspect", "--verify", "second.safetensors"]) == 0
    out = capsys.readouterr().out
    assert out.count("as recorded") == 4
    # the folder itself, too
    assert main(["inspect", "--verify", "exported"]) == 0
    assert capsys.readouterr().out.count("as recorded") == 2


def test_the_card_lists_earlier_merges(folder):
    average("first", "a", "b")
    assert "Earlier" not in merge_card(provenance("first.safetensors"))
    average("second", "first", "c")
    card = merge_card(provenance("second.safetensors"))
    table = card.partition("## Earlier merges")[2].partition("##")[0]
    assert f"| `{hash_of('first')}` | `average` | " in table
