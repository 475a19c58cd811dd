"""A tiny study in which everything is trained in a second.

Its YAML is written beside it. What is trained under DDP is other than what one
process trains, since each rank hears other utterances; so two studies can be
compared from the trained models on.
"""

from pathlib import Path

import torch
import yaml
from tiny_recipe import FEATURES, WORDS, TinyCTC, tiny_ctc_data
from torch.nn.modules.module import register_module_forward_pre_hook

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge import CheckpointPool, MergeMixin, Run
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.search import GoldenSection, GreedySearch
from speechbrain_merge.study import Study

DOMAINS = {"near": 0.0, "far": 0.6}
MODELS = {
    "{domain}": {"train": "{domain}"},
    "in-turn": {"in_turn": "{each}"},
    "aode": {"merge": "average", "of": "{each}"},
    "fisher": {"merge": "fisher", "of": "{each}"},
    "ensemble": {"combine": "ensemble", "of": ["near", "far"]},
    "oracle": {"combine": "oracle", "of": ["near", "far"]},
}
YAML = {
    "seed": 1,
    "output_folder": "results",
    "run_name": "run",
    "domains": [],
    "test_domains": [],
    "epochs": 3,
}
INFERENCE = """\
model: !new:ranks.study.Network
modules:
    model: !ref <model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
"""


class Network(torch.nn.Module):
    """Learns the made-up data quickly, and goes with DDP on the CPU."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.hidden = torch.nn.Linear(FEATURES, 16)
            self.ctc_lin = torch.nn.Linear(16, len(WORDS) + 1)
        # DDP's forward passes send buffers from rank to rank
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, features, lengths):
        """CTC logits, shape [batch, frames, labels]."""
        del lengths  # every frame for itself
        logits = self.ctc_lin(torch.relu(self.hidden(features)))
        return logits / self.temperature


_COUNTING = []


def count_events(events) -> None:
    """Has the forward passes of networks counted from now on.

    Arguments
    ---------
    events : Events or None
        What counts. It is called by torch, and is no setting of a Brain.
    """
    while _COUNTING:
        _COUNTING.pop().remove()
    if events is not None:

        def count(module, _):
            if isinstance(module, Network):
                events.count()

        _COUNTING.append(register_module_forward_pre_hook(count))


class MergingCTC(MergeMixin, TinyCTC):
    """Counts the utterances that it decodes."""

    decoded = 0
    posteriors = None

    def compute_forward(self, batch, stage):
        """Computes; keeps what is to be combined."""
        if stage != sb.Stage.TRAIN:
            # as a decoder that takes a step a word: ranks with other
            # utterances take other numbers of forward passes
            for _ in batch.wrd[0].split():
                self.modules.model(*batch.feats)
        log_probabilities, lengths = super().compute_forward(batch, stage)
        if self.posteriors is not None:
            frames = (lengths * log_probabilities.shape[1]).round().int()
            for name, own, count in zip(batch.id, log_probabilities, frames):
                self.posteriors[name] = own[:count].cpu()
        return log_probabilities, lengths

    def evaluate_batch(self, batch, stage):
        """Counts, then evaluates."""
        self.decoded += len(batch.id)
        return super().evaluate_batch(batch, stage)

    def words_of(self, log_posteriors):
        """The words of the best path, and how sure they are."""
        best = log_posteriors.max(dim=-1)
        labels = torch.unique_consecutive(best.indices).tolist()
        words = [WORDS[label - 1] for label in labels if label]
        return words, [float(best.values.mean().exp())] * len(words)


def _data(domains, utterances, seed):
    """Utterances of some domains in one set."""
    rows = {}
    for number, domain in enumerate(domains):
        own = tiny_ctc_data(utterances, seed + number, DOMAINS[domain])
        rows.update(own.data)
    return DynamicItemDataset(
        rows, output_keys=["id", "wrd", "feats", "tokens"]
    )


def build(hparams_file, overrides, run_opts, events=None):
    """Prepares one run, as a recipe's function does."""
    with open(hparams_file) as file:
        hparams = {**yaml.safe_load(file), **overrides}
    folder, counter = (
        Path(hparams["output_folder"]),
        EpochCounter(limit=hparams["epochs"]),
    )
    sb.create_experiment_directory(folder, save_env_desc=False)
    model = Network()
    pool = CheckpointPool(
        folder / "pool", {"model": model}, run=hparams["run_name"]
    )
    checkpointer = Checkpointer(
        folder / "save", {"model": model, "counter": counter, "pool": pool}
    )
    brain = MergingCTC(
        modules={"model": model, "normalize": _Same()},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
        hparams={
            "epoch_counter": counter,
            "wer_computer": ErrorRateStats,
            "save_on_test": False,
            "output_folder": str(folder),
        },
        run_opts={"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer=checkpointer,
    )
    count_events(events)
    train = _data(hparams["domains"], 16, 10 * hparams["seed"])
    sets = {domain: _data([domain], 5, 500) for domain in DOMAINS}
    tests = {domain: _data([domain], 7, 900) for domain in DOMAINS}

    def export(weights, target, texts):
        """Writes a pretrained folder."""
        export_pretrained(
            weights, Path(hparams_file).parent / "inference.yaml", target,
            texts=texts,
        )  # fmt: skip

    return Run(
        brain,
        lambda: brain.fit(counter, train, sets["near"]),
        train,
        sets,
        tests,
        valid_loader_kwargs={"batch_size": 2},
        test_loader_kwargs={"batch_size": 3},
        export=export,
    )


class _Same(torch.nn.Module):
    """Stands where the Brain has its normaliser, and changes nothing."""

    def forward(self, feats, lengths, epoch=None):
        """The features themselves."""
        return feats


def write_yaml(folder):
    """Writes the YAML of a training, and that of an exported model."""
    (folder / "train.yaml").write_text(yaml.safe_dump(YAML))
    (folder / "inference.yaml").write_text(INFERENCE)


def run_study(folder, yaml_folder, run_opts=None, events=None, costs=False):
    """Runs the study; its results as plain data.

    Arguments
    ---------
    folder : Path
        Of the study.
    yaml_folder : Path
        Has the YAMLs.
    run_opts : dict, optional
        SpeechBrain's.
    events : Events, optional
        Are told of forward passes.
    """
    study = Study(
        folder,
        {
            **MODELS,
            "tuned": {
                "merge": "task_arithmetic",
                "of": "{each}",
                "search": GoldenSection("scale", 0, 2, evaluations=4),
            },
            "smact": {
                "merge": "average",
                "of": {"runs": "{each}", "last": 2},
                "search": GreedySearch("shuffled", seed=1),
            },
        },
        {"expert": {"hparams": yaml_folder / "train.yaml"}},
        domains=list(DOMAINS),
        seeds=[1],
        compare=[["in-turn", "aode"]],
        landscapes={"between": {"between": ["near", "far"], "points": 3}},
        exports=["aode"],
        costs=costs,
    )
    return study.run(
        lambda *arguments: build(*arguments, events), run_opts or {}
    )
