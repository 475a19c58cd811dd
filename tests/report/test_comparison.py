"""Models before a merge: closed-form answers, warnings, pictures, the page."""

import json
import math
import subprocess
import sys

import pytest
import torch
from report.browser import open_browser, resize
from tiny_models import tiny_conformer

from speechbrain_merge.cli import main
from speechbrain_merge.report import comparison
from speechbrain_merge.report.comparison import GRID, compare_models
from speechbrain_merge.report.comparison_page import write_comparison
from speechbrain_merge.weights import write_weights

LAYER = "encoder.layers.0.fc1.weight"
OTHER = "encoder.layers.1.fc1.weight"
HOSTILE = "</script><img src=x onerror=alert(1)> $\\frac{"


def compared(*task_vectors, base=None, labels=None):
    """What is found of models of one base, given what they add to it."""
    base = torch.zeros(task_vectors[0].shape) if base is None else base
    models = [{LAYER: base + vector} for vector in task_vectors]
    return compare_models(models, {LAYER: base}, labels, progress=False)


def at(*places, size=8):
    """A matrix with ones at some places."""
    matrix = torch.zeros(size, size)
    for row, column in places:
        matrix[row, column] = 1.0
    return matrix


def pair(found, measure, part="all"):
    """The number of the first two models."""
    return found["pairs"][measure][part][0][1]


def test_orthogonal_task_vectors_have_nothing_in_common():
    base = torch.full((8, 8), 2.0)
    found = compared(at((0, 0), (1, 1)), at((2, 2), (3, 3)), base=base)
    assert pair(found, "cosine") == 0
    assert pair(found, "overlap") == pytest.approx(0, abs=1e-12)
    assert pair(found, "sign_conflicts") is None  # no entry moved by both
    # ‖a − b‖² = 4, ‖base‖² = 64 · 4
    assert pair(found, "barrier_risk") == pytest.approx(4 / (8 * 256))
    assert found["warnings"] == []


def test_equal_task_vectors_have_all_in_common():
    torch.manual_seed(0)
    vector = torch.randn(8, 6)
    found = compared(vector, vector, 3 * vector, base=torch.ones(8, 6))
    assert pair(found, "cosine") == pytest.approx(1)
    assert pair(found, "overlap") == pytest.approx(1)
    assert pair(found, "sign_conflicts") == 0
    assert pair(found, "barrier_risk") == 0
    assert found["pairs"]["cosine"]["all"][0][2] == pytest.approx(1, abs=1e-6)
    assert "1 and 0 are the same model." in found["warnings"]


def test_opposite_task_vectors_conflict_everywhere():
    torch.manual_seed(0)
    vector = torch.randn(8, 6)
    found = compared(vector, -vector)
    assert pair(found, "cosine") == pytest.approx(-1)
    assert pair(found, "sign_conflicts") == 1
    assert pair(found, "overlap") == pytest.approx(1)


def test_sign_conflicts_are_of_what_both_moved():
    one = torch.tensor([[1.0, 1.0, 0.0, 2.0]] * 2)
    two = torch.tensor([[1.0, -1.0, 3.0, -2.0]] * 2)
    assert pair(compared(one, two), "sign_conflicts") == pytest.approx(2 / 3)


def test_half_of_the_directions_are_shared():
    # 1/√2 of each singular vector: half of the squares
    one, two = at((0, 0)), torch.zeros(8, 8)
    two[0, 0] = two[0, 1] = two[1, 0] = two[1, 1] = 1.0
    assert pair(compared(one, two), "overlap") == pytest.approx(0.5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_equally_strong_directions(rank):
    found = compared(*[at(*((i, i) for i in range(rank)))] * 2)
    model = found["models"][0]
    assert model["effective_rank"] == [pytest.approx(rank)]
    assert model["rank_share"] == [pytest.approx(rank / 8)]
    # the energy grows along a line up to the rank
    expected = [min(1, i / (GRID - 1) * 8 / rank) for i in range(GRID)]
    assert model["energy"] == pytest.approx(expected)


def test_the_effective_rank_of_two_directions():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = compared(matrix, at((0, 0), size=4))
    assert found["models"][0]["effective_rank"] == [
        pytest.approx(math.exp(entropy))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_stored_weights_is_no_direction(dtype):
    torch.manual_seed(0)
    base = torch.randn(64, 64).to(dtype)
    change = torch.outer(torch.randn(64), torch.randn(64))
    model = (base.float() + change).to(dtype)
    found = compare_models(
        [{LAYER: model}, {LAYER: model}], {LAYER: base}, progress=False
    )
    assert found["models"][0]["effective_rank"] == [pytest.approx(1, abs=0.02)]


def test_norms_and_cosines_are_by_part():
    base = {LAYER: torch.ones(4, 4), OTHER: 2 * torch.ones(4, 4)}
    one = {LAYER: base[LAYER] + 1, OTHER: base[OTHER]}
    two = {LAYER: base[LAYER] + 1, OTHER: base[OTHER] + 1}
    found = compare_models([one, two], base, ["one", "two"], progress=False)
    assert found["parts"] == ["encoder.layers.0", "encoder.layers.1"]
    assert found["models"][0]["norms"] == [1, 0]
    assert found["models"][1]["norms"] == [1, 0.5]
    assert found["models"][1]["norm"] == pytest.approx((32 / 80) ** 0.5)
    assert pair(found, "cosine") == pytest.approx(0.5**0.5)
    assert pair(found, "cosine", "encoder.layers.0") == pytest.approx(1)
    assert pair(found, "cosine", "encoder.layers.1") is None


def test_without_a_base_the_weights_are_compared():
    models = [{LAYER: at((0, 0))}, {LAYER: at((0, 0), (1, 1))}]
    found = compare_models(models, progress=False)
    assert pair(found, "cosine") == pytest.approx(0.5**0.5)
    # ‖a − b‖² = 1, over the mean of 1 and 2
    assert pair(found, "barrier_risk") == pytest.approx(1 / (8 * 1.5))
    assert set(found["pairs"]) == {"cosine", "barrier_risk"}
    assert found["models"][0]["energy"] is None


def outliers(*vectors):
    """The warnings of outliers."""
    base = torch.full((8, 8), 50.0)
    found = compared(*vectors, base=base, labels="abcdefg"[: len(vectors)])
    return [text for text in found["warnings"] if "outlier" in text]


def test_an_outlier_is_named_and_no_other():
    torch.manual_seed(0)
    usual = [torch.randn(8, 8) for _ in range(4)]
    assert outliers(*usual) == []
    [text] = outliers(*usual, 20 * torch.randn(8, 8))
    assert text.startswith("e is an outlier: its norm is")
    common = torch.randn(8, 8)
    agreeing = [common + 0.1 * each for each in usual]
    assert outliers(*agreeing) == []
    [text] = outliers(*agreeing, -common)
    assert text.startswith("e is an outlier: its mean cosine")


def test_a_model_that_is_the_base_is_named():
    found = compared(torch.zeros(4, 4), torch.ones(4, 4), base=torch.ones(4, 4))
    assert "0 is the base: it has no task vector." in found["warnings"]


def test_other_starts_are_named():
    torch.manual_seed(0)
    base = {"ctc_lin.weight": torch.randn(30, 40)}
    tuned = {"ctc_lin.weight": base["ctc_lin.weight"] + 0.1}
    fresh = {"ctc_lin.weight": torch.randn(30, 40)}
    found = compare_models(
        [tuned, fresh], base, ["tuned", "fresh"], progress=False
    )
    [text] = [text for text in found["warnings"] if "start" in text]
    assert text.startswith("fresh does not share a start with the base")
    found = compare_models([tuned, fresh], None, ["x", "y"], progress=False)
    assert "y does not share a start with x" in found["warnings"][0]


def test_other_vocabularies_and_shapes_are_named(tmp_path):
    paths = []
    for number, letters in enumerate(("ab", "ba", "abc")):
        folder = tmp_path / str(number) / "deep" / "deeper"
        folder.mkdir(parents=True)
        lines = [f"'{letter}' => {i}" for i, letter in enumerate(letters)]
        (folder / "label_encoder.txt").write_text("\n".join(lines) + "\n")
        tensors = {LAYER: torch.ones(3, 3), "head": torch.ones(len(letters), 3)}
        paths.append(write_weights(folder / "m.safetensors", tensors))
    found = compare_models(paths, None, ["one", "two", "three"], progress=False)
    said = "\n".join(found["warnings"])
    assert "two has another label encoder than one: 2 tokens" in said
    assert "three has another label encoder than one: 1 tokens" in said
    assert "three and one differ in the shape or presence of 1 tensors" in said
    assert "two and one differ" not in said
    assert found["parts"] == ["encoder.layers.0"]


def test_what_is_not_finite_is_left_out_and_named():
    good = {LAYER: torch.ones(3, 3), OTHER: torch.ones(3, 3)}
    bad = {LAYER: torch.ones(3, 3), OTHER: torch.full((3, 3), math.nan)}
    found = compare_models([good, bad], None, ["good", "bad"], progress=False)
    assert found["warnings"][0].startswith("bad has values that are NaN")
    assert OTHER in found["warnings"][0]
    assert found["parts"] == ["encoder.layers.0"]


def test_pieces_give_what_the_whole_gives(monkeypatch):
    base = tiny_conformer(0).state_dict()
    models = []
    for seed in (1, 2, 3):
        generator = torch.Generator().manual_seed(seed)
        models.append(
            {
                name: value + torch.randn(value.shape, generator=generator)
                if value.is_floating_point()
                else value
                for name, value in base.items()
            }
        )
    whole = compare_models(models, base, progress=False)
    monkeypatch.setattr(comparison, "_PIECE", 64)
    pieces = compare_models(models, base, progress=False)
    for part, rows in whole["pairs"]["cosine"].items():
        for row, other in zip(rows, pieces["pairs"]["cosine"][part]):
            assert row == pytest.approx(other)
    flat = [
        torch.cat(
            [
                (model[name] - base[name]).flatten().double()
                for name in base
                if base[name].is_floating_point()
            ]
        )
        for model in models
    ]
    expected = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert pair(whole, "cosine") == pytest.approx(float(expected), abs=1e-9)


MEASURE = """
import re, sys, threading
from pathlib import Path
from speechbrain_merge.report.comparison import compare_models

def now():
    found = re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())
    return int(found[1])

def most(files):
    highest, ended = [now()], threading.Event()
    def watch():
        while not ended.wait(0.001):
            highest[0] = max(highest[0], now())
    thread = threading.Thread(target=watch)
    thread.start()
    compare_models(files[1:], files[0], progress=False)
    ended.set()
    thread.join()
    return highest[0]

most(sys.argv[1:4])
few = most(sys.argv[1:4])
print(most(sys.argv[4:]) - few)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Three files of 80 megabytes each, of which little is held at once.

    What lies in mapped files does not count: the system takes it back.
    """
    paths = []
    for count in (2, 20):
        for seed in range(3):
            torch.manual_seed(seed)
            tensors = {
                f"encoder.frontend.{n}.weight": torch.randn(1024, 1024)
                for n in range(count)
            }
            path = tmp_path / f"{count}-{seed}.safetensors"
            paths.append(str(write_weights(path, tensors)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 40_000  # kilobytes


@pytest.mark.parametrize(
    "models, words",
    [
        ([{LAYER: torch.ones(2, 2)}], "two models or more"),
        (
            [{LAYER: torch.ones(2, 2)}, {"other": torch.ones(2, 2)}],
            "not the same kind of model",
        ),
        (
            [{LAYER: torch.ones(2, 2)}, {LAYER: torch.ones(2, 3)}],
            "no tensor in common",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(models, words):
    with pytest.raises(ValueError, match=words):
        compare_models(models, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page of three models, one with a hostile name."""
    torch.manual_seed(0)
    base = {LAYER: torch.ones(6, 6), OTHER: torch.ones(6, 6)}
    models = [
        {name: value + torch.randn(6, 6) for name, value in base.items()}
        for _ in range(3)
    ]
    labels = ["read", "phone", HOSTILE]
    found = compare_models(models, base, labels, progress=False)
    found["warnings"].append(f"{HOSTILE} is odd.")
    folder = tmp_path_factory.mktemp("compared") / "new" / "folder"
    write_comparison(found, folder, f"Before {HOSTILE}")
    return folder


def test_all_pictures_are_drawn(folder):
    from PIL import Image

    names = {path.name for path in folder.glob("*.png")}
    assert names == {
        "cosine.png",
        "sign_conflicts.png",
        "overlap.png",
        "barrier_risk.png",
        "norms.png",
        "effective_rank.png",
        "rank_share.png",
        "spectra.png",
    }
    for name in names:
        with Image.open(folder / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert json.loads((folder / "comparison.json").read_text())["base"]


@pytest.fixture(scope="module")
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_in_a_browser(browser, folder, width):
    from selenium.webdriver.support.select import Select

    resize(browser, width)
    browser.get((folder / "comparison.html").as_uri())
    assert browser.get_log("browser") == []
    found = json.loads((folder / "comparison.json").read_text())

    def cells(table):
        return browser.execute_script(
            "return [...document.querySelectorAll('#' + arguments[0] + "
            "' tbody td')].map((c) => [c.textContent, c.style.background])",
            table,
        )

    for measure, parts in found["pairs"].items():
        Select(browser.find_element("id", "measure")).select_by_value(measure)
        for part in ("all", "encoder.layers.1"):
            Select(browser.find_element("id", "part")).select_by_value(part)
            shown = cells("pairs-table")
            values = [value for row in parts[part] for value in row]
            assert [float(text) for text, _ in shown] == pytest.approx(
                values, abs=6e-4
            )
            assert all("color-mix" in colour for _, colour in shown)
    choice = Select(browser.find_element("id", "layer-measure"))
    choice.select_by_value("norms")
    norms = [model["norms"] for model in found["models"]]
    assert [float(text) for text, _ in cells("layers-table")] == pytest.approx(
        [value for row in zip(*norms) for value in row], abs=6e-4
    )
    heads = browser.find_elements("css selector", "#layers-table button")
    heads[1].click()
    first = [float(text) for text, _ in cells("layers-table")][::3]
    assert first == sorted(first)
    # a stranger's name is text
    assert browser.find_elements("css selector", "img[src='x']") == []
    items = browser.find_elements("css selector", "#warning-list li")
    assert items[-1].text == f"{HOSTILE} is odd."
    # the pictures are inside, and nothing is wider than the window
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('#gallery img')]"
        ".map((image) => (image.loading = 'eager', image.decode(),"
        " image.src.startsWith('data:image/png;base64,')))"
    )
    assert sizes == [True] * 8
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, there = browser.execute_script(widths)
    assert needed <= there == width


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {LAYER: torch.ones(6, 6)}
    for name in ("base", "a", "b", "c"):
        change = 0 if name == "base" else torch.randn(6, 6)
        torch.save({LAYER: base[LAYER] + change}, f"{name}.pt")
    words = ["compare", "a.pt", "b.pt", "c.pt", "--base", "base.pt"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "sign conflicts" in out and "barrier risk" in out
    assert "comparison.html" not in out
    assert main([*words, "-o", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/comparison.html"
    assert (tmp_path / "out/comparison.html").is_file()
    assert main([*words, "-o", "out"]) == 0  # replaces its own
    # but nothing of others
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/cosine.png").write_text("mine")
    assert main([*words, "-o", "mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["cosine.png"]
    torch.save({"other.weight": torch.ones(2, 2)}, "odd.pt")
    assert main(["compare", "a.pt", "b.pt", "odd.pt", "-o", "none"]) == 2
    assert "not the same kind of model" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
