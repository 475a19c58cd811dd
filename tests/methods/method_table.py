"""Every method once or more, and which invariants its mathematics has.

``test_invariants.py`` runs over this table. A new method adds a row.
"""

from dataclasses import dataclass, field
from typing import Callable

import torch

from speechbrain_merge.methods import create


@dataclass(frozen=True)
class Row:
    """A method with parameters.

    Arguments
    ---------
    name : str
        Its registered name.
    parameters : dict
        How it is made.
    experts : int
        How many experts it is tried on.
    identical : bool
        Merging copies of one model gives that model.
    single : bool
        Merging one model gives that model.
    unmoved : bool
        Merging copies of the base gives the base.
    permutable : bool
        The order of the experts does not matter.
    homogeneous : bool
        From a base of zeros, experts half as large give a merge half as large.
    statistics : callable, optional
        Makes the parameter ``statistics`` from the experts.
    tolerance : float
        How exactly an invariant holds in float32.
    """

    name: str
    parameters: dict = field(default_factory=dict)
    experts: int = 3
    identical: bool = False
    single: bool = False
    unmoved: bool = True
    permutable: bool = True
    homogeneous: bool = True
    statistics: Callable = None
    tolerance: float = 1e-5

    def make(self, models):
        """The method, for some models."""
        more = {}
        if self.statistics is not None:
            more["statistics"] = self.statistics(models)
        return create(self.name, **self.parameters, **more)

    def __str__(self):
        shown = [f"{key}={value}" for key, value in self.parameters.items()]
        return f"{self.name}({','.join(shown)})"


def fishers(models):
    """Importances of each weight that are not alike."""
    return [
        {
            name: (tensor.float() * (1 + index)).square() + 0.1
            for name, tensor in model.items()
            if tensor.is_floating_point() and "running" not in name
        }
        for index, model in enumerate(models)
    ]


def grams(models):
    """Input Grams of the linear layers, of full rank."""
    made = []
    for index, model in enumerate(models):
        made.append({})
        for name in model:
            if name.endswith("proj.weight"):
                width = model[name].shape[1]
                draw = torch.Generator().manual_seed(index)
                inputs = torch.randn(50, width, generator=draw)
                made[-1][name] = inputs.T @ inputs / 50
    return made


# An average is no task-vector method: it has all invariants.
AVERAGE = {"identical": True, "single": True}

ROWS = [
    Row("average", **AVERAGE),
    Row("average", {"weights": [1, 3, 2]}, permutable=False, **AVERAGE),
    Row("average", {"weights": "linear"}, **AVERAGE),
    Row(
        "average",
        {"weights": "inverse_square_root"},
        permutable=False,
        **AVERAGE,
    ),
    Row("extreme", **AVERAGE),
    Row("extreme", {"keep": "least"}, **AVERAGE),
    Row("extreme", {"reference": "base"}, **AVERAGE),
    Row("slerp", {"t": 0.3}, experts=2, identical=True, permutable=False),
    Row("nuslerp", experts=2, identical=True),
    Row(
        "nuslerp",
        {"weights": [1, 3], "reference": "base"},
        experts=2,
        identical=True,
        permutable=False,
    ),
    Row("nuslerp", {"by": "output"}, experts=2, identical=True),
    Row("nuslerp", {"by": "input"}, experts=2, identical=True),
    Row("karcher", **AVERAGE),
    Row("karcher", {"weights": [1, 3, 2]}, permutable=False, **AVERAGE),
    Row("multislerp", **AVERAGE),
    Row("multislerp", {"reference": "base"}, **AVERAGE),
    Row("model_stock", identical=True),
    Row("model_stock", {"filter_wise": True}, identical=True),
    Row("model_stock", {"average": "angle", "clamp": False}, identical=True),
    Row("task_arithmetic", single=True),
    Row("task_arithmetic", {"scale": 1 / 3}, identical=True),
    Row("task_arithmetic", {"scale": [1, -0.5, 0.2]}, permutable=False),
    # copies of one model differ in nothing: the base
    Row("analogy", experts=2, permutable=False),
    Row("analogy", {"scale": {"depth": [0, 1]}}, experts=2, permutable=False),
    # before any learning it is task arithmetic
    Row("adamerging"),
    Row("adamerging", {"scale": 1, "by": "expert"}, single=True),
    Row(
        "adamerging",
        {"scale": 1 / 3, "by": "tensor", "lambda_param": "free"},
        identical=True,
    ),
    Row("ties"),
    Row("ties", {"density": 1}, **AVERAGE),
    Row("ties", {"scope": "tensor", "aggregate": "sum"}),
    Row("ties", {"aggregate": "max"}),
    Row("dare", {"drop_rate": 0.5}, permutable=False),
    Row("dare", {"drop_rate": 0}, single=True),
    Row("dare", {"combine": "ties", "density": 0.5}, permutable=False),
    Row("della", permutable=False),
    Row("della", {"combine": "linear"}, permutable=False),
    Row("breadcrumbs"),
    Row("breadcrumbs", {"scope": "row", "density": 0.5}),
    Row("pcb"),
    # tanh of products of task vectors bends with their size
    Row("pcb", {"variant": "sum"}, homogeneous=False),
    Row("sce", **AVERAGE),
    Row("sce", {"select": 0.3}),
    Row("consensus"),
    Row("consensus", {"minimum_agreement": 1}, single=True),
    Row("layer_scaled", {"method": "ties", "first": 0.1, "last": 1}),
    Row("calibrated", {"method": "task_arithmetic"}, single=True),
    # of copies, three in the sum: 3 times as far as one
    Row(
        "calibrated",
        {"method": {"method": "task_arithmetic", "scale": 1 / 3}},
        identical=True,
    ),
    Row(
        "calibrated",
        {"method": "ties", "alpha": 0.5, "conv_as_matrix": True},
        tolerance=1e-4,
    ),
    Row("boosted", {"method": "task_arithmetic"}, tolerance=1e-4),
    Row(
        "boosted",
        {"method": "tsv_m", "boost": 0.6, "energy": "l2"},
        tolerance=1e-4,
    ),
    Row("boosted", {"method": "ties", "boost": 1}, tolerance=1e-4),
    Row(
        "restricted",
        {"method": "ties", "include": "encoder", "otherwise": "base"},
    ),
    Row(
        "restricted",
        {"method": "dare", "exclude": "*bias", "otherwise": "first"},
        permutable=False,
    ),
    Row("iso_c"),
    Row("iso_c", {"conv_as_matrix": True, "exclude": []}),
    Row("iso_cts"),
    Row("iso_cts", {"orthogonalizer": "newton_schulz"}),
    Row("tsv_m", single=True, tolerance=1e-4),
    Row("tsv_m", {"rank_fraction": 0.5, "exclude": []}, tolerance=1e-4),
    Row("tsv_m", {"orthogonalizer": "eigh"}, tolerance=1e-4),
    Row("tsv_m", {"orthogonalizer": "newton_schulz"}, tolerance=1e-4),
    Row("boosted_tsv_m", tolerance=1e-4),
    Row("boosted_tsv_m", {"boost_stage": "merged"}, tolerance=1e-4),
    Row("boosted_tsv_m", {"energy": "l2", "rank_fraction": 1}, tolerance=1e-4),
    Row("opcm", single=True, permutable=False),
    Row(
        "opcm",
        {"alpha": 0.9, "exclude": [], "conv_as_matrix": True},
        single=True,
        permutable=False,
    ),
    Row("opcm", {"previous": {"experts": 3}}, permutable=False),
    Row("monosoup", experts=1),
    Row("monosoup", {"energy": 0.8}, experts=1),
    # Adam's steps have a length of their own
    Row("wudi", {"steps": 5}, homogeneous=False),
    Row("ace", homogeneous=False),
    Row("ace", {"threshold": 0.0}, homogeneous=False, tolerance=1e-4),
    # the statistics belong to the experts in their order
    Row("fisher", statistics=fishers, permutable=False, **AVERAGE),
    Row("regmean", statistics=grams, permutable=False, **AVERAGE),
]
