"""The settings of a recipe that decide how weights score.

Two scores can only be compared, and a result only be used again, where the
recipe decodes in the same way. Which of its settings a recipe's decoder reads
cannot be known, so all of its hyperparameters count, as the objects that they
are (see ``speechbrain_merge.records.fingerprint``), but for

- what only trains: optimizers, schedulers, counters, loggers, checkpointers,
  samplers, augmentation, and the settings of ``TRAINING_SETTINGS``. So a search
  uses its scored trials again after training was continued;
- pools, merge stages and studies, which have their own records;
- the weights of the modules that are trained or merged. What is merged has its
  digest, and what is merged without a trained module is refused.

Weights of all others count: a language model for shallow fusion, say. So do the
statistics of a normaliser, which has no weights and is not merged, what a
recipe gives its Brain besides (a tokenizer, a language model, the size of a
beam), the texts of the recipe's modules, and the versions of the packages that
they import.
What methods write (of the Brain, a decoder, …) counts as it was given to the
Brain, and not as it is after a run (see ``speechbrain_merge.records.given_state``).
Folders count by their files where a decoder holds them, or where the code of the
Brain reads the hyperparameter that names them.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Optional

import torch
from torch.utils.data import Dataset

import speechbrain as sb
from speechbrain.utils.run_opts import RunOptions
from speechbrain_merge.brain.dataset_content import made_of, rows_of
from speechbrain_merge.brain.ranks import unwrapped
from speechbrain_merge.pool import CheckpointPool
from speechbrain_merge.pool.coverage import (
    check_candidates,
    missing_modules,
    trained_parameters,
)
from speechbrain_merge.records.fingerprint import fingerprint, look_at
from speechbrain_merge.records.fingerprint_parts import (
    Attributes,
    GivenTo,
    OwnCode,
    has_folders,
    with_folders,
)
from speechbrain_merge.records.given_state import GivenState
from speechbrain_merge.records.object_settings import (
    written_by,
    written_in,
    written_on_self,
)
from speechbrain_merge.records.own_code import names_read
from speechbrain_merge.records.own_functions import is_own
from speechbrain_merge.records.packages import versions_with
from speechbrain_merge.records.recipe_texts import texts_of
from speechbrain_merge.weights import digest, open_weights

TRAINING_SETTINGS = (
    "seed",
    "number_of_epochs",
    "ckpt_interval_minutes",
    "ckpt_interval_steps",
    "lr",
    "lr_",
    "train_",
)
"""Names of hyperparameters that only training reads; those that end in an
underscore are beginnings of names."""

TRAINING_MODULES = (
    "torch.optim",
    "torch.utils.data",
    "speechbrain.nnet.schedulers",
    "speechbrain.dataio.dataset",
    "speechbrain.dataio.sampler",
    "speechbrain.utils.checkpoints",
    "speechbrain.utils.epoch_loop",
    "speechbrain.utils.logger",
    "speechbrain.utils.parameter_transfer",
    "speechbrain.utils.train_logger",
    "speechbrain_merge.brain",
    "speechbrain_merge.methods",
    "speechbrain_merge.pool",
    "speechbrain_merge.search",
    "speechbrain_merge.stage",
    "speechbrain_merge.study",
    "speechbrain_merge.training.balanced",
    "speechbrain_merge.training.clipping",
    "speechbrain_merge.training.distillation",
    "speechbrain_merge.training.freezing",
    "speechbrain_merge.training.frozen",
    "speechbrain_merge.training.guided_ctc",
    "speechbrain_merge.training.layerwise_decay",
    "speechbrain_merge.training.moving_average",
    "speechbrain_merge.training.rate_ratios",
    "speechbrain_merge.training.sampling",
    "speechbrain_merge.training.saves",
    "speechbrain_merge.training.schedules",
    "speechbrain_merge.training.slanted_triangular",
    "logging",
    "threading",
    "torch.utils.tensorboard",
    "tqdm",
    "wandb",
)
"""Where the classes are from whose objects decide nothing about decoding."""

_READ_TO_TRAIN = ("number_of_epochs",)
"""Those that code of decoding reads as well, to tell how far training is."""

LOSS_MODULES = (
    "speechbrain_merge.training.distillation",
    "speechbrain_merge.training.frozen",
    "speechbrain_merge.training.guided_ctc",
)
"""Those of them that decide the loss of a batch in training."""

LOSS_SETTINGS = ("train_",)
"""Those of ``TRAINING_SETTINGS`` that may."""

TRAINING_METHODS = (
    "fit",
    "fit_batch",
    "init_optimizers",
    "on_fit_start",
    "on_fit_batch_start",
    "on_fit_batch_end",
    "on_stage_end",
)
"""Methods of a Brain that count no errors."""

_OF_EVERY_BRAIN = {
    *RunOptions().as_dict(),
    *written_in(sb.Brain.__init__),
    "given_state",
    "test_name",
}
"""Attributes of a Brain that a recipe does not give it, or that are looked at by
themselves: the hyperparameters, the modules."""


def decisive_settings(
    brain,
    names=(),
    leave_out: Optional[Callable[[str, Any], bool]] = None,
    stage: sb.Stage = sb.Stage.VALID,
) -> str:
    """A fingerprint of all in a recipe that may change how weights score.

    Arguments
    ---------
    brain : speechbrain.Brain
        With the recipe's hyperparameters.
    names : list of str, optional
        Names of the tensors that are loaded into the Brain to be scored,
        ``<module>.<parameter>``.
    leave_out : callable, optional
        ``leave_out(name, value) -> bool``: True for a hyperparameter that the
        caller compares by itself.
    stage : speechbrain.Stage
        What the Brain is told. In training, augmentation counts as well.

    Returns
    -------
    str
        The same in a new process, on another device, and where the results
        (the recipe's ``output_folder``) were moved.

    Example
    -------
    >>> import speechbrain as sb
    >>> def settings(**hparams):
    ...     run_opts = {"device": "cpu"}
    ...     return decisive_settings(
    ...         sb.Brain(hparams=hparams, run_opts=run_opts)
    ...     )
    >>> settings(beams=[8, 4]) == settings(beams=[8, 4], number_of_epochs=3)
    True
    >>> settings(beams=[8, 4]) == settings(beams=[8, 8])
    False
    """
    state = _state_of(brain)
    state.look(functools.partial(_look, brain, state))
    settings, folders, skip = _settings(brain, names, leave_out, stage)
    return fingerprint(settings, folders, skip, state)


def data_settings(brain, data, **loading) -> str:
    """A fingerprint of what is made of the rows of a set.

    Arguments
    ---------
    brain : speechbrain.Brain
        That hears it.
    data : Dataset
        As for ``speechbrain_merge.brain.dataset_content.made_of``.
    **loading : object
        How it is loaded: the function that makes batches, for instance.

    Returns
    -------
    str
        64 hexadecimal digits. The rows themselves do not count.
    """
    about = made_of(data)
    folders, skip = _left_out(brain, (), sb.Stage.VALID)
    value, state = {**about, **loading}, _state_of(brain)
    state.meet(functools.partial(look_at, value, folders, skip, state))
    return fingerprint(value, folders, skip, state)


def beside(brain, source) -> dict:
    """What is trained in a Brain beside the weights that it computes with.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    source : object
        Anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``; or a list of such names.

    Returns
    -------
    dict
        Name of a module to the digest of its weights.
    """
    names = source
    if not isinstance(source, list):
        with open_weights(source) as weights:
            names = weights.names()
    held = list(dict.fromkeys(name.partition(".")[0] for name in names))
    try:
        missing = missing_modules(brain, [brain.module_named(n) for n in held])
    except ValueError:
        return {}  # of another Brain: loading them here will say so
    return {name: digest(missing[name]) for name in sorted(missing)}


def running(brain):
    """While a Brain trains or decodes: what it writes is not given to it.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.

    Returns
    -------
    context manager
        May be entered within itself.
    """
    state = _state_of(brain)
    return state.running(functools.partial(_look, brain, state))


def while_running(function: Callable) -> Callable:
    """A function over a Brain's data, as one run of it (see ``running``).

    Arguments
    ---------
    function : callable
        Takes the Brain first.

    Returns
    -------
    callable
    """

    @functools.wraps(function)
    def run(brain, *arguments, **keywords):
        with running(brain):
            return function(brain, *arguments, **keywords)

    return run


def _state_of(brain):
    """What a Brain was given; kept with it, as it ends with it."""
    if not hasattr(brain, "given_state"):
        brain.given_state = GivenState()
    return brain.given_state


def _look(brain, state):
    """Reads all that any fingerprint of a Brain may read."""
    settings, folders, skip = _settings(brain, (), None, sb.Stage.TRAIN)
    owners = look_at(settings, folders, skip, state)
    return [owner for owner in owners if owner is not brain]


def _settings(brain, names, leave_out, stage):
    """What decides, folders that may be moved, and what does not count in it."""
    given = vars(getattr(brain, "hparams", SimpleNamespace()))
    kinds = (type(brain),)
    read = names_read(kinds, TRAINING_METHODS)
    of_recipe = [kind for kind in type(brain).__mro__ if is_own(kind)]
    written = written_by(of_recipe)
    namespace = getattr(brain, "hparams", None)
    hparams = {
        name: GivenTo(namespace, name, value) if name in written else value
        for name, value in {**dict.fromkeys(written), **given}.items()
        if not _is_for_training(name, stage, read)
        and not (leave_out is not None and leave_out(name, value))
    }
    hparams["brain.data"] = {  # that decoding reads, as a table of words
        name: (made_of(value), *rows_of(value))
        for name, value in given.items()
        if name in read and isinstance(value, Dataset)
    }
    hparams["brain.code"] = OwnCode(kinds, TRAINING_METHODS)
    script = texts_of(["__main__"])  # it may give the Brain anything
    hparams["brain.script"] = script.digests
    hparams["brain.packages"] = versions_with({"speechbrain", *script.packages})
    hparams["brain.eval_precision"] = getattr(brain, "eval_precision", None)
    # Normalisers, features and language models that the YAML does not name,
    # whatever several processes wrap them in
    hparams["brain.modules"] = {
        name: unwrapped(module)
        for name, module in getattr(brain, "modules", {}).items()
    }
    hparams["brain.folders"] = {
        name: found
        for name, value in given.items()
        if name in read and has_folders(found := with_folders(value))
    }
    folders, skip = _left_out(brain, names, stage)
    by_others = written_on_self(
        kind for kind in type(brain).__mro__ if not is_own(kind)
    )
    own = {
        name
        for name, value in vars(brain).items()
        if name not in _OF_EVERY_BRAIN
        and name not in by_others
        and not skip(value)
    }
    hparams["brain"] = Attributes(brain, frozenset(own))
    hparams = SimpleNamespace(**hparams)  # in any order
    return hparams, folders, skip


def _left_out(brain, names, stage):
    """Folders that may be moved, and whether an object decides nothing."""
    skipped: tuple = TRAINING_MODULES
    if stage == sb.Stage.TRAIN:
        skipped = tuple(set(skipped).difference(LOSS_MODULES))
    varying = _varying_tensors(brain, names)
    output = getattr(getattr(brain, "hparams", None), "output_folder", None)

    def skip(value):
        if id(value) in varying:
            return True
        if isinstance(value, functools.partial):
            value = value.func  # of `!name:`
        # an object's is its class's; plain data has none
        home = f"{getattr(value, '__module__', None) or ''}."
        return home.startswith(_dotted(skipped))

    return [] if output is None else [output], skip


def scored_with(brain, title: str, partial: bool, names) -> dict:
    """Everything but the weights that decides how merged weights score.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    title : str
        What errors call the merge.
    partial : bool
        Whether only a part of what is trained may be merged.
    names : list of str
        Names of the merged tensors, ``<module>.<parameter>``.

    Returns
    -------
    dict
        `hparams`, the recipe's decisive settings, `beside`, the digests of
        what is trained and not merged, and `text` and `packages`, the recipe's
        texts and the versions of its packages. They count in `hparams`, too,
        and are here by themselves to say what has changed.

    Raises
    ------
    ValueError
        Where a part alone is merged, and nothing says that it is meant.
    """
    check_candidates(brain, names, title, partial)
    texts = texts_of(
        ["__main__", *(kind.__module__ for kind in type(brain).__mro__)]
    )
    return {
        "hparams": decisive_settings(brain, names),
        "beside": beside(brain, list(names)),
        "text": texts.digests,
        "packages": versions_with(texts.packages),
    }


def _dotted(modules):
    return tuple(f"{module}." for module in modules)


def _is_for_training(name, stage, read):
    """Whether a hyperparameter only trains; not where decoding may read it."""
    if name in read and name not in _READ_TO_TRAIN:
        return False
    return any(
        name.startswith(each) if each.endswith("_") else name == each
        for each in TRAINING_SETTINGS
        if stage != sb.Stage.TRAIN or each not in LOSS_SETTINGS
    )


def _has_parameters(module):
    return next(module.parameters(), None) is not None


def _varying_tensors(brain, names):
    """Ids of the tensors that training or a merge changes."""
    modules = []
    checkpointer = getattr(brain, "checkpointer", None)
    if checkpointer is not None:
        for recoverable in checkpointer.recoverables.values():
            if isinstance(recoverable, CheckpointPool):
                modules += recoverable.modules.values()
            elif isinstance(recoverable, torch.nn.Module) and _has_parameters(
                recoverable
            ):
                modules.append(recoverable)
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        with contextlib.suppress(ValueError):  # not a module of this Brain
            modules.append(brain.module_named(name))
    known = {id(each) for module in modules for each in module.parameters()}
    trained = trained_parameters(brain, known) | known
    for module in getattr(brain, "modules", {}).values():
        moved = [each for each in module.parameters() if each.requires_grad]
        if moved and all(id(each) in trained for each in moved):
            modules.append(module)
    return {
        id(tensor)
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    } - {
        # in no checkpoint, and made from settings
        id(part._buffers[name])
        for module in modules
        for part in module.modules()
        for name in part._non_persistent_buffers_set
    }
