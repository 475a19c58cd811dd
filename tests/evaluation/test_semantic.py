"""The semantic score: each part by hand or by the package it comes from."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_text_models import letter_bert, letter_classifier, letter_roberta

from speechbrain_merge.evaluation import (
    BERTScore,
    Entailment,
    SemanticScore,
    phonetic_similarity,
)

ANSWERS = json.loads(
    (Path(__file__).parent / "references" / "bert_score.json").read_text()
)


def encoder(name, folder):
    """The folder of an encoder of the stored answers."""
    if name == "letter_bert":
        return letter_bert(folder)
    if name == "letter_roberta":
        return letter_roberta(folder)
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"needs the package {name}")
    return str(Path(found.origin).parent / "model")


@pytest.mark.parametrize(
    "stored", ANSWERS, ids=lambda each: f"{each['encoder']}-{each['layer']}"
)
def test_the_package_gives_the_same_f(stored, tmp_path):
    folder = encoder(stored["encoder"], tmp_path)
    for batch_size in (64, 2):  # padding changes nothing
        score = BERTScore(
            folder, stored["layer"], stored["baseline"], batch_size=batch_size
        )
        found = score(stored["references"], stored["hypotheses"])
        assert found == pytest.approx(stored["f"], abs=1e-6)


def test_f_by_hand_from_the_embeddings_of_a_model(tmp_path):
    """The formula of the paper, in loops over tokens."""
    from transformers import AutoModel, AutoTokenizer

    folder = letter_bert(tmp_path)
    said, heard = "a b c d e", "b a e"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vectors = {}
    for text in (said, heard):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True)
        vectors[text] = [v / v.norm() for v in states.hidden_states[1][0]]
        assert len(vectors[text]) == len(text.split()) + 2

    def mean_of_best(mine, theirs):
        best = [max(float(one @ other) for other in theirs) for one in mine]
        return sum(best[1:-1]) / (len(best) - 2)

    recall = mean_of_best(vectors[said], vectors[heard])
    precision = mean_of_best(vectors[heard], vectors[said])
    by_hand = 2 * precision * recall / (precision + recall)
    [found] = BERTScore(folder, 1, baseline=None)([said], [heard])
    assert found == pytest.approx(by_hand, abs=1e-6)
    assert abs(precision - recall) > 1e-3  # the hand could tell them apart
    [rescaled] = BERTScore(folder, 1, baseline=0.5)([said], [heard])
    assert rescaled == pytest.approx((by_hand - 0.5) / 0.5, abs=1e-6)


# the codes of the National Archives' rules and their usual examples
SOUNDEX = {
    "Robert": "R163",
    "Rupert": "R163",
    "Rubin": "R150",
    "Ashcraft": "A261",
    "Tymczak": "T522",
    "Pfister": "P236",
    "Honeyman": "H555",
    "Gutierrez": "G362",
    "Jackson": "J250",
    "Lee": "L000",
}
# Winkler's own examples (1990), to the digits that he gives
JARO_WINKLER = [
    ("MARTHA", "MARHTA", 0.9611),
    ("DWAYNE", "DUANE", 0.8400),
    ("DIXON", "DICKSONX", 0.8133),
]


def test_the_library_has_the_tables_of_soundex_and_jaro_winkler():
    jellyfish = pytest.importorskip("jellyfish")
    assert {word: jellyfish.soundex(word) for word in SOUNDEX} == SOUNDEX
    for first, second, expected in JARO_WINKLER:
        found = jellyfish.jaro_winkler_similarity(first, second)
        assert found == pytest.approx(expected, abs=5e-5)


def test_phonetic_similarity_by_hand():
    assert phonetic_similarity("Robert", "Rupert") == 1.0
    # R163, R150: R and 1 match, 2 of 4; Jaro (2/4 + 2/4 + 1) / 3 = 2/3, which
    # is below 0.7, where Winkler's bonus for a common beginning starts
    assert phonetic_similarity("Robert", "Rubin") == pytest.approx(2 / 3)
    # R163, R160: three match, Jaro (3/4 + 3/4 + 1) / 3 = 5/6; the beginning
    # R16 gives 3 * 0.1 of what is left to 1
    assert phonetic_similarity("Robert", "Ruber") == pytest.approx(
        5 / 6 + 0.3 * (1 / 6)
    )
    # the code of a whole transcript, which is that of its beginning
    assert phonetic_similarity("open the door", "open the oven") == 1.0
    assert phonetic_similarity("open the door", "") == 0.0


def test_entailment_is_the_output_that_the_config_calls_so(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["contradiction", "ENTAILMENT", "neutral"]
    folder = letter_classifier(tmp_path / "one", labels)
    found = Entailment(folder, batch_size=2)(
        ["a b", "c", "a b c d e"], ["b", "c", "x"]
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for place, pair in enumerate(
        [("a b", "b"), ("c", "c"), ("a b c d e", "x")]
    ):
        inputs = tokenizer(*pair, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        by_hand = logits[1].exp() / logits.exp().sum()
        assert found[place] == pytest.approx(float(by_hand), abs=1e-6)
    # the same weights with the names in another order
    other = letter_classifier(tmp_path / "two", labels[1:] + labels[:1])
    first = Entailment(other)(["a b"], ["b"])
    assert first[0] != pytest.approx(found[0], abs=1e-3)
    # both ways are different questions
    assert Entailment(folder)(["b"], ["a b"])[0] != pytest.approx(
        found[0], abs=1e-4
    )


def test_a_classifier_without_such_a_label_is_refused(tmp_path):
    folder = letter_classifier(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ValueError, match="has the labels LABEL_0, LABEL_1"):
        Entailment(folder)(["a"], ["b"])
    assert 0 < Entailment(folder, label="label_1")(["a"], ["b"])[0] < 1


def test_models_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="'nowhere/at-all', which is neither"):
        BERTScore("nowhere/at-all")(["a"], ["b"])
    with pytest.raises(ValueError, match="or run once with a network"):
        Entailment("nowhere/at-all")(["a"], ["b"])


def test_a_layer_that_is_not_there_is_named(tmp_path):
    folder = letter_bert(tmp_path)
    with pytest.raises(ValueError, match="`layer` is 17, .* expected 0 to 3"):
        BERTScore(folder)(["a"], ["b"])
    with pytest.raises(ValueError, match="`baseline` is 1.0"):
        BERTScore(folder, 1, baseline=1.0)


def test_the_score_is_the_weighted_sum_of_its_parts(tmp_path):
    labels = ["entailment", "neutral", "contradiction"]
    score = SemanticScore(
        BERTScore(letter_bert(tmp_path / "encoder"), 1, baseline=0.5),
        Entailment(letter_classifier(tmp_path / "classifier", labels)),
    )
    said, heard = ["a b c d", "b r t"], ["a b d", "z"]
    for parts, found in zip(score.parts(said, heard), score(said, heard)):
        # the challenge's numbers, as its authors' code has them
        nli = (parts.entailment - 0.0028752246871590614) / (
            0.9661698341369629 - 0.0028752246871590614
        )
        phonetic = (parts.phonetic - 0.5) / 0.5
        alike = (parts.bert_score + 0.1180) / 1.1180
        clipped = [min(max(x, 0), 1) for x in (nli, alike, phonetic)]
        expected = (
            0.4012 * clipped[0] + 0.2785 * clipped[1] + 0.3201 * clipped[2]
        )
        assert found == pytest.approx(expected, abs=1e-9)
    [first, _] = score.parts(said, heard)
    both = [
        score.entailment(said[:1], heard[:1])[0],
        score.entailment(heard[:1], said[:1])[0],
    ]
    assert first.entailment == pytest.approx(sum(both) / 2, abs=1e-6)
    assert first.bert_score == score.bert_score(said, heard)[0]
    assert first.phonetic == phonetic_similarity("a b c d", "a b d")


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="`weights` name nli; expected"):
        SemanticScore(weights={"nli": 1.0})
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        SemanticScore()(["a", "b"], ["a"])
    assert SemanticScore()([], []) == []
