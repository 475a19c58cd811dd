"""A plain function becomes a merge method.

Most formulas need one tensor of each expert and nothing else. ``merge_method``
makes a method of such a function, with a registered name, so that it can be
used wherever a method can: in memory, over files, from YAML and the command
line, with checks and provenance as all others have them.

The function says by its arguments what it needs:

- ``experts``, always: the tensor of each expert, a list of ``torch.Tensor`` in
  float32 (or float64, if stored so), all of one shape;
- ``base``, if the formula has one: the tensor of the model that the experts
  were fine-tuned from. Without a default a base must be given;
- ``name``, if it matters: the name of the tensor;
- all others are parameters of the method, with their defaults.

It returns a tensor of that shape, and must not change its inputs. What needs
more (a first pass over the whole model, coefficients by expert or layer) is a
class of its own, see ``speechbrain_merge.methods.base``.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import create, merge_method
>>> @merge_method("towards_base")
... def towards_base(experts, base, share=0.5):
...     "The mean, and on from there a share of the way to the base."
...     return torch.lerp(sum(experts) / len(experts), base, share)
>>> base = {"w": torch.tensor([0.0])}
>>> experts = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
>>> towards_base(share=0.25)(experts, base)
{'w': tensor([1.5000])}
>>> create("towards_base")
towards_base(share=0.5)

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from typing import Any, Callable

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.registry import register

# What a formula is given by name; all else are parameters of the method
INPUTS = ("experts", "base", "name")


class FunctionMethod(MergeMethod):
    """A method whose formula is a plain function; see the module's text.

    ``merge_method`` makes a subclass for each function, whose constructor takes
    the function's parameters.
    """

    formula: Callable[..., torch.Tensor]
    inputs: tuple[str, ...] = ()
    __signature__ = inspect.Signature()

    def __init__(self, *values: Any, **parameters: Any):
        super().__init__()
        given = type(self).__signature__.bind(*values, **parameters)
        given.apply_defaults()
        for parameter, value in given.arguments.items():
            setattr(self, parameter, value)

    def merge_tensor(self, name, experts, base):
        """Calls the function for one tensor."""
        there = {"experts": experts, "base": base, "name": name}
        return self.formula(
            **{each: there[each] for each in self.inputs},
            **{
                each: getattr(self, each)
                for each in self.__signature__.parameters
            },
        )


def merge_method(
    name: str, on_device: bool = True
) -> Callable[[Callable], type[FunctionMethod]]:
    """Makes a merge method of a function, and registers it.

    Arguments
    ---------
    name : str
        The word that ``create``, YAML and the command line will know it by.
    on_device : bool
        Whether the function computes on a GPU, where its inputs then are. Say
        False if it needs NumPy, or makes tensors on the CPU.

    Returns
    -------
    decorator : callable
        Takes the function and gives a class of methods: calling it, with
        parameters or none, makes a method. The function is its ``formula``.

    Raises
    ------
    ValueError
        When the name is taken, or the function's arguments cannot be those of
        a method.

    Example
    -------
    >>> @merge_method("first_plus")
    ... def first_plus(experts, bias=0.0):
    ...     return experts[0] + bias
    >>> first_plus(bias=2.0)([{"w": torch.ones(1)}])
    {'w': tensor([3.])}
    >>> first_plus.formula([torch.zeros(1)], bias=1.0)
    tensor([1.])
    """

    def decorator(function: Callable) -> type[FunctionMethod]:
        """The class of methods with this formula."""
        parameters = dict(inspect.signature(function).parameters)
        where = f"{function.__module__}.{function.__qualname__}"
        _check_arguments(where, parameters)
        base = parameters.get("base")
        own = [parameters[each] for each in parameters if each not in INPUTS]
        made = type(
            function.__name__,
            (FunctionMethod,),
            {
                "__doc__": function.__doc__ or f"The function {where}.",
                "__module__": function.__module__,
                "__qualname__": function.__qualname__,
                "__signature__": inspect.Signature(own),
                "formula": staticmethod(function),
                "on_device": on_device,
                "inputs": tuple(each for each in INPUTS if each in parameters),
                "needs_base": base is not None and base.default is base.empty,
            },
        )
        return register(name)(made)

    return decorator


def _check_arguments(where: str, parameters: dict) -> None:
    """Raises a ValueError unless a method can call a function."""
    if "experts" not in parameters:
        raise ValueError(
            f"{where} has no argument `experts`: a merge method's function "
            "takes the tensor of each expert by this name."
        )
    for name, parameter in parameters.items():
        named = (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.kind not in named:
            raise ValueError(
                f"{where}: `{parameter}` cannot be a parameter of a merge "
                "method. Give each a name of its own."
            )
        if name not in INPUTS and hasattr(MergeMethod(), name):
            raise ValueError(
                f"{where}: the parameter `{name}` has the name of something "
                "that each merge method has. Choose another."
            )
