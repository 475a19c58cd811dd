"""Statistics collected by a Brain: as by hand, on every family, found again."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from tiny_models import (
    FEATURES,
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
    tiny_wav2vec2,
    tiny_whisper,
)

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage, merge
from speechbrain_merge.brain.statistics import (
    COLLECTORS,
    collect_fisher,
    collect_grams,
    collect_statistics,
)
from speechbrain_merge.methods import (
    Fisher,
    OptimalTransport,
    RegMean,
    Restricted,
)
from speechbrain_merge.methods.transport import align
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import open_weights, write_weights

DATA = tiny_ctc_data(6, seed=3)
RUN = {"device": "cpu", "noprogressbar": True}


class MergingCTC(MergeMixin, TinyCTC):
    """Trains, collects and merges."""


class SpeechCTC(MergeMixin, sb.Brain):
    """wav2vec 2.0 or so, with CTC."""

    def compute_forward(self, batch, stage):
        """CTC log-probabilities."""
        waves, lengths = batch.sig
        return self.modules.output(self.modules.encoder(waves)), lengths

    def compute_objectives(self, predictions, batch, stage):
        """CTC loss."""
        logits, lengths = predictions
        return sb.nnet.losses.ctc_loss(
            logits.log_softmax(-1), batch.tokens[0], lengths, batch.tokens[1], 0
        )


class SpeechWhisper(MergeMixin, sb.Brain):
    """Whisper with teacher forcing."""

    def compute_forward(self, batch, stage):
        """Log-probabilities."""
        _, logits, _ = self.modules.whisper(batch.sig[0], batch.tokens[0])
        return logits.log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        """Negative log-likelihood."""
        return sb.nnet.losses.nll_loss(predictions, batch.tokens[0])


def speech_data(number=3):
    """Noise of different lengths, with tokens."""
    generator = torch.Generator().manual_seed(5)
    data = {
        f"noise-{index}": {
            "sig": torch.randn(6000 + 700 * index, generator=generator),
            "tokens": torch.tensor([1 + index, 2, 3]),
        }
        for index in range(number)
    }
    return DynamicItemDataset(data, output_keys=["id", "sig", "tokens"])


def trained(folder, runs=("one", "two"), model=tiny_network):
    """A Brain and a pool with the last candidate of each run."""
    for seed, run in enumerate(runs):
        torch.manual_seed(seed)
        network = model(0)
        pool = CheckpointPool(
            folder / "pool", {"model": network}, run=run, keep_last=1
        )
        brain = tiny_ctc_brain(
            folder / run,
            network,
            MergingCTC,
            recoverables={"pool": pool},
            output_folder=str(folder / run),
        )
        brain.fit(
            brain.hparams.epoch_counter,
            tiny_ctc_data(8, seed=seed, shift=0.5 * seed),
            tiny_ctc_data(4, seed=50),
            train_loader_kwargs={"batch_size": 4},
        )
    return brain


def contents(path):
    """A file as a dict."""
    with open_weights(path) as weights:
        return {name: weights[name] for name in weights.names()}


@pytest.mark.parametrize("per_example", [True, False])
def test_fisher_is_what_autograd_gives_by_hand(tmp_path, per_example):
    brain = trained(tmp_path, ["one"])
    candidate = brain.pools()[0].candidates()[0]
    path = collect_fisher(
        brain,
        candidate,
        DATA,
        {"batch_size": 2, "shuffle": True}
        if per_example
        else {"batch_size": 2},
        tmp_path / "f.safetensors",
        per_example,
    )
    found = contents(path)
    model = tiny_network(1).eval()
    with open_weights(candidate, recoverable="model") as weights:
        model.load_state_dict(dict(weights))
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    size = 1 if per_example else 2
    for start in range(0, len(DATA), size):
        batch = sb.dataio.batch.PaddedBatch(
            [DATA[index] for index in range(start, start + size)]
        )
        feats = brain.modules.normalize(*batch.feats, epoch=9)
        output = model(feats, batch.feats[1]).log_softmax(-1)
        loss = sb.nnet.losses.ctc_loss(
            output, batch.tokens[0], batch.feats[1], batch.tokens[1], 0
        )
        model.zero_grad()
        loss.backward()
        for name, parameter in parameters.items():
            sums[name] += parameter.grad**2
    assert set(found) == {f"model.{name}" for name in parameters}
    for name, total in sums.items():
        expected = total / (len(DATA) / size)
        assert torch.allclose(found[f"model.{name}"], expected, rtol=1e-4)


def test_grams_are_of_the_inputs_of_each_layer(tmp_path):
    brain = trained(tmp_path, ["one"])
    candidate = brain.pools()[0].candidates()[0]
    path = collect_grams(
        brain, candidate, DATA, output=tmp_path / "g.safetensors"
    )
    found = contents(path)
    assert set(found) == {"model.hidden.weight", "model.ctc_lin.weight"}
    rows, hidden = [], []
    for item in DATA:
        feats = brain.modules.normalize(
            item["feats"][None], torch.ones(1), epoch=9
        )
        rows.append(feats[0])
        with torch.no_grad():
            seen = brain.modules.model.hidden(feats).transpose(1, 2)
            seen = brain.modules.model.norm(seen).transpose(1, 2)
            hidden.append(torch.relu(seen)[0])
    for name, inputs in (("hidden", rows), ("ctc_lin", hidden)):
        inputs = torch.cat(inputs).double()
        gram = (inputs.T @ inputs / len(inputs)).float()
        assert torch.allclose(found[f"model.{name}.weight"], gram, rtol=1e-4)
    # in batches, padding counts as input
    padded = collect_grams(
        brain,
        candidate,
        DATA,
        {"batch_size": 6},
        tmp_path / "p.safetensors",
        per_example=False,
    )
    assert not torch.allclose(
        contents(padded)["model.hidden.weight"], found["model.hidden.weight"]
    )


def test_collecting_leaves_the_brain_as_it_was(tmp_path):
    brain = trained(tmp_path, ["one"])
    candidate = brain.pools()[0].candidates()[0]
    brain.load_weights(candidate)
    saved = sorted((tmp_path / "one" / "save").rglob("*"))
    before = {
        name: tensor.clone()
        for name, tensor in brain.modules.state_dict().items()
    }
    grads = [p.grad for p in brain.modules.parameters()]
    state, step = torch.get_rng_state(), brain.step
    stats = list(brain.stats)
    for collect in (collect_fisher, collect_grams):
        collect(brain, candidate, DATA, output=tmp_path / "s.safetensors")
    assert torch.equal(torch.get_rng_state(), state) and brain.step == step
    assert brain.stats == stats
    for name, tensor in brain.modules.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for old, parameter in zip(grads, brain.modules.parameters()):
        assert parameter.grad is old
    assert sorted((tmp_path / "one" / "save").rglob("*")) == saved
    assert not any(m._forward_pre_hooks for m in brain.modules.modules())


@pytest.mark.parametrize("method", [Fisher(), RegMean()])
@pytest.mark.parametrize("searched", [False, True])
def test_in_a_merge_stage(tmp_path, method, searched):
    brain = trained(tmp_path)
    data = {"one": DATA, "two": tiny_ctc_data(6, seed=4, shift=0.5)}
    stage = MergeStage(
        method, [tmp_path / "pool"], search=GreedySearch() if searched else None
    )
    with pytest.raises(ValueError, match="needs statistics"):
        brain.merge(stage, DATA, {"batch_size": 2})
    files = collect_statistics(brain, stage, data)
    assert len(set(files.values())) == 2
    result = brain.merge(stage, DATA, {"batch_size": 2})
    merged = contents(result.path)
    name = "model.hidden.weight"
    if not searched:
        experts = [contents(c.path)[name].double() for c in stage.chosen()]
        found = [contents(file)[name].double() for file in files.values()]
        if method.name == "fisher":
            total = sum(found)
            by_hand = sum(f * e for f, e in zip(found, experts)) / total
            by_hand = torch.where(total > 0, by_hand, sum(experts) / 2)
        else:
            eye = torch.eye(FEATURES)
            found = [0.9 * gram + 0.1 * gram * eye for gram in found]
            moved = sum(g @ e.T for g, e in zip(found, experts))
            by_hand = torch.linalg.solve(sum(found), moved).T
        assert torch.allclose(merged[name].double(), by_hand, atol=1e-5)
        average = sum(experts) / 2
        assert not torch.allclose(merged[name].double(), average, atol=1e-4)
    times = [file.stat().st_mtime_ns for file in tmp_path.rglob("*.fisher*")]
    # asked again: found, and the merge with them
    time.sleep(0.01)
    assert collect_statistics(brain, stage, data) == files
    assert brain.merge(stage, DATA, {"batch_size": 2}).reused
    assert times == [f.stat().st_mtime_ns for f in tmp_path.rglob("*.fisher*")]
    # other data, other statistics
    other = collect_statistics(brain, stage, {"one": DATA, "two": DATA})
    assert (
        other["one/" + _last(other, "one")]
        == files["one/" + _last(files, "one")]
    )
    assert set(other.values()) != set(files.values())
    method.statistics = None


def flip(path, place=-1):
    """Another bit in a file, as a failing disk leaves it."""
    content = bytearray(Path(path).read_bytes())
    content[place] ^= 16
    Path(path).write_bytes(content)


def test_damaged_or_exchanged_statistics_are_collected_again(tmp_path, caplog):
    """They were found by their name, and merged as they were."""
    brain = trained(tmp_path)
    data = {"one": DATA, "two": tiny_ctc_data(6, seed=4, shift=0.5)}
    method = Fisher()
    stage = MergeStage(method, [tmp_path / "pool"])
    files = collect_statistics(brain, stage, data)
    one, two = map(Path, files.values())
    whole = {path: path.read_bytes() for path in (one, two)}
    for place in (-1, 20):  # in a tensor, and in the header
        flip(one, place)
        with pytest.raises(ValueError, match=one.name) as refused:
            merge(method, stage.chosen(), progress=False)
        if place == -1:
            assert "blake3:" in str(refused.value).partition(", and ")[0]
            assert "is on record" in str(refused.value)
        assert collect_statistics(brain, stage, data) == files
        assert one.read_bytes() == whole[one]
    # another model's, whole in itself
    one.write_bytes(whole[two])
    caplog.clear()
    assert collect_statistics(brain, stage, data) == files
    assert one.read_bytes() == whole[one]
    assert stage.chosen()[0].digest in caplog.text
    assert stage.chosen()[1].digest in caplog.text
    # of an earlier version, which wrote no hash
    with open_weights(one) as weights:
        about = {"statistics": weights.metadata["statistics"]}
        write_weights(tmp_path / "old.safetensors", weights, about)
    os.replace(tmp_path / "old.safetensors", one)
    assert collect_statistics(brain, stage, data) == files
    assert one.read_bytes() == whole[one]
    assert two.read_bytes() == whole[two]


@pytest.mark.parametrize("method", [Fisher, RegMean])
def test_statistics_of_candidates_are_known_to_be_theirs(
    tmp_path, method, caplog
):
    """In the right order without a warning, in another not at all."""
    brain = trained(tmp_path)
    stage = MergeStage(method(), [tmp_path / "pool"])
    files = collect_statistics(brain, stage, DATA, limit=2)
    chosen = stage.chosen()
    caplog.clear()
    merge(method(list(files.values())), chosen, progress=False)
    assert "has statistics of" not in caplog.text
    with pytest.raises(ValueError, match="Give them in the order of"):
        merge(method(list(files.values())[::-1]), chosen, progress=False)


def test_a_place_that_takes_nothing_is_known_before_the_pass(tmp_path):
    brain = trained(tmp_path)
    [first, *_] = MergeStage(Fisher(), [tmp_path / "pool"]).chosen()
    (tmp_path / "file").write_text("in the way")
    heard = []
    brain.on_stage_start = lambda *given: heard.append(given)
    with pytest.raises(OSError, match="nothing was begun"):
        collect_fisher(
            brain, first, DATA, output=tmp_path / "file" / "statistics"
        )
    assert not heard


def _last(files, run):
    """The candidate of a run."""
    return next(name for name in files if name.startswith(run)).split("/")[1]


def test_a_method_within_a_method_and_a_limit(tmp_path):
    brain = trained(tmp_path)
    inner = Fisher()
    stage = MergeStage(
        Restricted(inner, include="re:hidden"), [tmp_path / "pool"]
    )
    files = collect_statistics(
        brain, stage, DATA, folder=tmp_path / "here", limit=2
    )
    assert inner.statistics == files
    assert len(list((tmp_path / "here").iterdir())) == 2
    with open_weights(list(files.values())[0]) as weights:
        about = json.loads(weights.metadata["statistics"])
    assert about["limit"] == 2 and about["statistics"] == "fisher"
    merged = contents(brain.merge(stage).path)
    experts = [contents(c.path) for c in stage.chosen()]
    average = sum(e["model.ctc_lin.bias"].double() for e in experts) / 2
    assert torch.equal(merged["model.ctc_lin.bias"], average.float())


def test_conformer(tmp_path):
    brain = trained(tmp_path, model=tiny_conformer)
    for method in (Fisher(), RegMean()):
        stage = MergeStage(method, [tmp_path / "pool"])
        files = collect_statistics(brain, stage, DATA)
        found = contents(list(files.values())[0])
        names = set(contents(stage.chosen()[0].path))
        assert set(found) < names
        fused = "model.Transformer.encoder.layers.0.mha_layer.in_proj_weight"
        assert fused in names and (fused in found) == (method.name == "fisher")
        brain.load_weights(brain.merge(stage).path)


def test_what_units_do_aligns_them(tmp_path):
    brain = trained(tmp_path, model=tiny_conformer)
    method = OptimalTransport(cost="activations")
    stage = MergeStage(method, [tmp_path / "pool"])
    with pytest.raises(ValueError, match="needs statistics"):
        brain.merge(stage)
    files = collect_statistics(brain, stage, DATA)
    anchor, source = map(contents, files.values())
    assert anchor.keys() == source.keys() and len(anchor) > 3
    for name, matrix in anchor.items():
        assert matrix.shape == source[name].shape
        assert not torch.equal(matrix, source[name])
    result = brain.merge(stage)
    merged = contents(result.path)
    first, second = (contents(one.path) for one in stage.chosen())
    cost = {"anchor": anchor, "source": source}
    moved = align(second, first, cost=cost, heads=2)
    for name, tensor in merged.items():
        by_hand = (first[name].double() + moved[name].double()) / 2
        assert torch.equal(tensor, by_hand.float()), name
    by_weights = align(second, first, heads=2)
    assert any((moved[name] != by_weights[name]).any() for name in moved)
    # asked again: found, with the same draws
    assert collect_statistics(brain, stage, DATA) == files
    again = collect_statistics(brain, stage, DATA, folder=tmp_path / "again")
    for path, other in zip(files.values(), again.values()):
        assert all(
            torch.equal(tensor, contents(other)[name])
            for name, tensor in contents(path).items()
        )
    # files that were kept in another way are not taken for these
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COLLECTORS["activations"], "reading", "another")
        others = collect_statistics(brain, stage, DATA)
    assert not set(others.values()) & set(files.values())
    with pytest.raises(ValueError, match="one utterance at a time"):
        collect_statistics(brain, stage, DATA, per_example=False)
    with pytest.raises(ValueError, match="aligned to the base"):
        OptimalTransport(cost="activations", anchor="base")


def test_a_second_transport_of_the_same_experts_finds_the_first(tmp_path):
    """The stage's method is after a merge what it was before."""
    brain = trained(tmp_path, model=tiny_conformer)
    method = OptimalTransport(cost="activations", weight=0.3)
    stage = MergeStage(method, [tmp_path / "pool"])
    collect_statistics(brain, stage, DATA)
    before = method.configuration()
    first = brain.merge(stage)
    merged = contents(first.path)
    assert not first.reused and method.configuration() == before
    second = brain.merge(stage)
    assert second.reused and second.path == first.path
    # and another merge with the same statistics has the same bits
    other = MergeStage(method, [tmp_path / "pool"], name="other")
    again = contents(brain.merge(other).path)
    for name, tensor in merged.items():
        assert torch.equal(again[name], tensor), name


def test_wav2vec2_with_its_weight_norm(tmp_path):
    folder = tiny_wav2vec2(tmp_path / "hub")
    encoder = Wav2Vec2(source=folder, save_path=folder + "/cache", freeze=False)
    modules = {"encoder": encoder, "output": torch.nn.Linear(16, 8)}
    brain = SpeechCTC(modules, hparams={}, run_opts=RUN)
    experts = drifted(brain, tmp_path)
    for method, collect in (
        (Fisher, collect_fisher),
        (RegMean, collect_grams),
    ):
        files = [
            collect(brain, one, speech_data(), output=tmp_path / "statistics")
            for one in experts
        ]
        found = contents(files[0])
        assert not any("original" in name for name in found)
        assert "output.weight" in found
        assert any("layers.1.attention.q_proj.weight" in n for n in found)
        merged = method(files)([dict(contents(one)) for one in experts])
        brain.load_weights(merged)


def test_whisper(tmp_path):
    folder = tiny_whisper(tmp_path / "hub")
    whisper = Whisper(source=folder, save_path=folder + "/cache")
    brain = SpeechWhisper({"whisper": whisper}, hparams={}, run_opts=RUN)
    experts = drifted(brain, tmp_path)
    for method, collect in (
        (Fisher, collect_fisher),
        (RegMean, collect_grams),
    ):
        files = [
            collect(
                brain,
                one,
                speech_data(2),
                output=tmp_path / f"{method.name}-{one.name}",
            )
            for one in experts
        ]
        found = contents(files[0])
        attention = "whisper.model.decoder.layers.0.encoder_attn"
        assert f"{attention}.k_proj.weight" in found
        # the output layer is the embedding, no layer of its own
        embedding = "whisper.model.decoder.embed_tokens.weight"
        assert (embedding in found) == (method is Fisher)
        assert "whisper.proj_out.weight" not in found
        brain.load_weights(method(files)([open_weights(e) for e in experts]))


def drifted(brain, folder):
    """Two files of weights around those of the Brain."""
    from speechbrain_merge.weights import write_weights

    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in brain.modules.parameters():
                parameter += 0.01 * torch.randn(parameter.shape)
        paths.append(folder / f"expert-{seed}.safetensors")
        write_weights(paths[-1], brain.modules.state_dict())
    return paths


def test_wrong_use(tmp_path):
    brain = trained(tmp_path, ["one"])
    pool = [tmp_path / "pool"]
    with pytest.raises(ValueError, match="needs no statistics"):
        collect_statistics(brain, MergeStage("average", pool), DATA)
    with pytest.raises(ValueError, match="No data for candidate 'one/"):
        collect_statistics(brain, MergeStage("fisher", pool), {"two": DATA})
    with pytest.raises(ValueError, match="`output`"):
        collect_fisher(brain, brain.pools()[0].candidates()[0], DATA)
