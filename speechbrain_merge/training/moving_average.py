r"""A moving average of the weights, kept while training.

The average of what an optimizer walks through is a better model than where it
stands: exponential moving averages, and averages of the latest snapshots (LAWA:
Kaddour, "Stop Wasting My Time!", 2022; Ajroldi et al., "When, Where and Why to
Average Weights?", arXiv:2502.06761, who find a window of about 1 % of the steps
best). A `MovingAverage` is one more recoverable, and nothing in the training
script changes: it hears of each step of the optimizer from PyTorch.

    moving_average: !new:speechbrain_merge.training.MovingAverage
        modules: {whisper: !ref <whisper>}
        decay: 0.999
        use_average: True
    checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
        checkpoints_dir: !ref <save_folder>
        recoverables: {whisper: !ref <whisper>, average: !ref <moving_average>}

With `use_average` a Brain with `MergeMixin` validates and tests with the
average, and trains on with its own weights; a `CheckpointPool` that is given
the average (`average: !ref <moving_average>`) collects it in their place.

After each update ``t`` the exponential average is
``θ̄_t = θ̄_{t−1} + max(1 − d, 1/t) (θ_t − θ̄_{t−1})``, ``d = decay^every``: at
first the plain mean of all, so that the start is soon forgotten, and then
exponential. With `window` it is the plain mean of the latest snapshots.

Example
-------
>>> import torch
>>> model = torch.nn.Linear(1, 1, bias=False)
>>> average = MovingAverage({"model": model}, decay=0.5)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
>>> for value in (4.0, 2.0, 0.0):
...     model.weight.grad = model.weight.detach() - value
...     optimizer.step()  # to `value`
>>> average.weights()["model.weight"]
tensor([[1.5000]])

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import json
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain_merge.pool.meta import check_saved_with, saved_with
from speechbrain_merge.records.checked import number, optional
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import verify_own_hash, write_with_hash
from speechbrain_merge.weights.files import open_safetensors

COUNTS = "updates/"
AVERAGE = "average/"
SNAPSHOT = "snapshot/"
SAVED = "saved"
"""The entry of the metadata with the time of the checkpoint."""


@register_checkpoint_hooks
class MovingAverage:
    """Averages the weights of modules over the steps of their optimizers.

    Each tensor is averaged over the steps of the optimizer that trains it;
    buffers and frozen tensors, over those of the first optimizer. Integer
    buffers are the modules' own. The average is in float32 at least, on the
    modules' device, and takes as much memory as the modules (with `window`, so
    many times as much), and the same in each checkpoint.

    Arguments
    ---------
    modules : dict
        Name to torch.nn.Module, not wrapped by DDP, as among the recipe's
        recoverables.
    decay : float
        Of the exponential average, for one step: from 0 to below 1.
    window : int, optional
        Averages so many of the latest snapshots instead.
    every : int
        Steps of the optimizer between two updates, or two snapshots. Costs
        and memory traffic go down as it goes up.
    use_average : bool
        Whether a Brain with `MergeMixin` validates and tests with the average.

    Raises
    ------
    ValueError
        When an argument is out of its bounds.
    """

    def __init__(
        self,
        modules: Mapping,
        decay: float = 0.999,
        window: Optional[int] = None,
        every: int = 1,
        use_average: bool = False,
    ):
        _check(modules, decay, window, every)
        self.modules = dict(modules)
        self.decay, self.window, self.every = float(decay), window, int(every)
        self.use_average = use_average
        self._steps: dict = {}  # tensor name to steps of its optimizer
        self._average: dict = {}  # of the exponential average
        self._snapshots: dict = {}  # of the window: name to a deque
        # the optimizer that carries what no other does
        self._first: Any = None
        self._inside = False  # whether the modules hold the average now
        follow_steps(self)

    @property
    def ready(self) -> bool:
        """Whether there has been an update."""
        return bool(self._average or self._snapshots)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the weights after a step of an optimizer into the average.

        PyTorch calls it; there is no need to.

        Arguments
        ---------
        optimizer : torch.optim.Optimizer
            The one that made a step, of whatever parameters.
        """
        trained = {
            id(parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        tensors = self._tensors()
        own = {
            name: tensor
            for name, tensor in tensors.items()
            if id(tensor) in trained
        }
        if not own or self._inside:
            return
        first = None if self._first is None else self._first()
        if first is None:
            self._first, first = weakref.ref(optimizer), optimizer
        if first is optimizer:
            others = {
                id(parameter)
                for module in self.modules.values()
                for parameter in module.parameters()
                if parameter.requires_grad
            }
            own.update(
                {
                    name: tensor
                    for name, tensor in tensors.items()
                    if id(tensor) not in others
                }
            )
        for name in own:
            self._steps[name] = self._steps.get(name, 0) + 1
        due = [name for name in own if self._steps[name] % self.every == 0]
        if self.window is None:
            self._update({name: own[name] for name in due})
        else:
            for name in due:
                kept = self._snapshots.setdefault(
                    name, deque(maxlen=self.window)
                )
                kept.append(own[name].detach().clone())

    def _update(self, tensors):
        """One update of the exponential average of some tensors."""
        groups: dict = {}
        for name, tensor in tensors.items():
            known = self._average.get(name)
            precise = torch.promote_types(tensor.dtype, torch.float32)
            if known is None:
                self._average[name] = tensor.detach().to(precise, copy=True)
                continue
            if known.device != tensor.device:  # after resuming
                known = self._average[name] = known.to(tensor.device)
            number = self._steps[name] // self.every
            share = max(1 - self.decay**self.every, 1 / number)
            averages, weights = groups.setdefault(
                (share, known.device, known.dtype), ([], [])
            )
            averages.append(known)
            weights.append(tensor.detach().to(precise))
        for (share, _, _), (averages, weights) in groups.items():
            torch._foreach_lerp_(averages, weights, share)

    def weights(self) -> dict[str, torch.Tensor]:
        """The average, as a state dict.

        Returns
        -------
        weights : dict
            `<module>.<tensor>` to a new tensor in the module's type. What has
            not been averaged yet is as in the module.
        """
        return {
            name: self._averaged(name, tensor)
            for name, tensor in self._tensors(integers=True).items()
        }

    def _averaged(self, name, tensor):
        """One tensor of the average, in the type of the module's."""
        if name in self._average:
            found = self._average[name]
        elif name in self._snapshots:
            kept = self._snapshots[name]
            found = sum(one.to(torch.float64) for one in kept) / len(kept)
        else:
            found = tensor.detach()
        return found.to(tensor.device, tensor.dtype, copy=True)

    @contextlib.contextmanager
    def in_modules(self) -> Iterator[None]:
        """The modules hold the average inside, and their own weights after.

        Example
        -------
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage({"model": model})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> model.weight.grad = torch.zeros(1, 1)
        >>> optimizer.step()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> with average.in_modules():
        ...     bool(model.weight)
        True
        >>> bool(model.weight)
        False
        """
        if self._inside or not self.ready:
            yield
            return
        tensors = self._tensors()
        own = {
            name: tensor.detach().clone() for name, tensor in tensors.items()
        }
        self._inside = True
        try:
            _fill(tensors, self.weights())
            yield
        finally:
            _fill(tensors, own)
            self._inside = False

    def _tensors(self, integers=False):
        """The tensors of the modules, each once, under its first name."""
        found, seen = {}, set()
        for label, module in self.modules.items():
            state = module.state_dict(keep_vars=True)
            for key, tensor in state.items():
                if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if integers or tensor.is_floating_point():
                    found[f"{label}.{key}"] = tensor
        return found

    @mark_as_saver
    def save(self, path):
        """Saves the average and its counters, as safetensors.

        Arguments
        ---------
        path : str or Path
            `<checkpoint>/<name>.ckpt`, where SpeechBrain expects a file.
        """
        tensors = {
            f"{COUNTS}{name}": torch.tensor(steps)
            for name, steps in self._steps.items()
        }
        for name, tensor in self._average.items():
            tensors[f"{AVERAGE}{name}"] = tensor.contiguous()
        for name, kept in self._snapshots.items():
            for place, tensor in enumerate(kept):
                tensors[f"{SNAPSHOT}{place}/{name}"] = tensor.contiguous()
        write_with_hash(path, tensors, {SAVED: json.dumps(saved_with(path))})

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Loads what `save` wrote: the average goes on to the bit.

        Arguments
        ---------
        path : str or Path
            The file.
        end_of_epoch : bool
            Unused.

        Raises
        ------
        RecordError
            When it is no such file, of another checkpoint, or of an average of
            another kind.
        """
        del end_of_epoch  # Unused
        if not Path(path).is_file():  # a pipe would never end
            raise RecordError(f"{path} is not a regular file")
        try:
            with open_safetensors(path) as stored:
                verify_own_hash(stored)
                known = stored.metadata.get(SAVED, "null")
            time = optional(number())(parse_json(known, str(path)), str(path))
            tensors = load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise RecordError(
                f"{path} does not hold a moving average of weights ({error}). "
                "Was this checkpoint not written to its end? Delete its folder "
                "to resume from the one before."
            ) from None
        check_saved_with(path, time)
        self._check_stored(path, tensors)
        self._steps, self._average, self._snapshots = {}, {}, {}
        kept: dict = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind + "/" == COUNTS:
                self._steps[name] = int(tensor)
            elif kind + "/" == AVERAGE:
                self._average[name] = tensor
            else:
                place, _, name = name.partition("/")
                kept.setdefault(name, {})[int(place)] = tensor
        for name, numbered in kept.items():
            self._snapshots[name] = deque(
                (numbered[place] for place in sorted(numbered)),
                maxlen=self.window or len(numbered),
            )
        if self.ready and bool(self._snapshots) != (self.window is not None):
            raise RecordError(
                f"{path} holds "
                + ("snapshots" if self._snapshots else "an exponential average")
                + f", and this MovingAverage has window={self.window}: resume "
                "with the settings that the training began with."
            )

    def _check_stored(self, path, tensors):
        """Raises a RecordError unless each tensor is one of these modules."""
        shapes = {
            name: tensor.shape
            for name, tensor in self._tensors(integers=True).items()
        }
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            shape = shapes.get(name)
            if kind + "/" == SNAPSHOT:
                number, _, name = name.partition("/")
                shape = shapes.get(name) if number.isdecimal() else None
            elif kind + "/" == COUNTS:
                # the count of a tensor that is averaged no more does no harm
                shape = torch.Size()
            elif kind + "/" != AVERAGE:
                shape = None
            counted = kind + "/" == COUNTS
            if counted and (tensor.dtype != torch.int64 or (tensor < 1).any()):
                raise RecordError(
                    f"{path}, '{key}': expected a count of updates, a whole "
                    "number of at least 1. Resume from another checkpoint."
                )
            if not counted and not tensor.is_floating_point():
                raise RecordError(
                    f"{path}, '{key}': expected floating-point numbers, got "
                    f"{tensor.dtype}. Resume from another checkpoint."
                )
            if tensor.shape != shape:
                raise RecordError(
                    f"{path}, '{key}': expected a tensor of these modules, of "
                    f"shape {None if shape is None else list(shape)}, got "
                    f"{list(tensor.shape)}. Resume with the model that the "
                    "training began with."
                )


def follow_steps(average: MovingAverage) -> None:
    """Lets PyTorch tell an average of each optimizer step, while it lives.

    Arguments
    ---------
    average : MovingAverage
        It is not kept alive by this.
    """
    known = weakref.ref(average)

    def stepped(optimizer, arguments, keywords):
        """After any optimizer's step."""
        alive = known()
        if alive is not None:
            alive.after_step(optimizer)

    handle = register_optimizer_step_post_hook(stepped)
    weakref.finalize(average, handle.remove)


@torch.no_grad()
def _fill(tensors, values):
    """Copies values into the tensors of these names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _check(modules, decay, window, every):
    """Raises a ValueError for what cannot be averaged so."""
    if not isinstance(modules, Mapping) or not all(
        isinstance(module, torch.nn.Module) for module in modules.values()
    ):
        raise ValueError(
            "`modules` of the MovingAverage must give each module a name, as "
            f"in {{whisper: !ref <whisper>}}, got {modules!r}."
        )
    if isinstance(decay, bool) or not 0 <= decay < 1:
        raise ValueError(
            f"`decay` must be a number at least 0 and below 1, got {decay!r}."
        )
    for name, value in (("window", window), ("every", every)):
        if name == "window" and value is None:
            continue
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number of at least 1, got {value!r}."
            )
