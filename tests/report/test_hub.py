"""The lines of a card for the Hugging Face Hub, read back by its own library."""

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from huggingface_hub.repocard import metadata_load
from tiny_models import inference_yaml

from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.engine import provenance
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.methods import TIES, LayerScaled
from speechbrain_merge.report import merge_card
from speechbrain_merge.report.hub import check_about, front_matter
from speechbrain_merge.report.leaderboard import TASKS, leaderboard_yaml
from speechbrain_merge.weights import digest, open_weights, write_weights

ABOUT = {
    "base_model": "openai/whisper-tiny",
    "language": ["en", "cy"],
    "license": "apache-2.0",
    "tags": ["whisper"],
    "datasets": {
        "clean": {
            "id": "openslr/librispeech_asr",
            "config": "clean",
            "split": "test",
        }
    },
}


@pytest.fixture
def results():
    """Two models on three sets, one of which has no words."""

    def sets(errors):
        interval = {"low": errors / 10 - 1, "high": errors / 10 + 1}
        return {
            "clean": {"errors": errors, "words": 1000, "interval": interval},
            "phone|line": {"errors": 2 * errors, "words": 900},
            "empty": {"errors": 0, "words": 0},
        }

    return {
        "in_domain": ["phone|line"],
        "test_domains": ["clean", "phone|line", "empty"],
        "rows": [
            {"name": "before", "group": "generalist", "sets": sets(123)},
            {"name": "merged", "group": "merge", "sets": sets(61)},
        ],
    }


def test_the_hub_reads_what_was_written(tmp_path, results):
    card = merge_card({"method": "ties"}, results, "My merge", "merged", ABOUT)
    path = tmp_path / "README.md"
    path.write_text(card, encoding="utf-8")
    data = ModelCard.load(path).data
    raw = metadata_load(path)
    assert raw["base_model"] == ["openai/whisper-tiny"]
    assert raw["base_model_relation"] == "merge"
    assert data.language == ["en", "cy"] and data.license == "apache-2.0"
    assert data.tags == ["speechbrain", "merge", "ties", "whisper"]
    assert data.datasets == ["openslr/librispeech_asr"]
    assert data.metrics == ["wer"]
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert data.model_name == "My merge"
    first, second = data.eval_results  # the set without words has no rate
    assert first == EvalResult(
        task_type="automatic-speech-recognition",
        task_name="Automatic Speech Recognition",
        dataset_type="openslr/librispeech_asr",
        dataset_name="clean",
        dataset_config="clean",
        dataset_split="test",
        metric_type="wer",
        metric_name="Test WER (95 % interval 5.1 to 7.1)",
        metric_value=6.1,
        metric_args={"confidence_level": 0.95, "low": 5.1, "high": 7.1},
    )
    assert second.dataset_name == "phone|line"
    assert second.metric_value == pytest.approx(100 * 122 / 900, abs=0.005)
    assert second.metric_args is None


def test_only_the_own_row_is_marked(results):
    card = merge_card({"method": "ties"}, results, row="merged")
    assert card.count("(this model)") == 1
    assert "| **merged** (this model) | **6.1** |" in card.replace(
        "| **13.6** | **6.1** |", "| **6.1** |"
    )
    assert "| before |" in card
    assert "(this model)" not in merge_card({"method": "ties"}, results)
    with pytest.raises(
        ValueError, match="no row 'mergd'. The rows are 'before'"
    ):
        merge_card({"method": "ties"}, results, row="mergd")


def test_a_base_from_the_hub_is_found_by_its_path():
    def model(name):
        return {"path": f"/c/hub/models--{name}/snapshots/0a1b/model.bin"}

    record = {
        "method": "ties",
        "sources": [model("me--a"), {"path": "here/b.pt"}, model("x y--z")],
        "base": model("openai--whisper-tiny"),
    }
    raw = parsed(front_matter(record, "m"))
    assert raw["base_model"] == ["me/a", "openai/whisper-tiny"]
    # nothing is guessed
    raw = parsed(front_matter({"method": "ties"}, "m"))
    assert not {"base_model", "base_model_relation", "license"} & set(raw)


def parsed(matter):
    """The front matter as data."""
    return yaml.safe_load(matter.strip().strip("-"))


@pytest.mark.parametrize(
    "about, words",
    [
        ({"licence": "mit"}, "unknown key 'licence'"),
        ({"license": "MIT License"}, "key 'license'.*MIT License"),
        ({"license": "other"}, "license_name"),
        ({"language": "English"}, "key 'language'.*code of ISO 639"),
        ({"base_model": "../x"}, "key 'base_model'.*name on the Hub"),
        ({"base_model": []}, "key 'base_model'"),
        ({"datasets": {"a": {"config": "x"}}}, "'id' is missing"),
        ({"leaderboard": {"a": "wer"}}, "key 'leaderboard'"),
        ({"tags": 3}, "key 'tags': expected a list"),
    ],
)
def test_what_a_person_says_is_checked(about, words):
    with pytest.raises(ValueError, match=words):
        check_about(about)


EVIL = [
    "x\n---\nlicense: mit\n---\n",
    "---",
    "\u2028---\u2028",
    "\x85---\x85!apply:os.mkdir [x]",
    "!!python/object/apply:os.mkdir [x]",
    "&a [*a]",
    "# head",
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "`` ` ``` <img src=x onerror=alert(1)>",
    "a|b\n| c | d |",
    "https://evil.example www.evil.example a@evil.example",
    "**bold** \\",
    "no",
    "1.0",
]


class Tags(HTMLParser):
    """Collects the elements of a text."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


@pytest.mark.parametrize("text", EVIL)
def test_a_strangers_text_stays_text(tmp_path, results, text):
    source = {"label": text, "path": text, "digest": text[:60]}
    record = {
        "method": text[:60],
        "parameters": {text: text},
        "sources": [source, source],
        "base": {"path": text},
        "created": text[:60],
        "versions": {"torch": text[:60]},
        "chain": [{"digest": "0" * 64, "method": "ties", "sources": [source]}],
    }
    for row in results["rows"]:
        row["sets"] = {
            text if name == "clean" else name: counts
            for name, counts in row["sets"].items()
        }
        row["name"] += text
    results["test_domains"][0] = text
    results["command"] = results["created"] = text
    row = results["rows"][1]["name"]
    card = merge_card(record, results, text, row, {"tags": [text]})
    path = tmp_path / "README.md"
    path.write_text(card, encoding="utf-8", newline="")
    data = ModelCard.load(path).data
    assert data.model_name == text
    assert data.tags == list(
        dict.fromkeys(["speechbrain", "merge", text[:60], text])
    )
    assert data.license is None
    assert data.eval_results[0].dataset_name == text
    # nothing of it is HTML, a picture or a link once code is taken out
    body = ModelCard.load(path).text
    prose = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    tags = Tags()
    tags.feed(prose)
    assert set(tags.found) <= {"br"}
    assert "](" not in prose.replace("[arXiv:2306.01708](", "")
    assert not re.search("https?://evil|www\\.evil|a@evil", prose)
    # and no line is of its making
    starts = ("| c", "---", "license", "# head")
    lines = [line for line in body.splitlines() if line.startswith(starts)]
    assert lines == []


def test_the_leaderboard_reads_what_was_written(results):
    written = leaderboard_yaml(
        results, "merged", {"clean": TASKS[3]}, date="2026-01-02"
    )
    [entry] = parse_eval_result_entries(yaml.safe_load(written))
    assert entry.dataset_id == "hf-audio/open-asr-leaderboard"
    assert (entry.task_id, entry.value) == ("librispeech_clean_wer", 6.1)
    assert entry.date == "2026-01-02"


def test_the_mean_of_the_leaderboard_is_of_all_its_sets():
    names = [task.removesuffix("_wer") for task in TASKS]
    counts = {
        name: {"errors": number, "words": 100 + number}
        for number, name in enumerate(names)
    }
    results = {
        "in_domain": [],
        "test_domains": names,
        "rows": [{"name": "m", "sets": counts}],
    }
    sets = dict(zip(names, TASKS))
    first, *rest = yaml.safe_load(leaderboard_yaml(results, "m", sets))
    assert first["dataset"]["task_id"] == "mean_wer"
    rates = [100 * n / (100 + n) for n in range(len(names))]
    assert first["value"] == round(sum(rates) / len(rates), 2)
    assert [each["dataset"]["task_id"] for each in rest] == list(TASKS)
    del sets["ami"]
    written = leaderboard_yaml(results, "m", sets)
    assert "mean_wer" not in written


@pytest.mark.parametrize(
    "sets, words",
    [
        ({"clean": "clean"}, "expected one of ami_wer"),
        ({"cleaned": "ami_wer"}, "which was not tested"),
        ({"empty": "ami_wer"}, "has no words"),
        ({"clean": "ami_wer", "phone|line": "ami_wer"}, "two sets for"),
    ],
)
def test_a_wrong_leaderboard_is_named(results, sets, words):
    with pytest.raises(ValueError, match=words):
        leaderboard_yaml(results, "merged", sets)


@pytest.fixture
def merged(tmp_path, monkeypatch):
    """A merge of two experts, by a method inside another, with paths that
    lead from the folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b c")):
        torch.manual_seed(seed)
        tensors = {
            f"asr.encoder.layers.{layer}.fc1.weight": torch.randn(6, 5)
            for layer in range(2)
        }
        write_weights(f"{name}.safetensors", tensors)
    return merge(
        LayerScaled(TIES(density=0.3), first=0.5, last=1.0),
        ["a.safetensors", "b c.safetensors"],
        "base.safetensors",
        tmp_path / "merged.safetensors",
        labels=["a", "b"],
        metadata={"plan": "{}"},
        progress=False,
        same_base=False,
        record={"created": "2020-02-02T02:02:02+00:00"},
    )


def command_of(card):
    """The words of the command that a card gives."""
    [line] = re.findall(r"```bash\n(.*)\n```", card)
    words = shlex.split(line)
    assert words[0] == "speechbrain-merge"
    return words[1:]


def test_the_command_of_the_card_makes_the_same_bytes(merged, tmp_path):
    words = command_of(merge_card(provenance(merged)))
    words = ["merged.safetensors" if w == "FOLDER" else w for w in words]
    words[-1] = "copy.safetensors"
    done = subprocess.run(
        [sys.executable, "-m", "speechbrain_merge", *words, "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "copy.safetensors"
    assert copy.read_bytes() == merged.read_bytes()
    assert digest(copy) in done.stdout


def test_the_folder_of_an_export_makes_the_same_bytes(merged, tmp_path, capsys):
    hparams = tmp_path / "hyperparams.yaml"
    hparams.write_text(inference_yaml(open_weights(merged)))
    card = merge_card(provenance(merged))
    folder = export_pretrained(
        merged, hparams, tmp_path / "exported", texts={"README.md": card}
    )
    words = command_of((folder / "README.md").read_text())
    words = ["exported" if word == "FOLDER" else word for word in words]
    words[-1] = "copy.safetensors"
    assert main([*words, "--quiet", "--json"]) == 0
    copy = tmp_path / "copy.safetensors"
    assert copy.read_bytes() == merged.read_bytes()
    assert json.loads(capsys.readouterr().out) == {
        "output": "copy.safetensors",
        "sha256": digest(merged),
    }


def again(capsys):
    """What is said of a merge that cannot be made again."""
    words = ["again", "merged.safetensors", "-o", "copy.safetensors", "--quiet"]
    assert main(words) == 2
    return capsys.readouterr().err


def test_a_source_that_is_not_there_is_named(merged, tmp_path, capsys):
    (tmp_path / "a.safetensors").rename("elsewhere.safetensors")
    assert "a.safetensors was merged, and no weights are there" in again(capsys)
    assert not (tmp_path / "copy.safetensors").exists()


@pytest.mark.parametrize("name", ["a", "base"])
def test_a_source_that_has_changed_is_named(merged, tmp_path, capsys, name):
    write_weights(f"{name}.safetensors", {"w": torch.ones(3)})
    said = again(capsys)
    assert f"{name}.safetensors is not what was merged" in said
    assert not (tmp_path / "copy.safetensors").exists()


def test_a_device_is_not_read(merged, tmp_path, capsys):
    record = provenance(merged)
    record["sources"][0]["path"] = "/dev/zero"
    text = {"merge": json.dumps(record)}
    write_weights(merged, {"w": torch.ones(1)}, text)
    assert "/dev/zero was merged, and no weights" in again(capsys)


def test_other_versions_are_named(merged, tmp_path, capsys):
    record = {**provenance(merged), "versions": {"torch": "0.1"}}
    with_record = write_weights(
        tmp_path / "other.safetensors",
        {"w": torch.ones(1)},
        {"merge": json.dumps(record)},
    )
    with_record.replace(merged)
    assert "torch 0.1 then and " in again(capsys)


def test_nothing_is_overwritten(merged, tmp_path, capsys):
    (tmp_path / "copy.safetensors").write_text("mine")
    assert "copy.safetensors is there already" in again(capsys)
    assert (tmp_path / "copy.safetensors").read_text() == "mine"


def test_what_is_no_merge_is_not_made_again(merged, tmp_path, capsys):
    write_weights(merged, {"w": torch.ones(3)})
    assert "no record of a merge" in again(capsys)
