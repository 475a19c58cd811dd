"""CL-MASR in miniature: the recipe's own commands, and what they leave."""

import csv
import json
import os
import shutil
import sys

import pytest
import torch
from listed_recipes import ROOT, corpus_of, failed_checks, flags_of, rows
from tiny_domains import recipe_module, same_stat
from tiny_models import tiny_whisper
from warm_python import python, run_measured

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.evaluation import continual_metrics
from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import open_weights

RECIPE = ROOT / "recipes/CL-MASR/ASR/whisper"
[TRAIN, MERGING] = rows(ROOT / "tests/recipes/CL-MASR.csv")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cl_masr")
    corpus_of("CL-MASR").make(folder)
    return folder


def run(row, folder, command):
    """Runs a row by the recipe's own command; its folder of results."""
    flags, output = flags_of(row, folder)
    yaml = (ROOT / row["Hparam_file"]).relative_to(RECIPE)
    _, used = run_measured(
        [command, "train.py", str(yaml), *flags]
        + ["--device=cpu", "--noprogressbar"],
        cwd=RECIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert failed_checks(row, output) == []
    assert used < 60, f"{used:.0f} s of one processor"
    return output


@pytest.fixture(scope="module")
def merging(miniature):
    return run(MERGING, miniature, python())


def weights(path):
    with open_weights(path) as opened:
        return {name: opened[name].clone() for name in opened}


def expert(merging, name):
    [best] = read_pool(merging / f"seed-0/models/{name}/pool")
    return weights(best.path)


def merged(merging, name):
    return weights(merging / f"seed-0/merge/{name}/merged.safetensors")


def assert_mean(found, members):
    assert set(found) == set(members[0])
    for name, tensor in found.items():
        mean = sum(each[name].double() for each in members) / len(members)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    assert any(not members[0][n].equal(members[1][n]) for n in found)


def test_one_expert(miniature):
    output = run(TRAIN, miniature, sys.executable)
    tested = json.loads((output / "tested/wer.json").read_text())
    assert list(tested) == ["en", "rw"]


def test_the_table_is_filled_from_the_tests(merging):
    results = json.loads((merging / "results.json").read_text())
    found = results["continual"]
    assert found["base"] == ["en", "zh-CN"]
    titles = ["fine-tuning in turn", "sequential merging", "AoDE", "TIES"]
    titles += ["OPCM", "TSV-M"]
    assert [one["title"] for one in found["sequences"]] == titles
    by_name = {
        row["name"]: row["sets"]["0"]["usual"] for row in results["rows"]
    }
    page = (merging / "results.md").read_text()
    for one in found["sequences"]:
        assert one["domains"] == ["rw", "eo", "kab"]
        seed, last = one["seeds"]["0"], by_name[one["name"]]
        assert [len(row) for row in seed["matrix"]] == [1, 2, 3, 4]

        def base_of(counts):
            return (counts["en"]["wer"] + counts["zh-CN"]["wer"]) / 2

        assert seed["matrix"][0] == [base_of(by_name["original"])]
        assert seed["matrix"][-1] == [
            base_of(last),
            *(last[domain]["wer"] for domain in one["domains"]),
        ]
        again = continual_metrics(
            seed["matrix"],
            joint=[by_name["joint"][d]["wer"] for d in one["domains"]],
            single=[by_name[d][d]["wer"] for d in one["domains"]],
        )
        assert again == seed["metrics"]
        cells = [f"{value:.2f}" for value in seed["averages"].values()]
        assert f"| {' | '.join([one['title'], *cells])} |" in page
    # the first language alone is what its expert knows; training forgets it
    learned = {one["name"]: one for one in found["sequences"]}
    for name in ("fine-tuning", "aode"):
        first = learned[name]["seeds"]["0"]["matrix"][1]
        assert first == [base_of(by_name["rw"]), by_name["rw"]["rw"]["wer"]]
    assert by_name["rw"]["rw"]["wer"] < by_name["original"]["rw"]["wer"]
    assert learned["fine-tuning"]["seeds"]["0"]["averages"]["BWT"] < 0


def test_merges_are_of_the_languages_so_far(merging):
    original = weights(merging / "seed-0/original.safetensors")
    rw, eo = expert(merging, "rw"), expert(merging, "eo")
    assert_mean(merged(merging, "aode-2"), [rw, eo])
    kab = expert(merging, "kab")
    assert_mean(merged(merging, "aode"), [rw, eo, kab])
    # in turn: the next expert starts from what was merged
    first = merged(merging, "sequential-1")
    assert_mean(first, [original, rw])
    second = expert(merging, "sequential-expert-2")
    assert_mean(merged(merging, "sequential-2"), [first, second])
    [candidate] = read_pool(merging / "seed-0/models/sequential-expert-2/pool")
    base = weights(candidate.base)
    assert all(base[name].equal(first[name]) for name in first)


@pytest.fixture
def prepare():
    with recipe_module(RECIPE, "cl_masr_prepare") as module:
        yield module


def manifest(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_manifests_are_of_common_voice_s_layout(prepare, miniature, tmp_path):
    data = miniature / "CL-MASR"
    asked = {"train_locales": ["rw"], "test_locales": ["zh-CN"]}
    prepare.prepare_cl_masr(data, tmp_path, **asked)
    names = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert names == ["rw_train.csv", "zh-CN_test.csv"]
    rows = manifest(tmp_path / "rw_train.csv")
    assert len(rows) == 4 and rows[0]["wrd"] == "six"
    assert rows[0]["wav"] == f"$data_root/rw/clips/{rows[0]['ID']}.mp3"
    assert 0.15 < float(rows[0]["duration"]) < 0.35
    written = (tmp_path / "rw_train.csv").stat().st_mtime_ns
    prepare.prepare_cl_masr(data, tmp_path, **asked)
    assert (tmp_path / "rw_train.csv").stat().st_mtime_ns == written
    # another table of the same size and time makes another
    copy = shutil.copytree(data, tmp_path / "CL-MASR")
    prepare.prepare_cl_masr(copy, tmp_path, **asked)
    table = copy / "rw" / "train.tsv"
    with same_stat(table):
        table.write_text(table.read_text().replace("six", "two"))
    prepare.prepare_cl_masr(copy, tmp_path, **asked)
    assert manifest(tmp_path / "rw_train.csv")[0]["wrd"] == "two"
    # other settings make others
    prepare.prepare_cl_masr(
        data, tmp_path, **asked, max_durations=[0.3, None, None]
    )
    assert 1 <= len(manifest(tmp_path / "rw_train.csv")) < 4


def table(folder, name, *lines):
    (folder / "rw").mkdir(exist_ok=True)
    text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
    (folder / "rw" / name).write_text(text, encoding="utf-8")


def test_durations_that_are_known_are_not_measured(prepare, tmp_path):
    header = ("client_id", "path", "sentence", "duration")
    table(
        tmp_path,
        "test_with_duration.tsv",
        header,
        ("s", "a.mp3", 'Say "it", for 5$', 2.5),
        ("s", "b.mp3", "too long", 11),
        ("s", "c.mp3", ",", 1),
        ("s", "d.mp3", "x" * 201, 1),
    )
    prepare.prepare_cl_masr(
        tmp_path, tmp_path / "manifests", test_locales=["rw"]
    )
    [row] = manifest(tmp_path / "manifests/rw_test.csv")
    assert (row["ID"], row["duration"]) == ("a", "2.5")
    assert row["wrd"] == "Say it for 5S"


def test_what_is_missing_is_named_with_what_to_do(prepare, tmp_path):
    with pytest.raises(FileNotFoundError, match="rw/dev.tsv.*zenodo.org"):
        prepare.prepare_cl_masr(tmp_path, tmp_path, valid_locales=["rw"])
    table(tmp_path, "train.tsv", ("path", "text"), ("a.mp3", "x"))
    with pytest.raises(ValueError, match="no column client_id, sentence"):
        prepare.prepare_cl_masr(tmp_path, tmp_path, train_locales=["rw"])
    header = ("client_id", "path", "sentence", "duration")
    table(tmp_path, "train.tsv", header, ("s", "a.mp3", "x", 60))
    with pytest.raises(ValueError, match="no utterance is left"):
        prepare.prepare_cl_masr(tmp_path, tmp_path, train_locales=["rw"])
    with pytest.raises(ValueError, match="expected three numbers"):
        prepare.prepare_cl_masr(tmp_path, tmp_path, max_durations=[1])


def test_new_languages_begin_as_the_mean_of_all(tmp_path):
    source = tiny_whisper(tmp_path / "whisper", multilingual=True)
    embeddings = []
    with recipe_module(RECIPE) as recipe:
        for _ in range(2):
            whisper = Whisper(source, str(tmp_path / "cache"))
            known = whisper.model.get_input_embeddings().weight.detach().clone()
            recipe.add_languages(whisper, ["rw", "fy-NL", "zh-CN", "fr"])
            embeddings.append(whisper.model.get_input_embeddings().weight)
        tokens = whisper.tokenizer.convert_tokens_to_ids(
            ["<|rw|>", "<|fy-nl|>"]
        )
        assert tokens[1] == tokens[0] + 1
        mean = known[list(whisper.all_language_tokens)].mean(dim=0)
        for token in tokens:
            torch.testing.assert_close(embeddings[0][token], mean)
        changed = (embeddings[0] != known).any(dim=1).nonzero().flatten()
        assert changed.tolist() == tokens
        assert embeddings[0].equal(embeddings[1])
        assert recipe.language_token("zh-CN") == "<|zh|>"
        english = Whisper(
            tiny_whisper(tmp_path / "english"), str(tmp_path / "cache")
        )
        with pytest.raises(ValueError, match="expected a multilingual one"):
            recipe.add_languages(english, ["rw"])


def test_a_vocabulary_that_is_full_grows(tmp_path):
    source = tiny_whisper(tmp_path / "whisper", multilingual=True)
    whisper = Whisper(source, str(tmp_path / "cache"))
    # as OpenAI's models, whose last embedding is that of the last token
    whisper.model.resize_token_embeddings(
        len(whisper.tokenizer), mean_resizing=False
    )
    before = len(whisper.tokenizer)
    with recipe_module(RECIPE) as recipe:
        recipe.add_languages(whisper, ["rw", "eo"])
    assert len(whisper.model.get_input_embeddings().weight) == before + 2
    bos = torch.tensor([[whisper.bos, before]])
    _, logits, _ = whisper(torch.randn(1, 16000), bos)
    assert logits.shape[-1] == before + 2


def test_characters_are_counted_where_there_are_no_blanks():
    with recipe_module(RECIPE) as recipe:
        brain = recipe.ASR(
            hparams={
                "normalize_transcripts": False,
                "character_locales": ["zh-CN", "ja"],
            }
        )
    units = brain.units_of(["一二 三", "one two", ""], ["zh-CN", "en", "en"])
    assert units == [["一", "二", "_", "三"], ["one", "two"], [" "]]
