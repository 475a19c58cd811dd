"""Several processes that compute with one model, under ``torchrun``.

What is decided and written is the main process's business; the others compute
their share. So they need what it has merged, and none of them may wait within a
forward pass for another, which may have other batches or none.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from speechbrain.utils.distributed import (
    ddp_broadcast,
    ddp_prevent_block,
    if_main_process,
)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """A module without what SpeechBrain wraps it in for several devices.

    Arguments
    ---------
    module : torch.nn.Module
        Any. A recipe's own wrapper stays, although it calls what it wraps
        `module` as well.

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> model = torch.nn.Linear(1, 1)
    >>> unwrapped(DataParallel(model)) is model
    True
    """
    wrappers = (DataParallel, DistributedDataParallel)
    return module.module if isinstance(module, wrappers) else module


def require_same(content: Callable[[], Mapping]) -> None:
    """Refuses data that are not the same on all processes.

    What is decided by the main process is measured by all of them. One with a
    stale copy of the data on its node would add counts of other audio.

    Arguments
    ---------
    content : callable
        Gives what there is, name to text or hash, on this process. It is not
        called where there is one process.

    Raises
    ------
    ValueError
        On every process, with the first process that has other data than the
        main one, and the first name where they differ.
    """
    if ddp_prevent_block() or torch.distributed.get_world_size() == 1:
        return
    mine = dict(content())
    text = json.dumps(list(mine.items()))
    codes = _gathered(hashlib.sha256(text.encode()).hexdigest())
    if len(set(codes)) == 1:
        return
    rank = next(n for n, code in enumerate(codes) if code != codes[0])
    # of the two processes alone; the others send nothing
    here = torch.distributed.get_rank() in (0, rank)
    contents = _gathered(list(mine.items()) if here else None)
    main, other = dict(contents[0]), dict(contents[rank])
    differing = (
        name for name in [*main, *other] if main.get(name) != other.get(name)
    )
    first = next(differing, "the order of the utterances")
    raise ValueError(
        f"Rank {rank} has other data than rank 0: the first difference is in "
        f"{first}. Nothing was computed or stored. Make the copies of the data "
        "on all nodes equal (CSV or JSON, and the audio), and start again."
    )


def _gathered(mine):
    """What each process has, in the order of their ranks."""
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def sent_by_main(weights: Optional[Mapping], device: Any = "cpu") -> Mapping:
    """Weights of the main process, on every process.

    They are sent a tensor at a time, as bytes, so that all dtypes arrive as
    they are.

    Arguments
    ---------
    weights : dict or None
        Name to tensor, on the main process; the others give None.
    device : str or torch.device
        Where NCCL finds what it sends. Gloo sends from main memory.

    Returns
    -------
    dict
        The same on each process.

    Example
    -------
    >>> sent_by_main({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    if not torch.distributed.is_initialized():
        return {} if weights is None else weights
    main = if_main_process()
    layout = ddp_broadcast(
        [(name, each.shape, each.dtype) for name, each in weights.items()]
        if weights is not None
        else None
    )
    through = "cpu" if torch.distributed.get_backend() == "gloo" else device
    received = {}
    for name, shape, dtype in layout:
        tensor = torch.empty(shape, dtype=dtype)
        if weights is not None:
            tensor = weights[name].detach().to("cpu").contiguous()
        if tensor.numel():
            content = tensor.reshape(-1).view(torch.uint8).to(through)
            torch.distributed.broadcast(content, src=0)
            if not main:
                tensor = content.to("cpu").view(dtype).reshape(shape)
        received[name] = tensor
    return received


@contextlib.contextmanager
def not_distributed(brain: Any) -> Iterator[None]:
    """The Brain computes with its own modules, not with those of DDP.

    DDP's forward passes may send buffers from the main process to the others.
    Processes that decode different utterances take different numbers of
    forward passes, and would wait for one another, or take one tensor for
    another.

    Arguments
    ---------
    brain : speechbrain.Brain
        Its modules are wrapped again afterwards.
    """
    wrapped = {
        name: module
        for name, module in brain.modules.items()
        if isinstance(module, DistributedDataParallel)
    }
    for name, module in wrapped.items():
        brain.modules[name] = module.module
    try:
        yield
    finally:
        for name, module in wrapped.items():
            brain.modules[name] = module
