"""The picture of forgetting, and names that cover neither points nor names."""

import random

import pytest
from matplotlib.text import Text

from speechbrain_merge.report import forgetting_plot, plot_forgetting
from speechbrain_merge.report.figure import new_figure
from speechbrain_merge.report.pareto import label_points


def results():
    """An original, two experts and their average: digits, and what is read."""
    return {
        "in_domain": ["digits"],
        "test_domains": ["digits", "read"],
        "rows": [
            {
                "name": name,
                "group": group,
                "sets": {
                    "digits": {"errors": digits, "words": 100},
                    "read": {"errors": read, "words": 200},
                },
            }
            for name, group, digits, read in (
                ("original", "generalist", 20, 20),
                ("combined", "joint", 2, 44),
                ("averaged", "merge", 6, 22),
                ("broken", "merge", 200, 60),
            )
        ],
    }


def drawn(found, path, monkeypatch):
    """The axes of the picture."""
    pictures = []
    real = forgetting_plot.save_figure

    def save(picture, path):
        pictures.append(picture)
        return real(picture, path)

    monkeypatch.setattr(forgetting_plot, "save_figure", save)
    assert plot_forgetting(found, path) == path
    assert path.stat().st_size > 5000
    return pictures[0]


def test_each_model_lies_at_its_average_and_its_forgetting(
    tmp_path, monkeypatch
):
    figure = drawn(results(), tmp_path / "forgetting.png", monkeypatch)
    [axes] = figure.axes
    points = {
        group.get_label(): group.get_offsets().tolist()
        for group in axes.collections
    }
    assert points["generalist"] == [[15.0, 0.0]]
    assert points["joint"] == [pytest.approx([12.0, 120.0])]
    assert points["merge"] == [
        pytest.approx([8.5, 10.0]),
        pytest.approx([115.0, 200.0]),
    ]
    assert [text.get_text() for text in axes.texts] == [
        "original",
        "combined",
        "averaged",
        "broken",
    ]
    # one model beyond all others does not press them into a corner
    assert axes.get_xscale() == "log"
    tame = {**results(), "rows": results()["rows"][:3]}
    figure = drawn(tame, tmp_path / "tame.png", monkeypatch)
    assert figure.axes[0].get_xscale() == "linear"


def test_where_nothing_can_be_forgotten_it_says_so(tmp_path):
    perfect = results()
    perfect["rows"][0]["sets"]["read"]["errors"] = 0
    nobody = {**results(), "rows": results()["rows"][1:]}
    for found in (perfect, nobody, {**results(), "retention": []}):
        with pytest.raises(ValueError, match="group 'generalist'.*retention"):
            plot_forgetting(found, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_names_cover_no_other_names_in_a_crowd():
    draw = random.Random(7)
    points = [
        (draw.gauss(0, 1), draw.gauss(0, 1), f"model number {number}")
        for number in range(24)
    ]
    figure, axes = new_figure(width=8.4, height=6.0)
    axes.scatter([p[0] for p in points], [p[1] for p in points])
    axes.margins(0.12)
    figure.draw_without_rendering()
    label_points(axes, points, size=7.5)
    assert [text.get_text() for text in axes.texts] == [p[2] for p in points]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    hidden = [
        (one, other)
        for one in range(24)
        for other in range(one)
        if boxes[one].overlaps(boxes[other])
    ]
    assert hidden == []
    frame = axes.get_window_extent()
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes)
