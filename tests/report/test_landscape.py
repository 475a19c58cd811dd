"""Pictures of landscapes: what is drawn, and where."""

import math

import pytest

from speechbrain_merge.report import (
    barriers as barriers_of_widths,
    landscape as drawing,
    plot_barriers,
    plot_line,
    plot_plane,
)


@pytest.fixture
def drawn(monkeypatch):
    """Collects figures when they are saved."""
    figures, save = [], drawing.save_figure

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(drawing, "save_figure", keep)
    return figures


def line(names, values, start=0.0, measure="wer"):
    """A line as the Landscape gives it."""
    steps = len(values) - 1
    points = [
        {"t": start + i / steps, measure: value}
        for i, value in enumerate(values)
    ]
    return {"models": [{"name": name} for name in names], "points": points}


def plane(height, measure="wer", size=7):
    """A plane over a triangle with corners (0, 0), (2, 0), (0, 1)."""
    corners = {"A": (0, 0), "B": (2, 0), "C": (0, 1)}
    x = [-0.5 + 3 * i / (size - 1) for i in range(size)]
    y = [-0.25 + 1.5 * i / (size - 1) for i in range(size)]
    return {
        "models": [
            {"name": name, "x": a, "y": b, measure: height(a, b)}
            for name, (a, b) in corners.items()
        ],
        "x": x,
        "y": y,
        "points": [
            {"x": a, "y": b, "weights": [1 - a / 2 - b, a / 2, b]}
            | {measure: height(a, b)}
            for b in y
            for a in x
        ],
    }


def test_a_line_with_its_barriers(drawn, tmp_path):
    curves = {
        "direct": line(("SL", "SSL"), [5.0, 90.0, None, 60.0, 10.0]),
        "aligned": line(("SL", "SSL"), [5.0, 8.0, 15.5, 9.0, 10.0]),
    }
    path = plot_line(curves, tmp_path / "new" / "line.png", lines={"base": 3.0})
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    assert axes.get_ylabel() == "WER (%)"
    by_label = {each.get_label(): each for each in axes.lines}
    assert "direct, no finite barrier" in by_label
    # above the chord of 7.5 at t = 0.5
    aligned = by_label["aligned, barrier 8 points"]
    assert list(aligned.get_xdata()) == [0, 0.25, 0.5, 0.75, 1]
    assert list(aligned.get_ydata()) == [5, 8, 15.5, 9, 10]
    assert math.isnan(by_label["direct, no finite barrier"].get_ydata()[2])
    assert "base, 3.0 %" in by_label
    (top,) = axes.child_axes
    ends = [label.get_text() for label in top.get_xticklabels()]
    assert ends == ["SL", "SSL"]


def test_lines_from_the_start_to_several_models(drawn, tmp_path):
    curves = {
        name: line(("start", name), [6.0, 2.0, 1.0], measure="loss")
        for name in ("SL", "SSL")
    }
    curves["beyond"] = line(("start", "x"), [3.0, 1.0], 0.25, "loss")
    plot_line(curves, tmp_path / "start.svg", "loss", log=True)
    axes = drawn[0].axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("loss", "log")
    labels = [each.get_label() for each in axes.lines][:3]
    assert labels == ["SL, barrier 0", "SSL, barrier 0", "beyond"]
    (top,) = axes.child_axes
    ends = [label.get_text() for label in top.get_xticklabels()]
    assert ends == ["start", "second model"]


def test_a_plane_with_its_models(drawn, tmp_path):
    shape = plane(lambda x, y: 10 + 4 * x * x + y)
    marks = {"average": [1, 1, 0]}
    plot_plane(shape, tmp_path / "plane.png", marks=marks, title="Three")
    axes, bar = drawn[0].axes
    texts = {text.get_text(): text.xy for text in axes.texts}
    assert texts == {
        "A, 10 %": (0, 0),
        "B, 26 %": (2, 0),
        "C, 11 %": (0, 1),
        "average": (1, 0),
    }
    # colours end with what lies between the models, which is B's 26 %
    low, high = bar.get_ylim()
    assert low == pytest.approx(9.75) and high == pytest.approx(26.0)
    assert axes.get_aspect() == 1 and bar.get_yscale() != "log"


def test_a_plane_of_losses_with_a_hole(drawn, tmp_path):
    def height(x, y):
        return None if x > 1.4 else math.exp(x + 9 * max(0.0, y - 1.2))

    plot_plane(plane(height, "loss"), tmp_path / "plane.png", "loss")
    axes, bar = drawn[0].axes
    low, high = bar.get_ylim()
    assert bar.get_yscale() == "log"
    assert low == pytest.approx(math.exp(-0.5))
    # of the columns at 1 and before, whatever explodes beyond the models
    assert high == pytest.approx(math.exp(1.0))
    assert "B, nan" not in [text.get_text() for text in axes.texts]


def test_flat_and_empty_planes(drawn, tmp_path):
    plot_plane(plane(lambda x, y: 0.0), tmp_path / "flat.png")
    low, high = drawn[0].axes[1].get_ylim()
    assert (low, high) == (0, 1)
    with pytest.raises(ValueError, match="no point .* finite loss"):
        plot_plane(plane(lambda x, y: None, "loss"), tmp_path / "x.png", "loss")
    with pytest.raises(ValueError, match="'CER'"):
        plot_line({}, tmp_path / "x.png", "CER")
    assert not (tmp_path / "x.png").exists()


def test_barriers_of_several_widths(monkeypatch, tmp_path):
    def heights(*seeds):
        return {
            str(number): {
                title: {"loss": height, "wer": None}
                for title, height in lines.items()
            }
            for number, lines in enumerate(seeds)
        }

    barriers = {
        "64": heights({"direct": 3.0, "learned": 1.0}, {"direct": 5.0}),
        "128": heights({"direct": 2.0, "learned": 0.5, "other": 9.0}),
    }
    figures, save = [], barriers_of_widths.save_figure
    monkeypatch.setattr(
        barriers_of_widths,
        "save_figure",
        lambda figure, path: figures.append(figure) or save(figure, path),
    )
    path = plot_barriers(barriers, tmp_path / "barriers.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"direct": [4.0, 2.0], "learned": [1.0, 0.5]}
    (seeds,) = axes.collections
    assert seeds.get_offsets().tolist() == [[0, 3], [0, 5]]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["64", "128"]
    # infinite everywhere: nothing to draw, and no error
    plot_barriers(barriers, tmp_path / "wer.png", "wer")
