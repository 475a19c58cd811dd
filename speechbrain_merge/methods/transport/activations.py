"""Activations of the units of a model on some audio, to compare units by.

Two units that fire alike are the same unit, whatever their weights. ``views``
says where units are seen: in what layers give out, in what attention is given
and projects to queries, keys and values, and in what its heads give out. All
views of a space count alike, however many samples each has, and the units of
every space have a mean square of 1, so that costs of different spaces can be
added. Spaces that are seen nowhere go by their weights.

Frames of padding say nothing and are left out: give utterances one at a time,
or let ``forward`` return their relative lengths.

Example
-------
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 4))
>>> mine = {
...     "names": ["mine"],
...     "tensors": {"0.weight": ["hidden", "fixed"], "0.bias": ["hidden"]},
... }
>>> def forward(model, batch):
...     model(batch)
>>> speech = [torch.randn(1, 5, 3), torch.randn(1, 7, 3)]
>>> unit_activations(model, speech, forward, mine)["hidden"].shape
torch.Size([4, 12])

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Callable, Optional

import torch

from speechbrain_merge.methods.transport.symmetry import symmetry
from speechbrain_merge.methods.transport.views import argument, views_of
from speechbrain_merge.weights import fold


def unit_activations(
    model: torch.nn.Module,
    batches,
    forward: Callable,
    architecture="detect",
    heads: Optional[int] = None,
    frames: int = 64,
    seed: int = 0,
) -> dict:
    """Activations of all spaces that can be seen, centred and of one scale.

    Run both models over the same batches, and give the two results to
    ``align(..., cost={"anchor": …, "source": …})``.

    Arguments
    ---------
    model : torch.nn.Module
        In evaluation mode, or it is put there for the pass.
    batches : iterable
        Unlabelled audio: whatever ``forward`` takes. A few hundred utterances.
    forward : callable
        Takes the model and a batch, and runs it; a Brain's would be
        ``lambda model, batch: brain.compute_forward(batch, stage)``, in a
        function that returns ``batch.sig.lengths``. Returns the relative
        lengths of the utterances, or ``None`` where nothing is padded.
    architecture : str, Path or dict
        As for ``align``.
    heads : int, optional
        Number of attention heads, where the module does not tell.
    frames : int
        Frames that are kept of each batch and view, drawn at random; the
        same ones for models of the same shapes.
    seed : int
        Of the draw.

    Returns
    -------
    dict
        Name of a space to a matrix (units × samples). The mean over units of
        the sum of their squared samples is 1.

    Raises
    ------
    ValueError
        Where no space was seen, or ``heads`` is not the module's number.
    """
    seen = UnitActivations(model, architecture, heads, frames, seed)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            with torch.no_grad():
                seen.keep(forward(model, batch))
    finally:
        model.train(training)
        seen.close()
    return seen.matrices()


class UnitActivations:
    """Collects activations while the caller runs the model.

    Arguments
    ---------
    model, architecture, heads, frames, seed
        As for ``unit_activations``.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False))
    >>> mine = {"names": ["mine"], "tensors": {"0.weight": ["hidden", "fixed"]}}
    >>> seen = UnitActivations(model, mine)
    >>> _ = model(torch.randn(2, 5, 3))
    >>> seen.keep(lengths=torch.tensor([1.0, 0.6]))
    >>> seen.close()
    >>> seen.matrices()["hidden"].shape
    torch.Size([4, 8])
    """

    def __init__(
        self, model, architecture="detect", heads=None, frames=64, seed=0
    ):
        found = symmetry(fold(model), architecture, heads)
        self.frames = frames
        self.draw = torch.Generator().manual_seed(seed)
        self.seen, self.waiting = {}, []
        self.handles = [
            _hook(self.waiting, view) for view in views_of(model, found)
        ]

    @torch.no_grad()
    def keep(self, lengths=None):
        """Keeps some frames of what was seen since the last time.

        Arguments
        ---------
        lengths : torch.Tensor, optional
            Relative lengths of the utterances; ``None`` where nothing is
            padded.
        """
        places = {view.place for view, _ in self.waiting}
        for view, shown in self.waiting:
            if view.instead in places:
                continue
            rows = _valid(shown, lengths, view.channels_first)
            chosen = torch.randperm(len(rows), generator=self.draw)
            chosen = chosen[: self.frames].to(rows.device)
            kept = self.seen.setdefault(view.space, {})
            kept.setdefault(view.place, []).append(
                view.projected(rows[chosen]).cpu()
            )
        self.waiting.clear()

    def matrices(self):
        """Name of a space to its activations (units × samples).

        Raises
        ------
        ValueError
            Where no space was seen.
        """
        if not self.seen:
            raise ValueError(
                "No module showed a space: give a module whose layers are "
                "torch.nn.Linear, convolutions and norms, and a `forward` that "
                "runs it."
            )
        return {
            space: torch.cat(
                [
                    _scaled(torch.cat(parts), len(views))
                    for parts in views.values()
                ]
            ).T.contiguous()
            for space, views in self.seen.items()
        }

    def close(self):
        """Takes the hooks out again."""
        for handle in self.handles:
            handle.remove()


def _hook(waiting, view):
    """A hook that keeps the output of a view until lengths are known."""
    if not view.given:
        return view.module.register_forward_hook(
            lambda module, args, output: waiting.append((view, output.detach()))
        )
    return view.module.register_forward_pre_hook(
        lambda module, args, kwargs: waiting.append(
            (view, argument(module, view.given, args, kwargs).detach())
        ),
        with_kwargs=True,
    )


def _valid(output, lengths, channels_first):
    """The frames of an output (any × units) that are no padding."""
    if channels_first:
        output = output.movedim(1, -1)
    if lengths is None:
        return output.reshape(-1, output.shape[-1])
    number = len(lengths)
    if output.ndim > 2 and output.shape[0] == 1 < number:
        # of positions, which are the same for all utterances
        return output.reshape(-1, output.shape[-1])
    if output.shape[0] != number and output.shape[1] == number:
        # some layers have time first
        output = output.transpose(0, 1)
    if output.shape[0] != number:
        raise ValueError(
            f"An output of shape {list(output.shape)} has no axis of the "
            f"{number} utterances: give them one at a time."
        )
    if output.shape[1] == number > 1:
        raise ValueError(
            f"{number} utterances of {number} frames: which is which cannot "
            "be told. Give another size of batch."
        )
    kept = [
        one[: max(1, round(float(length) * len(one)))]
        for one, length in zip(output, lengths)
    ]
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in kept])


def _scaled(rows, views):
    """Centred samples, such that the units' squares of all views add up to 1."""
    rows = rows - rows.mean(0)
    size = (rows.square().sum() * views / rows.shape[1]).sqrt()
    return rows / size if size > 0 else rows
