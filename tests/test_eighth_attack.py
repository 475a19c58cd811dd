"""What an eighth attack found, each as the attack did it.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import re

import killed_stages
import pytest
import torch
from counted_scorings import ask, trained
from tiny_models import tiny_ctc_data, tiny_network

from speechbrain.processing.features import GlobalNorm
from speechbrain_merge import merge
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.decisive import decisive_settings
from speechbrain_merge.cli import main
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.study import Study
from speechbrain_merge.study.made import digest_of_rows
from speechbrain_merge.weights import write_weights


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A Brain over a pool."""
    return trained(tmp_path_factory.mktemp("results"))


def test_trials_with_other_statistics_of_features_are_scored_again(brain):
    _, scored = ask(brain, name="a")
    assert scored > 0 and ask(brain, name="b")[1] == 0
    normalize = brain.modules.normalize
    before = normalize.glob_mean
    normalize.glob_mean = before + 5
    assert ask(brain, name="b")[1] > 0
    normalize.glob_mean = before
    assert ask(brain, name="b")[1] == 0


def test_numbers_in_the_midst_of_rows_count(brain):
    data = tiny_ctc_data(2)
    row = data.data["utterance-0-000"]
    row["feats"] = row["feats"].repeat(20, 1)

    def known():
        batches = FixedBatches(brain, data, {"batch_size": 2})
        return batches.key(), digest_of_rows(data, "results")

    before = known()
    row["feats"][len(row["feats"]) // 2] += 1
    assert not {*before} & {*known()}


def test_a_trial_that_was_changed_is_named(brain):
    ask(brain, name="c")
    path = brain.pool.folder.parent / "merge" / "trials.jsonl"
    text = path.read_text()
    *before, last = text.splitlines()
    trial = json.loads(last)
    trial["tally"]["words"] *= 100
    path.write_text("\n".join([*before, json.dumps(trial)]) + "\n")
    message = f"line {len(before) + 1} is not as it was .* Remove that line"
    with pytest.raises(ValueError, match=message):
        ask(brain, name="d")
    # earlier versions wrote no check
    path.write_text(re.sub(', "check": "[^"]+"', "", text))
    assert ask(brain, name="d")[1] == 0
    path.write_text(text)


def test_statistics_in_buffers_of_a_recoverable_count_too(brain):
    normalize = GlobalNorm()
    brain.hparams.normalize = normalize
    brain.checkpointer.add_recoverable("global", normalize)
    before = decisive_settings(brain)
    normalize.running_mean += 1
    assert decisive_settings(brain) != before


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs a study of one model, which is loaded."""
    monkeypatch.chdir(tmp_path)
    killed_stages.study_yaml(tmp_path)
    state = tiny_network(0).state_dict()
    write_weights(
        "a.safetensors", {f"model.{key}": state[key] for key in state}
    )

    def run(build=killed_stages.build, weights="a.safetensors"):
        results = Study(
            "results",
            {"loaded": {"load": weights}},
            {"expert": {"hparams": "train.yaml"}},
            domains=["a"],
        ).run(build, {"noprogressbar": True})
        return results["rows"][0]["sets"]["0"]["usual"]["a"]

    return run


def test_a_study_with_other_statistics_of_features_tests_again(study):
    def build(*arguments):
        run = killed_stages.build(*arguments)
        run.brain.modules.normalize.glob_mean += 5
        return run

    first = study()
    again = study(build)
    assert again["scores"] != first["scores"]
    assert again["errors"] != first["errors"]
    assert study() == first


RECIPE = """\
import killed_stages
import torch


def build(*arguments):
    run = killed_stages.build(*arguments)
    run.brain.modules["head"] = head = torch.nn.Linear(7, 7)
    run.brain.checkpointer.add_recoverable("head", head)
    return run
"""


def test_weights_without_a_trained_module_are_not_tested(
    study, tmp_path, capsys
):
    (tmp_path / "train.py").write_text(RECIPE)
    command = ["evaluate", "train.py", "train.yaml"]
    command += ["--weights", "a.safetensors", "--output_folder", "evaluated"]
    assert main(command) == 2
    found = capsys.readouterr().err
    assert "a.safetensors has weights of 'model', and 'head' is tr" in found
    made = {}
    exec(RECIPE, made)
    with pytest.raises(ValueError, match="'loaded'.*and 'head' is trained"):
        study(made["build"])

    def build(*arguments):
        run = made["build"](*arguments)
        for pool in run.brain.pools():
            pool.partial = True
        return run

    assert study(build)["words"] > 0


class Writing(MergeMethod):
    """A mean, which writes to a file before it merges a tensor."""

    name = "writing"

    def __init__(self, tensor, write):
        super().__init__()
        self.tensor, self.write = tensor, write

    def merge_tensor(self, name, experts, base):
        """The mean."""
        merged = torch.stack(list(experts)).mean(0)
        if name == self.tensor:
            self.write()
        return merged


@pytest.mark.parametrize("tensor", ["m.first", "m.last"])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "folder"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_written_to_while_it_is_merged(
    tmp_path, tensor, kind, replaced
):
    def state(value):
        return {
            "first": torch.full((40, 40), value),
            "last": torch.full((30, 30), value),
        }

    def save(path, value):
        if kind == "folder":
            path.mkdir(exist_ok=True)
            (path / "CKPT.yaml").write_text("WER: 3.0\nunixtime: 1.0\n")
            torch.save(state(value), path / "m.ckpt")
            return path / "m.ckpt"
        named = {f"m.{key}": each for key, each in state(value).items()}
        if kind == "pt":
            torch.save(named, path)
        else:
            write_weights(path, named)
        return path

    first, second = (
        tmp_path / (f"CKPT+{name}" if kind == "folder" else f"{name}.{kind}")
        for name in "ab"
    )
    file, other = save(first, 1.0), save(second, 3.0)
    os.utime(file, (1, 1))
    output = tmp_path / "m.safetensors"

    def write():
        if replaced:
            os.link(other, tmp_path / "new")
            os.replace(tmp_path / "new", file)
            return
        with open(file, "r+b") as stream:
            stream.write(other.read_bytes())

    def merged(**arguments):
        return merge(
            Writing(tensor, write), [first, second], progress=False, **arguments
        )

    if replaced:
        # what was there when the merge began is merged
        assert {each.mean().item() for each in merged().values()} == {2.0}
        return
    with pytest.raises(ValueError, match="was written to while it was read"):
        merged(output=output)
    assert not output.exists()


def test_json_of_numbers_and_names_that_json_or_a_terminal_has_not(
    tmp_path, capsys
):
    name = "m.\x9b31m\u202ew"
    paths = [str(tmp_path / each) for each in ("a.safetensors", "b.pt")]
    write_weights(paths[0], {name: torch.full((2, 2), float("nan"))})
    torch.save({name: torch.ones(2, 2)}, paths[1])

    def constant(name):
        raise AssertionError(name)

    for command in (["compare", *paths], ["inspect", paths[0]]):
        assert main([*command, "--json"]) == 0
        text = capsys.readouterr().out
        assert text.replace("\n", "").isprintable()
        found = json.loads(text, parse_constant=constant)
    assert name in json.dumps(found, ensure_ascii=False)


def test_names_in_the_tables_of_a_study(study, tmp_path, capsys):
    study()
    path = tmp_path / "results" / "results.json"
    results = json.loads(path.read_text())
    results["rows"][0]["title"] = "\x1b[2Jfirst"
    del results["check"]
    path.write_text(json.dumps(results))
    capsys.readouterr()
    assert main(["study", "results"]) == 0
    assert "\\x1b[2Jfirst" in capsys.readouterr().out
