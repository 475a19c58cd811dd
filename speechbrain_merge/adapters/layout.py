"""What adapters to be merged hold, and what the result will look like.

Which layers each adapter changes, whether they fit together, and the names,
shapes, dtypes and scales of the factors of the result: all of it is known from
the headers of the files, before a number is read.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Mapping, Sequence
from typing import Optional

import torch

from speechbrain_merge.weights import Weights
from speechbrain_merge.weights.adapter_files import factor_names, peft_config
from speechbrain_merge.weights.low_rank import (
    open_adapter,
    speechbrain_metadata,
)


class AdapterLayout:
    """The layers of some adapters, and those of what is made of them.

    Arguments
    ---------
    opened : sequence of Weights
        The adapters.
    alpha : sequence of (float or None)
        LoRA's alpha of each, where it does not say it itself.
    how : str
        ``"concatenate"``, ``"svd"`` or ``"core"``.
    rank : int, optional
        Of the result.
    format : str, optional
        ``"peft"`` or ``"speechbrain"``; by default that of the adapters.
    same_base : bool
        Whether PEFT adapters that name different bases are refused.

    Raises
    ------
    ValueError
        When the adapters do not fit together, or the format cannot hold the
        result.
    """

    def __init__(
        self,
        opened: Sequence[Weights],
        alpha: Sequence[Optional[float]],
        how: str,
        rank: Optional[int] = None,
        format: Optional[str] = None,
        same_base: bool = True,
    ):
        self.adapters = [
            open_adapter(weights, each) for weights, each in zip(opened, alpha)
        ]
        self.how, self.rank = how, rank
        self.format: str = format or self._own_format()
        self._check_format()
        if same_base:
            self._check_bases()
        # plain name of a layer to what each adapter that changes it has there
        self.layers: dict = {}
        for number, adapter in enumerate(self.adapters):
            for target, layer in adapter.layers.items():
                self.layers.setdefault(target, {})[number] = layer
        # what was trained in full: plain name to the name in the file
        self.plain: dict = {}
        for adapter in self.adapters:
            for name, (stored, _) in adapter.plain.items():
                self.plain.setdefault(name, stored)
        self.has_bias = any(layer.bias is not None for layer in self._all())
        if self.format == "speechbrain":
            self._check_speechbrain()
        elif self.has_bias:
            self._check_bias()
        self.scales = {
            target: self._own_scale(found)
            for target, found in self.layers.items()
        }
        if self.format == "speechbrain":
            first = next(iter(self.scales.values()))
            self.scales = dict.fromkeys(self.scales, first)
        self.shapes = self._result_shapes()

    def names(self, target: str) -> Mapping[str, str]:
        """Names in the file that is written.

        Arguments
        ---------
        target : str
            Plain name of a layer.

        Returns
        -------
        names : dict
            ``"up"``, ``"down"`` and, where the format has one, ``"bias"``.
        """
        first = next(iter(self.layers[target].values()))
        adapters = {self.adapters[each].format for each in self.layers[target]}
        stem = first.stem if adapters == {"speechbrain"} else None
        return factor_names(self.format, target, stem, first.embedding)

    def metadata(self) -> dict:
        """What SpeechBrain does not store of an adapter.

        Returns
        -------
        metadata : dict of str to str
        """
        rank = next(iter(self.shapes.values()))[0][1]
        stems = [
            self.names(target)["up"].removesuffix(".adapter_up_proj.weight")
            for target in self.layers
        ]
        scale = next(iter(self.scales.values()))
        return speechbrain_metadata(stems, rank, scale)

    def config(self) -> str:
        """PEFT's configuration of the result.

        Returns
        -------
        config : str
            The text of ``adapter_config.json``.
        """
        configs = [adapter.config for adapter in self.adapters]
        layers = {
            target: (shapes[0][1], self.scales[target])
            for target, shapes in self.shapes.items()
        }
        modules = {
            module
            for config in configs
            for module in config.get("modules_to_save") or []
        }
        biases = {config.get("bias") for config in configs} - {None, "none"}
        settings = {
            key: next((each[key] for each in configs if each.get(key)), None)
            for key in ("task_type", "base_model_name_or_path", "auto_mapping")
        }
        transposed = any(layer.scale.transposed for layer in self._all())
        return peft_config(
            layers,
            bias=biases.pop()
            if len(biases) == 1
            else "all"
            if biases
            else "none",
            lora_bias=self.has_bias,
            fan_in_fan_out=transposed,
            modules_to_save=sorted(modules) or None,
            **settings,
        )

    # --- whether they fit together ------------------------------------------

    def _all(self):
        """Each layer of each adapter."""
        for found in self.layers.values():
            yield from found.values()

    def _own_format(self):
        """The format of the adapters."""
        found = {adapter.format for adapter in self.adapters}
        if len(found) > 1:
            raise ValueError(
                "the adapters are of SpeechBrain and of PEFT: say by "
                "format='peft' or format='speechbrain' what to write."
            )
        return found.pop()

    def _check_format(self):
        for adapter in self.adapters:
            if adapter.plain and adapter.format != self.format:
                first = next(iter(adapter.plain))
                raise ValueError(
                    f"{adapter.label} holds '{first}', trained in full, whose "
                    f"place in an adapter of {self.format} is not known: write "
                    f"format='{adapter.format}', or merge folded models."
                )

    def _check_bases(self):
        bases = {
            adapter.config.get("base_model_name_or_path")
            for adapter in self.adapters
        } - {None, ""}
        if len(bases) > 1:
            raise ValueError(
                "the adapters do not belong together: they were trained on "
                f"{' and '.join(sorted(map(repr, bases)))} "
                "(adapter_config.json, key 'base_model_name_or_path'). Where "
                "these are the same weights, give `same_base=False`."
            )

    def _check_speechbrain(self):
        for target, found in self.layers.items():
            for number, layer in found.items():
                where = f"{self.adapters[number].label}: '{target}'"
                if layer.transposed:
                    raise ValueError(
                        f"{where} is an embedding or stores its weight "
                        "transposed, which SpeechBrain's LoRA cannot adapt: "
                        "give format='peft'."
                    )
                if layer.bias is not None:
                    raise ValueError(
                        f"{where} has a bias in its adapter (lora_bias), which "
                        "SpeechBrain's LoRA has not: give format='peft'."
                    )

    def _check_bias(self):
        for target, found in self.layers.items():
            if next(iter(found.values())).embedding:
                raise ValueError(
                    f"'{target}' is an embedding, and another layer has a "
                    "bias in its adapter (lora_bias), which PEFT does not "
                    "load together. Merge the folded models "
                    "(speechbrain_merge.weights.fold)."
                )

    def _own_scale(self, found):
        """The scale of the result, so that one adapter stays as it is."""
        first = next(iter(found.values())).scale.value
        return first if self.how == "concatenate" and first else 1.0

    def _result_shapes(self):
        """Target to the shapes of B and A, and their dtype."""
        shapes = {}
        for target, found in self.layers.items():
            layers = list(found.values())
            first = layers[0]
            for number, layer in found.items():
                if _outside(layer) != _outside(first):
                    raise ValueError(
                        f"the adapters do not fit together: '{target}' maps "
                        f"{_outside(layer)} in {self.adapters[number].label}, "
                        f"but {_outside(first)} in "
                        f"{self.adapters[next(iter(found))].label}. They were "
                        "trained on different models."
                    )
            rank = sum(layer.rank for layer in layers)
            if self.how != "concatenate":
                most = min(
                    rank, first.up.shape[0], math.prod(first.down.shape[1:])
                )
                rank = min(self.rank or most, most)
            dtype = first.up.dtype
            for layer in layers:
                for entry in (layer.up, layer.down):
                    dtype = torch.promote_types(dtype, entry.dtype)
            shapes[target] = (first, rank, dtype)
        if self.format == "speechbrain":
            # one rank for all layers: zeros in the others change nothing
            most = max(rank for _, rank, _ in shapes.values())
            shapes = {
                target: (first, most, dtype)
                for target, (first, _, dtype) in shapes.items()
            }
        return {
            target: (
                (first.up.shape[0], rank, *first.up.shape[2:]),
                (rank, *first.down.shape[1:]),
                dtype,
            )
            for target, (first, rank, dtype) in shapes.items()
        }


def _outside(layer):
    """What a layer maps, whatever the rank between."""
    return layer.up.shape[:1], layer.down.shape[1:], layer.transposed
