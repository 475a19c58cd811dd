"""What can be known to fail is told before the training, and not after it.

A merge comes at the end: a stage whose coefficients leave out a part of the
model, whose base is not there, or whose pool does not fit on the disk would
fail after hours. ``fit`` looks at the merge stages among the hyperparameters
first, with the modules that are going to be trained in the candidates' place.

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import MetricStats
from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.methods.coefficients import check_covers
from speechbrain_merge.methods.restricted import Restricted
from speechbrain_merge.stage.merge_stage import MergeStage
from speechbrain_merge.weights import (
    check_compatible,
    depth,
    fold,
    local_source,
    open_weights,
    plain_state,
    renamed,
)

logger = get_logger(__name__)

# The keys that tell a coefficient from another mapping
FORMS = {"parts", "depth", "experts"}


def check_before_training(brain, epochs: Optional[int] = None) -> None:
    """Refuses to train for a merge that cannot be made.

    Arguments
    ---------
    brain : MergeMixin
        That is about to train. Its merge stages are looked for among its
        hyperparameters.
    epochs : int, optional
        How many there are still to come, where that is known.

    Raises
    ------
    ValueError
        Naming the stage or the pool, and the key of the YAML.
    """
    for pool in brain.pools():
        check_disk_space(pool, epochs)
    for stage in stages_of(brain):
        pools = collected_by(brain, stage)
        if not pools:
            continue  # of other trainings: nothing is known of them
        tensors = {}
        for label, module in itertools.chain.from_iterable(
            pool.modules.items() for pool in pools
        ):
            for key, tensor in plain_state(module).items():
                tensors[f"{label}.{key}"] = tensor
        title = f"Merge stage '{stage.name}'"
        names = [n for n, t in tensors.items() if t.is_floating_point()]
        check_method_covers(stage.method, names, title)
        check_base(stage, pools, tensors, title)


def stages_of(brain) -> list[MergeStage]:
    """The merge stages among the hyperparameters of a Brain.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``hparams``.

    Returns
    -------
    stages : list of MergeStage
        Also those in lists and dicts.
    """

    def found(value: Any, deep: int) -> Iterator[MergeStage]:
        if isinstance(value, MergeStage):
            yield value
        elif isinstance(value, Mapping) and deep:
            for inner in value.values():
                yield from found(inner, deep - 1)
        elif isinstance(value, (list, tuple)) and deep:
            for inner in value:
                yield from found(inner, deep - 1)

    hparams = getattr(brain, "hparams", None)
    return list(found(vars(hparams) if hparams is not None else {}, 3))


def collected_by(brain, stage: MergeStage) -> list:
    """The Brain's own pools from which a stage takes candidates.

    Arguments
    ---------
    brain : MergeMixin
        With pools.
    stage : MergeStage
        Its ``candidates``.

    Returns
    -------
    pools : list of CheckpointPool
    """
    given = stage.candidates
    listed = given if isinstance(given, (list, tuple)) else [given]
    found = []
    for pool in brain.pools():
        for one in listed:
            same = one is pool
            if isinstance(one, (str, os.PathLike)):
                place = Path(one).absolute()
                # the pool, or one of its runs
                same = pool.folder in (place, place.parent)
            if same and pool not in found:
                found.append(pool)
    return found


def check_method_covers(method: MergeMethod, names: list, title: str) -> None:
    """Refuses coefficients that have no value for a tensor of the model.

    Arguments
    ---------
    method : MergeMethod
        Wrapped methods are looked at as well, with the names that they see.
    names : list of str
        Names of the model's tensors.
    title : str
        What to call the stage.

    Raises
    ------
    ValueError
        Naming the coefficient and the tensor.
    """
    if isinstance(method, Restricted):
        chosen = [name for name in names if method.chooses(name)]
        if not chosen:
            raise ValueError(
                f"{title}: no tensor of the model matches "
                f"include={method.include!r}, exclude={method.exclude!r}. "
                f"Names are like {names[:3]}."
            )
        names = chosen
    depths = depth(names)
    for key, value in method.configuration().items():
        if isinstance(value, Mapping) and FORMS & set(value):
            check_covers(value, names, depths, f"{title}: `{key}`")
    inner = getattr(method, "method", None)
    if isinstance(inner, MergeMethod):
        check_method_covers(inner, names, title)


def check_base(stage: MergeStage, pools: list, tensors: Mapping, title: str):
    """Refuses a base that is not there, or is of another model.

    Arguments
    ---------
    stage : MergeStage
        With or without ``base``.
    pools : list of CheckpointPool
        What it takes candidates from.
    tensors : dict
        Name to tensor of the modules that will be candidates.
    title : str
        What to call the stage.

    Raises
    ------
    ValueError
        Naming the base, or the pool that keeps none.
    """
    method = stage.method
    if stage.base is None:
        if not (method.needs_base or stage.with_base) or stage.extends:
            return
        for pool in pools:
            if not pool.base:
                raise ValueError(
                    f"{title}: '{method.name}' needs the weights that the "
                    f"experts start from, and the pool {pool.folder} has "
                    "`base: False`. Let the pool store the base, or give "
                    "`base` to the stage."
                )
        return
    if not isinstance(stage.base, (str, os.PathLike)):
        return
    try:
        base = local_source(stage.base)
        if not method.needs_same_names:
            open_weights(base).close()
            return
        with open_weights(tensors) as model:
            check_compatible([model], renamed(fold(base), model), finite=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{title}: `base`: {error}") from error


def check_disk_space(pool, epochs: Optional[int] = None) -> None:
    """Refuses a pool for which the disk is certainly too small.

    Arguments
    ---------
    pool : CheckpointPool
        About to collect.
    epochs : int, optional
        How many checkpoints there will be at least, where nothing bounds the
        pool.

    Raises
    ------
    ValueError
        With the size of a candidate, how many there will be, and what is free.
    """
    size = sum(
        tensor.numel() * tensor.element_size()
        for module in pool.modules.values()
        for tensor in {id(t): t for t in module.state_dict().values()}.values()
        if hasattr(tensor, "element_size")
    )
    bounds = [n for n in (pool.keep_last, pool.keep_best) if n is not None]
    number = None if epochs is None else epochs // pool.every
    if bounds:
        number = min(sum(bounds), sum(bounds) if number is None else number)
    if number is None:
        return
    # one more while the oldest has not made way, and the base
    needed = (number + bool(bounds) + bool(pool.base)) * size
    free = shutil.disk_usage(_existing(pool.folder)).free
    said = (
        f"pool {pool.folder}: up to {number} candidates of {_size(size)}, in "
        f"all {_size(needed)}; {_size(free)} are free"
    )
    if needed > free:
        raise ValueError(
            f"The disk is too small for the {said}. Keep fewer (`keep_last`, "
            "`keep_best`, `every`), or give the pool a folder elsewhere."
        )
    logger.info("Disk space of the %s.", said)


def check_trackers(brain) -> None:
    """Refuses a search whose error rates the Brain does not count.

    Called after the first validation, when a recipe has made its counters.

    Arguments
    ---------
    brain : MergeMixin
        That has validated once.

    Raises
    ------
    ValueError
        Naming the stage, its ``tracker``, and the counters that there are.
    """
    for stage in stages_of(brain):
        if stage.search is None or not collected_by(brain, stage):
            continue
        name = stage.score.tracker
        if not isinstance(getattr(brain, name, None), MetricStats):
            there = [
                key
                for key, value in vars(brain).items()
                if isinstance(value, MetricStats)
            ]
            raise ValueError(
                f"Merge stage '{stage.name}' searches by the Brain's "
                f"`{name}`, and after a validation there is none. Give "
                "`tracker`: the attribute with the recipe's ErrorRateStats"
                + (f", here {', '.join(there)}." if there else ".")
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _size(number: float) -> str:
    """Bytes for people."""
    units = ["bytes", "kB", "MB", "GB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.1f} {units[0]}"
