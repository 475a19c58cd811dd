"""The page of a study in a real browser: sorting, switching, keyboard, widths."""

import json
import shutil

import pytest
from report.browser import open_browser, resize

from speechbrain_merge.evaluation import score_utterances, total, write_scores
from speechbrain_merge.report import plot_domains
from speechbrain_merge.study.page import write_page

HOSTILE = "</script><img src=x onerror=alert(1)> <b>merge</b>"
SAID = {
    "clean": {f"c{n}": "one two three four" for n in range(5)},
    "noisy": {f"n{n}": "five six seven" for n in range(5)},
}
# what each model hears of the first so many utterances; the rest is right
WRONG = {"start": 5, "expert": 2, "merge": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a study with two seeds and two modes."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "scores").mkdir()

    def tested(model, seed, mode):
        """Counts of each set, with transcripts on the disk."""
        found = {}
        for name, said in SAID.items():
            wrong = WRONG[model] + (seed == 2) - (mode == "short")
            heard = {
                key: words.replace("two", "too").replace("six ", "") + " ay"
                if number < wrong
                else words
                for number, (key, words) in enumerate(said.items())
            }
            scores = score_utterances(said, heard)
            file = f"scores/{name}-{model}-{seed}-{mode}.jsonl"
            write_scores(folder / file, scores)
            counts = total(scores)
            found[name] = {
                "errors": counts.errors,
                "words": counts.words,
                "utterances": 5,
                "scores": file,
            }
        return found

    def row(name, title, kind, parents, **about):
        return {
            "name": name,
            "title": title,
            "group": {"start": "generalist"}.get(name, kind),
            "kind": kind,
            "domains": [],
            "parents": parents,
            "trainings": ["expert"] if name != "start" else [],
            "select_on": [],
            "bound": False,
            "about": {"1": about, "2": about},
            "sets": {
                str(seed): {
                    mode: tested(name, seed, mode)
                    for mode in ("usual", "short")
                }
                for seed in (1, 2)
            },
        }

    method = {"name": "average", "weights": None}
    rows = [
        row("start", "start", "original", []),
        row("expert", "expert", "train", ["start"], steps=40),
        row(
            "merge",
            HOSTILE,
            "merge",
            ["expert", "start"],
            method=method,
            candidates=["start", "expert"],
            selected=["expert"],
            value=12.5,
            chosen=None,
            trials=[],
        ),
    ]
    better = {"name": "merge", "significant": True, "next": "expert"}
    results = {
        "schema": 2,
        "metric": "WER",
        "domains": ["clean"],
        "tests": ["clean", "noisy"],
        "retention": None,
        "modes": ["usual", "short"],
        "seeds": [1, 2],
        "rows": rows,
        "models": {},
        "sequences": [],
        "comparisons": {
            "pairs": [
                {
                    "names": ["expert", "merge"],
                    "titles": ["expert", HOSTILE],
                    "mode": "usual",
                    "difference": -5.0,
                    "low": -9.0,
                    "high": -1.0,
                    "blocks": 5,
                    "p": 0.01,
                    "holm": 0.02,
                }
            ],
            "best": {"usual": {"clean": better}},
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "times.json").write_text(
        json.dumps({"expert": {"1": {"seconds": 90}, "2": {"seconds": 150}}})
    )
    return folder


@pytest.fixture(scope="module")
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, folder):
    """The page, freshly opened from the disk."""
    resize(browser, 1200)
    browser.get(write_page(folder, "A study").as_uri())
    assert browser.get_log("browser") == []
    return browser


def column(page, number, table="rates-table"):
    """The cells of a column, as they stand."""
    return page.execute_script(
        "return [...document.querySelectorAll('#' + arguments[0] + ' tbody tr')]"
        ".map((row) => row.cells[arguments[1]].textContent)",
        table,
        number,
    )


def choose(page, which, value):
    """Chooses an option as a user does."""
    from selenium.webdriver.support.select import Select

    Select(page.find_element("id", which)).select_by_value(value)


def test_columns_sort_by_number_and_turn(page):
    assert column(page, 0) == ["start", "expert", HOSTILE]
    button = page.find_elements("css selector", "#rates-table thead button")[1]
    button.click()
    assert column(page, 0) == [HOSTILE, "expert", "start"]
    heads = page.find_elements("css selector", "#rates-table thead th")
    assert heads[1].get_attribute("aria-sort") == "ascending"
    page.switch_to.active_element.click()  # the focus stays where it was
    assert column(page, 0) == ["start", "expert", HOSTILE]
    heads = page.find_elements("css selector", "#rates-table thead th")
    assert heads[1].get_attribute("aria-sort") == "descending"


def test_a_cell_without_a_number_stays_last(page):
    titles = [
        head.text
        for head in page.find_elements("css selector", "#rates-table thead th")
    ]
    minutes = next(n for n, t in enumerate(titles) if "minutes" in t)
    for _ in range(2):
        page.find_elements("css selector", "#rates-table thead button")[
            minutes
        ].click()
        assert column(page, minutes)[-1] == "–"


def test_seeds_and_modes_switch(page):
    both = column(page, 1)
    assert all("±" in cell for cell in both)
    assert len(page.find_elements("css selector", "td.best")) == 1
    choose(page, "seed", "2")
    second = column(page, 1)
    assert not any("±" in cell for cell in second)
    # a single seed has no test of its own
    assert page.find_elements("css selector", "td.best") == []
    choose(page, "mode", "short")
    third = column(page, 1)
    assert [float(b) < float(a) for a, b in zip(second[1:], third[1:])] == [
        True,
        True,
    ]


def test_words_of_an_alignment_are_coloured(page):
    assert page.find_element("id", "first").get_attribute("value") == "expert"
    assert page.find_element("id", "second").get_attribute("value") == "merge"
    choose(page, "first", "start")
    shown = page.find_elements("css selector", ".utterance")
    assert len(shown) == 4 and "−2 errors" in shown[0].text
    lines = shown[0].find_elements("css selector", "dd")
    assert [line.text for line in lines][0] == "one two three four"
    wrong = lines[1].find_elements("css selector", "span")
    assert [(w.text, w.get_attribute("class")) for w in wrong] == [
        ("too", "S"),
        ("ay", "I"),
    ]
    assert wrong[0].get_attribute("title") == "said: two"
    colours = [w.value_of_css_property("background-color") for w in wrong]
    assert len(set(colours)) == 2
    choose(page, "set", "noisy")
    first = page.find_element("css selector", ".utterance dd:nth-of-type(2)")
    deleted = first.find_element("css selector", ".D")
    assert deleted.text == "six"
    page.find_element("id", "changed").click()
    assert len(page.find_elements("css selector", ".utterance")) == 5


def test_the_family_tree_by_mouse_and_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    about = page.find_element("id", "about")
    assert "average" in about.text and "1 of 2: expert" in about.text
    boxes = page.find_elements("css selector", "#tree .node")
    assert [box.get_attribute("aria-pressed") for box in boxes] == [
        "false",
        "false",
        "true",
    ]
    boxes[0].click()
    assert "original" in about.text
    boxes[1].send_keys(Keys.ENTER)
    assert "made from\nstart" in about.text and "40" in about.text
    assert "2.0" in about.text  # minutes, in the mean of the seeds
    assert len(page.find_elements("css selector", "#tree path.lit")) == 2


def test_everything_is_reached_by_the_tab_key(page):
    from selenium.webdriver.common.keys import Keys

    seen = set()
    for _ in range(60):
        page.switch_to.active_element.send_keys(Keys.TAB)
        element = page.switch_to.active_element
        seen.add(element.get_attribute("id") or element.text.split("\n")[0])
    wanted = {"mode", "seed", "first", "second", "set", "changed", "tree"}
    assert wanted <= seen and "WER %" in seen


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    resize(page, width)
    page.refresh()
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, there = page.execute_script(widths)
    assert needed <= there == width


def test_text_of_a_model_is_text(page):
    assert page.find_elements("css selector", "img[src='x']") == []
    assert column(page, 0)[2] == HOSTILE
    assert "default-src 'none'" in page.page_source


def test_without_transcripts_times_or_comparisons(browser, folder, tmp_path):
    """From ``results.json`` alone."""
    results = json.loads((folder / "results.json").read_text())
    results["comparisons"] = {"pairs": [], "best": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    browser.get(write_page(tmp_path).as_uri())
    assert browser.get_log("browser") == []
    assert len(column(browser, 0)) == 3
    for hidden in ("compared", "pictures", "utterances"):
        assert not browser.find_element("id", hidden).is_displayed()


def test_the_page_goes_anywhere(browser, folder, tmp_path):
    """With its pictures inside: nothing beside it is needed."""
    plot_domains(
        {
            "in_domain": ["a"],
            "test_domains": ["a"],
            "rows": [
                {
                    "name": name,
                    "group": "merge",
                    "sets": {"a": {"errors": errors, "words": 100}},
                }
                for name, errors in (("x", 4.8), ("y", 9.0))
            ],
        },
        folder / "domains.png",
    )
    moved = shutil.copy(write_page(folder), tmp_path / "elsewhere.html")
    (folder / "domains.png").unlink()
    browser.get(f"file://{moved}")
    size = browser.execute_script(
        "return document.querySelector('#gallery img').naturalWidth"
    )
    assert size > 100
    assert browser.get_log("browser") == []
