"""The models of a merge as formulas see them: folded, and of one dtype.

Example
-------
>>> import torch
>>> models = [{"w": torch.ones(1).half()}, {"w": torch.ones(1)}]
>>> experts, _ = plain_models(models)
>>> [expert["w"].dtype for expert in experts]
[torch.float32, torch.float32]

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Any, Optional

from speechbrain_merge.weights import Weights, fold, promoted, widened


def plain_models(
    experts: list, base: Optional[Any] = None, needs_base: bool = True
) -> tuple[list[Weights], Optional[Weights]]:
    """Experts and base, folded and with the same floating-point dtypes.

    What is stored in float8 is given in float32.

    Arguments
    ---------
    experts : list
        What ``speechbrain_merge.weights.fold`` takes.
    base : object, optional
        Likewise.
    needs_base : bool
        Whether the formula sees the base, so that its dtypes count.

    Returns
    -------
    experts : list of Weights
    base : Weights or None
    """
    folded = [widened(fold(expert)) for expert in experts]
    if base is None:
        return promoted(folded), None
    anchor = widened(fold(base))
    if needs_base:
        *folded, anchor = promoted([*folded, anchor])
        return folded, anchor
    return promoted(folded), anchor
