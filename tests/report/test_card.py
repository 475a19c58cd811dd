"""The card says what the file was made of, and its YAML makes it again."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file

from speechbrain_merge import merge, methods
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import (
    DARE,
    TIES,
    LayerScaled,
    Restricted,
    available,
)
from speechbrain_merge.methods.registry import find
from speechbrain_merge.report import merge_card
from speechbrain_merge.report.card import merge_yaml
from speechbrain_merge.report.citations import CITATIONS
from speechbrain_merge.weights import open_weights, tree_hash, write_weights


@pytest.fixture
def files(tmp_path):
    """A base and two experts."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "x", "y")]
    for path in paths:
        tensors = {
            f"encoder.layers.{layer}.fc1.weight": torch.randn(6, 5)
            for layer in range(2)
        }
        write_weights(path, tensors)
    return paths


@pytest.mark.parametrize(
    "method",
    [
        TIES(density=0.4, scale=1e-05),
        DARE(drop_rate=0.5, seed=3),
        LayerScaled(TIES(density=0.3), first=0.5, last=1.0),
        Restricted(DARE(drop_rate=0.5), include=["encoder.layers.1"]),
        Restricted(
            LayerScaled(TIES(density=0.3), first=0.5, last=1.0),
            include=["encoder.layers.1"],
        ),
    ],
    ids=repr,
)
def test_the_yaml_makes_the_same_file(files, tmp_path, method):
    base, *experts = files
    merged = merge(
        method, experts, base, tmp_path / "merged.safetensors", progress=False
    )
    card = merge_card(provenance(merged))
    [text] = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    again = merge(
        **load_hyperpyyaml(text),
        output=tmp_path / "again.safetensors",
        progress=False,
    )
    expected, found = load_file(merged), load_file(again)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name])


def test_the_card_of_a_merge(files, tmp_path):
    base, *experts = files
    merged = merge(
        TIES(density=0.4),
        experts,
        base,
        tmp_path / "merged.safetensors",
        labels=["child", "phone|line"],
        progress=False,
    )
    with open_weights(merged) as weights:
        metadata = weights.metadata
    results = {
        "in_domain": ["child"],
        "test_domains": ["child"],
        "rows": [
            {"name": "ties", "sets": {"child": {"errors": 9, "words": 100}}}
        ],
    }
    card = merge_card(metadata, results, title="child and phone")
    assert "---\n\n# child and phone\n\nA merge of 2 models by `ties`" in card
    for path in files:
        assert f"`{tree_hash(path)}`" in card
    assert "| phone\\|line |" in card
    assert "| `density` | `0.4` |" in card
    assert "NeurIPS 2023, [arXiv:2306.01708]" in card
    assert 'labels:\n- "child"' in card
    assert "| ties | **9.0** |" in card
    assert f"torch {torch.__version__}" in card


def test_a_wrapped_method_is_cited_too():
    record = {
        "method": "layer_scaled",
        "parameters": {
            "method": {"method": "dare", "drop_rate": 0.9},
            "first": 0.5,
            "last": 1.0,
        },
    }
    card = merge_card(record)
    assert "`layer_scaled`: Wang et al., LiNeS" in card
    assert "`dare`: Yu et al." in card


def test_a_poor_record_gives_a_short_card():
    assert merge_card({"merge": json.dumps({"method": "mine"})}) == (
        '---\nlibrary_name: "speechbrain"\n'
        'pipeline_tag: "automatic-speech-recognition"\n'
        'tags:\n- "speechbrain"\n- "merge"\n- "mine"\n---\n\n'
        "# Merged model\n\nA merge of 0 models by `mine`.\n\n"
        "## Method\n\n`mine`\n\n"
        "## Before you load it\n\nThe weights are data. An exported folder may "
        "also hold `hyperparams.yaml`, from\nwhich SpeechBrain builds a model: "
        "loading it calls what the file names, so it\ncan run any code. Load a "
        "folder only if you trust who made it, or read its\n"
        "`hyperparams.yaml` first.\n"
    )
    # nothing is said that cannot be kept: no paths, or an unknown method
    sources = [{"label": "a", "digest": "00"}, {"label": "b", "weight": 0.5}]
    card = merge_card({"method": "average", "sources": sources, "base": None})
    assert "```yaml" not in card
    assert "| b |  | 0.5 | `unknown` |" in card
    assert merge_yaml({"method": "mine", "sources": [{"path": "a"}]}) is None


def test_a_wrapper_whose_name_was_not_recorded_is_not_guessed():
    record = {
        "method": "restricted",
        "parameters": {"method": {"method": {"method": "ties"}, "first": 1}},
        "sources": [{"path": "a.safetensors"}],
    }
    assert merge_yaml(record) is None
    assert "`ties`: Yadav" in merge_card(record)


def test_what_is_no_merge_has_no_card():
    with pytest.raises(ValueError, match="no record of a merge"):
        merge_card({"format": "pt"})


def test_every_method_that_has_authors_is_cited():
    # examples in docstrings may have registered methods of their own
    ours = [
        name
        for name in available()
        if getattr(methods, find(name).__name__, None) is find(name)
    ]
    assert set(ours) - set(CITATIONS) == {"restricted"}


EVIL = [
    "x: 1\nevil: !apply:os.mkdir [{folder}/evil]\n#",
    "!apply:os.mkdir [{folder}/evil]",
    "!ref <labels>",
    "'\n!apply:os.mkdir [{folder}/evil]\n'",
    '"\n```\n<script>',
    "\u2028!apply:os.mkdir\u2029",
    "[(1, 2)]",
    "{folder}/evil: &a *a",
]


@pytest.mark.parametrize("text", EVIL)
def test_a_card_made_of_a_strangers_file_runs_nothing(tmp_path, text):
    text = text.replace("{folder}", str(tmp_path))
    source = {"label": text, "path": text, "digest": "0" * 64}
    parameters = {
        "weights": {"experts": {text: 0.5, "other": 0.5}},
    }
    record = {
        "method": "average",
        "parameters": parameters,
        "sources": [source, {**source, "label": "other"}],
    }
    written = merge_yaml(record)
    assert "```" not in re.findall("^ *```", written, re.MULTILINE)
    again = yaml.load(written, Loader=PlainLoader)
    assert again["method"] == parameters
    assert again["experts"] == [text, text]
    assert again["labels"] == [text, "other"]
    load_hyperpyyaml(written)
    assert list(tmp_path.iterdir()) == []


TUPLE = "(!!python/object/apply:os.mkdir [{folder}/evil])"


@pytest.mark.parametrize("text", [TUPLE, "(1, 2)", "a\x85b"])
@pytest.mark.parametrize("place", ["path", "label", "base", "dtype", "key"])
def test_text_that_hyperpyyaml_takes_for_something_else(tmp_path, text, place):
    text = text.replace("{folder}", str(tmp_path))
    sources = [{"path": "a", "label": "a"}, {"path": "b", "label": "b"}]
    record = {"method": "average", "sources": sources, "parameters": {}}
    if place in ("path", "label"):
        sources[0][place] = text
    elif place == "base":
        record["base"] = {"path": text}
    elif place == "dtype":
        record["dtype"] = text
    else:
        record["parameters"] = {"weights": {"experts": {text: 0.5}}}
    assert merge_yaml(record) is None


def test_a_tuple_in_a_file_of_yaml_runs_code(tmp_path):
    """Why: what follows is HyperPyYAML's, in a process where it is new."""
    text = json.dumps(TUPLE.replace("{folder}", str(tmp_path)))
    script = "import hyperpyyaml as h, sys; h.load_hyperpyyaml(sys.argv[1])"
    command = [sys.executable, "-c", script, f"experts:\n- {text}\n"]
    subprocess.run(command, check=True)
    assert (tmp_path / "evil").is_dir()


class PlainLoader(yaml.SafeLoader):
    """Knows `!new:` alone, as the plain data under it."""


PlainLoader.add_multi_constructor(
    "!new:",
    lambda loader, _, node: loader.construct_mapping(node, deep=True),
)


@pytest.mark.parametrize("text", [*EVIL, "density: 0.5\n    scale"])
def test_parameters_that_a_method_does_not_take_are_not_written(tmp_path, text):
    text = text.replace("{folder}", str(tmp_path))
    sources = [{"path": "a.safetensors"}]
    for parameters in (
        {text: 1},
        {"method": {"method": "ties", "parameters": {text: 1}}, "first": 1},
    ):
        method = "layer_scaled" if "method" in parameters else "ties"
        record = {"method": method, "parameters": parameters}
        assert merge_yaml({**record, "sources": sources}) is None
        assert "Make it again" not in merge_card({**record, "sources": sources})


@pytest.mark.parametrize(
    "record, words",
    [
        ({"method": 3}, "key 'method': expected text"),
        ({"method": "ties", "sources": 3}, "key 'sources': expected a list"),
        ({"method": "ties", "sources": [3]}, "entry 1: expected a mapping"),
        ({"method": "ties", "parameters": [1]}, "key 'parameters'"),
        ({"method": "ties", "created": 20}, "key 'created'"),
    ],
)
def test_a_malformed_record_is_named(record, words):
    with pytest.raises(ValueError, match=words):
        merge_card({"merge": json.dumps(record)})
