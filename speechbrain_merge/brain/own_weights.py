"""The own weights of modules with adapters, kept while others are loaded.

A recipe that trains LoRA has a frozen model, which no checkpoint of
SpeechBrain's `AdaptedModel` contains: it saves what was trained alone, and
loads that over whatever the frozen part is. A merge stage puts merged weights
there. So the module's own weights are kept aside and come back before anything
relies on them: before training, before evaluation, and before a checkpoint is
loaded, whoever loads it.

Modules without adapters need none of this: their checkpoints are whole. They
are lent for a while by `borrowed_weights`, which gives them back at its end.

Example
-------
>>> import torch
>>> from speechbrain.nnet.adapters import AdaptedModel, LoRA
>>> model = AdaptedModel(
...     torch.nn.Sequential(torch.nn.Linear(2, 2)), LoRA, all_linear=True
... )
>>> before = {name: t.clone() for name, t in model.state_dict().items()}
>>> own = OwnWeights()
>>> own.lend(model, {"0.weight": torch.zeros(2, 2), "0.bias": torch.ones(2)})
>>> model(torch.ones(1, 2)).tolist()
[[1.0, 1.0]]
>>> own.restore()
>>> after = model.state_dict()
>>> all(torch.equal(after[name], before[name]) for name in before)
True

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib

import torch

from speechbrain.utils.checkpoints import DEFAULT_LOAD_HOOKS, get_default_hook
from speechbrain_merge.weights import has_adapters, load_plain, open_weights


class OwnWeights:
    """Lends modules with adapters to other weights, and restores them.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer, optional
        Before it loads a checkpoint into a lent module, the module is
        restored.
    """

    def __init__(self, checkpointer=None):
        self.checkpointer = checkpointer
        self._kept = []  # (module, its state)
        self._hooks = {}  # recoverable: the custom hook it had, or None

    def lend(self, module: torch.nn.Module, source):
        """Puts plain weights into a module with adapters.

        Arguments
        ---------
        module : torch.nn.Module
            Its weights are kept, unless they are kept already.
        source : any source of `open_weights`
            Under plain names.
        """
        known = any(each is module for each, _ in self._kept)
        state = {} if known else _copied(module)
        load_plain(module, source)
        if not known:
            self._kept.append((module, state))
            self._watch(module)

    def restore(self):
        """Gives all lent modules their own weights back."""
        for module, state in self._kept:
            module.load_state_dict(state, strict=True)
        self._kept = []
        for name, hook in self._hooks.items():
            del self.checkpointer.custom_load_hooks[name]
            if hook is not None:
                self.checkpointer.custom_load_hooks[name] = hook
        self._hooks = {}

    def _watch(self, module):
        """Restores before a checkpoint is loaded into any part of it."""
        if self.checkpointer is None:
            return
        parts = set(module.modules())
        for name, recoverable in self.checkpointer.recoverables.items():
            if name in self._hooks or not isinstance(
                recoverable, torch.nn.Module
            ):
                continue
            if parts & set(recoverable.modules()):
                hooks = self.checkpointer.custom_load_hooks
                self._hooks[name] = hooks.get(name)
                hooks[name] = self._restore_and_load(self._hooks[name])

    def _restore_and_load(self, hook):
        def load(recoverable, path, end_of_epoch):
            self.restore()
            own = hook or get_default_hook(recoverable, DEFAULT_LOAD_HOOKS)
            own(recoverable, path, end_of_epoch)

        return load


@contextlib.contextmanager
def borrowed_weights(brain, source):
    """A Brain computes with other weights for a while.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. On leaving, however that happens, its modules hold
        what they held before.
    source : object
        Anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``.
    """
    with open_weights(source) as weights:
        modules = [
            brain.module_named(name, weights.label)
            for name in dict.fromkeys(
                name.partition(".")[0] for name in weights.names()
            )
        ]
    kept = [
        (module, _copied(module))
        for module in modules
        if not has_adapters(module)  # `OwnWeights` keeps those
    ]
    before = brain.own_weights
    brain.own_weights = OwnWeights(brain.checkpointer)
    try:
        brain.load_weights(source)
        yield
    finally:
        brain.own_weights.restore()
        brain.own_weights = before
        for module, state in kept:
            module.load_state_dict(state, strict=True)


def _copied(module):
    # On the CPU: next to the model there may be no room for a second one
    return {
        name: tensor.detach().to("cpu", copy=True)
        if isinstance(tensor, torch.Tensor)
        else tensor
        for name, tensor in module.state_dict().items()
    }
