"""The hashes of what is merged, computed while it is merged.

A merge records the hash of each model that went in, and checks those that a
pool has on record. Both are hashes of the tensors
(`speechbrain_merge.weights.tree_hash`), and merging reads every tensor: so
models are not read a second time for them. What merging does not read (a base
that the method does not need) is read at the end.

Models with an older record, a SHA-256, are hashed beside the merging.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from speechbrain_merge.weights import (
    TreeHash,
    Weights,
    tree_hash,
    verify_own_hash,
)
from speechbrain_merge.weights.own_hash import (
    KEY as OWN_HASH,
    verify_file,
)
from speechbrain_merge.weights.tree_hash import PREFIX
from speechbrain_merge.weights.verification import (
    file_state,
    is_verified,
    verify,
)

NO_HASH = PREFIX + "0" * 64
"""Holds the place of a hash that is still being computed."""


class SourceHashes:
    """Hashes of the models of one merge. A context manager.

    Arguments
    ---------
    pool : ThreadPoolExecutor
        Hashes what merging does not hash.
    """

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool
        self._trees: dict[Weights, TreeHash] = {}
        self._checks: list = []
        self._coming: list = []
        self._jobs: list = []

    def __enter__(self) -> "SourceHashes":
        return self

    def __exit__(self, *error):
        for weights in self._trees:
            weights.hashing = None

    def verify(self, weights: Weights, known: str, label: str, path: Any):
        """Has the content of open weights compared with a hash on record.

        Arguments are those of ``speechbrain_merge.weights.verify``.
        """
        if not known.startswith(PREFIX):
            job = self._pool.submit(verify, weights, known, label, path)
            self._jobs.append(job)
        elif not is_verified(path, known):
            tree, state = self._tree(weights), file_state(path)
            check = partial(verify, weights, known, label, path, tree, state)
            self._checks.append(check)

    def verify_own(self, source: Any, weights: Weights):
        """Has a file compared with the hash that it says it has.

        Arguments
        ---------
        source : object
            What was asked to be merged.
        weights : Weights
            The same, opened. Without such a hash nothing is known of them.
        """
        if OWN_HASH not in weights.metadata:
            return
        if isinstance(source, Weights):
            # they may go by other names than those in their file
            if Path(source.label).exists():
                job = self._pool.submit(verify_file, source.label)
                self._jobs.append(job)
        else:
            self._jobs.append(self._pool.submit(verify_own_hash, weights))

    def record(self, source: Any, weights: Weights):
        """Has the hash of a model computed.

        Arguments
        ---------
        source : object
            What was asked to be merged.
        weights : Weights
            The same, opened.
        """
        # A base that goes by other names, or is folded, is the model in its file
        if isinstance(source, Weights) and Path(source.label).exists():
            job = self._pool.submit(tree_hash, Path(source.label))
            self._coming.append(job.result)
        else:
            self._coming.append(self._tree(weights).result)

    def results(self) -> list[str]:
        """The recorded hashes, in order, when all tensors have been merged.

        Raises
        ------
        ChangedContent
            When the content of weights is not what is on record.
        """
        # in threads: what nobody has read is read now
        list(self._pool.map(TreeHash.result, self._trees.values()))
        for check in self._checks:
            check()
        for job in self._jobs:
            job.result()
        return [result() for result in self._coming]

    def _tree(self, weights):
        if weights not in self._trees:
            weights.hashing = self._trees[weights] = TreeHash(weights)
        return self._trees[weights]


def placeholders(known: Sequence[str], number: int) -> list[str]:
    """Known hashes, followed by placeholders of the same length as others."""
    return [*known, *[NO_HASH] * (number - len(known))]
