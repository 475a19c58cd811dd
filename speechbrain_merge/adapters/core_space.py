"""Adapters merged in Core Space into the base that they belong to.

``merge_adapters`` makes an adapter. ``CoreSpace`` makes the whole model of it,
so that a merge stage or a study can choose coefficients by word error rate, test
the merge and export it, like any other: its experts are adapters, and its base
is the model under them.

Example
-------
>>> import torch
>>> from speechbrain_merge import merge
>>> def adapter(value):
...     return {
...         "fc.adapter_down_proj.weight": torch.ones(1, 2),
...         "fc.adapter_up_proj.weight": value * torch.ones(3, 1),
...     }
>>> merged = merge(
...     CoreSpace("average", alpha=1.0),
...     [adapter(1.0), adapter(3.0)],
...     base={"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)},
...     progress=False,
... )
>>> merged["fc.weight"][0].round(decimals=5)
tensor([2., 2.])

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path
from typing import Optional, Union

from speechbrain_merge.adapters.merging import AdapterMerge
from speechbrain_merge.adapters.writing import write_adapter
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.methods.restricted import check_method
from speechbrain_merge.weights import Weights, fold


class CoreSpace(MergeMethod):
    """A method in Core Space, and the base with what it merged.

    Arguments
    ---------
    method : MergeMethod, str or dict
        Any method on weights alone, or its registered name. A search over
        coefficients finds its parameters here.
    rank : int, optional
        Of the merged adapter; by default the sum of all.
    alpha : float, optional
        LoRA's alpha, where the adapters do not say it.

    Example
    -------
    >>> CoreSpace("ties", rank=8).method.density
    0.2
    """

    name = "core_space"
    needs_base = True
    # The experts are adapters, and no models
    needs_same_base = False
    needs_same_names = False
    merges_adapters = True

    def __init__(
        self,
        method: Union[MergeMethod, str, dict],
        rank: Optional[int] = None,
        alpha: Optional[float] = None,
    ):
        super().__init__()
        self.method = check_method(method)
        self.rank, self.alpha = rank, alpha
        self._merging(1, None)  # checks what can be checked

    def check_experts(self, number: int) -> None:
        """Raises a ValueError when the method cannot merge so many experts."""
        self.method.check_experts(number)

    def merged(
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
        """The base with the merged adapter, each tensor made when it is read.

        Arguments and errors are those of ``MergeMethod.merged`` and of
        ``merge_adapters``.
        """
        if base is None:
            raise ValueError(
                "'core_space' merges adapters into the model that they were "
                "trained on: give it as `base`, or use merge_adapters."
            )
        merging = self._merging(len(experts), "speechbrain")
        merging = merging.using(self.device)
        made = merging.merged(experts, base, labels, workers, progress)
        adapter = Weights(
            {name: made.entry(name) for name in made.names()},
            made.label,
            merging.metadata(),
        )
        self.check_names(merging, base)
        folded = fold(adapter, base=base)
        return Weights(
            {name: folded.entry(name) for name in folded.names()},
            f"merge by {self.name}",
            tied=folded.tied,
        )

    def write_adapter(
        self, adapters: list, output: Union[str, Path], format: str, **options
    ) -> Path:
        """The merged adapter itself, as ``merge_adapters`` writes it.

        Arguments
        ---------
        adapters : list
            Adapters, as of ``merge_adapters``.
        output : str or Path
            A folder for PEFT, a ``.safetensors`` file for SpeechBrain.
        format : str
            ``"peft"`` or ``"speechbrain"``.
        **options
            Of ``speechbrain_merge.merge``: ``base``, ``labels``, ``progress``.

        Returns
        -------
        path : Path
        """
        merging = self._merging(len(adapters), format)
        merging.read(adapters)
        return write_adapter(
            merging, {"experts": adapters, **options}, Path(output)
        )

    def check_names(self, merging: AdapterMerge, base: Weights) -> None:
        """Raises a ValueError where the base has not the adapters' layers.

        Arguments
        ---------
        merging : AdapterMerge
            That has read the adapters.
        base : Weights
            The base.
        """
        for target in merging.targets():
            if f"{target}.weight" not in base:
                raise ValueError(
                    f"the base {base.label} has no '{target}.weight', which "
                    "the adapters change. Give the base under the names of "
                    "the adapters."
                )

    def _merging(self, number, format):
        return AdapterMerge(
            self.method, "core", self.rank, [self.alpha] * number, format, True
        )
