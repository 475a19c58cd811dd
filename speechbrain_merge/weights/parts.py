"""Which part of a model a tensor is, read from its name.

"Merge the encoder only", "scale the decoder's attention by one half", "a
coefficient for each layer": such wishes name parts, while state dicts name
tensors, and each architecture in its own way. `part` reads stack, layer and
role from a name; `matches` tells whether a tensor belongs to a part that a
person has written down, e.g. in YAML.

The names of SpeechBrain's Transformer, Conformer and Branchformer, of Whisper,
wav2vec2, HuBERT, WavLM, BEATs, BERT and ViT are known, under any prefix; the
table of names is `speechbrain_merge.weights.part_names`.

Example
-------
>>> part("whisper.model.decoder.layers.3.encoder_attn.q_proj.weight")
Part(stack='decoder', layer=3, role='cross_attention', projection='q', kind='weight')
>>> matches("model.encoder.layers.3.fc1.bias", "encoder.layers.0-3")
True
>>> matches("model.encoder.layers.3.fc1.bias", "decoder.feed_forward")
False

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Optional

from speechbrain_merge.records.patterns import find
from speechbrain_merge.weights.part_names import (
    INSIDE,
    KINDS,
    NORM,
    OUTSIDE,
    STACKS,
)

OTHER = "other"

_WORDS = {
    "stack": {"encoder", "decoder"},
    "role": {row[1] for row in INSIDE} | {row[2] for row in OUTSIDE} | {OTHER},
    "projection": ({row[2] for row in INSIDE} | {row[3] for row in OUTSIDE})
    - {""},
    "kind": {"weight", "bias", "magnitude", "direction"},
}
_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class Part:
    """The place of a tensor in its model: stack, layer, role.

    Arguments
    ---------
    stack : str
        "encoder", "decoder", or "" for what stands outside both.
    layer : int or None
        Number of the layer, from 0; None outside the layers.
    role : str
        "attention", "cross_attention", "feed_forward", "convolution",
        "normalization", "embedding", "front_end", "adapter", "output", or
        "other" where the name is not known.
    projection : str
        Which matrix of the role: "q", "k", "v", "qkv", "out" and "position"
        in attention, "up", "down", "depthwise" and "join" in feed-forward and
        convolution, "token", "position", … in an embedding, or "".
    kind : str
        "weight", "bias", "magnitude" and "direction" (weight norm), or the
        last word of the name.
    """

    stack: str
    layer: Optional[int]
    role: str
    projection: str
    kind: str

    @property
    def path(self) -> str:
        """Stack, layer, role and projection, as `matches` takes them.

        Several tensors may share a path: weight and bias do, and the two
        feed-forward modules of a Conformer layer.
        """
        layer = "" if self.layer is None else f"layers.{self.layer}"
        words = (self.stack, layer, self.role, self.projection)
        return ".".join(word for word in words if word)


@lru_cache(maxsize=65536)
def part(name: str) -> Part:
    """Which part of a model a tensor is.

    Arguments
    ---------
    name : str
        The name of the tensor, with or without a prefix.

    Returns
    -------
    Part
        Of role "other" where the name is not known.

    Example
    -------
    >>> part("1.encoder.layers.0.mha_layer.in_proj_weight").path
    'encoder.layers.0.attention.qkv'
    """
    kind = _kind(name)
    for pattern, stack, role, projection in OUTSIDE:
        if re.search(pattern, name):
            return Part(stack, None, role, projection, kind)
    for pattern, stack in STACKS:
        found = re.search(pattern, name)
        if found:
            role, projection = _inside(found["rest"])
            return Part(stack, int(found["layer"]), role, projection, kind)
    words = name.split(".")
    stack = next((word for word in words if word in _WORDS["stack"]), "")
    return Part(stack, None, OTHER, "", kind)


def is_norm(name: str) -> bool:
    """Whether a tensor is a norm's, in whatever part of the model.

    Arguments
    ---------
    name : str
        The name of the tensor.

    Returns
    -------
    bool

    Example
    -------
    >>> is_norm("0.convblock_0.convs.norm_0.norm.weight")
    True
    >>> is_norm("encoder.layers.0.normalizer_proj.weight")
    False
    """
    known = part(name).role == "normalization"
    return known or re.search(NORM, name) is not None


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor belongs to a part.

    Arguments
    ---------
    name : str
        The name of the tensor.
    pattern : str
        One of

        - words of a part, from the large to the small, each one optional:
          stack, ``layers.N`` or ``layers.N-M`` (both ends included), role,
          projection, kind. E.g. ``encoder``, ``encoder.layers.0-3``,
          ``decoder.attention``, ``attention.q.weight``, ``front_end``;
        - a glob over the whole name, known by one of ``*?[``;
        - ``re:`` and a regular expression, searched in the name.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        Where a word is none of these, so that a misspelt part is not merely
        a part without tensors.

    Example
    -------
    >>> name = "wav2vec2.model.encoder.layers.11.attention.k_proj.weight"
    >>> matches(name, "attention"), matches(name, "attention.q")
    (True, False)
    >>> matches(name, "*.k_proj.*"), matches(name, r"re:layers\\.1\\d\\.")
    (True, True)
    """
    if pattern.startswith("re:"):
        return find(pattern[3:], name, f"the pattern '{pattern}'") is not None
    if any(character in pattern for character in _GLOB_CHARACTERS):
        return fnmatchcase(name, pattern)
    found = part(name)
    wanted, layers = _parse(pattern)
    if layers is not None and (
        found.layer is None or not layers[0] <= found.layer <= layers[1]
    ):
        return False
    return all(getattr(found, field) == word for field, word in wanted)


def depth(names: Iterable) -> dict:
    """How many layers each stack of a model has.

    Arguments
    ---------
    names : iterable of str
        All names of the model.

    Returns
    -------
    dict
        Stack to number of layers.

    Example
    -------
    >>> depth(["encoder.layers.0.fc1.bias", "encoder.layers.5.fc1.bias"])
    {'encoder': 6}
    """
    layers = {}
    for name in names:
        found = part(name)
        if found.layer is not None:
            known = layers.get(found.stack, 0)
            layers[found.stack] = max(known, found.layer + 1)
    return layers


def _inside(rest):
    for pattern, role, projection in INSIDE:
        if re.search(pattern, rest):
            return role, projection
    return OTHER, ""


def _kind(name):
    for pattern, kind in KINDS:
        if re.search(pattern, name):
            return kind
    return name.rpartition(".")[2]


@lru_cache(maxsize=1024)
def _parse(pattern):
    """The words of a pattern by field, and its first and last layer."""
    wanted = []
    layers = None
    fields = list(_WORDS)
    text = re.sub(
        r"(^|(?<=\.))layers?\.(\d+)(-(\d+))?(\.|$)", r"@\2-\4.", pattern
    )
    for word in filter(None, text.split(".")):
        if word.startswith("@") and layers is None:
            first, _, last = word[1:].partition("-")
            layers = (int(first), int(last or first))
            # Only what is smaller than a layer may follow
            fields = [field for field in fields if field != "stack"]
            continue
        # Words come from the large to the small
        while fields and word not in _WORDS[fields[0]]:
            fields.pop(0)
        if not fields:
            raise ValueError(
                f"'{pattern}' names no part of a model because of '{word}'. A "
                "part is written as stack.layers.N-M.role.projection.kind, "
                "each word optional: "
                + "; ".join(
                    f"{field} is {', '.join(sorted(words))}"
                    for field, words in _WORDS.items()
                )
                + ". To match the names of tensors, write a glob with '*', "
                "or 're:' and a regular expression."
            )
        wanted.append((fields.pop(0), word))
    if not wanted and layers is None:
        raise ValueError("an empty pattern names no part of a model")
    return tuple(wanted), layers
