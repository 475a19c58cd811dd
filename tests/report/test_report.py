"""Tables and pictures of results, cell by cell where it counts."""

from xml.etree import ElementTree

import pytest

from speechbrain_merge.report import (
    bucket_rows,
    markdown_table,
    plot_domains,
    plot_merge_curve,
    results_rows,
    text_table,
)


def counts(errors, words, short=0):
    """Rates of one set, ``short`` of its errors in utterances up to 5 s."""

    def bucket(number, words):
        """A bucket whose errors are all substitutions."""
        return {
            "errors": number,
            "insertions": 0,
            "deletions": 0,
            "substitutions": number,
            "words": words,
            "utterances": 4 if words else 0,
            "wrong_sentences": min(number, 4),
        }

    return {
        "errors": errors,
        "words": words,
        "utterances": 8,
        "buckets": {
            "(0, 5]": bucket(short, words // 2),
            "(5, 30]": bucket(errors - short, words - words // 2),
            "(30, inf)": bucket(0, 0),
        },
    }


def results():
    """A generalist, an expert that forgets, and a merge."""
    return {
        "in_domain": ["digits", "child"],
        "test_domains": ["read", "digits", "child"],
        "rows": [
            {
                "name": name,
                "group": group,
                "sets": {
                    "digits": counts(digits, 100, digits // 2),
                    "child": counts(child, 200, child // 4),
                    "read": counts(read, 50, 1),
                },
            }
            for name, group, digits, child, read in (
                ("generalist", "generalist", 20, 100, 5),
                ("digits", "expert", 2, 110, 10),
                ("smact", "merge", 6, 60, 6),
            )
        ],
    }


def test_the_main_table_cell_by_cell():
    header, rows = results_rows(results())
    assert header == [
        "WER %",
        "digits (100 words)",
        "child (200 words)",
        "read (50 words)",
        "in-domain mean",
        "out-of-domain mean",
        "forgetting %",
        "mean",
    ]
    assert rows == [
        ["generalist", "20.0", "50.0", "**10.0**", "35.0", "**10.0**"]
        + ["**0.0**", "26.7"],
        ["digits", "**2.0**", "55.0", "20.0", "28.5", "20.0", "100.0", "25.7"],
        ["smact", "6.0", "**30.0**", "12.0", "**18.0**", "12.0", "20.0"]
        + ["**16.0**"],
    ]


def test_without_out_of_domain_sets_nothing_is_forgotten():
    only = results()
    only["test_domains"] = ["digits", "child"]
    header, rows = results_rows(only)
    assert header[-2:] == ["in-domain mean", "mean"]
    assert rows[0][-2:] == ["35.0", "35.0"]


def test_durations():
    header, rows = bucket_rows(results())
    assert header[1:] == ["(0, 5] (n = 12)", "(5, 30] (n = 12)"] + [
        "(30, inf) (n = 0)"
    ]
    # 10 of 20, 25 of 100 and 1 of 5 errors; 175 words in each range
    assert rows[0] == ["generalist", f"{100 * 36 / 175:.1f}", "50.9", ""]


def test_both_forms_of_a_table():
    header, rows = ["a", "b"], [["x", "**1.0**"], ["yy", "20.0"]]
    assert markdown_table(header, rows).splitlines() == [
        "| a | b |",
        "|---|---:|",
        "| x | **1.0** |",
        "| yy | 20.0 |",
    ]
    assert text_table(header, rows).splitlines() == [
        "a      b",
        "x    1.0",
        "yy  20.0",
    ]


def trial(kind, merged, value, accepted, complete=True):
    """A trial as a search reports it."""
    return {
        "kind": kind,
        "merged": merged,
        "value": value,
        "accepted": accepted,
        "complete": complete,
    }


def greedy_trials():
    """A search that accepts three of five."""
    singles = [trial("single", 1, v, None) for v in (20.5, 19.0, 22.0, 18.4)]
    return [
        trial("single", 1, 20.0, True),
        *singles,
        trial("merge", 2, 17.0, True),
        trial("merge", 3, 17.5, False),
        trial("merge", 3, 15.0, True),
        trial("merge", 4, 16.0, False, complete=False),
    ]


def words_of(path):
    """All words in an SVG picture, which keeps them in comments."""
    text = path.read_text()
    ElementTree.fromstring(text)
    return text


def test_the_curve_shows_what_happened(tmp_path):
    prefix = [
        trial("single", 1, 20.0, True),
        trial("merge", 2, 18.0, True),
        trial("merge", 3, 17.5, True),
    ]
    path = plot_merge_curve(
        {"smact": greedy_trials(), "mact": prefix},
        tmp_path / "pictures" / "curve.svg",
        lines={"generalist": 30.0},
        title="a study",
    )
    text = words_of(path)
    for words in ("smact, accepted", "smact, rejected", "mact", "generalist"):
        assert words in text, words
    assert "single candidates" in text and "merged candidates" in text
    assert [file.name for file in path.parent.iterdir()] == ["curve.svg"]


def test_the_map_has_every_number(tmp_path):
    text = words_of(plot_domains(results(), tmp_path / "domains.svg"))
    for words in ("generalist", "smact", "read", "55.0", "12.0"):
        assert words in text, words


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        plot_domains(results(), tmp_path / "domains.nonsense")
    assert not (tmp_path / "domains.nonsense").exists()
