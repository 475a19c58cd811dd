"""Checks that the outputs of two models stand for the same labels.

The rows of an output layer are labels, which do not move: models of different
vocabularies, or of the same with the blank elsewhere, have nothing to fuse.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> first = open_weights({"ctc_lin.weight": torch.ones(5, 2)})
>>> check_same_outputs(first, first)

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import IncompatibleWeights, part

# Hyperparameters that say what the outputs mean
MEANINGS = (
    "blank_index",
    "bos_index",
    "eos_index",
    "pad_index",
    "unk_index",
    "characters",
    "token_type",
    "output_neurons",
    "tokenizer_digest",
    "vocabulary",
)


def check_same_outputs(source, anchor, *hyperparameters):
    """Raises an error where labels differ.

    Arguments
    ---------
    source, anchor : Weights
        Open mappings. What their metadata says of the labels is compared,
        and the rows of their output layers.
    *hyperparameters : dict
        Those of source and anchor, where they are known otherwise.

    Raises
    ------
    IncompatibleWeights
        Names what differs.
    """
    left, right = hyperparameters or (_known(source), _known(anchor))
    for key in MEANINGS:
        if key in left and key in right and left[key] != right[key]:
            raise IncompatibleWeights(
                f"{source.label} has {key}={left[key]!r}, but {anchor.label} "
                f"has {right[key]!r}: their outputs are different labels, "
                "which cannot be fused. Train both with the same tokenizer."
            )
    for name in source.names():
        if name not in anchor or part(name).role != "output":
            continue
        mine, other = source.shape(name), anchor.shape(name)
        if mine[:1] != other[:1]:
            raise IncompatibleWeights(
                f"'{name}' has {mine[0]} labels in {source.label}, and "
                f"{other[0]} in {anchor.label}: models of different "
                "vocabularies cannot be fused."
            )


def _known(weights):
    """The hyperparameters in the metadata of weights."""
    known = dict(weights.metadata)
    for key in ("hyperparameters", "meta"):
        try:
            more = parse_json(known.get(key, "{}"), weights.label)
        except ValueError:
            continue
        if isinstance(more, dict):
            known.update(more)
    return known
