"""Weights: a read-only mapping from tensor names to tensors, read when asked.

Merging looks at one tensor of every model at a time, so a model here is not a
dictionary of tensors but a table of *entries*: the shape and dtype of a
tensor, known at once, and a function that reads it. Where the tensor comes
from (a mapped file, a module, a fold of several stored tensors) is the
business of that function alone, so that files, folders, modules and folded
models all look the same to the rest of the package.

Example
-------
>>> weights = from_tensors({"linear.weight": torch.eye(2)}, label="a model")
>>> weights.names(), weights.shape("linear.weight")
(['linear.weight'], (2, 2))
>>> weights["linear.weight"].trace().item()
2.0

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Union

import torch

from speechbrain_merge.weights.tied import find_ties


@dataclass(frozen=True)
class Entry:
    """One tensor of a model that may not have been read yet.

    Arguments
    ---------
    shape : tuple
        The shape of the tensor.
    dtype : torch.dtype
        The dtype in which it is stored.
    read : Callable
        Returns the tensor, on the CPU. Called each time the tensor is asked
        for, possibly from several threads.
    pieces : Callable, optional
        Yields the values in order, as flat tensors, for whoever does not need
        them all at once. Each is valid until the next is asked for.
    """

    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    pieces: Optional[Callable[[], Iterable[torch.Tensor]]] = None


def entry_of_pieces(
    shape: tuple,
    dtype: torch.dtype,
    pieces: Callable[[], Iterable[torch.Tensor]],
) -> Entry:
    """An entry that is computed a piece after the other.

    Arguments
    ---------
    shape : tuple
        The shape of the tensor.
    dtype : torch.dtype
        Its dtype.
    pieces : Callable
        As ``Entry`` has it.

    Returns
    -------
    entry : Entry
        Reading it gives a new tensor.
    """
    return Entry(shape, dtype, lambda: joined(pieces(), shape, dtype), pieces)


def joined(
    pieces: Iterable[torch.Tensor],
    shape: tuple,
    dtype: torch.dtype,
    device: Union[str, torch.device] = "cpu",
) -> torch.Tensor:
    """A tensor of pieces.

    Arguments
    ---------
    pieces : iterable of torch.Tensor
        Flat tensors, as many values as the tensor has.
    shape : tuple
        The shape of the tensor.
    dtype : torch.dtype
        Its dtype.
    device : str or torch.device
        Where it shall be; the pieces may be elsewhere.

    Returns
    -------
    tensor : torch.Tensor
        A new one.

    Example
    -------
    >>> joined([torch.ones(1), torch.zeros(2)], (3, 1), torch.float32).T
    tensor([[1., 0., 0.]])
    """
    whole = torch.empty(shape, dtype=dtype, device=device)
    flat, start = whole.view(-1), 0
    for piece in pieces:
        flat[start : start + piece.numel()] = piece
        start += piece.numel()
    return whole


class Weights(Mapping):
    """The tensors of one model, by name, each read when asked for.

    A context manager: files stay open until it is left. Each call of
    `open_weights` is ended by one `close`, also where it was given weights
    that were open already, so that a function may always write
    ``with open_weights(source) as weights`` without closing under its caller.

    The tensors may be views of a mapped file or of a live module: they are to
    be read, never changed in place.

    Arguments
    ---------
    entries : dict
        Name to `Entry`, in the order that `names` gives.
    label : str
        What errors call this model: its path, or what it is.
    metadata : dict, optional
        Strings stored beside the tensors.
    tied : dict, optional
        Alias to the name whose tensor it shares. Both are entries.
    on_close : Callable, optional
        Called once when the weights are closed.
    folded : iterable of str
        What these were computed from by `fold`: "weight norm", "adapters".

    Example
    -------
    >>> entry = Entry((2,), torch.float32, lambda: torch.tensor([1.0, 2.0]))
    >>> with Weights({"bias": entry}, label="an example") as weights:
    ...     weights["bias"]
    tensor([1., 2.])
    """

    def __init__(
        self,
        entries: dict,
        label: str,
        metadata: Optional[dict] = None,
        tied: Optional[dict] = None,
        on_close: Optional[Callable] = None,
        folded: Iterable[str] = (),
    ):
        self.label = label
        self.folded = frozenset(folded)
        self.metadata = dict(metadata or {})
        self.tied = dict(tied or {})
        self._entries = dict(entries)
        self._on_close = on_close
        self._holders = 1
        # Hashes what others read: a `TreeHash` of these weights, or None
        self.hashing: Any = None
        for alias, kept in self.tied.items():
            if alias not in self._entries or kept not in self._entries:
                raise ValueError(
                    f"{label}: '{alias}' is said to be tied to '{kept}', but "
                    "not both are there. Write the file again."
                )

    def names(self) -> list[str]:
        """The names of all tensors, in a stable order.

        Returns
        -------
        list of str
        """
        return list(self._entries)

    def shape(self, name: str) -> tuple:
        """The shape of a tensor, without reading it.

        Arguments
        ---------
        name : str
            The name of the tensor.

        Returns
        -------
        tuple
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor, without reading it.

        Arguments
        ---------
        name : str
            The name of the tensor.

        Returns
        -------
        torch.dtype
        """
        return self._entry(name).dtype

    def entry(self, name: str) -> Entry:
        """The entry of a tensor, to build other weights from.

        Arguments
        ---------
        name : str
            The name of the tensor.

        Returns
        -------
        Entry
            It reads through these weights, so it fails once they are closed.
        """
        known = self._entry(name)
        pieces = None if known.pieces is None else partial(self.pieces, name)
        return Entry(known.shape, known.dtype, lambda: self[name], pieces)

    def pieces(self, name: str) -> Iterable[torch.Tensor]:
        """The values of a tensor, as flat tensors that follow one another.

        Arguments
        ---------
        name : str
            The name of the tensor.

        Returns
        -------
        pieces : iterable of torch.Tensor
            Each is valid until the next is asked for. A tensor that is not
            computed in pieces is one.
        """
        self._open_or_raise()
        entry = self._entry(name)
        if entry.pieces is None:
            return [entry.read().reshape(-1)]
        return entry.pieces()

    def share(self) -> "Weights":
        """Adds a holder, who has to close these weights as well.

        Returns
        -------
        Weights
            These weights.
        """
        self._open_or_raise()
        self._holders += 1
        return self

    def close(self):
        """Let go of the weights; the last holder closes the files."""
        self._holders = max(self._holders - 1, 0)
        if self._holders == 0 and self._on_close is not None:
            self._on_close()
            self._on_close = None

    def _open_or_raise(self):
        if self._holders == 0:
            raise ValueError(
                f"{self.label} has been closed. Read the tensors inside the "
                "`with open_weights(...)` block."
            )

    def _entry(self, name):
        if name not in self._entries:
            raise KeyError(f"{self.label} has no tensor '{name}'")
        return self._entries[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        self._open_or_raise()
        return self._entry(name).read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name) -> bool:
        # Mapping would read the tensor to find out
        return name in self._entries

    # Mapping compares by content, which for tensors is neither cheap nor a bool
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *error):
        self.close()

    def __repr__(self) -> str:
        return f"Weights({self.label!r}, {len(self)} tensors)"


def from_tensors(
    tensors: Mapping, label: str = "a state dict", metadata=None
) -> Weights:
    """Weights over tensors that are in memory, or mapped, already.

    Arguments
    ---------
    tensors : Mapping
        Name to tensor. Tensors that share one storage become ties.
    label : str
        What errors call this model.
    metadata : dict, optional
        Strings to go with the tensors.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Where a value is no plain, dense tensor.

    Example
    -------
    >>> shared = torch.zeros(3)
    >>> from_tensors({"embedding": shared, "output": shared}).tied
    {'output': 'embedding'}
    """
    entries = {}
    detached = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"{label}: the value of {name!r} is a "
                f"{type(tensor).__name__}, but a state dict maps strings to "
                "tensors. Give the state dict itself, e.g. "
                "module.state_dict()."
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"{label}: '{name}' is a sparse or quantised tensor, which "
                "cannot be merged. Make it dense (to_dense, dequantize) first."
            )
        if tensor.is_meta:
            raise ValueError(
                f"{label}: '{name}' is on the meta device and has no values. "
                "Load the model before merging it."
            )
        detached[name] = tensor.detach()
        entries[name] = Entry(
            tuple(tensor.shape), tensor.dtype, detached[name].cpu
        )
    return Weights(entries, label, metadata, tied=find_ties(detached))


def under(weights: Weights, prefix: str) -> Weights:
    """The tensors whose names start with a prefix, without it.

    Arguments
    ---------
    weights : Weights
        The weights to choose from. Closing the result closes them.
    prefix : str
        Dotted prefix, e.g. ``"model"`` for all ``model.…``.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Where no tensor has that prefix.

    Example
    -------
    >>> weights = from_tensors({"asr.weight": torch.ones(1)})
    >>> under(weights, "asr").names()
    ['weight']
    """
    start = f"{prefix}."
    entries = {
        name[len(start) :]: weights.entry(name)
        for name in weights
        if name.startswith(start)
    }
    if not entries:
        first = sorted({name.split(".")[0] for name in weights})
        raise ValueError(
            f"{weights.label} has no tensor under '{start}'. The names start "
            f"with: {', '.join(first[:20])}."
        )
    tied = {
        alias[len(start) :]: kept[len(start) :]
        for alias, kept in weights.tied.items()
        if alias.startswith(start) and kept.startswith(start)
    }
    return Weights(
        entries, weights.label, weights.metadata, tied, weights.close
    )


def with_changed(
    weights: Weights,
    names: Container[str],
    change: Callable[[str, torch.Tensor], torch.Tensor],
) -> Weights:
    """Open weights of which some tensors are changed as they are read.

    Arguments
    ---------
    weights : Weights
        Open mapping.
    names : container of str
        Which tensors are changed.
    change : Callable
        Name and tensor to a tensor of the same shape and type.

    Returns
    -------
    Weights
        Reads through the first, and is closed with it.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> weights = open_weights({"a": torch.ones(1), "b": torch.ones(1)})
    >>> doubled = with_changed(weights, ["b"], lambda name, tensor: 2 * tensor)
    >>> doubled["a"].item(), doubled["b"].item()
    (1.0, 2.0)
    """

    def read(name):
        return change(name, weights[name])

    return Weights(
        {
            name: Entry(
                weights.shape(name), weights.dtype(name), partial(read, name)
            )
            if name in names
            else weights.entry(name)
            for name in weights.names()
        },
        weights.label,
        weights.metadata,
        weights.tied,
    )
