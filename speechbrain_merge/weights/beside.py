"""Two models in one folder of Hugging Face's.

A folder may have its weights twice: ``model.safetensors`` and the
``pytorch_model.bin`` that was there before. transformers loads the first and
does not look at the second, and so it is done here. Where the second holds
other weights (those of a training before, of another head, of another model)
it is easily the one that was meant, so that this is said.

Weights are compared by names and shapes and by the first values of each tensor.

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch

from speechbrain_merge.weights.mapping import Weights

SOME = 64
"""So many values of each tensor are compared."""


def difference(first: Weights, second: Weights) -> Optional[str]:
    """What is different in two sets of weights, as far as that is quickly seen.

    Arguments
    ---------
    first, second : Weights
        Open weights. One may leave out tensors that are tied in the other, and
        buffers of whole numbers; dtypes may be different.

    Returns
    -------
    str or None
        A few words with the name of a tensor; None where all seems equal.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> one = open_weights({"a": torch.ones(2), "b": torch.ones(1)})
    >>> difference(one, open_weights({"a": torch.ones(2).half()}))
    "'b' is in one of them only"
    >>> difference(one, open_weights({"a": torch.ones(2), "b": torch.zeros(1)}))
    "'b' has other values"
    >>> difference(one, one) is None
    True
    """
    for mine, theirs in ((first, second), (second, first)):
        tied = {mine.tied.get(name, name) for name in mine if name in theirs}
        for name in _floats(mine):
            if mine.tied.get(name, name) not in tied:
                return f"'{name}' is in one of them only"
    for name in _floats(first):
        if name not in second:
            continue
        shapes = [list(weights.shape(name)) for weights in (first, second)]
        if shapes[0] != shapes[1]:
            return f"'{name}' has the shapes {shapes[0]} and {shapes[1]}"
        dtypes = {weights.dtype(name) for weights in (first, second)}
        narrow = min(dtypes, key=lambda dtype: dtype.itemsize)
        one, other = (
            weights[name].reshape(-1)[:SOME].to(narrow).float()
            for weights in (first, second)
        )
        if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
            return f"'{name}' has other values"
    return None


def _floats(weights):
    """The names of the tensors of floating-point numbers."""
    return [n for n in weights if weights.dtype(n).is_floating_point]
