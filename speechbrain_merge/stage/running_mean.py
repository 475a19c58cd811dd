"""Means of models that become more and more, each from the sum of those before.

A greedy search by a mean tries the same members again and again, each time with
another one beside them. Their sum is kept, so that a trial reads the new model
alone. It has the same bits as the mean that reads all of them
(``speechbrain_merge.methods.Average``): that adds up in float64, in the order of
the members, and divides at the end, and so does this. Whatever is not plainly
added up (weight norm, adapters, models of other types or names) is left to it,
and so are its errors.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Average
>>> one, two, three = (
...     {"w": torch.tensor([value])} for value in (0.1, 0.2, 0.3)
... )
>>> running = RunningMean()
>>> running.of(Average(), [one, two])
{'w': tensor([0.1500])}
>>> torch.equal(
...     running.of(Average(), [one, two, three])["w"],
...     Average()([one, two, three])["w"],
... )
True

Authors
 * The speechbrain_merge authors 2026
"""

import math
import os
from collections.abc import Sequence
from typing import Optional

import torch

from speechbrain_merge.methods import Average, MergeMethod
from speechbrain_merge.methods.entries import is_finite
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import fold, release

SHARE = 8
"""The sum may take this part of the machine's memory: 8 bytes a parameter."""


class RunningMean:
    """Remembers the sum of the members that trials have in common."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self):
        """Begins anew, with no members."""
        self._members: list = []
        self._sums: dict[str, torch.Tensor] = {}
        self._whole: dict[str, torch.Tensor] = {}  # integers, of the first
        self._form: Optional[tuple] = None

    def of(self, method: MergeMethod, members: Sequence) -> Optional[dict]:
        """The mean of some models, if it is one that can be added up.

        Arguments
        ---------
        method : MergeMethod
            Of the trial.
        members : list
            What ``open_weights`` opens, in the order of the merge. Only the
            last is read where the others are those of the trial before.

        Returns
        -------
        merged : dict or None
            None where the method itself has to merge them.
        """
        if type(method) is not Average or method.weights is not None:
            return None
        *kept, last = members
        if not kept:
            return None
        common = zip(self._members, kept)
        if len(self._members) > len(kept) or any(a is not b for a, b in common):
            self._forget()
        merged: dict[str, torch.Tensor] = {}
        try:
            for member in kept[len(self._members) :]:
                self._read(member, self._add)
                self._members.append(member)
            self._read(
                last,
                lambda name, tensor: merged.update(
                    {name: self._mean(name, tensor, len(members))}
                ),
            )
        except _OtherForm:
            self._forget()
            return None
        assert self._form is not None
        names, tied = self._form[0], dict(self._form[1])
        return {name: merged[tied.get(name, name)] for name, *_ in names}

    def _read(self, member, use):
        """Hands each tensor of a model to a function."""
        with open_on_record(member) as stored, fold(stored) as weights:
            form = (
                [
                    (name, weights.dtype(name), tuple(weights.shape(name)))
                    for name in weights.names()
                ],
                sorted(weights.tied.items()),
            )
            if self._form is None and _too_large(weights):
                raise _OtherForm
            if weights.folded or form != (self._form or form):
                raise _OtherForm
            self._form = form
            for name in weights.names():
                if name not in weights.tied:
                    tensor = weights[name]
                    use(name, tensor)
                    release(tensor)

    def _add(self, name, tensor):
        if not tensor.is_floating_point():
            self._whole.setdefault(name, tensor.clone())
        elif name in self._sums:
            self._sums[name].add_(tensor.to(torch.float64))
        else:
            # a copy, also of what is float64 already
            self._sums[name] = tensor.to(torch.float64, copy=True)

    def _mean(self, name, tensor, number):
        if name in self._whole:
            return self._whole[name].clone()
        total = tensor.to(torch.float64).add(self._sums[name])
        mean = total.div_(number).to(tensor.dtype)
        if not is_finite(mean):
            raise _OtherForm  # the method says which model is at fault
        return mean


class _OtherForm(Exception):
    """Models that are not plainly added up."""


def _too_large(weights):
    parameters = sum(math.prod(weights.shape(name)) for name in weights.names())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * parameters > memory / SHARE
