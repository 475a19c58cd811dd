"""What the units of a model do on some audio, to compare units by.

Two units that fire alike are the same unit, whatever their weights. The spaces
of a model are seen at the modules that write them: the outputs of linear layers
and convolutions before any nonlinearity, and the norms that lie on a residual
stream. Queries, keys and values that are one fused matrix are not the output
of any module, and spaces that are seen nowhere go by their weights.

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

from speechbrain_merge.methods.transport.head_count import head_count
from speechbrain_merge.methods.transport.symmetry import symmetry
from speechbrain_merge.weights import fold

WRITERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
CHANNELS_FIRST = (torch.nn.Conv1d, torch.nn.Conv2d)


def unit_activations(
    model: torch.nn.Module,
    batches,
    forward: Callable,
    architecture="detect",
    heads: Optional[int] = None,
    frames: int = 64,
    seed: int = 0,
) -> dict:
    """Activations of all spaces that modules show, centred and of one scale.

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
        Frames that are kept of each batch and module, drawn at random; the
        same ones for models of the same shapes.
    seed : int
        Of the draw.

    Returns
    -------
    dict
        Name of a space to a matrix (units × samples).

    Raises
    ------
    ValueError
        Where no space was seen.
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
    """What the units do in passes that somebody else makes.

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
        found = symmetry(fold(model), architecture, heads or head_count(model))
        self.frames = frames
        self.draw = torch.Generator().manual_seed(seed)
        self.seen, self.waiting, self.handles = {}, [], []
        for path, module in model.named_modules():
            space = _space_of(found, path, module)
            if space is not None:
                hook = _hook(self.waiting, path, space)
                self.handles.append(module.register_forward_hook(hook))

    def keep(self, lengths=None):
        """Keeps some frames of what was seen since the last time.

        Arguments
        ---------
        lengths : torch.Tensor, optional
            Relative lengths of the utterances; ``None`` where nothing is
            padded.
        """
        for path, space, output, first in self.waiting:
            rows = _valid(output, lengths, first)
            chosen = torch.randperm(len(rows), generator=self.draw)
            self.seen.setdefault(space, {}).setdefault(path, []).append(
                rows[chosen[: self.frames]].cpu()
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
                [_scaled(torch.cat(parts)) for parts in modules.values()]
            ).T.contiguous()
            for space, modules in self.seen.items()
        }

    def close(self):
        """Takes the hooks out again."""
        for handle in self.handles:
            handle.remove()


def _space_of(found, path, module):
    """The space that the outputs of a module lie in."""
    pieces = found.pieces.get(f"{path}.weight" if path else "weight", [])
    if len(pieces) != 1 or pieces[0].rows is not None:
        return None
    (piece,) = pieces
    # a norm over channels alone shows the stream that it lies on
    shows = isinstance(module, (*WRITERS, torch.nn.LayerNorm))
    return piece.axes[0] if shows else None


def _hook(waiting, path, space):
    """What keeps the output of a module until its lengths are known."""

    def keep(module, inputs, output):
        first = isinstance(module, CHANNELS_FIRST)
        waiting.append((path, space, output.detach(), first))

    return keep


def _valid(output, lengths, channels_first):
    """The frames of an output (any × units) that are no padding."""
    if channels_first:
        output = output.movedim(1, -1)
    if lengths is None:
        return output.reshape(-1, output.shape[-1])
    number = len(lengths)
    if output.ndim > 2 and output.shape[0] == 1:
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


def _scaled(rows):
    """Centred samples whose mean square is 1 over all units."""
    rows = rows - rows.mean(0)
    size = rows.square().mean().sqrt()
    return rows / size if size > 0 else rows
