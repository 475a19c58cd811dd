"""The table that compares merge methods."""

import pytest

from speechbrain_merge.report import benchmark_rows
from speechbrain_merge.report.benchmark import kept_gains


def row(name, group, digits, phone, read, **more):
    """A row with errors in 100 words of three sets."""
    errors = {"digits": digits, "phone": phone, "read": read}
    sets = {name: {"errors": e, "words": 100} for name, e in errors.items()}
    return {"name": name, "group": group, "sets": sets, **more}


@pytest.fixture
def results():
    """Two experts, one of which gained nothing, and two merges."""
    return {
        "in_domain": ["digits", "phone"],
        "test_domains": ["digits", "phone", "read"],
        "reference": "average",
        "rows": [
            row("generalist", "generalist", 30, 20, 10),
            row("digits", "expert", 10, 40, 20, domains=["digits"]),
            row("phone", "expert", 50, 20, 12, domains=["phone"]),
            row("joint", "joint", 12, 10, 20, domains=["digits", "phone"]),
            row("average", "merge", 20, 18, 11, chosen=None),
            row(
                "ties",
                "merge",
                15,
                18,
                12,
                chosen={"scale": 0.6180339},
                difference={"difference": -4 / 3, "low": -3.0, "high": 0.04},
                cost={
                    "merge_seconds": 2.14,
                    "peak_megabytes": 350,
                    "trials": 6,
                    "decoded_seconds": 1830.0,
                },
            ),
        ],
    }


def test_gain_is_that_of_the_experts_who_gained(results):
    gains = kept_gains(results)
    # only the expert of digits gained, from 30 to 10
    assert gains == [None, 1.0, -1.0, 0.9, 0.5, 0.75]


def test_the_table(results):
    header, rows = benchmark_rows(results)
    cells = {name: dict(zip(header, [name, *rest])) for name, *rest in rows}
    assert header[5] == "difference to\naverage [95 %]"
    ties = cells["ties"]
    assert ties["chosen"] == "scale 0.618"
    assert ties["difference to\naverage [95 %]"] == "-1.3 [-3.0, +0.0]"
    assert ties["in-domain\nWER %"] == "16.5"
    assert ties["gain kept\n%"] == "75"
    assert ties["merge\ns"] == "2.1" and ties["peak\nMB"] == "350"
    assert ties["trials"] == "6" and ties["decoded\nmin"] == "30"
    assert cells["joint"]["in-domain\nWER %"] == "**11.0**"
    assert cells["average"]["chosen"] == "–"
    assert cells["average"]["difference to\naverage [95 %]"] == "–"
    assert cells["generalist"]["gain kept\n%"] == "–"
    # the generalist's own 0 % of forgetting is no merit
    assert cells["average"]["forgetting\n%"] == "**10.0**"


def test_without_a_reference_there_is_no_difference(results):
    del results["reference"]
    header, rows = benchmark_rows(results)
    assert not any("difference" in title for title in header)
    assert {len(cells) for cells in rows} == {len(header)}
