"""A second device for machines that have none.

Inside `OtherDevice` torch has a device ``cuda:0``. It computes on the CPU, and
refuses what CUDA refuses: tensors of two devices in one call (but for numbers,
which are tensors without dimensions, where CUDA takes these), and NumPy. So
code that runs there has made each of its tensors on the right device and copied
what it had to. CUDA's own kernels and their precision are not tested by it.

It counts what was computed there, which products of matrices were rough (in
less than float64, which CUDA may round further), and how many numbers came back.
It can have little memory.

Example
-------
>>> with OtherDevice() as other:
...     there = torch.ones(2).to("cuda")
...     doubled = (there * 2).cpu()
>>> doubled, other.computed["mul"], other.brought_back
(tensor([2., 2.]), 1, 2)
>>> with OtherDevice():
...     torch.ones(2).to("cuda") + torch.ones(2)
Traceback (most recent call last):
...
RuntimeError: add: expected all tensors to be on the same device, found cuda:0 and cpu.
"""

import threading
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")

# Kernels that take numbers of the CPU beside tensors of the device
ARITHMETIC = set(
    "add sub mul div truediv true_divide pow eq ne lt le gt ge where maximum "
    "minimum clamp clamp_min clamp_max remainder fmod and or xor".split()
)
REFLECTED = {"r" + name for name in ARITHMETIC}
IN_PLACE = {"i" + name for name in ARITHMETIC}

# What only looks at a tensor in another way, or copies it
NO_ARITHMETIC = set(
    "T mT t view reshape flatten unflatten transpose movedim expand expand_as "
    "squeeze unsqueeze split unbind diagonal detach getitem to clone copy "
    "contiguous empty_like setitem".split()
)
PRODUCTS = set(
    "mm matmul rmatmul addmm baddbmm bmm mv tensordot einsum".split()
)
NO_NUMPY = (
    f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to "
    "copy the tensor to host memory first."
)


class There(torch.Tensor):
    """A tensor on the other device. Its values lie in this machine's memory."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        """Outside of `OtherDevice` there is no such device."""
        raise RuntimeError(f"{function} on a tensor of a device that is gone.")


class OtherDevice:
    """The context in which there is a device ``cuda:0``, in all threads.

    Arguments
    ---------
    room : int, optional
        A tensor with more entries than this does not fit on the device.
    """

    def __init__(self, room=None):
        self.room = room
        self.computed, self.rough = Counter(), Counter()
        self.brought_back = 0
        self._lock = threading.Lock()

    def __enter__(self):
        self._before = threading.Thread.run, torch.cuda.device_count

        def run(thread, before=threading.Thread.run):
            with _Calls(self):
                before(thread)

        threading.Thread.run = run
        torch.cuda.device_count = lambda: 1
        self._calls = _Calls(self)
        self._calls.__enter__()
        return self

    def __exit__(self, *error):
        self._calls.__exit__(*error)
        threading.Thread.run, torch.cuda.device_count = self._before

    def call(self, function, arguments, options):
        """Does what a function of torch would do with such a device."""
        if function is torch.device:
            return function(*arguments, **options)
        name, in_place = _name(function)
        given = list(_tensors([arguments, options]))
        there = [isinstance(tensor, There) for tensor in given]
        if name in ("device", "is_cuda", "is_cpu"):
            place = _place(given[0])
            return place if name == "device" else name == f"is_{place.type}"
        if name in ("numpy", "array") and any(there):
            raise TypeError(NO_NUMPY)
        target = _target(name, arguments, options)
        if target is None:
            if any(there) and not all(there):
                _check(name, in_place, arguments, given)
            target = DEVICE if any(there) else CPU
        kept = {}
        plain, options = _plain([list(arguments), dict(options)], kept)
        if name == "iter":
            made = plain[0].unbind(0)
        elif name in ("cpu", "cuda"):
            moved = target != _place(given[0])
            made = plain[0].clone() if moved else plain[0]
        else:
            if name == "to" and target != _place(given[0]):
                options["copy"] = True
            made = function(*plain, **options)
        self._count(name, made, arguments, given, target)
        made = self._placed(made, target, kept)
        return iter(made) if name == "iter" else made

    def _count(self, name, made, arguments, given, target):
        """Counts operations there, and numbers that came from there."""
        there = [tensor for tensor in given if isinstance(tensor, There)]
        if not there:
            return
        back = computed = 0
        if target == CPU:
            back = there[0].numel()
        elif name in ("copy", "setitem"):
            if not isinstance(arguments[0], There):
                back = there[0].numel()
        elif list(_tensors([made])):
            computed = name not in NO_ARITHMETIC
        elif name in ("item", "tolist", "float", "int", "bool"):
            back = there[0].numel()
        with self._lock:
            self.brought_back += back
            self.computed[name] += computed
            if name in PRODUCTS and there[0].dtype != torch.float64:
                self.rough[name] += 1

    def _placed(self, made, target, kept):
        """Results on their device; what was given is given back itself."""
        if id(made) in kept:
            return kept[id(made)][1]
        if isinstance(made, (tuple, list)):
            return type(made)([self._placed(one, target, kept) for one in made])
        if not isinstance(made, torch.Tensor) or target == CPU:
            return made
        if self.room is not None and made.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return made.as_subclass(There)


class _Calls(TorchFunctionMode):
    """Takes the calls of torch in one thread to the device."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def __torch_function__(self, function, types, arguments=(), options=None):
        with torch._C.DisableTorchFunctionSubclass():
            return self.other.call(function, arguments, options or {})


def _name(function):
    """A function's name without its form (``__add__``, ``add_``), and whether
    it works in place."""
    name = function.__name__
    if name in ("__get__", "__set__"):
        return function.__self__.__name__, False
    bare = name.strip("_")
    if name.startswith("__"):
        return bare, bare in IN_PLACE
    return bare, name.endswith("_")


def _place(tensor):
    return DEVICE if isinstance(tensor, There) else CPU


def _target(name, arguments, options):
    """The device that a call names, or None."""
    asked = options.get("device")
    if name in ("cpu", "cuda"):
        asked = name
    elif name == "to" and asked is None:
        asked = _place(arguments[0])
        for one in [*arguments[1:], options.get("other")]:
            if isinstance(one, torch.Tensor):
                asked = _place(one)
            elif isinstance(one, (str, torch.device)):
                asked = one
    if asked is None:
        return None
    return DEVICE if torch.device(asked).type == "cuda" else CPU


def _check(name, in_place, arguments, given):
    """Raises where tensors of two devices meet that must not."""
    first = arguments[0] if arguments else None
    if name == "copy":
        return
    if name in ("getitem", "setitem"):
        # an index may be on the CPU, and so may what is copied to a slice
        index = list(_tensors(arguments[1]))
        values = _tensors(list(arguments[2:]))
        if all(_place(one) in (_place(first), CPU) for one in index) and (
            not index
            or all(
                not one.ndim or _place(one) == _place(first) for one in values
            )
        ):
            return
    elif name in ARITHMETIC | REFLECTED | IN_PLACE:
        outside = [one for one in given if not isinstance(one, There)]
        changed = in_place and not isinstance(first, There)
        if not changed and all(one.ndim == 0 for one in outside):
            return
    raise RuntimeError(
        f"{name}: expected all tensors to be on the same device, found "
        f"{DEVICE} and cpu."
    )


def _tensors(value):
    """All tensors in arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _plain(value, kept):
    """Arguments with all tensors and devices on the CPU.

    What they were is noted in ``kept``, by the identity of what they are now.
    """
    if isinstance(value, torch.Tensor):
        here = value
        if isinstance(value, There):
            here = value.as_subclass(torch.Tensor)
        kept[id(here)] = here, value
        return here
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, str) and value.startswith("cuda"):
        return "cpu"
    if type(value) in (list, tuple):
        return type(value)([_plain(one, kept) for one in value])
    if type(value) is dict:
        return {key: _plain(one, kept) for key, one in value.items()}
    return value
