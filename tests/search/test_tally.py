from fractions import Fraction

import numpy as np
import pytest
import torch

from speechbrain_merge.search.tally import Tally, require_words


def test_micro_is_pooled_and_macro_is_the_mean_of_rates():
    domains = {"read": (1, 100), "spoken": (30, 50)}
    micro = Tally.of_domains(domains, average="micro")
    macro = Tally.of_domains(domains, average="macro")
    assert (micro.errors, micro.words) == (macro.errors, macro.words)
    assert micro.cost == Fraction(31, 150)
    assert macro.cost == (Fraction(1, 100) + Fraction(30, 50)) / 2
    assert macro.value == 30.5


def test_macro_is_exact_where_floats_are_not():
    # 1/10 + 2/10 and 3/10 differ as floats
    first = Tally.of_domains({"a": (1, 10), "b": (2, 10), "c": (0, 10)})
    second = Tally.of_domains({"a": (3, 10), "b": (0, 10), "c": (0, 10)})
    assert 1 / 10 + 2 / 10 != 3 / 10
    assert first.cost == second.cost


def test_counts_of_numpy_and_torch_become_plain():
    tally = Tally(np.int64(3), torch.tensor(50), utterances=np.int32(2))
    assert type(tally.errors) is int and type(tally.words) is int
    assert type(tally.utterances) is int
    assert tally.value == 6.0


@pytest.mark.parametrize("count", [3.0, np.float32(2), "3", None])
def test_inexact_counts_are_refused(count):
    with pytest.raises(TypeError, match="exact"):
        Tally(count, 50)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(errors=-1, words=5), "negative"),
        (dict(errors=1, words=0), "no reference words"),
        (dict(errors=1, words=5, average="mean"), "average"),
        (dict(errors=1, words=5, average="macro"), "domains"),
        (dict(errors=1, words=5, domains={"a": (2, 5)}), "add up"),
        (
            dict(
                errors=1,
                words=5,
                average="macro",
                domains={"a": (1, 5), "quiet": (0, 0)},
            ),
            "'quiet'",
        ),
    ],
)
def test_undefined_tallies_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tally(**arguments)


def test_parts_add_up_to_the_whole():
    domains = [{"a": (1, 10)}, {"b": (2, 20)}, {"a": (Fraction(1, 2), 30)}]
    parts = [
        Tally.of_domains(d, complete=False, utterances=3, seconds=1.5)
        for d in domains
    ]
    whole = (parts[0] + parts[1] + parts[2]).completed()
    assert whole == Tally.of_domains(
        {"b": (2, 20), "a": (Fraction(3, 2), 40)}, utterances=9, seconds=4.5
    )
    assert not (parts[0] + parts[1]).complete
    with pytest.raises(ValueError, match="domains"):
        parts[0] + Tally(1, 10)


@pytest.mark.parametrize(
    "tally",
    [
        Tally(7, 90, utterances=3, seconds=2.25),
        Tally(Fraction(7, 2), 90, complete=False),
        Tally.of_domains({"é": (Fraction(1, 3), 9), "b": (2, 7)}),
        Tally.of_domains({"a": (1, 9)}, average="micro", complete=False),
        Tally(7, 90, loss=0.1 + 0.2),
    ],
)
def test_json_round_trip_is_exact(tally):
    import json

    again = Tally.from_dict(json.loads(json.dumps(tally.to_dict())))
    assert again == tally and again.loss == tally.loss
    assert type(again.errors) is type(tally.errors)


def test_words_are_asked_for_before_and_after_in_one_sentence():
    """What a complete tally refuses can be refused before any decoding."""
    words = {"read": 4, "noise": 0, "silence": 0}
    message = "domains 'noise', 'silence' have no reference words"
    with pytest.raises(ValueError, match=message):
        require_words(words, "macro")
    domains = {name: (1, number) for name, number in words.items()}
    with pytest.raises(ValueError, match=message):
        Tally.of_domains(domains, "macro")
    require_words(words, "micro")
    assert Tally.of_domains(domains, "micro").value == 75.0
    for average in ("micro", "macro"):
        with pytest.raises(ValueError, match="no reference words"):
            require_words({"noise": 0}, average)
        with pytest.raises(ValueError, match="no reference words"):
            require_words({None: 0}, average)


def test_a_loss_is_kept_and_decides_nothing():
    assert Tally(7, 90, loss=1.0) == Tally(7, 90, loss=2.0) == Tally(7, 90)
    # JSON knows no infinity; a journal written before has no loss at all
    data = Tally(7, 90, loss=float("inf")).to_dict()
    assert data.pop("loss") is None
    assert Tally.from_dict(data).loss is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"errors": "1e99999999"}, "key 'errors': expected a number between"),
        ({"errors": 0.5}, "key 'errors': expected a whole number"),
        ({"words": -1}, "key 'words': expected a whole number"),
        ({"complete": "yes"}, "key 'complete': expected true or false"),
        ({"seconds": "long"}, "key 'seconds': expected a number"),
        ({"domains": {"a": [1]}}, "key 'a': expected errors and words"),
        ({"domains": {"a": [9, 9]}}, "the domains add up to 9 errors"),
        ({"average": "mean"}, "key 'average': expected one of 'micro'"),
    ],
)
def test_a_stored_tally_is_checked(changes, words):
    data = {**Tally(3, 100).to_dict(), **changes}
    with pytest.raises(ValueError, match=f"j.jsonl, line 2.*{words}"):
        Tally.from_dict(data, "j.jsonl, line 2")


def test_a_stored_tally_lacks_a_key():
    data = Tally(3, 100).to_dict()
    del data["words"]
    with pytest.raises(
        ValueError, match="line 2: expected .* 'words' is missing"
    ):
        Tally.from_dict(data, "j.jsonl, line 2")


def test_sums_over_domains_stay_short():
    odd = range(1 << 60, (1 << 60) + 2000, 2)
    domains = {f"d{each}": [f"1/{each + 1}", 1] for each in odd}
    data = {**Tally(1, 1000).to_dict(), "domains": domains}
    with pytest.raises(ValueError, match="the sum has a denominator"):
        Tally.from_dict(data)
