from fractions import Fraction

import pytest

from speechbrain_merge.search import Race, Savings, Tally, decisive_first


def test_thresholds_of_both_rules():
    incumbent = Tally(10, 100)
    for errors, lost_lt, lost_le in [
        (0, False, False),
        (9, False, False),
        (Fraction(19, 2), False, False),
        (10, True, False),
        (Fraction(21, 2), True, True),
        (11, True, True),
    ]:
        for complete in (False, True):
            trial = Tally(errors, 100, complete=complete)
            assert Race(incumbent, "lt").lost(trial) is lost_lt
            assert Race(incumbent, "le").lost(trial) is lost_le
        # the errors alone do in a micro average
        assert Race(incumbent, "lt").lost(errors) is lost_lt
        assert Race(incumbent, "le").lost(errors) is lost_le


def test_a_perfect_incumbent_ends_a_strict_race_at_once():
    perfect = Tally(0, 100)
    assert Race(perfect, "lt").lost(0)
    assert not Race(perfect, "le").lost(0)


def test_macro_floor_weighs_errors_by_the_words_of_the_whole_domain():
    incumbent = Tally.of_domains({"small": (1, 10), "large": (10, 1000)})
    race = Race(incumbent)
    # incumbent: (0.1 + 0.01) / 2. One error in the small domain is worth 100.
    part = Tally.of_domains({"large": (109, 200)}, complete=False)
    assert race.floor(part) == Fraction(109, 2000)
    assert not race.lost(part)
    part = Tally.of_domains({"large": (110, 200)}, complete=False)
    assert race.floor(part) == incumbent.cost and race.lost(part)
    part = Tally.of_domains({"small": (2, 3)}, complete=False)
    assert race.lost(part)
    assert not Race(incumbent).lost(
        Tally.of_domains({"small": (1, 10), "large": (9, 1000)})
    )


def test_early_verdicts_agree_with_full_ones(error_table):
    checked = early = 0
    for seed in range(150):
        for average in ("micro", "macro"):
            table = error_table(seed, average=average)
            incumbent, full = table.full("x"), table.full("y")
            for accept in ("lt", "le"):
                race = Race(incumbent, accept)
                wins = (
                    full.cost < incumbent.cost
                    if accept == "lt"
                    else full.cost <= incumbent.cost
                )
                assert race.lost(full) is not wins
                lost = False
                for count in range(len(table.order)):
                    part = table.tally("y", table.order[:count], False)
                    # once lost, always lost, and never a later winner
                    assert race.lost(part) or not lost
                    lost = race.lost(part)
                    assert not (lost and wins)
                    checked += 1
                early += lost
    assert checked == 150 * 2 * 2 * 12
    assert early > 100


def test_races_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="incomplete"):
        Race(Tally(1, 10, complete=False))
    with pytest.raises(ValueError, match="'lt'"):
        Race(None, accept="<")
    race = Race(Tally(5, 100, utterances=20))
    with pytest.raises(ValueError, match="20 utterances"):
        race.lost(Tally(5, 100, utterances=19))
    with pytest.raises(ValueError, match="depends on the hypotheses"):
        race.lost(Tally(1, 101, complete=False))
    macro = Race(Tally.of_domains({"a": (1, 10), "b": (1, 10)}))
    with pytest.raises(ValueError, match="average"):
        macro.lost(Tally(1, 10))
    with pytest.raises(TypeError, match="domain"):
        macro.lost(3)
    with pytest.raises(ValueError, match="domains"):
        macro.lost(Tally.of_domains({"a": (1, 10)}))
    with pytest.raises(ValueError, match="domains"):
        macro.lost(Tally.of_domains({"c": (1, 10)}, complete=False))


def test_without_an_incumbent_nothing_loses_and_nothing_bounds():
    assert not Race(None).lost(10**9)
    assert Race(None).floor(Tally(5, 100)) == Fraction(1, 20)
    with pytest.raises(ValueError, match="no floor"):
        Race(None).floor(Tally(5, 100, complete=False))


def test_decisive_batches_come_first_and_ties_stay():
    assert decisive_first([1, 5, 5, 0]) == [1, 2, 0, 3]
    assert decisive_first([1, 5, 5, 0], [0.1, 5, 5, 1]) == [0, 1, 2, 3]
    assert decisive_first([Fraction(1, 3), Fraction(1, 2)]) == [1, 0]
    assert decisive_first([]) == []
    with pytest.raises(ValueError, match="efforts"):
        decisive_first([1, 2], [1])
    with pytest.raises(ValueError, match="positive"):
        decisive_first([1, 2], [1, 0])


def test_savings_count_what_was_not_decoded():
    savings = Savings()
    whole = Tally(20, 100, utterances=50, seconds=300.0)
    savings.add(whole, whole)
    savings.add(Tally(20, 9, complete=False, utterances=5, seconds=60.0), whole)
    assert savings.skipped_utterances == 45
    assert savings.skipped_seconds == 240.0
    assert savings.fraction == 0.4
    assert savings.to_dict()["stopped"] == 1
    assert Savings().fraction == 0
