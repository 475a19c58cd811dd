"""The merge of adapters, as the engine sees it.

The engine streams whatever a method makes of open weights. ``AdapterMerge``
makes factors of factors: it reads the layers of the adapters, lets the method
that the user chose merge what stands for each layer (its coefficients, or its
matrices in Core Space), and gives the factors of the result, a layer at a time.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from functools import lru_cache, partial
from typing import Optional

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.methods.average import Average
from speechbrain_merge.methods.entries import is_finite
from speechbrain_merge.methods.low_rank import core_space, thin_svd
from speechbrain_merge.methods.parameters import check_choice, check_whole
from speechbrain_merge.methods.task_arithmetic import TaskArithmetic
from speechbrain_merge.weights import Entry, Weights, open_weights
from speechbrain_merge.weights.adapter_files import factor_names, peft_config
from speechbrain_merge.weights.low_rank import (
    open_adapter,
    speechbrain_metadata,
)

logger = get_logger(__name__)

WAYS = ("concatenate", "svd", "core")
# Layers whose factors are kept at once: A and B are asked for one by one
_KEPT = 8


class AdapterMerge(MergeMethod):
    """A merge of adapters, as the engine sees it: one call, one object."""

    # The experts are no models: what belongs together is checked by `read`
    needs_same_base = False
    needs_same_names = False

    def __init__(self, method, how, rank, alpha, format, same_base):
        super().__init__()
        check_choice(how, "how", WAYS)
        if rank is not None:
            check_whole(rank, "rank", at_least=1)
        if how == "concatenate" and rank is not None:
            raise ValueError(
                "`rank` was given, but concatenated adapters have the sum of "
                "their ranks: give how='svd' for the nearest of a rank."
            )
        if how == "svd" and rank is None:
            raise ValueError("how='svd' needs the `rank` of the result.")
        linear = isinstance(method, (TaskArithmetic, Average))
        if how != "core" and not linear:
            raise ValueError(
                f"how='{how}' adds adapters up, and '{method.name}' does not: "
                "give 'task_arithmetic' or 'average', or how='core'."
            )
        _check_in_core(method)
        self.inner, self.how, self.rank = method, how, rank
        self.alpha, self.format, self.same_base = alpha, format, same_base
        self.linear = linear
        self.name = method.name
        self.error: Optional[float] = None

    def configuration(self):
        """The inner method's parameters, and how the adapters were merged."""
        return {
            **self.inner.configuration(),
            "how": self.how,
            "rank": self.rank,
            "error": self.error,
        }

    def check_experts(self, number):
        """As the inner method does."""
        self.inner.check_experts(number)

    def read(self, sources):
        """Opens the adapters once, to check what can be checked at once."""
        opened = [open_weights(source) for source in sources]
        try:
            self._lay_out(opened)
        finally:
            for weights in opened:
                weights.close()

    def merged(
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
        """The factors of the merged adapter, each computed when it is read."""
        self._lay_out(experts)
        self._values = self._inner_merge(experts, base, labels, workers)
        factors = lru_cache(_KEPT)(self._factors)
        if self.how != "concatenate":
            self.error = self._total_error(factors)
        entries = {}
        for target, (up, down, dtype) in self._shapes.items():
            names = self._names(target)
            for place, (side, shape) in enumerate((("up", up), ("down", down))):
                entries[names[side]] = Entry(
                    shape,
                    dtype,
                    partial(_one, factors, target, place, shape, dtype),
                )
            if self._has_bias and "bias" in names:
                entries[names["bias"]] = Entry(
                    up[:1], dtype, partial(self._bias, target, up[0], dtype)
                )
        for name, stored in self._plain.items():
            entries[stored] = self._values.entry(name)
        return Weights(entries, f"merge of adapters by {self.inner.name}")

    def targets(self) -> list:
        """Plain names of the layers that the merge changes.

        Returns
        -------
        list of str
            Known after `read`, or `merged`.
        """
        return list(self._layers)

    # --- what is there ------------------------------------------------------

    def _lay_out(self, opened):
        """Layers, shapes and names of the result."""
        self._adapters = [
            open_adapter(weights, alpha)
            for weights, alpha in zip(opened, self.alpha)
        ]
        self._check_formats()
        self._layers: dict = {}
        for number, adapter in enumerate(self._adapters):
            for target, layer in adapter.layers.items():
                self._layers.setdefault(target, {})[number] = layer
        self._plain: dict = {}
        for adapter in self._adapters:
            for name, (stored, _) in adapter.plain.items():
                self._plain.setdefault(name, stored)
        self._has_bias = any(
            layer.bias is not None
            for found in self._layers.values()
            for layer in found.values()
        )
        if self.format == "speechbrain":
            self._check_speechbrain()
        elif self._has_bias:
            self._check_bias()
        self._scales = {
            target: self._own_scale(found)
            for target, found in self._layers.items()
        }
        if self.format == "speechbrain":
            first = next(iter(self._scales.values()))
            self._scales = dict.fromkeys(self._scales, first)
        self._shapes = self._result_shapes()

    def _check_formats(self):
        found = {adapter.format for adapter in self._adapters}
        if self.format is None:
            if len(found) > 1:
                raise ValueError(
                    "the adapters are of SpeechBrain and of PEFT: say by "
                    "format='peft' or format='speechbrain' what to write."
                )
            (self.format,) = found
        for adapter in self._adapters:
            if adapter.plain and adapter.format != self.format:
                first = next(iter(adapter.plain))
                raise ValueError(
                    f"{adapter.label} holds '{first}', trained in full, whose "
                    f"place in an adapter of {self.format} is not known: write "
                    f"format='{adapter.format}', or merge folded models."
                )
        bases = {
            adapter.config.get("base_model_name_or_path")
            for adapter in self._adapters
        } - {None, ""}
        if self.same_base and len(bases) > 1:
            raise ValueError(
                "the adapters do not belong together: they were trained on "
                f"{' and '.join(sorted(map(repr, bases)))} "
                "(adapter_config.json, key 'base_model_name_or_path'). Where "
                "these are the same weights, give `same_base=False`."
            )

    def _check_speechbrain(self):
        for target, found in self._layers.items():
            for number, layer in found.items():
                where = f"{self._adapters[number].label}: '{target}'"
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
        for target, found in self._layers.items():
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
        for target, found in self._layers.items():
            layers = list(found.values())
            first = layers[0]
            for number, layer in found.items():
                if _outside(layer) != _outside(first):
                    raise ValueError(
                        f"the adapters do not fit together: '{target}' maps "
                        f"{_outside(layer)} in {self._adapters[number].label}, "
                        f"but {_outside(first)} in "
                        f"{self._adapters[next(iter(found))].label}. They were "
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

    def _names(self, target):
        first = next(iter(self._layers[target].values()))
        adapters = {
            self._adapters[each].format for each in self._layers[target]
        }
        stem = first.stem if adapters == {"speechbrain"} else None
        return factor_names(self.format, target, stem, first.embedding)

    # --- what the inner method sees -----------------------------------------

    def _inner_merge(self, experts, base, labels, workers):
        """Coefficients or cores of each layer, biases and plain tensors."""
        number = len(experts)
        labels = labels or [weights.label for weights in experts]
        space = lru_cache(_KEPT)(self._space)
        self._space_of = space
        models = [
            Weights(self._seen(each, base, space), label)
            for each, label in enumerate(labels)
        ]
        anchor = None
        if base is not None or self.inner.needs_base:
            zeros = {
                name: Entry(
                    models[0].shape(name),
                    models[0].dtype(name),
                    partial(
                        torch.zeros,
                        models[0].shape(name),
                        dtype=models[0].dtype(name),
                    ),
                )
                for name in models[0]
                if name not in self._plain
            }
            anchor = Weights(
                {**zeros, **self._base_plain(base, models, labels, number)},
                "the base" if base is None else base.label,
            )
        return self.inner.merged(models, anchor, labels, workers)

    def _seen(self, number, base, space):
        """One adapter, as the inner method sees it."""
        entries = {}
        for target, found in self._layers.items():
            first = next(iter(found.values()))
            name = f"{target}.weight"
            if self.how == "core":
                shape = _core_shape(found.values())
                read = partial(_core, space, target, number, shape)
            else:
                # the coefficient of an adapter is what its own 1 becomes
                shape = (len(self._adapters),)
                read = partial(_unit, number, shape)
            entries[name] = Entry(shape, torch.float64, read)
            if self._has_bias and not first.embedding:
                size = first.up.shape[:1]
                read = partial(_scaled_bias, found.get(number), size)
                entries[_bias_name(target)] = Entry(size, torch.float64, read)
        adapter = self._adapters[number]
        for name in self._plain:
            if name in adapter.plain:
                entries[name] = adapter.plain[name][1]
            elif base is not None and name in base:
                entries[name] = base.entry(name)
            else:
                raise ValueError(
                    f"{adapter.label} has no '{name}', which another adapter "
                    "trained in full: give the `base` that has it, under its "
                    "plain names."
                )
        return entries

    def _base_plain(self, base, models, labels, number):
        """What tensors that were trained in full were before."""
        if base is not None:
            absent = [name for name in self._plain if name not in base]
            if absent:
                raise ValueError(
                    f"the base {base.label} has no '{absent[0]}', which an "
                    "adapter trained in full. Give the base under the names "
                    "of the adapters."
                )
            return {name: base.entry(name) for name in self._plain}
        if not self._plain:
            return {}
        first = next(iter(self._plain))
        if not self.linear or not self._is_mean(labels, number):
            raise ValueError(
                f"'{first}' was trained in full beside the factors: give the "
                "`base`, or 'average', to merge it."
            )
        # where the coefficients add up to 1 the base drops out of the sum
        return {name: models[0].entry(name) for name in self._plain}

    def _is_mean(self, labels, number):
        shape = (number,)
        units = [
            Weights(
                {
                    name: Entry(
                        shape, torch.float64, partial(_unit, each, shape)
                    )
                    for name in self._plain
                },
                label,
            )
            for each, label in enumerate(labels)
        ]
        zeros = Weights(
            {
                name: Entry(
                    shape,
                    torch.float64,
                    partial(torch.zeros, shape, dtype=torch.float64),
                )
                for name in self._plain
            },
            "zeros",
        )
        made = self.inner.merged(units, zeros, labels)
        return all(abs(made[name].sum().item() - 1) < 1e-12 for name in made)

    # --- the result ---------------------------------------------------------

    def _space(self, target):
        """The Core Space of a layer, and which adapters are in it."""
        found = self._layers[target]
        pairs = [self._pair(target, each) for each in found]
        space = core_space([up for up, _ in pairs], [down for _, down in pairs])
        return space, dict(zip(found, space.cores))

    def _pair(self, target, number):
        """s·B and A of one adapter, as matrices in float64."""
        layer = self._layers[target][number]
        pair = []
        for entry in (layer.up, layer.down):
            tensor = entry.read()
            if not is_finite(tensor):
                raise ValueError(
                    f"{self._adapters[number].label}: a factor of '{target}' "
                    "has a NaN or an infinity. Choose another checkpoint."
                )
            pair.append(tensor.to(torch.float64).flatten(1))
        return pair[0] * layer.scale.value, pair[1]

    def _factors(self, target):
        """B and A of the result as matrices, the error, the norm."""
        rank = self._shapes[target][0][1]
        value = self._values[f"{target}.weight"]
        if self.how == "core":
            space, _ = self._space_of(target)
            return thin_svd(space.left @ value, space.right, rank)
        scale = 1.0 if self.how == "svd" else self._scales[target]
        ups, downs = [], []
        for number in self._layers[target]:
            up, down = self._pair(target, number)
            # not through s·B, so that a factor of 1 leaves every bit
            own = self._layers[target][number].scale.value
            if own == scale:
                up = self._layers[target][number].up.read()
                up = up.to(torch.float64).flatten(1)
            else:
                up = up / scale
            ups.append(up * value[number].item())
            downs.append(down)
        up, down = torch.cat(ups, 1), torch.cat(downs)
        if self.how == "svd":
            return thin_svd(up, down, rank)
        return (
            torch.nn.functional.pad(up, (0, rank - up.shape[1])),
            torch.nn.functional.pad(down, (0, 0, 0, rank - down.shape[0])),
        )

    def _total_error(self, factors):
        """The share that the rank leaves out, over all layers."""
        lost, total, worst = 0.0, 0.0, (0.0, "")
        for target in self._layers:
            made = factors(target)
            lost, total = lost + made.error**2, total + made.norm**2
            if made.norm:
                worst = max(worst, (made.error / made.norm, target))
        share = math.sqrt(lost / total) if total else 0.0
        if lost:
            logger.info(
                f"Rank {self.rank} leaves out {share:.3%} of what the adapters "
                f"change (Frobenius norm), most of it in '{worst[1]}': "
                f"{worst[0]:.3%}."
            )
        return share

    def _bias(self, target, size, dtype):
        name = _bias_name(target)
        return (self._values[name] / self._scales[target]).to(dtype)

    def metadata(self):
        """What SpeechBrain does not store of an adapter."""
        rank = next(iter(self._shapes.values()))[0][1]
        stems = [
            self._names(target)["up"].removesuffix(".adapter_up_proj.weight")
            for target in self._layers
        ]
        scale = next(iter(self._scales.values()))
        return speechbrain_metadata(stems, rank, scale)

    def config(self):
        """PEFT's configuration of the result."""
        configs = [adapter.config for adapter in self._adapters]
        layers = {
            target: (shapes[0][1], self._scales[target])
            for target, shapes in self._shapes.items()
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
        transposed = any(
            layer.scale.transposed
            for found in self._layers.values()
            for layer in found.values()
        )
        return peft_config(
            layers,
            bias=biases.pop()
            if len(biases) == 1
            else "all"
            if biases
            else "none",
            lora_bias=self._has_bias,
            fan_in_fan_out=transposed,
            modules_to_save=sorted(modules) or None,
            **settings,
        )


def _outside(layer):
    """What a layer maps, whatever the rank between."""
    return layer.up.shape[:1], layer.down.shape[1:], layer.transposed


def _core_shape(layers):
    layers = list(layers)
    rank = sum(layer.rank for layer in layers)
    return (
        min(rank, layers[0].up.shape[0]),
        min(rank, math.prod(layers[0].down.shape[1:])),
    )


def _core(space, target, number, shape):
    cores = space(target)[1]
    if number in cores:
        return cores[number]
    return torch.zeros(shape, dtype=torch.float64)


def _unit(number, shape):
    unit = torch.zeros(shape, dtype=torch.float64)
    unit[number] = 1.0
    return unit


def _bias_name(target):
    return f"{target}.adapter.bias"


def _scaled_bias(layer, size):
    if layer is None or layer.bias is None:
        return torch.zeros(size, dtype=torch.float64)
    return layer.bias.read().to(torch.float64) * layer.scale.value


def _one(factors, target, place, shape, dtype):
    return factors(target)[place].reshape(shape).to(dtype)


def _check_in_core(method):
    for each in method.modules():
        if not isinstance(each, MergeMethod):
            continue
        if each.statistics_kind is not None:
            why = "needs statistics of whole models"
        elif not (each.needs_same_base and each.needs_same_names):
            why = "aligns whole models"
        else:
            continue
        raise ValueError(
            f"'{each.name}' {why}, which adapters are not: merge the folded "
            "models (speechbrain_merge.weights.fold)."
        )
