"""Results and pictures are written whole, and read with care."""

import json

import pytest

from speechbrain_merge.report.figure import new_figure, save_figure
from speechbrain_merge.report.results import load_results, save_results

RESULTS = {
    "in_domain": ["a"],
    "test_domains": ["a"],
    "rows": [{"name": "m", "sets": {"a": {"errors": 1, "words": 9}}}],
}


def test_files_of_like_names_are_a_persons_own(tmp_path):
    for name in ("curve.png.tmp", ".results.json.tmp"):
        (tmp_path / name).write_text("mine")
    figure, _ = new_figure()
    for _ in range(2):
        save_figure(figure, tmp_path / "curve.png")
        save_results(tmp_path / "results.json", RESULTS)
    for name in ("curve.png.tmp", ".results.json.tmp"):
        assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("rows", 3, "key 'rows': expected a list"),
        ("rows", [3], "key 'rows', entry 1: expected a mapping"),
        ("rows", [{"name": "m", "sets": {"a": 3}}], "key 'a': expected a map"),
        ("in_domain", "a", "key 'in_domain': expected a list"),
        ("retention", [None], "key 'retention', entry 1: expected text"),
        (
            "rows",
            [{"name": "m", "sets": {"a": {"errors": "1", "words": 9}}}],
            "key 'errors': expected a number",
        ),
    ],
)
def test_malformed_results_are_named(tmp_path, key, value, words):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**RESULTS, key: value}))
    with pytest.raises(ValueError, match=f"results.json, .*{words}"):
        load_results(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="results.json"):
        load_results(path)
