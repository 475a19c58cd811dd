"""The parameters of a merge method, from which it can be made again.

A merged file says by this how it was made, and a merge is found again by it.

Example
-------
>>> from speechbrain_merge.methods import LayerScaled, TaskArithmetic
>>> LayerScaled(TaskArithmetic(), first=0, last=1).configuration()
{'method': {'method': 'task_arithmetic', 'parameters': {'scale': 1.0}}, 'first': 0, 'last': 1}

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from typing import Any

import torch


def configuration(method: Any) -> dict[str, Any]:
    """The parameters that made a method.

    Arguments
    ---------
    method : MergeMethod
        Has an attribute for each parameter of its constructor.

    Returns
    -------
    configuration : dict
        Constructor parameter to value; methods inside are given as
        ``{"method": name, "parameters": their configuration}``.
    """
    values = {}
    for parameter in inspect.signature(type(method)).parameters:
        value = getattr(method, parameter)
        if isinstance(value, torch.nn.Module):
            # a method in a method
            value = {"method": value.name, "parameters": configuration(value)}
        elif isinstance(value, torch.Tensor):
            value = value.tolist()
        values[parameter] = value
    return values
