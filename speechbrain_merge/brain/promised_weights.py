"""Evaluation with the weights that were asked for, whatever hooks load.

Recipes override the hooks of the Brain. Fourteen of SpeechBrain's own scripts
override ``on_evaluate_start``, and most of those load an average of their own
checkpoints there, after the hook of ``MergeMixin`` has run. After testing they
save that average as a checkpoint with a made-up metric and delete all others.

So the promise is not kept in a hook that a recipe overrides. It is kept where
the first batch is about to be evaluated, after ``on_evaluate_start``,
``on_stage_start`` and ``modules.eval()``: there every promised tensor is
compared with what the modules hold, is put back where it differs, and the run
stops where that cannot be done. While promised weights are evaluated, the
Checkpointer neither saves nor deletes.

What holds under each hook is in ``docs/recipe_hooks.md``.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import os

import torch

from speechbrain.core import Stage
from speechbrain.utils.logger import get_logger
from speechbrain_merge.weights import has_adapters, open_weights, plain_state

logger = get_logger(__name__)

CHANGING = ("save_checkpoint", "save_and_keep_only", "delete_checkpoints")
"""What a Checkpointer is asked for when it is to write or delete."""

SHOWN = 3  # names in a message


class Guard:
    """Puts the promised weights in place before the first batch, once.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    methods : tuple of str
        The Brain's methods that mean a batch is evaluated. The first call of
        any of them is preceded by the check.
    on_ready : Callable, optional
        Called once the weights are in place.
    """

    def __init__(self, brain, methods, on_ready=None):
        self.brain, self.methods, self.on_ready = brain, methods, on_ready
        self._replaced = None
        self._used = {}

    def set(self):
        """Guards the methods: weights are checked before the first batch."""
        self._used = parameters_in_use(self.brain)
        # Attributes of the instance go before whatever the recipe's class
        # makes of these methods
        self._replaced = _replace(
            self.brain, {name: self._guarded(name) for name in self.methods}
        )

    def lift(self):
        """Gives the Brain its methods back."""
        if self._replaced is not None:
            _put(self.brain, self._replaced)
            self._replaced = None

    def _guarded(self, name):
        own = getattr(self.brain, name)

        def first(*arguments, **keywords):
            stage = keywords.get("stage", [None, *arguments[1:2]][-1])
            if self.brain.scoring:  # a hook that merges scores candidates
                return own(*arguments, **keywords)
            self.lift()
            if stage == Stage.TRAIN:  # a training loop of the recipe's own
                return own(*arguments, **keywords)
            promised = self.brain.promised
            if promised is not None:
                self.brain.check_promised_file()
                put_back(self.brain, promised)
                self._check_modules()
            if self.on_ready is not None:
                self.on_ready()
            result = own(*arguments, **keywords)
            if promised is not None:
                self._check_after(name, promised)
            return result

        return first

    def _check_modules(self):
        """Raises unless the modules in use are those that were filled."""
        now = parameters_in_use(self.brain)
        for name, before in self._used.items():
            if not before <= now.get(name, set()):
                raise RuntimeError(
                    f"A hook of {type(self.brain).__name__} replaced the "
                    f"module '{name}' when evaluation started, so that other "
                    "weights than the promised ones would be evaluated. Load "
                    "weights into the module in place, or call "
                    "use_weights(None) to evaluate the recipe's own."
                )

    def _check_after(self, name, promised):
        """Raises if the batch was evaluated with other weights."""
        changed, _ = differing(self.brain, promised, parameters_only=True)
        if changed:
            raise RuntimeError(
                f"{type(self.brain).__name__}.{name} changed "
                f"{_listed(changed)} while it evaluated the first batch: "
                "these are not the weights that were promised. Call "
                "use_weights(None) to evaluate the recipe's own."
            )


def file_of(source):
    """Which file a source is, so that another in its place is noticed.

    Arguments
    ---------
    source : object
        As for ``use_weights``.

    Returns
    -------
    tuple or None
        None where the source is no path of a file.
    """
    source = getattr(source, "path", source)  # of a candidate
    if not isinstance(source, (str, os.PathLike)) or not os.path.isfile(source):
        return None
    found = os.stat(source)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def put_back(brain, source):
    """Makes the Brain hold the promised weights.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    source : object
        Anything that ``open_weights`` opens.

    Raises
    ------
    RuntimeError
        Where the modules do not hold them even then.
    """
    others, unseen = differing(brain, source)
    if not others and not unseen:
        return
    brain.load_weights(source)
    if others:
        logger.warning(
            f"{type(brain).__name__} loaded other weights when evaluation "
            f"started ({_listed(others)} differed): the promised ones were put "
            "back. use_weights(None) evaluates the recipe's own choice."
        )
    others, _ = differing(brain, source)
    if others:
        raise RuntimeError(
            f"{_listed(others)} do not keep the weights that are to be "
            "evaluated: something in the modules changes what is loaded into "
            "them. Call use_weights(None) to evaluate the recipe's own."
        )


def differing(brain, source, parameters_only=False):
    """Names of tensors that the modules hold with other values.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    source : object
        Anything that ``open_weights`` opens.
    parameters_only : bool
        Leaves out buffers, which a forward pass may change.

    Returns
    -------
    others : list of str
        Compared in the dtype of the modules.
    unseen : list of str
        Those that the modules hold in another form, such as weight norm.
    """
    found, unseen, held = [], [], {}
    with open_weights(source) as weights:
        for name in weights.names():
            key, _, parameter = name.partition(".")
            if key not in held:
                held[key] = _held(
                    brain.module_named(key, weights.label), parameters_only
                )
            own = held[key].get(parameter)
            if own is None:
                unseen.append(name)
            elif not _equal(own, weights[name]):
                found.append(name)
    return found, unseen


def _held(module, parameters_only):
    """The tensors of a module under the names of merged weights."""
    state = plain_state(module) if has_adapters(module) else module.state_dict()
    if not parameters_only:
        return state
    buffers = {name for name, _ in module.named_buffers()}
    return {name: own for name, own in state.items() if name not in buffers}


def _equal(own, promised):
    if not isinstance(own, torch.Tensor) or own.shape != promised.shape:
        return False
    promised = promised.to(own.device, own.dtype)
    # NaN is equal to itself here: these may be anybody's weights
    same = (own == promised) | ((own != own) & (promised != promised))
    return bool(same.all())


def parameters_in_use(brain):
    """Which parameters of the promised modules the Brain computes with.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.

    Returns
    -------
    dict
        Name of the promised module to the identities of its parameters that
        are in ``brain.modules``; DDP and compilation keep these.
    """
    if brain.promised is None:
        return {}
    in_use = {id(each) for each in brain.modules.parameters()}
    with open_weights(brain.promised) as weights:
        names = {name.partition(".")[0] for name in weights.names()}
        modules = {
            name: brain.module_named(name, weights.label) for name in names
        }
    return {
        name: {id(each) for each in module.parameters()} & in_use
        for name, module in modules.items()
    }


@contextlib.contextmanager
def untouched_checkpoints(brain):
    """While a Brain evaluates promised weights, no checkpoint changes.

    Recipes that average save the average after testing and delete what it was
    made of. With a merge in the modules the next test set, and a training
    that is resumed, would begin from that.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Without promised weights its Checkpointer saves
        and deletes as usual.
    """
    if brain.checkpointer is None:
        yield
        return
    said = []

    def unless_promised(own):
        def method(*arguments, **keywords):
            if brain.promised is None:
                return own(*arguments, **keywords)
            if not said:
                logger.info(
                    "The recipe asked to save or delete checkpoints after "
                    "testing. They stay as they are while merged weights are "
                    "evaluated."
                )
                said.append(True)

        return method

    before = _replace(
        brain.checkpointer,
        {
            name: unless_promised(getattr(brain.checkpointer, name))
            for name in CHANGING
        },
    )
    try:
        yield
    finally:
        _put(brain.checkpointer, before)


def _replace(owner, attributes):
    """Sets attributes of an instance; gives what it had of its own before."""
    before = {name: vars(owner).get(name) for name in attributes}
    vars(owner).update(attributes)
    return before


def _put(owner, before):
    """Undoes `_replace`."""
    for name, own in before.items():
        vars(owner).pop(name, None)
        if own is not None:
            vars(owner)[name] = own


def _listed(names):
    """The first of some names, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
