"""What damaged files are given to: all that reads a kind of file.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import io
import json

import torch
from filled_pool import collect
from safetensors.torch import save_file

from speechbrain_merge.brain.coefficient_learning import (
    _resume,
    _row as _learned,
    _save,
)
from speechbrain_merge.brain.evaluated import described
from speechbrain_merge.cli import main
from speechbrain_merge.command.plan import parse_yaml, read_plan
from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.evaluation import (
    read_scores,
    score_utterances,
    write_scores,
)
from speechbrain_merge.export.pretrained import _loadables
from speechbrain_merge.methods import AdaMerging
from speechbrain_merge.methods.transport.outputs import check_same_outputs
from speechbrain_merge.methods.transport.symmetry import symmetry
from speechbrain_merge.pool import read_merges, read_pool
from speechbrain_merge.pool.first_save import NOTE, killed_in_it
from speechbrain_merge.pool.half_written import torn_meta
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.pool.meta import read_meta, read_progress
from speechbrain_merge.pool.recovery import own_record
from speechbrain_merge.pool.run_folder import RunFolder
from speechbrain_merge.records.once import known_record, once
from speechbrain_merge.records.ownership import foreign_files, write_mark
from speechbrain_merge.report import (
    load_results,
    merge_card,
    read_coefficients,
    record_coefficients,
    results_table,
    save_results,
    summarize_results,
)
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.tally import Tally
from speechbrain_merge.stage.result import read_result
from speechbrain_merge.study import Study
from speechbrain_merge.study.results import flat, read_results, read_times
from speechbrain_merge.study.tables import main_rows, training_rows
from speechbrain_merge.training import SlantedTriangularScheduler
from speechbrain_merge.weights import fold, open_weights
from speechbrain_merge.weights.head_count import head_count
from speechbrain_merge.weights.vocabulary import read_tokens, vocabularies

TARGETS = {}


def target(function):
    """Registers what damaged files are given to."""
    TARGETS[function.__name__] = function
    return function


MAP = """\
names: [tiny]
about: a map with everything in it
detect: {present: ["layers.{layer}.up.weight"]}
tensors:
  layers.{layer}.up.weight: ["hidden.{layer}", stream]
  layers.{layer}.up.bias: ["hidden.{layer}"]
  layers.{layer}.down.weight: [stream, "hidden.{layer}"]
  layers.{layer}.in.weight:
    interleaved: [["query.{layer}", stream], ["value.{layer}", stream]]
  layers.{layer}.gate.weight:
    stacked: [["gate.{layer}", stream], ["gate.{layer}", stream]]
  layers.{layer}.heads: {flat: ["heads.{layer}"]}
  front.weight: [stream, {flatten: [channels, fixed]}]
  convolution.weight: [channels, fixed, fixed]
  out.weight: [fixed, stream]
fixed: [out.bias, "{index}.pe"]
same: {"heads.{layer}": "heads.{layer:last}"}
pinned: {"channels*": why not}
outputs: {stream: [out.weight]}
tied: {out.weight: words.weight}
blocks:
  attention.{layer}:
    spaces: ["query.{layer}", "value.{layer}"]
    number: {tensor: "layers.{layer}.heads", axis: 0}
    fixed_inside: ["query.{layer}"]
    fixed_order: false
variants:
  - present: [convolution.weight]
    absent: [nothing]
    one_axis: ["layers.{layer}.up.bias"]
    pinned: {"hidden.0": a reason}
"""

MODEL = {
    "out.weight": torch.ones(5, 4),
    "out.bias": torch.ones(5),
    "front.weight": torch.ones(4, 6),
    "convolution.weight": torch.ones(3, 1, 2),
}
for _layer in (0, 1):
    MODEL[f"layers.{_layer}.up.weight"] = torch.ones(6, 4)
    MODEL[f"layers.{_layer}.up.bias"] = torch.ones(6)
    MODEL[f"layers.{_layer}.down.weight"] = torch.ones(4, 6)
    MODEL[f"layers.{_layer}.in.weight"] = torch.ones(8, 4)
    MODEL[f"layers.{_layer}.gate.weight"] = torch.ones(10, 4)
    MODEL[f"layers.{_layer}.heads"] = torch.ones(2)

STUDY = """\
models:
  "{domain}": {train: "{domain}"}
  all: {train: "{each}", with: {lr: 2}, title: All}
  aode: {merge: average, of: "{each}", weights: {a: 1/4, b: 3/4}}
  turn: {in_turn: "{each}"}
  mixed: {combine: ensemble, of: [a, b]}
  best: {oracle: "{domain}"}
  ties: {merge: {ties: {density: 0.3}}, of: {runs: "{each}", last: 2}}
  later: {train: [a], from: aode, with: {lr: 1}}
trainings: {expert: {hparams: HPARAMS, with: {lr: 1}, keys: {run: null}}}
domains: [a, b]
tests: [a, b, c]
seeds: [1, 2]
modes: {usual: {beam: 1}}
metric: WER
mode: min
checkpoint: best
retention: [c]
compare: [[a, all], [aode, turn]]
reference: aode
landscapes: {line: {between: [a, b], points: 3}}
exports: [aode]
"""

HPARAMS = """\
seed: 1
lr: 0.1
output_folder: !ref results/<seed>
run_name: x
domains: [a]
test_domains: [a]
start_from: null
model: !new:torch.nn.Linear [1, 2]
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables: {model: !ref <model>}
"""

_COUNTS = {"errors": 3, "words": 40, "utterances": 9}
_SETS = {"usual": {"a": _COUNTS, "b": {**_COUNTS, "errors": 4}}}


def _row(name, group):
    return {
        "name": name,
        "title": name.title(),
        "group": group,
        "kind": "train" if group != "merge" else "merge",
        "domains": ["a"],
        "parents": [],
        "trainings": [name],
        "sets": {"1": _SETS},
        "about": {"1": {"steps": 4, "chosen": None}},
        "bound": False,
        "select_on": [],
    }


STUDY_RESULTS = {
    "schema": 2,
    "metric": "WER",
    "domains": ["a"],
    "tests": ["a", "b"],
    "retention": ["b"],
    "modes": ["usual"],
    "seeds": [1],
    "rows": [
        _row("original", "generalist"),
        _row("a", "expert"),
        _row("m", "merge"),
    ],
    "models": {},
    "sequences": [],
    "comparisons": {"best": {}},
    "barriers": {},
}

RECORD = {
    "method": "layer_scaled",
    "parameters": {
        "method": {"method": "ties", "parameters": {"density": 0.3}},
        "first": 1,
        "last": 1,
    },
    "sources": [{"path": "a", "label": "a", "digest": "0"}],
    "base": {"path": "b"},
    "created": "2026",
    "versions": {"torch": "2"},
}


class Files:
    """One valid file of each kind.

    Arguments
    ---------
    folder : Path
        Where they lie.
    """

    def __init__(self, folder):
        self.folder = folder
        self.pool, saver, _ = collect(
            folder, [{"WER": 3.0}, {"WER": 2.0}], hyperparameters={"lr": 0.1}
        )
        self.run = folder / "pool" / "run"
        self.checkpoint = saver.list_checkpoints()[0].path
        members = tuple(
            Member(each.name, each.run, each.digest, 0.5)
            for each in read_pool(folder / "pool")
        )
        method = {"name": "average", "weights": None}
        for name in ("m", "n"):
            record = MergeRecord(name, method, members, {"a": 1.0})
            remember(folder / "pool", record)
        tensors = {f"encoder.layers.{n}.fc": torch.ones(3) for n in range(3)}
        self.weights = folder / "model.safetensors"
        hyperparameters = json.dumps({"blank_index": 0})
        save_file(
            tensors,
            self.weights,
            {
                "merge": json.dumps(RECORD),
                "hyperparameters": hyperparameters,
                "attention_heads": '{"encoder": 4}',
                "tied": '{"alias": "encoder.layers.0.fc"}',
            },
        )
        self.torch = folder / "model.pt"
        views = {"view": torch.arange(6.0)[2:], "half": torch.ones(2).half()}
        torch.save(
            {**tensors, **views, "whole": torch.ones(2, 3).T}, self.torch
        )
        self.old_torch = folder / "old.bin"
        torch.save(
            tensors, self.old_torch, _use_new_zipfile_serialization=False
        )
        self.shards = folder / "shards"
        self.shards.mkdir()
        save_file(tensors, self.shards / "a.safetensors")
        self.index = self.shards / "model.safetensors.index.json"
        self.index.write_text(
            json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")})
        )
        self.config = self.shards / "config.json"
        self.config.write_text('{"encoder_attention_heads": 4, "d_model": 8}')
        self.adapter = folder / "adapter"
        self.adapter.mkdir()
        factors = {
            "base_model.model.fc.lora_A.weight": torch.ones(2, 4),
            "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
        }
        save_file(factors, self.adapter / "adapter_model.safetensors")
        (self.adapter / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "lora_alpha": 4, '
            '"alpha_pattern": {"f.*": 2}, "use_rslora": false}'
        )
        self.plan = folder / "plan.yaml"
        self.plan.write_text(
            "stages:\n  m.safetensors:\n    method: ties\n"
            "    parameters: {density: 0.3}\n    base: &a base.pt\n"
            "    experts: [a.pt, *a]\n    include: [encoder, 're:a.*b']\n"
            "    output: m.safetensors\n    dtype: float16\n"
        )
        self.marked = folder / "marked"
        self.marked.mkdir()
        write_mark(self.marked, {"a": {"size": 1, "sha256": "0" * 64}})
        self.map = folder / "map.yaml"
        self.map.write_text(MAP)
        self.hparams = folder / "hparams.yaml"
        self.hparams.write_text(HPARAMS)
        self.study = folder / "study.yaml"
        self.study.write_text(STUDY.replace("HPARAMS", str(self.hparams)))
        self.journal = folder / "journal.jsonl"
        journal = Journal(self.journal, {"method": "average"})
        journal.record("k" * 64, Tally(12, 200), candidates=["a", "b"])
        domains = {"a": (1, 10), "b": (2, 20)}
        journal.record("j", Tally.of_domains(domains), incumbent=Tally(1, 9))
        self.coefficients = folder / "ratios.jsonl"
        for step in (1, 2):
            values = {"a": {"layers.0": 0.1 * step}, "b": {"layers.0": 0.2}}
            record_coefficients(self.coefficients, step, values)
        self.scores = folder / "scores.jsonl"
        write_scores(
            self.scores,
            score_utterances({"u": "a b", "v": "c"}, {"u": "a", "v": "d"}),
        )
        self.once = folder / "finished.json"
        once(self.once, {"lr": 1}, lambda: {"steps": 3})
        self.results = folder / "results.json"
        save_results(self.results, flat(STUDY_RESULTS))
        self.study_folder = folder / "a_study"
        self.study_folder.mkdir()
        (self.study_folder / "results.json").write_text(
            json.dumps(STUDY_RESULTS)
        )
        times = {"seconds": 9.0, "interrupted": False, "trials": []}
        (self.study_folder / "times.json").write_text(
            json.dumps({"a": {"1": times}, "m": {"1": times}})
        )
        self.merged = folder / "merge"
        self.merged.mkdir()
        merge(
            "average",
            [tensors, tensors],
            output=self.merged / "merged.safetensors",
            progress=False,
        )
        result = {
            "path": "merged.safetensors",
            "name": "merge",
            "candidates": ["a", "b"],
            "selected": ["a"],
            "method": {"name": "average", "weights": None},
            "value": 9.5,
            "trials": [{"accepted": True, "parameters": {"scale": 1}}],
            "savings": {"seconds": 1.0},
            "seconds": 3.0,
            "reused": False,
        }
        (self.merged / "result.json").write_text(
            json.dumps(
                {"context": "0" * 64, "digest": "1" * 64, "result": result}
            )
        )
        self.schedule = folder / "schedule.ckpt"
        schedule = SlantedTriangularScheduler(20)
        schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
        schedule.save(self.schedule)
        self.note = self.run / NOTE
        self.vocabularies = folder / "vocabularies"
        self.vocabularies.mkdir()
        (self.vocabularies / "vocab.json").write_text('{"a": 0, "b": 1}')
        (self.vocabularies / "tokenizer.json").write_text(
            '{"model": {"vocab": {"a": 0}}, '
            '"added_tokens": [{"content": "b", "id": 1}]}'
        )
        (self.vocabularies / "label_encoder.txt").write_text(
            "'a' => 0\n('b', 'c') => 1\n====\n'starting_index' => 0\n"
        )
        save_file(tensors, self.vocabularies / "model.safetensors")
        self.state = folder / "coefficients.pt"
        self.method = AdaMerging()
        opened = open_weights(tensors)
        self.method.make_coefficients([opened, opened], opened)
        self.optimizer = torch.optim.Adam([self.method.coefficients])
        self.method.coefficients.grad = torch.ones_like(
            self.method.coefficients
        )
        self.optimizer.step()
        history = [_learned(1, 0.5, self.method, ["a", "b"])]
        _save(self.state, self.method, self.optimizer, history, "{}")


@target
def manifest_of_a_pool(files, damage):
    with damage(files.run / "manifest.jsonl"):
        read_pool(files.folder / "pool")
        for path in files.run.glob("*.safetensors"):
            own_record(path, "run")
        RunFolder(files.run).lineages()


@target
def remembered_merges(files, damage):
    with damage(files.folder / "pool" / "merges.jsonl"):
        read_merges(files.folder / "pool")


@target
def meta_of_a_checkpoint(files, damage):
    with damage(files.checkpoint / "CKPT.yaml"):
        torn_meta(files.checkpoint)
        found = read_meta(files.checkpoint)
        read_progress(files.checkpoint, found)
        read_pool(files.folder / "save", skip_broken=True)


@target
def file_of_a_checkpoint(files, damage):
    with damage(files.checkpoint / "model.ckpt"):
        read_all(files.checkpoint)


@target
def note_of_a_first_save(files, damage):
    content = {"lineage": "l", "checkpoint": "save/CKPT+1", "last": None}
    files.note.write_text(json.dumps(content))
    with damage(files.note):
        killed_in_it(files.run)
    files.note.unlink()


@target
def journal(files, damage):
    with damage(files.journal):
        found = Journal(files.journal)
        found.find("k" * 64, Tally(3, 100))
        found.details("j")


@target
def result_of_a_stage(files, damage):
    with damage(files.merged / "result.json") as path:
        read_result(path)
        described(files.merged / "merged.safetensors")


@target
def results_of_a_study(files, damage):
    with damage(files.study_folder / "results.json"):
        found = read_results(files.study_folder)
        if found["rows"]:
            shown = flat(found)
            if shown["rows"]:
                summarize_results(shown)


@target
def times_of_a_study(files, damage):
    with damage(files.study_folder / "times.json"):
        times = read_times(files.study_folder)
        main_rows(STUDY_RESULTS, "usual", times)
        training_rows(STUDY_RESULTS, times)


@target
def results_for_tables(files, damage):
    with damage(files.results):
        found = load_results(files.results)
        summarize_results(found)
        results_table(found)


@target
def record_of_work(files, damage):
    with damage(files.once):
        known_record(files.once)


@target
def scores_of_utterances(files, damage):
    with damage(files.scores):
        for score in read_scores(files.scores):
            assert score.errors >= 0


@target
def learned_coefficients(files, damage):
    with damage(files.coefficients):
        read_coefficients(files.coefficients)


@target
def state_of_coefficients(files, damage):
    with damage(files.state):
        _resume(files.state, files.method, files.optimizer, 1, "{}", ["a", "b"])


@target
def schedule_of_rates(files, damage):
    with damage(files.schedule):
        SlantedTriangularScheduler(20).load(files.schedule)


@target
def safetensors_file(files, damage):
    with damage(files.weights):
        metadata = read_all(files.weights)
        with open_weights(files.weights) as weights:
            head_count(weights)
            check_same_outputs(weights, weights)
        if "merge" in metadata:
            provenance(files.weights)


@target
def torch_file(files, damage):
    with damage(files.torch):
        read_all(files.torch)


@target
def torch_file_before_1_6(files, damage):
    with damage(files.old_torch):
        read_all(files.old_torch)


@target
def index_of_shards(files, damage):
    with damage(files.index):
        read_all(files.shards)


@target
def configuration_of_a_model(files, damage):
    with damage(files.config):
        head_count(files.shards)


@target
def adapter_configuration(files, damage):
    with damage(files.adapter / "adapter_config.json"):
        with fold(files.adapter, base={"fc.weight": torch.ones(4, 4)}) as plain:
            _ = plain["fc.weight"]


@target
def factors_of_an_adapter(files, damage):
    with damage(files.adapter / "adapter_model.safetensors"):
        with fold(files.adapter, base={"fc.weight": torch.ones(4, 4)}) as plain:
            for name in plain:
                _ = plain[name]


@target
def vocabulary_files(files, damage):
    names = ["vocab.json", "tokenizer.json", "label_encoder.txt"]
    path = files.vocabularies / names[damage.number(len(names))]
    with damage(path):
        read_tokens(path)
        vocabularies(files.vocabularies / "model.safetensors")


@target
def merge_plan(files, damage):
    with damage(files.plan):
        read_plan(files.plan)


@target
def parameters_on_the_command_line(files, damage):
    path = files.folder / "parameters.yaml"
    path.write_text("{density: 0.3, scale: 1, weights: {a: 0.5}}\n")
    with damage(path):
        text = path.read_text(encoding="utf-8", errors="replace")
        parse_yaml(text, "parameters.yaml")


@target
def study(files, damage):
    damage.words.append("")  # the file is read by HyperPyYAML
    with damage(files.study):
        text = files.study.read_text(encoding="utf-8", errors="replace")
        section = parse_yaml(text, "study.yaml")
        if isinstance(section, dict) and "folder" not in section:
            if all(isinstance(key, str) for key in section):
                with contextlib.suppress(UnknownKey):
                    Study(files.folder / "a_study", **known_keys(section))


class UnknownKey(Exception):
    """A key that a Study does not take, which Python says itself."""


def known_keys(section):
    """The section, if each of its keys is an argument of a study."""
    known = Study.__init__.__code__.co_varnames
    if "models" not in section or not all(key in known for key in section):
        raise UnknownKey
    if {"self", "draws"} & section.keys():
        raise UnknownKey
    return section


@target
def training_of_a_study(files, damage):
    with damage(files.hparams):
        found = Study(
            files.folder / "a_study",
            {"{domain}": {"train": "{domain}"}},
            {"expert": {"hparams": str(files.hparams)}},
            ["a"],
        )
        found.trainings["expert"].resolved({"lr": 1}, files.folder)


@target
def hparams_of_an_export(files, damage):
    with damage(files.hparams):
        _loadables(files.hparams)


@target
def symmetry_map(files, damage):
    damage.words += ["symmetry map", "the map of tiny"]
    with damage(files.map):
        symmetry(MODEL, files.map)


@target
def mark_of_an_export(files, damage):
    with damage(files.marked / ".speechbrain_merge.json"):
        foreign_files(files.marked)


@target
def record_for_a_card(files, damage):
    damage.words.append("the metadata 'merge'")
    damage.words.append("record of a merge")
    damage.words.append("the record of the merge")
    path = files.folder / "record.json"
    path.write_text(json.dumps(RECORD))
    with damage(path):
        text = path.read_text(encoding="utf-8", errors="replace")
        merge_card({"merge": text})


@target
def inspect_and_compare(files, damage):
    with damage(files.weights):
        for arguments in (
            ["inspect", files.weights],
            ["compare", files.weights, files.torch],
        ):
            words = [str(each) for each in arguments]
            with contextlib.redirect_stdout(io.StringIO()):
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    assert main(words) in (0, 2)
            assert "To see where" not in said.getvalue(), said.getvalue()


def read_all(source):
    """Reads all tensors; the metadata."""
    with open_weights(source) as weights:
        for name in weights:
            _ = weights[name]
        return weights.metadata
