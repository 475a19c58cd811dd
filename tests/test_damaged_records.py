"""Records that once ended in a traceback, in nothing, or not at all.

Each was found by damaged files (`test_fuzzing.py`) or by looking for them.
"""

import json
import time

import pytest
import torch
from filled_pool import collect, names, resume, train_a_little
from fuzz_targets import HPARAMS, MAP, MODEL, STUDY_RESULTS
from safetensors.torch import save_file

from speechbrain_merge.brain.coefficient_learning import _resume, _row, _save
from speechbrain_merge.brain.evaluated import described
from speechbrain_merge.command.plan import read_plan
from speechbrain_merge.engine import provenance
from speechbrain_merge.evaluation import read_scores
from speechbrain_merge.methods import AdaMerging, create
from speechbrain_merge.methods.transport.symmetry import symmetry
from speechbrain_merge.pool import Candidate, read_merges
from speechbrain_merge.pool.first_save import NOTE, killed_in_it
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.records.checked import is_finite
from speechbrain_merge.records.patterns import find
from speechbrain_merge.records.reading import parse_number
from speechbrain_merge.report import merge_card, read_coefficients
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.tally import Tally
from speechbrain_merge.stage.members import weights_of
from speechbrain_merge.study import Study
from speechbrain_merge.study.results import read_results, read_times
from speechbrain_merge.study.tables import main_rows
from speechbrain_merge.training import SlantedTriangularScheduler
from speechbrain_merge.weights import matches, open_weights
from speechbrain_merge.weights.vocabulary import read_tokens

HUGE = 10**390


def test_an_endless_count_in_a_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    tally = {**Tally(1, 10).to_dict(), "errors": "1e99999999"}
    path.write_text(json.dumps({"key": "k", "tally": tally}) + "\n")
    with pytest.raises(ValueError, match="line 1, key 'tally', key 'errors'"):
        Journal(path)


@pytest.mark.parametrize("weight", ["1e99999999", "1/0", True, "a", [1], HUGE])
def test_a_weight_that_is_no_number(weight):
    with pytest.raises(ValueError, match="the weight of 'read' is"):
        weights_of({"read": weight}, [Candidate("read/1", "a", "read")])


def test_whole_numbers_that_are_no_floats():
    assert not is_finite(HUGE) and not is_finite(-HUGE)
    with pytest.raises(ValueError, match="a test: expected a number between"):
        parse_number(HUGE, "a test")
    for parameters in ({"density": HUGE}, {"scale": HUGE}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            create("ties", **parameters)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", ".*" * 9, "(?x)(a) +"]
)
def test_patterns_of_parts_that_never_end(pattern):
    name = "encoder.layers." + "a" * 40
    begun = time.process_time()
    with pytest.raises(ValueError, match="may take for ever"):
        matches(name, f"re:{pattern}")
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "pattern", [r"\.layers\.(10|11)\.", "^(?!.*norm)", "(?:a|b)?c*", r"[+*]{2}"]
)
def test_plain_patterns_of_parts(pattern):
    find(pattern, "model.encoder.layers.10.fc1.weight", "a plan")
    with pytest.raises(ValueError, match="a plan: .* is no regular expression"):
        find(f"{pattern}(", "name", "a plan")


@pytest.mark.parametrize(
    "record", ["[]", "{}", '{"method": 3}', '{"method": "a", "sources": [1]}']
)
def test_a_damaged_provenance(tmp_path, record):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2)}, path, {"merge": record})
    with pytest.raises(ValueError, match="m.safetensors, metadata 'merge'"):
        provenance(path)


def test_a_wrapped_method_with_parameters_that_are_none():
    method = {"method": "ties", "parameters": "density"}
    record = {"method": "calibrated", "parameters": {"method": method}}
    assert "`ties`" in merge_card(record)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("names: [tiny]", "names: []", "key 'names': expected one entry"),
        ("pinned:", "pined:", "unknown key 'pined'"),
        ("up.bias: [", "up.bias: [[", "map.yaml is not plain YAML"),
        ("{layer}.up.weight:", "{layer}{a}.up.weight:", "one placeholder"),
        ("{flatten: [channels, fixed]}", "{flatten: [x]}", "expected 2"),
        ("axis: 0", "axis: -1", "key 'axis': expected a whole number"),
        ("{layer:last}", "{other}", "has no placeholder {other}"),
        ("[channels, fixed]}", "[width, fixed]}", "no space 'width'"),
        ("axis: 0", "axis: 3", "does not tell the number of blocks in axis 3"),
        ("about:", "include: [nothing]\nabout:", "there is no nothing.part"),
        ("about:", "a: &a [*a]\nabout:", "an alias refers to what"),
    ],
)
def test_a_damaged_symmetry_map(tmp_path, old, new, words):
    path = tmp_path / "map.yaml"
    path.write_text(MAP)
    assert "stream" in symmetry(MODEL, path).spaces
    assert MAP.count(old) >= 1
    path.write_text(MAP.replace(old, new))
    with pytest.raises(ValueError, match=words):
        symmetry(MODEL, path)


@pytest.mark.parametrize(
    "key, words",
    [
        ("parameters: {density: 2026-99-99}", "plan.yaml.* not .*YAML: "),
        ("include: ['re:(a+)+b']", "stage 'm': .* may take for ever"),
        (f"parameters: {{density: {HUGE}}}", "`density` must be a number"),
    ],
)
def test_a_plan_with_strange_values(tmp_path, monkeypatch, key, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").touch()
    (tmp_path / "plan.yaml").write_text(
        "stages:\n  m:\n    method: ties\n    experts: [a.pt]\n"
        f"    base: a.pt\n    output: m.safetensors\n    {key}\n"
    )
    with pytest.raises(ValueError, match=words):
        read_plan("plan.yaml")


@pytest.mark.parametrize(
    "name, text",
    [
        ("label_encoder.txt", "(" * 100_000 + " => 0\n"),
        ("label_encoder.txt", "'a' => " + "9" * 10_000 + "\n"),
        ("label_encoder.txt", "-" * 900 + "1 => 0\n"),
        ("vocab.json", "[" * 100_000),
        ("tokenizer.json", '{"model": {"vocab": [[]]}}'),
    ],
)
def test_a_damaged_vocabulary_is_known_by_its_hash(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    ((digest, number),) = read_tokens(tmp_path / name).items()
    assert len(digest) == 64 and number == 0


def test_a_damaged_line_of_coefficients(tmp_path):
    path = tmp_path / "ratios.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "coefficients": {"a": 1}}\n')
    with pytest.raises(ValueError, match="ratios.jsonl, line 1: expected"):
        read_coefficients(path)


def test_a_state_of_coefficients_of_another_kind(tmp_path):
    path, labels = tmp_path / "coefficients.pt", ["a", "b"]
    method = AdaMerging()
    weights = open_weights({"layers.0.weight": torch.ones(2)})
    method.make_coefficients([weights, weights], weights)
    optimizer = torch.optim.Adam([method.coefficients])
    method.coefficients.grad = torch.ones_like(method.coefficients)
    optimizer.step()
    history = [_row(1, 0.5, method, labels)]
    _save(path, method, optimizer, history, "1")
    whole = torch.load(path, weights_only=True)
    assert _resume(path, method, optimizer, 1, "1", labels) == history
    learned = method.coefficients.detach().clone()
    row = history[0]
    moments = whole["optimizer"]["state"][0]
    (group,) = whole["optimizer"]["param_groups"]

    def optimized(group=group, **changed):
        return {"state": {0: {**moments, **changed}}, "param_groups": [group]}

    for key, value in (
        ("optimizer", {"state": {}}),
        # it had taken the place of the rate that was asked for
        ("optimizer", optimized(group={**group, "lr": 9.0})),
        ("optimizer", optimized(exp_avg=torch.ones(1))),
        ("optimizer", optimized(exp_avg=moments["exp_avg"] * torch.nan)),
        ("optimizer", optimized(step=torch.tensor(torch.nan))),
        ("history", []),
        ("history", [{"step": 1}]),
        ("history", [{**row, "step": 2}]),
        ("history", [{**row, "coefficients": {"a": {}, "b": {}}}]),
        ("coefficients", torch.ones(9)),
        ("coefficients", learned * 1j),
        ("coefficients", learned * torch.nan),
        # a merge with coefficients that nobody had learned
        ("coefficients", learned + 0.1),
        # of another learning, under this one's name
        ("about", "2"),
    ):
        torch.save({**whole, key: value}, path)
        with pytest.raises(ValueError, match=f"coefficients.pt, key '{key}'"):
            _resume(path, method, optimizer, 1, "1", labels)
        assert torch.equal(method.coefficients, learned)
    torch.save([1], path)
    with pytest.raises(ValueError, match="is no state of learned coeff"):
        _resume(path, method, optimizer, 1, "1", labels)


def test_a_result_without_what_it_needs(tmp_path):
    (tmp_path / "result.json").write_text('{"result": {"path": "m.st"}}')
    with pytest.raises(ValueError, match="result.json: expected 'context'"):
        described(tmp_path / "m.safetensors")


def test_results_of_a_study_that_lack_a_seed(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(STUDY_RESULTS))
    assert read_results(path)["rows"]
    path.write_text(json.dumps({**STUDY_RESULTS, "seeds": [1, 2]}))
    with pytest.raises(ValueError, match="results.json: row 'original' has no"):
        read_results(path)


def test_times_that_are_not_known(tmp_path):
    path = tmp_path / "times.json"
    path.write_text('{"a": {"1": {"seconds": null}}}')
    main_rows(STUDY_RESULTS, "usual", read_times(tmp_path))
    path.write_text('{"a": {"1": {"seconds": "long"}}}')
    with pytest.raises(ValueError, match="times.json, key 'a', key '1', key"):
        read_times(tmp_path)


@pytest.mark.parametrize(
    "section, words",
    [
        ({"domains": [["a"]]}, "key 'domains', entry 1: expected text"),
        ({"seeds": ["one"]}, "key 'seeds', entry 1: expected a whole"),
        ({"models": ["a"]}, "key 'models': expected a mapping"),
        ({"models": {"a": {"train": [7]}}}, "key 'train', entry 1"),
        ({"trainings": [1]}, "key 'trainings': expected a mapping"),
        ({"compare": ["ab"]}, "key 'compare', entry 1: expected a list"),
    ],
)
def test_sections_of_a_study_of_the_wrong_kind(tmp_path, section, words):
    (tmp_path / "train.yaml").write_text(HPARAMS)
    whole = {
        "models": {"{domain}": {"train": "{domain}"}},
        "trainings": {"expert": {"hparams": str(tmp_path / "train.yaml")}},
        "domains": ["a"],
    }
    Study(tmp_path, **whole)
    with pytest.raises(ValueError, match=f"the study, .*{words}"):
        Study(tmp_path, **{**whole, **section})


@pytest.mark.parametrize("line", ["? [a]\n: 1", "x: !ref <nothing>"])
def test_a_strange_yaml_of_a_training(tmp_path, line):
    path = tmp_path / "train.yaml"
    path.write_text(HPARAMS)
    models = {"{domain}": {"train": "{domain}"}}
    trainings = {"expert": {"hparams": str(path)}}
    study = Study(tmp_path, models, trainings, ["a"])
    path.write_text(f"{HPARAMS}{line}\n")
    with pytest.raises(ValueError, match="train.yaml"):
        Study(tmp_path, models, trainings, ["a"])
        study.trainings["expert"].resolved({}, tmp_path)


def test_a_line_of_a_manifest_without_its_slot(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}])
    path = tmp_path / "pool" / "run" / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("slot", None)
        line.pop("check")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pool, saver = resume(tmp_path, torch.nn.Linear(2, 2), keep_last=2)
    train_a_little(saver.recoverables["model"], 9.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 9})
    assert names(pool) == ["run/epoch-0002", "run/epoch-0009"]


def test_remembered_merges_without_a_time(tmp_path):
    members = (Member("a", "a", "0" * 64, 0.5),)
    for name in "mn":
        remember(tmp_path, MergeRecord(name, {"name": "average"}, members, {}))
    path = tmp_path / "merges.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["time"], lines[1]["check"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_merges(tmp_path)
    assert first.time < second.time


def test_scores_of_another_kind(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "u", "counts": {"errors": 1}}\n')
    with pytest.raises(ValueError, match="line 1 is not the score of an utter"):
        read_scores(path)


def test_a_damaged_schedule(tmp_path):
    path = tmp_path / "schedule.ckpt"
    for text in ("", "[]", '{"n_steps": -1, "peaks": null}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="schedule.ckpt"):
            SlantedTriangularScheduler(20).load(path)


def test_an_archive_that_torch_cannot_seek_in(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError, match="model.pt cannot be read to its end"):
        open_weights(path)


def test_tests_of_a_study_in_groups(tmp_path):
    (tmp_path / "train.yaml").write_text(HPARAMS)
    study = Study(
        tmp_path,
        {"{domain}": {"train": "{domain}"}},
        {"expert": {"hparams": str(tmp_path / "train.yaml")}},
        ["a"],
        tests={"known": ["a"], "new": ["b", "c"]},
    )
    assert study.tests == ["a", "b", "c"]
    with pytest.raises(ValueError, match="key 'tests', key 'new'"):
        Study(
            tmp_path,
            {"{domain}": {"train": "{domain}"}},
            {"expert": {"hparams": str(tmp_path / "train.yaml")}},
            ["a"],
            tests={"known": ["a"], "new": "b"},
        )


@pytest.mark.parametrize(
    "key, value",
    [
        ("comparisons", 3),
        ("comparisons", {"pairs": [], "best": {"usual": {"a": 1}}}),
        ("comparisons", {"pairs": [{"names": "ab"}], "best": {}}),
        ("sequences", {}),
    ],
)
def test_comparisons_of_a_study(tmp_path, key, value):
    results = {
        "schema": 2,
        "metric": "WER",
        "domains": [],
        "tests": ["a"],
        "modes": ["usual"],
        "seeds": [1],
        "rows": [],
        "models": {},
        key: value,
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=f"results.json.*{key}"):
        read_results(path)


def test_a_header_whose_metadata_is_null(tmp_path):
    header = {
        "__metadata__": None,
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with open_weights(path) as weights:
        assert weights.names() == ["w"] and weights.metadata == {}


def test_a_note_of_a_checkpoint_that_cannot_be(tmp_path):
    note = {"lineage": "a" * 32, "checkpoint": "/" + "x" * 5000, "last": None}
    (tmp_path / NOTE).write_text(json.dumps(note))
    assert killed_in_it(tmp_path) is None
