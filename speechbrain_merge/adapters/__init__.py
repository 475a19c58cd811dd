r"""LoRA in, LoRA out: adapters merged without being folded into a model.

An adapter is a few megabytes beside a base of gigabytes. ``merge_adapters``
makes one adapter of several, which SpeechBrain or PEFT loads like any other;
``extract_lora`` makes one of a model that was fine-tuned in full. There are
three ways, with ΔW_t = s_t B_t A_t:

- ``concatenate``: B = [c_1 s_1 B_1 … c_T s_T B_T], A = [A_1; …; A_T] is
  Σ c_t ΔW_t exactly. The ranks add up.
- ``svd``: the nearest adapter of a given rank to Σ c_t ΔW_t. What it leaves out
  is on record (Eckart and Young 1936).
- ``core``: any merge method, in the Core Space of the adapters (Panariello et
  al. 2025, https://arxiv.org/abs/2509.17786), where each is a small matrix
  M_t = U_Bᵀ s_t B_t A_t V_A. The result U_B M V_Aᵀ has at most the sum of the
  ranks, and the nearest of a given rank is taken where one is given.

The first two take the linear methods (``task_arithmetic``, ``average``), whose
coefficients are the c_t. Biases, and modules that were trained in full beside
the factors, are merged by the same method as tensors.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import fold
>>> def adapter(value):
...     return {
...         "adapted_model.fc.adapter_down_proj.weight": torch.ones(1, 2),
...         "adapted_model.fc.adapter_up_proj.weight": value * torch.ones(3, 1),
...     }
>>> path = merge_adapters(
...     "average",
...     [adapter(1.0), adapter(3.0)],
...     getfixture("tmp_path") / "merged.safetensors",
...     alpha=1.0,
...     progress=False,
... )
>>> fold(path, base={"fc.weight": torch.zeros(3, 2)})["fc.weight"][0]
tensor([2., 2.])

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import torch

from speechbrain_merge.adapters.core_space import CoreSpace
from speechbrain_merge.adapters.extraction import extract_lora
from speechbrain_merge.adapters.merging import AdapterMerge
from speechbrain_merge.adapters.writing import write_adapter
from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.methods.list_of_experts import list_of_experts
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.weights.low_rank import FORMATS, module_adapter

__all__ = ["CoreSpace", "extract_lora", "merge_adapters"]


def merge_adapters(
    method: Union[MergeMethod, str],
    adapters: Iterable[Any],
    output: Union[str, Path],
    how: str = "concatenate",
    rank: Optional[int] = None,
    base: Optional[Any] = None,
    alpha: Union[float, list, None] = None,
    format: Optional[str] = None,
    labels: Optional[list[str]] = None,
    same_base: bool = True,
    workers: int = 1,
    progress: bool = True,
    device: Union[str, torch.device] = "cpu",
) -> Path:
    """Merges LoRA adapters into one adapter.

    Arguments
    ---------
    method : MergeMethod or str
        ``task_arithmetic`` or ``average``, whose coefficients are those of the
        adapters; with ``how="core"`` any method on weights alone.
    adapters : list
        Folders of PEFT's ``save_pretrained``; what SpeechBrain's
        ``AdaptedModel`` saved, or such a module; state dicts of these.
    output : str or Path
        For PEFT a folder, which appears when it is whole. For SpeechBrain a
        ``.safetensors`` file.
    how : str
        ``"concatenate"``, ``"svd"`` or ``"core"``, see the module.
    rank : int, optional
        Of the result: needed by ``svd``; ``core`` without one keeps all.
    base : object, optional
        The model that the adapters were trained on, under its plain names.
        Needed where tensors were trained in full, unless they are averaged.
    alpha : float or list of float, optional
        LoRA's alpha, or one for each adapter, where the adapters do not say
        it: files of SpeechBrain do not.
    format : str, optional
        ``"peft"`` or ``"speechbrain"``; by default that of the adapters.
    labels : list of str, optional
        Names of the adapters, for coefficients and the record.
    same_base : bool
        Whether PEFT adapters that name different bases are refused.
    workers : int
        Threads, as in ``speechbrain_merge.merge``.
    progress : bool
        Whether to show a bar.
    device : str or torch.device
        Where matrices are decomposed and merged, as in
        ``speechbrain_merge.merge``.

    Returns
    -------
    path : Path
        ``output``. What it was made of is on record in it
        (``speechbrain_merge.provenance`` of the file of weights), in
        ``parameters`` also ``how``, ``rank``, and ``error``: the share of
        ΔW, in the Frobenius norm over all layers, that the rank left out.

    Raises
    ------
    ValueError
        When an adapter is no plain LoRA (DoRA, AdaLoRA, …), its alpha is not
        known, the adapters do not fit together, the method does not go with
        the way, or the format cannot hold the result. Nothing is written.

    Example
    -------
    See the module.
    """
    if not isinstance(method, MergeMethod):
        method = create(method)
    adapters = list_of_experts(adapters, method.name)
    if isinstance(alpha, (int, float)) or alpha is None:
        alpha = [alpha] * len(adapters)
    if len(alpha) != len(adapters):
        raise ValueError(
            f"{len(alpha)} `alpha` were given for {len(adapters)} adapters: "
            "give one number, or one for each."
        )
    if format is not None:
        check_choice(format, "format", FORMATS)
    opened = [
        module_adapter(each) if isinstance(each, torch.nn.Module) else each
        for each in adapters
    ]
    merging = AdapterMerge(method, how, rank, alpha, format, same_base)
    merging.read(opened)
    path = Path(output)
    sources = {
        "experts": opened,
        "base": base,
        "labels": labels,
        "same_base": same_base,
        "workers": workers,
        "progress": progress,
        "device": device,
    }
    return write_adapter(merging, sources, path)
