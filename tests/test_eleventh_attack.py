"""What an eleventh attack found, each as the attack did it.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks.test_ranks import python
from tiny_models import TinyCTC, tiny_conformer, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import MergeMixin, merge
from speechbrain_merge.adapters import extract_lora
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.brain.landscape import Landscape
from speechbrain_merge.brain.matching import learn_matching
from speechbrain_merge.brain.statistics import collect_fisher, collect_grams
from speechbrain_merge.cli import main
from speechbrain_merge.methods import OptimalTransport
from speechbrain_merge.study.merged import _write_aligned
from speechbrain_merge.weights import digest, open_weights, write_weights


def test_ranks_with_other_audio_are_refused_and_nothing_is_stored(tmp_path):
    found = json.loads(python("ranks.other_data", tmp_path).splitlines()[-1])
    first, second = found["stale"]
    # every rank says the same, before anything is computed
    assert first == second and len(first) == 7
    for name, error in first.items():
        assert "Rank 1 has other data than rank 0" in str(error), (name, error)
        assert "Make the copies of the data" in error
        at = "000" if name in ("features", "map") else "003"
        assert f"utterance 'utterance-60-{at}'" in error
    assert "set 'near', utterance '" in first["search"]
    assert found["left"] == []
    # copies that are equal may lie in folders of their own
    assert found["right"][0] == found["right"][1]
    assert all(type(one) is float for one in found["right"][0].values())


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Four Conformers, and the maps of some to others, by their names."""
    folder = tmp_path_factory.mktemp("learned")
    files = {}
    for seed, name in enumerate("abcd", 1):
        files[name] = write_weights(
            folder / f"{name}.safetensors",
            {
                f"model.{key}": one
                for key, one in tiny_conformer(seed, layers=1)
                .state_dict()
                .items()
            },
        )
    data = tiny_ctc_data(4)
    brain = tiny_ctc_brain(
        folder / "brain", tiny_conformer(1, layers=1), MergingCTC, epochs=1
    )
    brain.modules.normalize(torch.cat([one["feats"] for one in data])[None])

    def learn(source, anchor):
        return learn_matching(
            brain,
            files[source],
            files[anchor],
            data,
            data,
            folder / "maps",
            {"batch_size": 4},
            {"steps": 1, "check_every": 1, "start": "weights"},
            heads=2,
        )

    pairs = [("b", "a"), ("c", "a"), ("b", "d")]
    return brain, files, {pair: learn(*pair) for pair in pairs}


def by_maps(files, maps, names="abc", **options):
    """A merge of Conformers by learned maps."""
    method = OptimalTransport(cost="learned", statistics=maps, heads=2)
    experts = [files[name] for name in names]
    return merge(method, experts, same_base=False, progress=False, **options)


@pytest.mark.parametrize(
    "names, used, file, expert, other",
    [
        ("abc", [("c", "a"), ("b", "a")], ("c", "a"), "b", "c"),
        ("abc", [("b", "d"), ("c", "a")], ("b", "d"), "a", "d"),
        ("adc", [("b", "a"), ("c", "a")], ("b", "a"), "d", "b"),
    ],
)
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_learned_map_of_another_model_is_refused(
    learned, names, used, file, expert, other, dtype
):
    _, files, maps = learned
    with pytest.raises(ValueError) as refused:
        by_maps(files, [None, *(maps[one] for one in used)], names, dtype=dtype)
    for said in (
        maps[file],
        files[expert],
        digest(files[expert]),
        digest(files[other]),
    ):
        assert str(said) in str(refused.value)


def test_the_command_line_refuses_exchanged_maps(learned, tmp_path, capsys):
    _, files, maps = learned
    used = [None, str(maps["c", "a"]), str(maps["b", "a"])]
    parameters = {"cost": "learned", "heads": 2, "statistics": used}
    output = tmp_path / "merged.safetensors"
    call = ["merge", "optimal_transport", *(str(files[n]) for n in "abc")]
    call += ["--different-bases", "--quiet", "-o", str(output)]
    code = main([*call, "--parameters", json.dumps(parameters)])
    assert code == 2 and not output.exists()
    assert digest(files["c"]) in capsys.readouterr().err


def test_a_study_aligns_by_no_map_of_another_model(learned, tmp_path):
    _, files, maps = learned
    output = tmp_path / "aligned.safetensors"
    method = OptimalTransport(cost="learned", heads=2)
    for source, anchor in (("c", "a"), ("b", "d")):
        with pytest.raises(ValueError, match="this map was learned of"):
            _write_aligned(
                output,
                files[source],
                files[anchor],
                {"anchor": None, "source": maps["b", "a"]},
                method,
                "cpu",
            )
    assert not output.exists()


def test_maps_of_these_models_and_maps_without_a_record_are_taken(
    learned, tmp_path, caplog
):
    _, files, maps = learned
    used = [maps["b", "a"], maps["c", "a"]]
    found = by_maps(files, [None, *used])
    assert "does not say" not in caplog.text
    bare = []
    for path in used:
        with open_weights(path) as stored:
            orders = {name: stored[name].clone() for name in stored}
        bare.append(write_weights(tmp_path / path.name, orders))
    # elsewhere, too, and in memory
    experts = {}
    for name in "abc":
        experts[name] = tmp_path / f"{name}.safetensors"
        shutil.copy(files[name], experts[name])
    again = by_maps(experts, [None, *bare])
    assert caplog.text.count(f"{bare[0]} does not say of which models") == 1
    for other in (again, by_maps(experts, [None, *used])):
        assert all(torch.equal(found[name], other[name]) for name in found)


def foreign_files(folder, model):
    """Files that are not for statistics, merges or landscapes to replace."""
    folder.mkdir()
    notes = folder / "thesis.safetensors"
    notes.write_bytes(b"a person's own file")
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(Path(model).read_bytes()[:-9])
    own = folder / "model.safetensors"
    shutil.copy(model, own)
    link = folder / "link.safetensors"
    link.symlink_to(own)
    return [notes, damaged, own, link]


def test_nothing_of_a_person_is_replaced(learned, tmp_path):
    brain, files, _ = learned
    data, batches = tiny_ctc_data(2), {"batch_size": 1}
    foreign = foreign_files(tmp_path / "person", files["a"])
    before = [path.read_bytes() for path in foreign]
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    merged = merge(
        "average",
        [files["b"], files["c"]],
        same_base=False,
        output=tmp_path / "merged.safetensors",
        progress=False,
    )

    def collected(collect, source, path):
        return collect(brain, source, data, batches, path)

    writers = [
        partial(collected, collect_fisher, foreign[2]),
        partial(collected, collect_grams, merged),
        lambda path: merge(
            "average", [merged, files["a"]], output=path, same_base=False
        ),
        lambda path: extract_lora(
            files["a"],
            files["b"],
            path,
            2,
            format="speechbrain",
            same_base=False,
        ),
    ]
    scored = []
    brain.compute_forward, forward = scored.append, brain.compute_forward
    for write in writers:
        for path in [*foreign, pipe]:
            with pytest.raises(FileExistsError) as refused:
                write(path)
            assert path.name in str(refused.value)
    # one kind of ours does not take the place of another
    with pytest.raises(FileExistsError, match="no statistics of ours"):
        writers[0](merged)
    assert scored == []
    brain.compute_forward = forward
    assert [path.read_bytes() for path in foreign] == before
    # what is ours, empty or not there is written
    path = tmp_path / "fisher.safetensors"
    path.touch()
    for write in (writers[0], writers[0], writers[1]):
        assert write(path) == path


def test_a_landscape_replaces_landscapes_alone(learned, tmp_path):
    brain, files, _ = learned
    walk = Landscape(brain, tiny_ctc_data(2), {"batch_size": 2}, tmp_path)
    models = {name: str(files[name]) for name in "ab"}
    config = tmp_path / "config.json"
    for text in ('{"kind": "conformer"}', "not JSON"):
        config.write_text(text)
        for travel in (walk.line, walk.plane):
            with pytest.raises(FileExistsError, match="holds no landscape"):
                travel(models, 2, name="config")
        assert config.read_text() == text
    for _ in range(2):
        walk.line(models, 2, name="line")
    assert json.loads((tmp_path / "line.json").read_text())["kind"] == "line"


@pytest.mark.parametrize(
    "name, text",
    [("test.jsonl", '{"ID": "1", "wav": "1.wav"}\n'), ("wer.json", "[1]")],
)
def test_scores_do_not_replace_data(learned, tmp_path, name, text):
    brain, _, _ = learned
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FileExistsError, match=f"{name} holds no scores"):
        evaluate_domains(brain, {"test": tiny_ctc_data(2)}, tmp_path)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
