"""Learning a matching with a real Brain: it helps, it resumes, it merges."""

import json

import pytest
import torch
from tiny_models import TinyCTC, tiny_conformer, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import MergeMixin, MergeStage
from speechbrain_merge.brain import matching
from speechbrain_merge.brain.matching import learn_matching
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.methods import create
from speechbrain_merge.methods.transport import align
from speechbrain_merge.methods.transport.learned_map import read_learned_map
from speechbrain_merge.pool import Candidate
from speechbrain_merge.weights import (
    ChangedContent,
    digest,
    open_weights,
    write_weights,
)

LEARNING = {
    "steps": 30,
    "check_every": 5,
    "start": "weights",
    "learning_rate": 3e-3,
}


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Brain, and two Conformers of different starts that it trained."""
    folder = tmp_path_factory.mktemp("trained")
    data, found = tiny_ctc_data(48), []
    for seed in (1, 2):
        brain = tiny_ctc_brain(
            folder / str(seed),
            tiny_conformer(seed, layers=1),
            MergingCTC,
            epochs=6,
            learning_rate=0.01,
        )
        brain.fit(
            brain.hparams.epoch_counter,
            data,
            train_loader_kwargs={"batch_size": 8},
        )
        path = folder / f"{seed}.safetensors"
        write_weights(
            path,
            {
                f"model.{name}": tensor
                for name, tensor in brain.hparams.model.state_dict().items()
            },
        )
        found.append(path)
    return brain, found, data


def learned(trained, folder, **learning):
    brain, (anchor, source), data = trained
    return learn_matching(
        brain,
        source,
        anchor,
        data,
        tiny_ctc_data(24, seed=5),
        folder,
        {"batch_size": 8},
        {**LEARNING, **learning},
        heads=2,
    )


def metadata(path):
    with open_weights(path) as stored:
        return dict(stored.metadata)


@pytest.mark.parametrize("learner", ["straight_through", "sinkhorn"])
def test_the_loss_chooses_and_the_brain_keeps_its_weights(
    trained, tmp_path, learner
):
    brain, (anchor, source), _ = trained
    before = digest(brain.hparams.model)
    rate = {"straight_through": 3e-2, "sinkhorn": 0.1}[learner]
    path = learned(trained, tmp_path, learner=learner, learning_rate=rate)
    assert digest(brain.hparams.model) == before
    assert not any(p.grad is not None for p in brain.modules.parameters())
    about = metadata(path)
    history = json.loads(about["history"])
    assert [row["step"] for row in history] == [*range(0, 31, 5)]
    least = min(history, key=lambda row: row["loss"])
    assert about["step"] == str(least["step"])
    # nothing is learned without going below the map it started from
    assert least["loss"] < history[0]["loss"] - 0.08
    found = read_learned_map(source, path, heads=2)
    middle = {}
    with open_weights(source) as weights, open_weights(anchor) as target:
        moved = found.apply(weights)
        for name in target:
            middle[name] = (target[name] + moved[name]) / 2
    batches = matching.FixedBatches(
        brain, tiny_ctc_data(24, seed=5), {"batch_size": 8}
    )
    with brain.borrowed_weights(middle):
        loss = matching._mean_loss(brain, batches)
    assert loss == pytest.approx(least["loss"], abs=1e-5)


def test_what_was_stopped_ends_where_it_would_have(
    trained, tmp_path, monkeypatch
):
    whole = learned(trained, tmp_path / "whole")

    class PowerCut(Exception):
        """Stands for whatever stops a learning."""

    looks = []
    measure = matching._mean_loss

    def cut(*arguments):
        looks.append(None)
        if len(looks) == 4:
            raise PowerCut
        return measure(*arguments)

    monkeypatch.setattr(matching, "_mean_loss", cut)
    with pytest.raises(PowerCut):
        learned(trained, tmp_path / "broken")
    broken = learned(trained, tmp_path / "broken")
    # three looks before the cut, the third of them taken again
    assert len(looks) == 4 + 5
    assert broken.name == whole.name
    assert metadata(broken) == metadata(whole)
    with open_weights(whole) as one, open_weights(broken) as other:
        assert all(torch.equal(one[name], other[name]) for name in one)
    # and what is finished is found
    assert learned(trained, tmp_path / "broken") == broken
    assert len(looks) == 4 + 5
    assert learned(trained, tmp_path / "broken", steps=5) != broken
    state = broken.with_suffix(".pt")
    kept = torch.load(state, weights_only=True)
    broken.unlink()
    for damage, message in (
        ({"history": 3}, "key 'history'"),
        ({"done": -1}, "key 'done'"),
        ({"best": {"stream": "a"}}, "expected orders of units"),
        ({"learned": {}}, "not a state of this learning"),
    ):
        torch.save({**kept, **damage}, state)
        with pytest.raises(ValueError, match=message):
            learned(trained, tmp_path / "broken")
    torch.save(kept, state)
    change_a_tensor(state, kept["learned"])
    with pytest.raises(ChangedContent, match="not as it was.*Delete it"):
        learned(trained, tmp_path / "broken")
    torch.save({"history": []}, state)
    with pytest.raises(ValueError, match="no state of a learned matching"):
        learned(trained, tmp_path / "broken")


def change_a_tensor(path, tensors):
    """Changes a bit of a tensor where it lies in a file."""
    [tensor, *_] = tensors.values()
    values = tensor.contiguous().numpy().tobytes()
    content = path.read_bytes()
    assert values in content
    other = values[:-1] + bytes([values[-1] ^ 1])
    path.write_bytes(content.replace(values, other))


def damaged(state, key, value):
    """A state in which one entry is another."""
    return {**state, key: value}


def test_what_is_not_of_this_learning_is_refused(trained, tmp_path):
    path = learned(trained, tmp_path, steps=5)
    other = learned(trained, tmp_path, steps=5, seed=3)
    mine, state = path.read_bytes(), path.with_suffix(".pt")
    path.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="'about': this map was learned of"):
        learned(trained, tmp_path, steps=5)
    # a bit of the first order, which still is one of some units
    path.write_bytes(mine[:-1] + bytes([mine[-1] ^ 16]))
    with pytest.raises(ValueError, match="is on record.*Delete it to learn"):
        learned(trained, tmp_path, steps=5)
    path.unlink()
    found = torch.load(state)
    orders, tensors = found["best"], found["learned"]
    space, name = next(iter(orders)), next(iter(tensors))
    moments = found["optimizer"]["state"]
    for each, message in [
        (torch.load(other.with_suffix(".pt")), "'about': this state is of"),
        (damaged(found, "done", 4), "'history': expected a row"),
        (damaged(found, "history", []), "'history': expected a row"),
        (damaged(found, "best", {}), "map is of other spaces"),
        (
            damaged(found, "best", {**orders, space: orders[space] * 0}),
            "is no order of",
        ),
        (
            damaged(
                found, "learned", {**tensors, name: tensors[name] * torch.nan}
            ),
            "has a NaN",
        ),
        (
            damaged(
                found,
                "optimizer",
                {**found["optimizer"], "state": {0: moments[1]}},
            ),
            "the optimizer has other moments",
        ),
    ]:
        torch.save(each, state)
        with pytest.raises(ValueError, match=message):
            learned(trained, tmp_path, steps=5)
    torch.save(found, state)
    assert learned(trained, tmp_path, steps=5).read_bytes() == mine


def test_a_stage_learns_the_map_of_its_method(trained, tmp_path):
    brain, paths, data = trained
    candidates = [
        Candidate(name, path, name, known_digest=digest(path))
        for name, path in zip(("first", "second"), paths)
    ]
    stage = MergeStage(
        create(
            "optimal_transport",
            cost="learned",
            heads=2,
            learning={**LEARNING, "steps": 5, "start": "activations"},
        ),
        candidates,
        same_base=False,
        folder=tmp_path / "merge",
    )
    valid = tiny_ctc_data(24, seed=5)
    kwargs = {"batch_size": 8}
    files = collect_statistics(
        brain, stage, valid, kwargs, tmp_path / "seen", train=data
    )
    assert files["first"] is None
    result = brain.merge(stage, valid, kwargs)
    found = read_learned_map(paths[1], files["second"], heads=2)
    with (
        open_weights(result.path) as merged,
        open_weights(paths[0]) as first,
        open_weights(paths[1]) as second,
    ):
        moved = found.apply(second)
        for name in first:
            torch.testing.assert_close(
                merged[name], (first[name] + moved[name]) / 2
            )
        by_weights = align(second, first, heads=2)
        assert any(not torch.equal(by_weights[n], moved[n]) for n in first)


def test_a_loss_that_is_no_number_is_refused(trained, tmp_path, monkeypatch):
    brain, _, _ = trained
    monkeypatch.setattr(
        brain,
        "compute_objectives",
        lambda predictions, batch, stage: predictions[0].sum() * float("nan"),
    )
    with pytest.raises(ValueError, match="nothing can be learned from it"):
        learned(trained, tmp_path)
