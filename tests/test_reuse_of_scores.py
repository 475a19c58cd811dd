"""Scores are used again where nothing that decides them has changed.

Files of audio count by their content, not by their path.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import shutil

import killed_stages
import numpy as np
import pytest
import torch
from counted_scorings import VALID, trained
from tiny_models import tiny_ctc_data, tiny_network

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain_merge import MergeStage
from speechbrain_merge.records.contents import by_content
from speechbrain_merge.records.file_hashes import content_of
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.study import Study
from speechbrain_merge.weights import write_weights


def write_audio(folder, data):
    """Writes the features of a set to files, as a corpus has its audio."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in data.data_ids:
        np.save(folder / f"{name}.npy", data.data[name]["feats"].numpy())


def read_from(folder, data):
    """The set with its features read from the files that its rows name."""
    rows = {}
    for name in data.data_ids:
        kept = {k: v for k, v in data.data[name].items() if k != "feats"}
        rows[name] = {**kept, "wav": str(folder / f"{name}.npy")}
    made = DynamicItemDataset(rows)
    made.add_dynamic_item(
        lambda wav: torch.from_numpy(np.load(wav)),
        takes="wav",
        provides="feats",
    )
    made.set_output_keys(["id", "wrd", "feats", "tokens"])
    return made


def silence(path):
    """Replaces audio under its path, at its size and time."""
    before = path.stat()
    np.save(path, np.zeros_like(np.load(path)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.fixture
def brain(tmp_path):
    """A Brain over a pool."""
    return trained(tmp_path / "results")


def test_a_search_knows_its_audio_by_content(brain, tmp_path):
    data = tiny_ctc_data(10, seed=50)
    write_audio(tmp_path / "audio", data)

    def search(folder):
        stage = MergeStage("average", [brain.pool], search=GreedySearch())
        before = brain.scorings
        result = brain.merge(stage, read_from(folder, data), VALID)
        return result, brain.scorings - before

    first, scored = search(tmp_path / "audio")
    assert scored > 0
    shutil.copytree(tmp_path / "audio", tmp_path / "copied")
    assert search(tmp_path / "copied")[0].reused
    shutil.rmtree(tmp_path / "audio")
    assert search(tmp_path / "copied")[0].reused
    for path in (tmp_path / "copied").iterdir():
        silence(path)
    other, scored = search(tmp_path / "copied")
    assert scored > 0 and other.value > first.value


def test_a_study_knows_its_audio_by_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed_stages.study_yaml(tmp_path)
    with open("train.yaml", "a", encoding="utf-8") as file:
        file.write("data_folder: !PLACEHOLDER\nlexicon: null\n")
    state = tiny_network(0).state_dict()
    write_weights("a.safetensors", {f"model.{n}": state[n] for n in state})
    rows = tiny_ctc_data(5, seed=70)
    write_audio(tmp_path / "one", rows)

    def build(hparams_file, overrides, run_opts):
        run = killed_stages.build(hparams_file, overrides, run_opts)
        folder = tmp_path / run.brain.hparams.data_folder
        run.test_sets["a"] = read_from(folder, rows)
        return run

    def study(folder):
        found = {"data_folder": folder, "lexicon": f"{folder}/lexicon.txt"}
        results = Study(
            "results",
            {"loaded": {"load": "a.safetensors"}},
            {"expert": {"hparams": "train.yaml", "with": found}},
            domains=["a"],
        ).run(build, {"noprogressbar": True})
        return results["rows"][0]["sets"]["0"]["usual"]["a"]

    before = study("one")
    shutil.copytree("one", "two")
    assert study("two") == before
    assert study(str(tmp_path / "two")) == before
    for path in (tmp_path / "two").iterdir():
        silence(path)
    after = study("two")
    assert after["scores"] != before["scores"]
    assert after["errors"] != before["errors"]
    assert study("one") == before


def test_a_file_that_stays_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "1.wav"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 0))
    first = content_of(path)
    rows = {"wav": {"files": [str(path), str(tmp_path / "gone.wav")]}}
    assert by_content(rows)["wav"]["files"][0] == {"file": first}
    assert by_content(rows)["wav"]["files"][1] == str(tmp_path / "gone.wav")
    # written just now: it may be written again before the clock goes on
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert content_of(path) != first

    class Later:
        @staticmethod
        def time_ns():
            return path.stat().st_ctime_ns + 10**10

    hashes = "speechbrain_merge.records.file_hashes"
    monkeypatch.setattr(f"{hashes}.time", Later)
    second = content_of(path)
    monkeypatch.setattr(f"{hashes}.file_fingerprint", None)
    assert content_of(path) == second
