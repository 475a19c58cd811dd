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
from speechbrain_merge.adapters.layout import AdapterLayout
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.methods.average import Average
from speechbrain_merge.methods.devices import computed
from speechbrain_merge.methods.entries import is_finite
from speechbrain_merge.methods.low_rank import core_space, thin_svd
from speechbrain_merge.methods.parameters import check_choice, check_whole
from speechbrain_merge.methods.task_arithmetic import TaskArithmetic
from speechbrain_merge.weights import Entry, Weights, open_weights

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
        for target, (up, down, dtype) in self.layout.shapes.items():
            names = self.layout.names(target)
            for place, (side, shape) in enumerate((("up", up), ("down", down))):
                entries[names[side]] = Entry(
                    shape,
                    dtype,
                    partial(_one, factors, target, place, shape, dtype),
                )
            if self.layout.has_bias and "bias" in names:
                entries[names["bias"]] = Entry(
                    up[:1], dtype, partial(self._bias, target, up[0], dtype)
                )
        for name, stored in self.layout.plain.items():
            entries[stored] = self._values.entry(name)
        return Weights(entries, f"merge of adapters by {self.inner.name}")

    def targets(self) -> list:
        """Plain names of the layers that the merge changes.

        Returns
        -------
        list of str
            Known after `read`, or `merged`.
        """
        return list(self.layout.layers)

    def metadata(self):
        """What SpeechBrain does not store of an adapter."""
        return self.layout.metadata()

    def config(self):
        """PEFT's configuration of the result."""
        return self.layout.config()

    def _lay_out(self, opened):
        self.layout = AdapterLayout(
            opened,
            self.alpha,
            self.how,
            self.rank,
            self.format,
            self.same_base,
        )
        self.format = self.layout.format

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
                if name not in self.layout.plain
            }
            anchor = Weights(
                {**zeros, **self._base_plain(base, models, labels, number)},
                "the base" if base is None else base.label,
            )
        inner = self.inner.using(self.device)
        return inner.merged(models, anchor, labels, workers)

    def _seen(self, number, base, space):
        """One adapter, as the inner method sees it."""
        entries = {}
        for target, found in self.layout.layers.items():
            first = next(iter(found.values()))
            name = f"{target}.weight"
            if self.how == "core":
                shape = _core_shape(found.values())
                read = partial(_core, space, target, number, shape)
            else:
                # the coefficient of an adapter is what its own 1 becomes
                shape = (len(self.layout.adapters),)
                read = partial(_unit, number, shape)
            entries[name] = Entry(shape, torch.float64, read)
            if self.layout.has_bias and not first.embedding:
                size = first.up.shape[:1]
                read = partial(_scaled_bias, found.get(number), size)
                entries[_bias_name(target)] = Entry(size, torch.float64, read)
        adapter = self.layout.adapters[number]
        for name in self.layout.plain:
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
            absent = [name for name in self.layout.plain if name not in base]
            if absent:
                raise ValueError(
                    f"the base {base.label} has no '{absent[0]}', which an "
                    "adapter trained in full. Give the base under the names "
                    "of the adapters."
                )
            return {name: base.entry(name) for name in self.layout.plain}
        if not self.layout.plain:
            return {}
        first = next(iter(self.layout.plain))
        if not self.linear or not self._is_mean(labels, number):
            raise ValueError(
                f"'{first}' was trained in full beside the factors: give the "
                "`base`, or 'average', to merge it."
            )
        # where the coefficients add up to 1 the base drops out of the sum
        return {name: models[0].entry(name) for name in self.layout.plain}

    def _is_mean(self, labels, number):
        shape = (number,)
        units = [
            Weights(
                {
                    name: Entry(
                        shape, torch.float64, partial(_unit, each, shape)
                    )
                    for name in self.layout.plain
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
                for name in self.layout.plain
            },
            "zeros",
        )
        made = self.inner.merged(units, zeros, labels)
        return all(abs(made[name].sum().item() - 1) < 1e-12 for name in made)

    # --- the result ---------------------------------------------------------

    def _space(self, target):
        """The Core Space of a layer, and which adapters are in it."""
        found = self.layout.layers[target]
        pairs = [self._pair(target, each) for each in found]
        number = len(pairs)

        def formula(tensors):
            made = core_space(tensors[:number], tensors[number:])
            return made._replace(
                left=made.left.cpu(),
                right=made.right.cpu(),
                cores=[core.cpu() for core in made.cores],
            )

        ups, downs = zip(*pairs)
        space = computed(self, target, formula, [*ups, *downs])
        return space, dict(zip(found, space.cores))

    def _nearest(self, target, ups, down, rank):
        """The nearest product of a rank; what is above is a product itself."""

        def formula(tensors):
            *ups, down = tensors
            up = ups[0] if len(ups) == 1 else ups[0] @ ups[1]
            made = thin_svd(up, down, rank)
            return made._replace(up=made.up.cpu(), down=made.down.cpu())

        return computed(self, target, formula, [*ups, down])

    def _pair(self, target, number):
        """s·B and A of one adapter, as matrices in float64."""
        layer = self.layout.layers[target][number]
        label = self.layout.adapters[number].label
        pair = []
        for entry in (layer.up, layer.down):
            tensor = entry.read()
            if not is_finite(tensor):
                raise ValueError(
                    f"{label}: a factor of '{target}' "
                    "has a NaN or an infinity. Choose another checkpoint."
                )
            pair.append(tensor.to(torch.float64).flatten(1))
        return pair[0] * layer.scale.value, pair[1]

    def _factors(self, target):
        """B and A of the result as matrices, the error, the norm."""
        rank = self.layout.shapes[target][0][1]
        value = self._values[f"{target}.weight"]
        if self.how == "core":
            space, _ = self._space_of(target)
            return self._nearest(target, [space.left, value], space.right, rank)
        scale = 1.0 if self.how == "svd" else self.layout.scales[target]
        ups, downs = [], []
        for number in self.layout.layers[target]:
            up, down = self._pair(target, number)
            # not through s·B, so that a factor of 1 leaves every bit
            own = self.layout.layers[target][number].scale.value
            if own == scale:
                up = self.layout.layers[target][number].up.read()
                up = up.to(torch.float64).flatten(1)
            else:
                up = up / scale
            ups.append(up * value[number].item())
            downs.append(down)
        up, down = torch.cat(ups, 1), torch.cat(downs)
        if self.how == "svd":
            return self._nearest(target, [up], down, rank)
        return (
            torch.nn.functional.pad(up, (0, rank - up.shape[1])),
            torch.nn.functional.pad(down, (0, 0, 0, rank - down.shape[0])),
        )

    def _total_error(self, factors):
        """The share that the rank leaves out, over all layers."""
        lost, total, worst = 0.0, 0.0, (0.0, "")
        for target in self.layout.layers:
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
        return (self._values[name] / self.layout.scales[target]).to(dtype)


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
