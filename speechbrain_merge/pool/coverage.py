"""Whether candidates hold all that is trained.

A recogniser is often several modules: an encoder that was pretrained, and a
head on it that was not. A pool of the encoder alone would merge encoders of
several trainings, score each merge under the head that the Brain happens to
hold, and evaluate it under another one, from the best checkpoint. The error
rates would be meaningless, and no error message would say so. So training with
such a pool is refused, and so is a merge stage with such candidates.

Trained is what has parameters with ``requires_grad`` among the Brain's modules.
It is held by a pool if the same parameters are in one of the pool's modules,
under whatever name and in whatever list, so that SpeechBrain's
``model: !new:torch.nn.ModuleList [...]`` holds ``modules: {enc, ctc_lin}``.
Frozen modules, those without parameters (a normalizer, features) and those that
no checkpoint keeps (a language model that a search uses) need not be in a pool.

Where only a part is to be merged on purpose, with one head for all that is
itself not trained any further, say, ``partial: True`` of the pool or of the
merge stage says that it is meant.

Authors
 * The speechbrain_merge authors 2026
"""

import os

import torch

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


def check_pools(brain):
    """Refuses to train with pools that hold a part of what is trained.

    Arguments
    ---------
    brain : speechbrain.Brain
        That is about to train. Its pools are among the recoverables.

    Raises
    ------
    ValueError
        Names the trained modules that no pool holds, and the YAML to write; or
        the run that two pools would both collect in.
    """
    pools = [
        each
        for each in brain.checkpointer.recoverables.values()
        if hasattr(each, "partial") and hasattr(each, "candidates")
    ]
    places = [(os.path.realpath(pool.folder), pool.run) for pool in pools]
    for pool, place in zip(pools, places):
        if places.count(place) > 1:
            raise ValueError(
                f"Two pools of this training collect in {pool.folder} under the "
                f"run '{pool.run}', so that each would take the candidates of "
                "the other for its own. Give each a `folder`, or a `run`, of "
                "its own in the YAML."
            )
    held = {}
    for pool in pools:
        held.update(pool.modules)
    missing = missing_modules(brain, held.values())
    if not missing:
        return
    if any(pool.partial for pool in pools):
        logger.warning(
            f"The pool {pools[0].folder} holds {_listed(held)} and, as "
            f"`partial: True` says, not {_listed(missing)}, which is trained "
            "too."
        )
        return
    raise ValueError(
        f"The pool {pools[0].folder} holds {_listed(held)}, but "
        f"{_listed(missing)} {_is(missing)} trained as well. A merge of its "
        "candidates would be scored and evaluated with weights there that "
        "belong to one training alone. Add to the pool in the YAML what is "
        "missing:\n"
        f"    modules: {_yaml([*held, *_yaml_names(brain, missing)])}\n"
        "or, if only a part is to be merged, `partial: True`."
    )


def check_candidates(brain, names, title: str, partial: bool = False) -> dict:
    """Refuses to merge candidates that hold a part of what is trained.

    Arguments
    ---------
    brain : MergeMixin
        That merges.
    names : list of str
        Names of the candidates' tensors, ``<module>.<parameter>``.
    title : str
        What errors call the merge.
    partial : bool
        True merges a part.

    Returns
    -------
    missing : dict
        Name to trained module, of those that are not merged.

    Raises
    ------
    ValueError
        Names the trained modules that are missing, and what to do.
    """
    held = list(dict.fromkeys(name.partition(".")[0] for name in names))
    try:
        modules = [brain.module_named(name, title) for name in held]
    except ValueError:
        return {}  # of another Brain: loading them here will say so
    missing = missing_modules(brain, modules)
    if missing and not partial:
        raise ValueError(
            f"{title}: the candidates hold {_listed(held)}, but "
            f"{_listed(missing)} {_is(missing)} trained as well. The merge "
            "would be scored and evaluated with weights there that belong to "
            "one training alone. Merge candidates that hold all: whole "
            "checkpoint folders (CKPT+…), or a pool of which the YAML says\n"
            f"    modules: {_yaml([*held, *_yaml_names(brain, missing)])}\n"
            "or, if only a part is to be merged, set `partial: True` of the "
            "merge stage."
        )
    return missing


def check_tested(brain, names, label: str):
    """Refuses to test weights beside modules that nothing has trained with them.

    Arguments
    ---------
    brain : MergeMixin
        That tests. Where one of its pools is `partial`, a part may be tested.
    names : list of str
        Names of the weights' tensors, ``<module>.<parameter>``.
    label : str
        What errors call the weights.

    Raises
    ------
    ValueError
        Names the trained modules that are missing.
    """
    partial = any(pool.partial for pool in brain.pools())
    held = dict.fromkeys(name.partition(".")[0] for name in names)
    modules = [brain.module_named(name, label) for name in held]
    missing = missing_modules(brain, modules)
    if missing and not partial:
        raise ValueError(
            f"{label} has weights of {_listed(held)}, and {_listed(missing)} "
            f"{_is(missing)} trained as well: the error rates would be those "
            "of weights there that were not trained with these. Give weights "
            "that hold all, such as a whole checkpoint folder (CKPT+…); or, if "
            "only a part is meant, set `partial: True` of the recipe's "
            "CheckpointPool."
        )


def missing_modules(brain, held) -> dict:
    """The trained modules of a Brain that others do not hold.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    held : list of torch.nn.Module
        Modules.

    Returns
    -------
    missing : dict
        Name to module, of the Brain's modules with a parameter that is trained
        and that none of the others has.

    Example
    -------
    >>> import speechbrain as sb
    >>> encoder, head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> brain = sb.Brain({"encoder": encoder, "head": head})
    >>> list(missing_modules(brain, [encoder]))
    ['head']
    >>> list(missing_modules(brain, [torch.nn.ModuleList([encoder, head])]))
    []
    >>> _ = head.requires_grad_(False)
    >>> list(missing_modules(brain, [encoder]))
    []
    """
    known = {
        id(parameter) for module in held for parameter in module.parameters()
    }
    trained = trained_parameters(brain, known)
    return {
        name: module
        for name, module in getattr(brain, "modules", {}).items()
        if any(
            id(parameter) in trained and id(parameter) not in known
            for parameter in module.parameters()
        )
    }


def trained_parameters(brain, known=frozenset()) -> set:
    """The parameters that training a Brain changes.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    known : set of int
        Ids of parameters that are trained for certain. Where checkpoints keep
        none of them, they are checkpoints of something else.

    Returns
    -------
    set of int
        Ids of those of its modules that require a gradient and that
        checkpoints keep: a language model that a search uses may require one,
        and no checkpoint has it. Without checkpoints a gradient is enough.
    """
    saved = _saved_parameters(brain)
    if saved is not None and not saved & known:
        saved = None
    return {
        id(parameter)
        for module in getattr(brain, "modules", {}).values()
        for parameter in module.parameters()
        if parameter.requires_grad and (saved is None or id(parameter) in saved)
    }


def _saved_parameters(brain):
    """Ids of the parameters that checkpoints keep; None without checkpoints.

    A module that no checkpoint keeps is the same in every run: a language model
    that a search uses.
    """
    checkpointer = getattr(brain, "checkpointer", None)
    if checkpointer is None:
        return None
    modules = [
        each
        for each in checkpointer.recoverables.values()
        if isinstance(each, torch.nn.Module)
    ]
    if not modules:
        return None
    return {id(each) for module in modules for each in module.parameters()}


def _yaml_names(brain, missing):
    """Names of the recoverables that hold modules; else the modules' own."""
    recoverables = {}
    if brain.checkpointer is not None:
        recoverables = {
            name: set(map(id, recoverable.parameters()))
            for name, recoverable in brain.checkpointer.recoverables.items()
            if isinstance(recoverable, torch.nn.Module)
        }
    names = []
    for name, module in missing.items():
        own = set(map(id, module.parameters()))
        holders = [
            each for each, inside in recoverables.items() if own <= inside
        ]
        names.append((holders or [name])[0])
    return list(dict.fromkeys(names))


def _yaml(names):
    rows = ", ".join(f"{name}: !ref <{name}>" for name in dict.fromkeys(names))
    return f"{{{rows}}}"


def _listed(names):
    return " and ".join(f"'{name}'" for name in names)


def _is(names):
    return "is" if len(names) == 1 else "are"
