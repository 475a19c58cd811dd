"""Error counts against SpeechBrain, jiwer, and the challenge's rule by hand."""

import json
import random

import jiwer
import pytest
import torch

from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge.evaluation import (
    BestReferenceStats,
    ErrorCounts,
    by_bucket,
    count_errors,
    from_tracker,
    hallucinations,
    longest_loop,
    read_scores,
    score_utterances,
    total,
    write_scores,
)


def random_transcripts(count=60, seed=3):
    """References and worse copies of them, some of them empty."""
    draw = random.Random(seed)
    words = ["a", "be", "sea", "dee", "eve"]
    references = {
        f"u{i}": " ".join(draw.choices(words, k=draw.randint(1, 9)))
        for i in range(count)
    }
    hypotheses = {}
    for name, text in references.items():
        kept = [word for word in text.split() if draw.random() < 0.8]
        kept += draw.choices(words, k=draw.randint(0, 3))
        hypotheses[name] = " ".join(kept)
    hypotheses["u0"] = ""
    return references, hypotheses


def test_counts_agree_with_jiwer():
    references, hypotheses = random_transcripts()
    ours = count_errors(references, hypotheses)
    oracle = jiwer.process_words(
        list(references.values()), list(hypotheses.values())
    )
    # the optimal alignment is not unique, but its cost is
    assert ours.errors == (
        oracle.insertions + oracle.deletions + oracle.substitutions
    )
    assert ours.rate == pytest.approx(100 * oracle.wer)
    # and insertions minus deletions is a difference of lengths
    assert ours.insertions - ours.deletions == (
        oracle.insertions - oracle.deletions
    )
    assert ours.words == sum(len(text.split()) for text in references.values())
    assert ours.utterances == 60


def test_characters_agree_with_jiwer():
    references, hypotheses = random_transcripts()
    ours = count_errors(references, hypotheses, unit="character")
    oracle = jiwer.cer(list(references.values()), list(hypotheses.values()))
    assert ours.rate == pytest.approx(100 * oracle)


def test_tracker_gives_speechbrains_own_numbers():
    references, hypotheses = random_transcripts()
    tracker = ErrorRateStats()
    for name, text in references.items():
        # as the recipes split their text: an empty one becomes [""]
        tracker.append(
            [name],
            predict=[hypotheses[name].split(" ")],
            target=[text.split(" ")],
        )
    summary = tracker.summarize()
    counts = total(from_tracker(tracker))
    assert counts.rate == summary["WER"]
    assert counts.sentence_rate == summary["SER"]
    assert counts.insertions == summary["insertions"]
    assert counts.deletions == summary["deletions"]
    assert counts.substitutions == summary["substitutions"]
    assert counts.words == summary["num_scored_tokens"]


def test_tracker_of_padded_batches():
    tracker = ErrorRateStats()
    labels = {0: "a", 1: "b", 2: "c"}
    tracker.append(
        ids=["u1", "u2"],
        predict=torch.tensor([[0, 1, 2], [2, 0, 0]]),
        target=torch.tensor([[0, 1, 1], [2, 0, 0]]),
        predict_len=torch.tensor([1.0, 1 / 3]),
        target_len=torch.tensor([1.0, 1 / 3]),
        ind2lab=lambda batch: [[labels[int(x)] for x in row] for row in batch],
    )
    first, second = from_tracker(tracker, durations={"u1": 2.0, "u2": 0.5})
    assert (first.operations, first.reference) == ("==S", ("a", "b", "b"))
    assert (second.errors, second.words, second.duration) == (0, 1, 0.5)


def test_an_utterance_scored_twice_is_refused():
    tracker = ErrorRateStats()
    tracker.append(["u1"], predict=[["a"]], target=[["a"]])
    tracker.append(["u1"], predict=[["a"]], target=[["a"]])
    with pytest.raises(ValueError, match="'u1' is in the tracker twice"):
        from_tracker(tracker)


def test_rates_pool_and_do_not_average():
    small = count_errors({"a": "x"}, {"a": "y"})
    large = count_errors({"b": "x " * 9}, {"b": "x " * 9})
    assert (small.rate, large.rate, (small + large).rate) == (100, 0, 10)
    assert sum([small, large]) == small + large
    assert small.wrong_sentences == 1 and (small + large).sentence_rate == 50


def test_no_reference_words_have_no_rate_but_count():
    silence = count_errors({"a": ""}, {"a": "thank you"})
    assert silence.rate is None and silence.errors == 2
    speech = count_errors({"b": "one two"}, {"b": "one two"})
    assert (silence + speech).rate == 100
    assert ErrorCounts().rate is None and ErrorCounts().sentence_rate is None


def test_sets_that_differ_are_refused_by_name():
    with pytest.raises(ValueError, match="missing in the hypotheses.*u2"):
        count_errors({"u1": "a", "u2": "b"}, {"u1": "a"})
    with pytest.raises(ValueError, match="missing in the references.*u9"):
        count_errors({"u1": "a"}, {"u1": "a", "u9": "b"})
    with pytest.raises(ValueError, match='"word" or "character"'):
        count_errors({"u1": "a"}, {"u1": "a"}, unit="phone")


def test_clipping_takes_insertions_only():
    plain = count_errors({"u": "go on"}, {"u": "no no no no no"})
    clipped = count_errors({"u": "go on"}, {"u": "no no no no no"}, clip=True)
    assert (plain.errors, plain.rate) == (5, 250)
    assert (clipped.errors, clipped.rate) == (2, 100)
    assert (clipped.deletions, clipped.substitutions) == (
        plain.deletions,
        plain.substitutions,
    )


def challenge_rate(first, second, hypotheses):
    """The challenge's rule, straight from its description."""
    errors = words = 0
    for name, recognised in hypotheses.items():
        attempts = []
        for reference in (first[name].split(), second[name].split()):
            distance = jiwer.process_words(" ".join(reference), recognised)
            cost = distance.insertions + distance.deletions
            cost = min(cost + distance.substitutions, len(reference))
            attempts.append((cost / len(reference), cost, len(reference)))
        low = min(rate for rate, _, _ in attempts)
        best = [attempt for attempt in attempts if attempt[0] == low]
        errors += sum(cost for _, cost, _ in best) / len(best)
        words += sum(length for _, _, length in best) / len(best)
    return 100 * errors / words


def test_challenge_rate_of_two_references():
    references, hypotheses = random_transcripts()
    draw = random.Random(5)
    spoken = {
        name: " ".join(draw.choices(["um", "uh"], k=draw.randint(0, 2)))
        + " "
        + text
        for name, text in references.items()
    }
    ours = count_errors([spoken, references], hypotheses, clip=True)
    assert ours.rate == pytest.approx(
        challenge_rate(spoken, references, hypotheses)
    )
    assert ours.rate < count_errors(references, hypotheses).rate


def test_equally_good_references_are_averaged():
    # both wrong in every word: rate 1 against 2 words and against 3
    counts = count_errors(
        [{"u": "um go on"}, {"u": "go on"}], {"u": "x y"}, clip=True
    )
    assert (counts.errors, counts.words) == (2.5, 2.5)
    # half of 4 and half of 2
    counts = count_errors([{"u": "a b c d"}, {"u": "a c"}], {"u": "a b"})
    assert (counts.errors, counts.words, counts.wrong_sentences) == (1.5, 3, 1)


def test_an_empty_reference_is_right_for_silence_only():
    versions = [{"u": "um"}, {"u": ""}]
    silent = count_errors(versions, {"u": ""}, clip=True)
    assert (silent.errors, silent.words) == (0, 0)
    wrong = count_errors(versions, {"u": "yes"}, clip=True)
    assert (wrong.errors, wrong.words) == (1, 1)


def test_buckets_include_their_upper_edge():
    names = ["short", "edge", "window", "long"]
    said = dict.fromkeys(names, "a b")
    heard = dict(said, window="a", long="")
    scores = score_utterances(
        said,
        heard,
        durations={"short": 0.3, "edge": 5.0, "window": 30.0, "long": 30.01},
    )
    buckets = by_bucket(scores)
    assert {label: c.utterances for label, c in buckets.items()} == {
        "(0, 5]": 2,
        "(5, 30]": 1,
        "(30, inf)": 1,
    }
    assert [c.rate for c in buckets.values()] == [0, 50, 100]
    assert sum(buckets.values()) == total(scores)
    assert list(by_bucket(scores, edges=(2.5,))) == ["(0, 2.5]", "(2.5, inf)"]


def test_buckets_refuse_what_they_cannot_place():
    scores = score_utterances({"u": "a"}, {"u": "a"})
    with pytest.raises(ValueError, match="'u' has duration None"):
        by_bucket(scores)
    with pytest.raises(ValueError, match="'u' has duration 0"):
        by_bucket(scores, {"u": 0})
    with pytest.raises(ValueError, match="rising seconds"):
        by_bucket(scores, {"u": 1}, edges=(30, 5))


def test_hallucinations_are_named():
    said = {
        "fine": "no no no i said no",
        "loop": "we will see",
        "silence": "",
        "long": "one two three four",
    }
    heard = {
        "fine": "no no no i said no",
        "loop": "we will we will we will",
        "silence": "thanks for watching",
        "long": "one two three four five",
    }
    assert hallucinations(score_utterances(said, heard)) == {
        "over_100": ["loop", "silence"],
        "insertions": ["loop", "silence"],
        "loops": ["loop"],
    }


@pytest.mark.parametrize(
    "text, times",
    [
        ("", 0),
        ("a b c", 1),
        ("a a", 2),
        ("x a b a b a b y", 3),
        ("a b c a b c a b", 2),
        ("a a a a", 4),
        ("a b b a b b", 2),
    ],
)
def test_longest_loop(text, times):
    assert longest_loop(text.split()) == times


def test_scores_survive_the_file(tmp_path):
    references, hypotheses = random_transcripts()
    references["ü"] = hypotheses["ü"] = "größe"
    scores = score_utterances(
        [references, references], hypotheses, durations={"u1": 1.5}
    )
    write_scores(tmp_path / "scores.jsonl", scores)
    assert read_scores(tmp_path / "scores.jsonl") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_broken_line_of_scores_is_named(tmp_path):
    path = tmp_path / "scores.jsonl"
    write_scores(path, score_utterances({"u": "a"}, {"u": "a"}))
    with open(path, "a") as stream:
        stream.write('{"id": "torn", "cou')
    with pytest.raises(ValueError, match="line 2 is not the score"):
        read_scores(path)


def some_scores(path):
    """A file with the scores of four utterances."""
    said = {f"u{number}": "a b c" for number in range(4)}
    heard = {**said, "u3": "a x c", "u1": "a"}
    scores = score_utterances(said, heard, durations=dict.fromkeys(said, 2.0))
    write_scores(path, scores)
    return scores


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "is empty. Score"),
        (lambda text: text[: text.rindex('{"id')], "3 lines of 4: it was cut"),
        (lambda text: text.replace('"b"', '"v"', 1), "was changed"),
        (lambda text: text.replace("2.0", "9.0", 1), "was changed"),
        (lambda text: text.replace("u0", "u9", 1), "was changed"),
        (lambda text: text.replace(', "of": 4', "", 1), "says that there"),
        (lambda text: "".join(text.splitlines(True)[1:]), "was changed"),
        (lambda text: "".join(text.splitlines(True)[::-1]), "was changed"),
    ],
)
def test_scores_that_were_cut_or_changed(tmp_path, change, message):
    path = tmp_path / "scores.jsonl"
    some_scores(path)
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(ValueError, match=f"scores.jsonl.*{message}"):
        read_scores(path)


def test_scores_of_an_earlier_version(tmp_path):
    path = tmp_path / "scores.jsonl"
    scores = some_scores(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["of"], row["check"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_scores(path) == scores
    write_scores(path, [])
    assert read_scores(path) == []


@pytest.mark.parametrize("text", [None, 3.5, ["a", None], {"a": 1}])
@pytest.mark.parametrize("side", ["references", "hypotheses"])
def test_what_is_no_text_is_named(side, text):
    given = {"references": {"u1": "a"}, "hypotheses": {"u1": "a"}}
    given[side] = {"u1": text}
    with pytest.raises(ValueError, match=f"{side}: utterance 'u1' has .*"):
        score_utterances(**given)


def test_texts_come_by_utterance():
    with pytest.raises(ValueError, match="references must be a dict.*str"):
        score_utterances("a b", {"u1": "a b"})
    with pytest.raises(ValueError, match="hypotheses must be a dict.*list"):
        score_utterances({"u1": "a b"}, ["a b"])


def two_transcripts(count=60, seed=5):
    """Spoken and fluent transcripts, and hypotheses between them."""
    draw = random.Random(seed)
    fluent, hypotheses = random_transcripts(count, seed)
    spoken = {
        name: " ".join(
            word
            for each in text.split()
            for word in [each] * (1 + (draw.random() < 0.3))
        )
        for name, text in fluent.items()
    }
    hypotheses["u1"] = "a " * 40  # a loop, which clipping cuts short
    hypotheses["u2"] = spoken["u2"]
    return [spoken, fluent], hypotheses


def test_the_tracker_of_the_best_reference_has_the_challenges_rate():
    references, hypotheses = two_transcripts()
    tracker = BestReferenceStats(clip=True)
    names = list(hypotheses)
    for start in range(0, len(names), 7):
        batch = names[start : start + 7]
        tracker.append(
            batch,
            [hypotheses[name].split() for name in batch],
            [references[0][name].split() for name in batch],
            others=[[references[1][name].split() for name in batch]],
        )
    expected = challenge_rate(*references, hypotheses)
    assert tracker.summarize("WER") == pytest.approx(expected)
    scores = from_tracker(tracker)
    assert total(scores) == count_errors(references, hypotheses, clip=True)
    assert total(scores).rate == pytest.approx(expected)
    assert {score.references for score in scores} == {2}
    # the rule matters on these: neither transcript alone, nor unclipped
    others = [count_errors(each, hypotheses, clip=True) for each in references]
    assert all(other.rate > expected + 1 for other in others)
    assert count_errors(references, hypotheses).rate > expected + 1
    # halves come from transcripts that are equally good
    assert any(score.errors % 1 for score in scores)


def test_the_trackers_alignments_can_be_written(tmp_path):
    tracker = BestReferenceStats()
    tracker.append(["u"], [["b", "c", "x"]], [["a", "b"]], [[["b", "d", "x"]]])
    with open(tmp_path / "wer.txt", "w", encoding="utf-8") as file:
        tracker.write_stats(file)
    text = (tmp_path / "wer.txt").read_text()
    assert "%WER 33.33 [ 1 / 3, 0 ins, 0 del, 1 sub ]" in text
    lines = [line.split() for line in text.splitlines()]
    place = next(
        i for i, line in enumerate(lines) if line[::2] == ["b", "d", "x"]
    )
    assert lines[place + 1][::2] == ["=", "S", "="]
    assert lines[place + 2][::2] == ["b", "c", "x"]
    with pytest.raises(ValueError, match="1 utterances and 2 texts"):
        tracker.append(["u"], [["b"], ["c"]], [["b"]])


def test_scores_of_several_references_are_read_again(tmp_path):
    references, hypotheses = two_transcripts(count=6)
    scores = score_utterances(references, hypotheses, clip=True)
    write_scores(tmp_path / "scores.jsonl", scores)
    assert read_scores(tmp_path / "scores.jsonl") == scores
