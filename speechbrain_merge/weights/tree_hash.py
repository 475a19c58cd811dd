"""The hash of a model's content: one hash a tensor, and one over those.

A tensor is hashed with its dtype and shape, and the model by the hashes of its
tensors in the order of their names. So the hash is that of the content: it is
the same in a ``.ckpt`` and a ``.safetensors`` file, whatever the order of the
tensors in them, and whichever thread hashes which tensor. It is written as
``blake3:`` and sixty-four letters; a hash on record without these seven
letters is a SHA-256, see `speechbrain_merge.weights.digest`.

A file that says of itself that it is a merge is hashed with its record: the
hash of a merge stands for its whole history, as that of a commit in git does.

BLAKE3 is itself a tree of small blocks, which a processor hashes side by side:
one core hashes some gigabytes in a second, several times as much as by SHA-256
(O'Connor, Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one function, fast
everywhere", 2020).

A merge reads every tensor of its models anyway. It hashes them a piece at a
time while they are in the processor's cache (`TreeHash`).

Example
-------
>>> import torch
>>> one = {"bias": torch.zeros(2), "weight": torch.ones(2)}
>>> other = {"weight": torch.ones(2), "bias": torch.zeros(2)}
>>> tree_hash(one) == tree_hash(other)
True
>>> tree_hash(one) == tree_hash({**one, "bias": torch.ones(2)})
False
>>> tree_hash(one).partition(":")[0]
'blake3'

Authors
 * The speechbrain_merge authors 2026
"""

import json
from typing import Any

from blake3 import blake3

from speechbrain_merge.weights.mapped import release
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.writer import tensor_bytes

PREFIX = "blake3:"

# So much of a mapped tensor is hashed before its memory is released.
_BLOCK = 1 << 24


class TreeHash:
    """The hash of open weights, which others may help to compute.

    Whoever reads tensors of the weights takes the hashers of these tensors and
    gives them back; `result` reads those that nobody has read.

    Arguments
    ---------
    weights : Weights
        Open weights.

    Example
    -------
    >>> import torch
    >>> with open_weights({"weight": torch.ones(2)}) as weights:
    ...     found = TreeHash(weights)
    ...     hasher = found.begin("weight")
    ...     _ = hasher.update(tensor_bytes(weights["weight"]))
    ...     found.end("weight", hasher)
    ...     found.result() == tree_hash(weights)
    True
    """

    def __init__(self, weights: Weights):
        self.weights = weights
        self._found: dict[str, str] = {}

    def begin(self, name: str) -> Any:
        """The hasher of one tensor, to be given its bytes in order."""
        shape = list(self.weights.shape(name))
        return blake3(f"{self.weights.dtype(name)}\0{shape}\0".encode())

    def end(self, name: str, hasher: Any):
        """Takes a hasher back that has been given the whole tensor."""
        self._found[name] = hasher.hexdigest()

    def result(self) -> str:
        """The hash of the weights.

        Returns
        -------
        str
            ``blake3:`` and 64 hexadecimal digits.
        """
        for name in self.weights:
            kept = self.weights.tied.get(name)
            if kept in self._found and self._same(name, kept):
                self._found[name] = self._found[kept]
            elif name not in self._found:
                hasher = self.begin(name)
                flat = self.weights[name].reshape(-1)
                for part in flat.split(_BLOCK) if flat.numel() else []:
                    hasher.update(tensor_bytes(part))
                    release(part)
                self.end(name, hasher)
        rows = [[name, self._found[name]] for name in sorted(self.weights)]
        content = [rows, *filter(None, [self.weights.metadata.get("merge")])]
        return PREFIX + blake3(json.dumps(content).encode()).hexdigest()

    def _same(self, name, kept):
        """Whether two names show one tensor: a file may only say so."""
        one, other = self.weights[name], self.weights[kept]
        return (
            one.data_ptr() == other.data_ptr()
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.stride() == other.stride()
        )


def tree_hash(source: Any) -> str:
    """The hash of the content of weights.

    Arguments
    ---------
    source : any source of `open_weights`
        What to hash.

    Returns
    -------
    str
        ``blake3:`` and 64 hexadecimal digits.
    """
    with open_weights(source) as weights:
        return TreeHash(weights).result()
