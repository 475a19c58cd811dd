"""The SAP recipe counts as the challenge does, on each part of the corpus."""

import csv
import importlib
import json

import jiwer
import pytest
from listed_recipes import ROOT
from tiny_domains import recipe_module
from tiny_models import WORDS, tiny_whisper
from tiny_text_models import letter_bert

from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.evaluation import BERTScore, read_scores

RECIPE = ROOT / "recipes/SAP/ASR/whisper"


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A short training, tested on the parts of Dev: folder and its rates."""
    corpus = importlib.import_module("corpora.sap")
    folder = tmp_path_factory.mktemp("sap")
    people = {"a1b2": "ALS", "c3d4": "Parkinson's Disease"}
    corpus.write_split(folder / "SAP/Train", people, each=2)
    corpus.write_split(
        folder / "SAP/Dev", {"e5f6": "ALS", "a7b8": ""}, each=2, longest=31.0
    )
    tiny_whisper(folder / "whisper", layers=1)
    overrides = {
        "data_folder": str(folder / "SAP"),
        "whisper_hub": str(folder / "whisper"),
        "output_folder": str(folder / "run"),
        "parts": {"als": {"split": "Train", "etiology": "ALS"}},
        "domains": ["als"],
        "number_of_epochs": 3,
        "steps_per_epoch": 12,
        "batch_size": 2,
        "lr": 0.03,
        "warmup_steps": 2,
        "window": 2,
        "precision": "fp32",
        "eval_precision": "fp32",
        "max_decode_ratio": 0.1,
        "select_fraction": 0.5,
    }
    options = {"device": "cpu", "noprogressbar": True}
    with recipe_module(RECIPE) as module:
        run = module.build(
            str(RECIPE / "hparams/train.yaml"), overrides, options
        )
    run.fit()
    encoder = letter_bert(folder / "encoder", WORDS)
    rates = evaluate_domains(
        run.brain,
        run.test_sets,
        folder / "best",
        run.loader_kwargs("test"),
        measures={"BERT": BERTScore(encoder, 1, baseline=None)},
    )
    return folder, run, rates


def test_the_better_transcript_counts_and_no_more_errors_than_words(tested):
    folder, run, rates = tested
    normalize = run.brain.hparams.text_normalizer
    with open(folder / "run/manifests/Dev.csv", encoding="utf-8") as file:
        rows = {row["ID"]: row for row in csv.DictReader(file)}
    errors = words = 0
    for score in read_scores(folder / "best/dev.jsonl"):
        row, found = rows.pop(score.id), []
        for text in (row["wrd"], row["fluent"]):
            said = normalize(text).lower()
            count = len(said.split())
            out = jiwer.process_words(said, " ".join(score.hypothesis) or " ")
            edits = out.insertions + out.deletions + out.substitutions
            found.append((min(edits, count) / count, min(edits, count), count))
        best = [each for each in found if each[0] == min(found)[0]]
        errors += sum(each[1] for each in best) / len(best)
        words += sum(each[2] for each in best) / len(best)
        assert score.references == 2
    assert not rows
    assert rates["dev"]["wer"] == pytest.approx(100 * errors / words)
    assert 0 < rates["dev"]["wer"] < 100  # something was learned


def test_parts_are_of_categories_and_durations(tested):
    folder, run, rates = tested
    assert set(run.valid_sets) == {"als"}
    assert {row["etiology"] for row in run.train_set.data.values()} == {"ALS"}
    parts = ("commands", "sentences", "spontaneous")
    for key in ("errors", "words", "utterances"):
        assert rates["dev"][key] == sum(rates[part][key] for part in parts)
    buckets = rates["dev"]["buckets"]
    assert buckets["(30, inf)"]["utterances"] == 2
    assert buckets["(0, 5]"]["utterances"] == 10
    measured = [rates[part]["BERT"] for part in parts]
    assert rates["dev"]["BERT"] == pytest.approx(sum(measured) / 3)
    stored = json.loads((folder / "best/wer.json").read_text())
    assert stored == json.loads(json.dumps(rates))


def test_a_part_without_utterances_is_named(tested):
    folder, run, _ = tested
    hparams = dict(run.brain.hparams.__dict__)
    hparams["parts"] = {"als": {"split": "Train", "etiology": "nothing"}}
    with recipe_module(RECIPE) as module:
        with pytest.raises(ValueError, match="no utterance of 'als'"):
            module.dataio_prepare(hparams)
