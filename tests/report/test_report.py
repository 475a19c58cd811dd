"""Tables and pictures of results, cell by cell where it counts."""

import json
import re
import sys
import warnings
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy
import pytest
from matplotlib.text import Text

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.report import (
    bucket_rows,
    coefficient_sweep,
    figure,
    load_results,
    markdown_table,
    merge_curve,
    pareto,
    plot_buckets,
    plot_coefficient_sweep,
    plot_domains,
    plot_forgetting,
    plot_line,
    plot_merge_curve,
    plot_pareto,
    plots,
    results_rows,
    results_table,
    save_results,
    text_table,
)
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.search.tally import Tally


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
        "digits\n100 words\n8 utterances",
        "child\n200 words\n8 utterances",
        "read\n50 words\n8 utterances",
        "in-domain\nmean",
        "out-of-domain\nmean",
        "forgetting\n%",
        "mean",
    ]
    # the generalist forgets nothing by definition, which is not in bold
    assert rows == [
        ["generalist", "20.0", "50.0", "**10.0**", "35.0", "**10.0**"]
        + ["0.0", "26.7"],
        ["digits", "**2.0**", "55.0", "20.0", "28.5", "20.0", "100.0", "25.7"],
        ["smact", "6.0", "**30.0**", "12.0", "**18.0**", "12.0", "**20.0**"]
        + ["**16.0**"],
    ]


def test_what_looks_equal_is_equally_best():
    same = results()
    for row, errors in zip(same["rows"], (600, 601, 700)):
        row["sets"]["read"].update(errors=errors, words=10_000)
    _, rows = results_rows(same)
    assert [row[3] for row in rows] == ["**6.0**", "**6.0**", "7.0"]


def test_a_set_without_words_has_no_rate():
    silent = results()
    for row in silent["rows"]:
        row["sets"]["digits"]["words"] = 0
    _, rows = results_rows(silent)
    assert rows[0][1] == "–" and rows[0][4] == "–" and rows[0][7] == "–"
    assert rows[0][5] == "**10.0**"


def test_without_out_of_domain_sets_nothing_is_forgotten():
    only = results()
    only["test_domains"] = ["digits", "child"]
    header, rows = results_rows(only)
    assert header[-2:] == ["in-domain\nmean", "mean"]
    assert rows[0][-2:] == ["35.0", "35.0"]
    # unless it is said where to look
    only["retention"] = ["digits"]
    header, rows = results_rows(only)
    assert header[-2] == "forgetting\n%"
    assert [row[-2] for row in rows] == ["0.0", "**-90.0**", "-70.0"]


def test_beneath_the_table_stands_how_it_was_made():
    made = {**results(), "seed": 3, "command": "python train.py smact.yaml"}
    text = results_table(made)
    assert text.endswith("Seed: 3  \nCommand: `python train.py smact.yaml`")
    assert text.startswith("| WER % | digits<br>100 words<br>8 utterances |")
    plain = results_table(made, form="text").splitlines()
    assert plain[0].split() == ["WER", "%", "digits", "child", "read"] + [
        "in-domain",
        "out-of-domain",
        "forgetting",
        "mean",
    ]
    assert plain[4].split()[1:4] == ["2.0*", "55.0", "20.0"]
    assert plain[-2:] == ["Seed: 3", "Command: python train.py smact.yaml"]
    with pytest.raises(ValueError, match='"markdown" or "text"'):
        results_table(made, form="html")


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    save_results(path, results())
    assert load_results(path) == {"schema": 1, **results()}
    text = path.read_text()
    changed = re.sub(r'("errors": )\d+', r"\g<1>1", text, count=1)
    path.write_text(changed)
    assert changed != text
    with pytest.raises(RecordError, match="take out its entry 'check'"):
        load_results(path)
    known = json.loads(changed)
    del known["check"]
    path.write_text(json.dumps(known))
    assert load_results(path)["rows"] != results()["rows"]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.pop("in_domain"), "no `in_domain`"),
        (lambda r: r.update(rows=[]), "no rows"),
        (lambda r: r.update(schema=2), "schema 2"),
        (lambda r: r.update(retention=["rad"]), r"\['rad'\].*not among"),
        (lambda r: r["rows"][1].pop("name"), "no `name`"),
        (
            lambda r: r["rows"][1]["sets"].pop("read"),
            "row 'digits' has no counts for 'read'",
        ),
        (
            lambda r: r["rows"][2]["sets"]["read"].pop("words"),
            "row 'smact', set 'read'.*\"words\"",
        ),
    ],
)
def test_wrong_results_are_named(tmp_path, change, message):
    wrong = results()
    change(wrong)
    with pytest.raises(ValueError, match=message):
        save_results(tmp_path / "results.json", wrong)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "by_hand.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=f"by_hand.json.*{message}"):
        load_results(path)


def test_durations():
    header, rows = bucket_rows(results())
    assert header[1:] == ["(0, 5] (n = 12)", "(5, 30] (n = 12)"] + [
        "(30, inf) (n = 0)"
    ]
    # 10 of 20, 25 of 100 and 1 of 5 errors; 175 words in each range
    assert rows[0] == ["generalist", f"{100 * 36 / 175:.1f}", "50.9", ""]


def test_durations_need_the_same_buckets_everywhere():
    odd = results()
    odd["rows"][1]["sets"]["read"]["buckets"] = {"(0, inf)": {}}
    with pytest.raises(ValueError, match="row 'digits', set 'read'"):
        bucket_rows(odd)
    del odd["rows"][0]["sets"]["digits"]["buckets"]
    with pytest.raises(ValueError, match="row 'generalist', set 'digits'"):
        plot_buckets(odd, "never.png")


def test_both_forms_of_a_table():
    header, rows = ["a", "b"], [["x", "**1.0**"], ["yy", "20.0"]]
    assert markdown_table(header, rows).splitlines() == [
        "| a | b |",
        "|---|---:|",
        "| x | **1.0** |",
        "| yy | 20.0 |",
    ]
    assert text_table(header, rows).splitlines() == [
        "a       b",
        "x    1.0*",
        "yy  20.0",
    ]


def trial(kind, step, merged, value, accepted, best=None, complete=True):
    """A trial as a search reports it."""
    return {
        "kind": kind,
        "candidate": f"c{step}",
        # those scored alone have no place in the search
        "step": None if accepted is None else step,
        "merged": merged,
        "value": value,
        "accepted": accepted,
        "complete": complete,
        "best": best,
    }


def greedy_trials():
    """A search that accepts three of five."""
    singles = [
        trial("single", step, 1, value, None)
        for step, value in enumerate((20.5, 19.0, 22.0, 18.4), start=2)
    ]
    return [
        trial("single", 1, 1, 20.0, True, 20.0),
        *singles,
        trial("merge", 2, 2, 17.0, True, 17.0),
        trial("merge", 3, 3, 17.5, False, 17.0),
        trial("merge", 4, 3, 15.0, True, 15.0),
        trial("merge", 5, 4, 16.0, False, 15.0, complete=False),
    ]


def words_of(path):
    """All words in an SVG picture, which keeps them in comments."""
    text = path.read_text()
    ElementTree.fromstring(text)
    return text


def drawn(monkeypatch):
    """The axes of the pictures drawn from now on."""
    pictures = []
    real = figure.save_figure

    def save(picture, path):
        pictures.append(picture.axes[0])
        return real(picture, path)

    for module in (merge_curve, plots, pareto, coefficient_sweep):
        monkeypatch.setattr(module, "save_figure", save)
    return pictures


def test_the_curve_shows_what_happened(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    prefix = [
        trial("single", 1, 1, 20.0, True, 20.0),
        trial("merge", 2, 2, 18.0, True, 18.0),
        trial("merge", 3, 3, 17.5, True, 17.5),
    ]
    path = plot_merge_curve(
        {"smact": greedy_trials(), "mact": prefix},
        tmp_path / "pictures" / "curve.svg",
        lines={"generalist": 30.0},
        title="a study",
    )
    text = words_of(path)
    for words in (
        "smact, accepted",
        "smact, rejected",
        "smact, rejected early",
        "mact",
        "generalist, 30.0 %",
        "single candidates",
        "merged candidates",
        "WER on the selection sets (%)",
        "a study",
    ):
        assert f"<!-- {words}" in text, words
    assert [file.name for file in path.parent.iterdir()] == ["curve.svg"]

    [axes] = pictures
    lines = {
        tuple(map(float, line.get_ydata())): line.get_xdata()
        for line in axes.lines
    }
    # error rate against the number of merged candidates
    assert list(lines[20.0, 17.0, 15.0]) == [1, 2, 3]
    assert list(lines[20.0, 18.0, 17.5]) == [1, 2, 3]
    marks = {
        marks.get_label(): marks.get_offsets().tolist()
        for marks in axes.collections
    }
    assert marks["smact, rejected"] == [[3, 17.5]]
    assert marks["smact, rejected early (at least)"] == [[4, 16.0]]
    assert marks["single candidates"] == [
        [1, 20.0],
        [1, 20.5],
        [1, 19.0],
        [1, 22.0],
        [1, 18.4],
    ]


def test_the_curve_of_a_real_search(tmp_path):
    """Trials as ``GreedySearch`` makes them, not as this file thinks."""
    worth = {"a": 9, "b": 5, "c": 2, "d": 8}

    def score(selection, incumbent):
        errors = min(worth[c.name] for c in selection) * 10 + len(selection)
        return Tally(errors=errors, words=100, utterances=10)

    found = GreedySearch(score_singles=True).run(
        [SimpleNamespace(name=name) for name in worth], score, progress=False
    )
    text = words_of(
        plot_merge_curve({"greedy": found.trials}, tmp_path / "curve.svg")
    )
    assert "<!-- greedy, accepted" in text and "<!-- greedy, rejected" in text
    assert "<!-- single candidates" in text


def test_the_map_has_every_number(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    text = words_of(plot_domains(results(), tmp_path / "domains.svg"))
    for words in ("generalist", "smact", "read", "55.0", "12.0"):
        assert f"<!-- {words} -->" in text, words
    [image] = pictures[0].images
    # half as many errors, one doubling less; colours end at the largest change
    assert image.get_array()[:, 2].tolist() == [
        0,
        1,
        pytest.approx(0.263, abs=1e-3),
    ]
    assert image.get_array()[1, 0] == pytest.approx(-3.322, abs=1e-3)
    assert image.norm.vmin == image.get_array()[1, 0]
    assert image.norm.vmax == 1


def test_the_colours_of_the_map_tell_good_from_better(tmp_path, monkeypatch):
    """4.8 % and 9.0 %, both far below 100 %: apart in CIELAB, where a
    difference of 2 is just seen."""
    pictures = drawn(monkeypatch)
    rows = [
        {
            "name": name,
            "group": group,
            "sets": {"a": {"errors": errors, "words": 1000}},
        }
        for name, group, errors in (
            ("start", "generalist", 1000),
            ("one", "merge", 48),
            ("other", "merge", 90),
        )
    ]
    content = {"in_domain": ["a"], "test_domains": ["a"], "rows": rows}
    plot_domains(content, tmp_path / "domains.png")
    [image] = pictures[0].images
    _, one, other = image.to_rgba(image.get_array())[:, 0, :3]
    assert numpy.linalg.norm(lab(one) - lab(other)) > 10


def lab(colour):
    """A colour in CIELAB, from sRGB (IEC 61966-2-1), at D65."""
    linear = numpy.where(
        colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4
    )
    xyz = (
        numpy.array(
            [
                [0.4124, 0.3576, 0.1805],
                [0.2126, 0.7152, 0.0722],
                [0.0193, 0.1192, 0.9505],
            ]
        )
        @ linear
        / numpy.array([0.9505, 1.0, 1.089])
    )
    x, y, z = numpy.cbrt(xyz)
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_bold_is_what_is_significant(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    content = {**results(), "significant": {"digits": "smact", "read": None}}
    plot_domains(content, tmp_path / "domains.png")
    bold = [
        (text.get_position(), text.get_text())
        for text in pictures[0].axes.texts
        if text.get_weight() == "bold"
    ]
    assert bold == [((0, 2), "6.0")]


def test_another_metric_is_in_every_title(tmp_path, monkeypatch):
    drawn(monkeypatch)
    other = {**results(), "metric": "PER"}
    assert results_rows(other)[0][0] == "PER %"
    assert bucket_rows(other)[0][0] == "PER % by duration in s"
    for draw, title in (
        (plot_domains, "PER (%)"),
        (plot_buckets, "PER (%)"),
        (plot_pareto, "mean PER in domain (%)"),
        (plot_forgetting, "mean PER over all test sets (%)"),
    ):
        text = words_of(draw(other, tmp_path / "picture.svg"))
        assert f"<!-- {title} -->" in text, title


def test_the_front_of_a_trade_off(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    text = words_of(plot_pareto(results(), tmp_path / "pareto.svg"))
    for words in ("Pareto front", "expert", "mean WER out of domain (%)"):
        assert f"<!-- {words} -->" in text, words
    # the expert is beaten by the merge on both sides
    front = pictures[0].lines[0]
    assert list(front.get_xdata()) == pytest.approx([18.0, 35.0])
    assert list(front.get_ydata()) == pytest.approx([12.0, 10.0])
    assert {"generalist", "digits", "smact"} == {
        text.get_text() for text in pictures[0].texts
    }
    only = results()
    only["test_domains"] = ["digits", "child"]
    with pytest.raises(ValueError, match="out of domain"):
        plot_pareto(only, tmp_path / "pareto.svg")


def test_a_front_ends_at_the_mark_of_a_point_far_out(tmp_path, monkeypatch):
    """The line went on to where no mark was, and squeezed all others."""
    pictures = drawn(monkeypatch)

    def counted(errors):
        return {"errors": errors, "words": 1000, "utterances": 9}

    places = [(100 + 2 * n, 130 - 2 * n) for n in range(14)] + [(900, 60)]
    rows = [
        {
            "name": f"m{number}",
            "group": "merge",
            "sets": {"in": counted(inside), "out": counted(outside)},
        }
        for number, (inside, outside) in enumerate(places)
    ]
    plot_pareto(
        {
            "metric": "WER",
            "in_domain": ["in"],
            "test_domains": ["in", "out"],
            "rows": rows,
        },
        tmp_path / "pareto.png",
    )
    axes = pictures[0]
    [front] = axes.lines
    marks = {
        tuple(spot) for each in axes.collections for spot in each.get_offsets()
    }
    assert set(zip(*front.get_data())) <= marks
    assert axes.get_xlim()[1] < 20 and max(front.get_xdata()) > 12


def test_bars_by_duration(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    path = plot_buckets(
        results(), tmp_path / "buckets.svg", names=["generalist", "smact"]
    )
    text = words_of(path)
    assert "(0, 5] s" in text and "n = 12" in text
    # no bars where there are no utterances
    heights = [bar.get_height() for bar in pictures[0].patches]
    assert heights[:2] == pytest.approx([100 * 36 / 175, 100 * 89 / 175])
    assert len(heights) == 4
    with pytest.raises(ValueError, match="no models"):
        plot_buckets(results(), path, names=["nobody"])


def test_a_sweep_marks_the_best(tmp_path, monkeypatch):
    pictures = drawn(monkeypatch)
    path = plot_coefficient_sweep(
        {"in domain": [(1.0, 15.0), (0.0, 20.0), (0.5, 12.0)]},
        tmp_path / "sweep.svg",
        coefficient="density",
        lines={"generalist": 20.0},
    )
    text = words_of(path)
    for words in ("in domain, best 12.0 % at 0.5", "density", "WER (%)"):
        assert f"<!-- {words} -->" in text, words
    assert list(pictures[0].lines[1].get_xdata()) == [0.0, 0.5, 1.0]


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        plot_domains(results(), tmp_path / "domains.nonsense")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"speechbrain_merge\[plots\]"):
        plot_domains(results(), "never.png")


def test_long_names_are_not_cut_off():
    picture, axes = figure.new_figure()
    for number in range(4):
        axes.plot([1, 2], label=f"{number} a search with a rather long name")
    figure.add_legend(picture, axes)
    [legend] = picture.legends
    assert legend.get_window_extent().width < picture.bbox.width
    assert len(legend.get_texts()) == 4


NAMES = ["a\x1b[2J\u202eb", "$\\frac{$", "_c $x$"]


def test_names_are_drawn_letter_by_letter(tmp_path):
    """Titles, ticks, legends and notes; matplotlib warns of what it lacks."""
    first, second, third = NAMES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture, axes = figure.new_figure()
        axes.plot([0, 1], label=first)
        axes.set_title(second)
        axes.set_xlabel(first)
        axes.set_xticks([0, 0.5, 1], NAMES)
        axes.annotate(first, (0, 0))
        axes.text(0, 1, second)
        figure.draw_lines(axes, {second: 20.0})
        figure.add_legend(picture, axes)
        picture.suptitle(first)
        figure.save_figure(picture, tmp_path / "names.svg")
        ends = [{"name": first}, {"name": second}]
        points = [{"t": t, "loss": 1.0, "wer": 9.0} for t in (0.0, 0.5, 1.0)]
        curves = {third: {"models": ends, "points": points}}
        plot_line(curves, tmp_path / "line.png", "wer", title=first)
    texts = [text.get_text() for text in picture.findobj(Text)]
    assert texts.count(r"a\x1b[2J\u202eb") >= 4
    assert r"\$\frac{\$" in texts and r"_c \$x\$" in texts
