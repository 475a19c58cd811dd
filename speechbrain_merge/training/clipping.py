"""Gradient clipping over all parameter groups.

SpeechBrain's Brain clips the gradients of an optimizer's first group, and of
no other. With one group that is all of them; with layer-wise learning rates,
or weights apart from biases, most gradients are then never clipped.
``ClipAllGroups`` takes one norm over all groups of an optimizer, as
``max_grad_norm`` means it, so that a long gradient is shortened and keeps its
direction::

    class ASR(ClipAllGroups, sb.Brain): ...


    class ASR(ClipAllGroups, MergeMixin, sb.Brain): ...

Example
-------
>>> import speechbrain as sb
>>> class Regression(ClipAllGroups, sb.Brain):
...     def compute_forward(self, batch, stage):
...         return self.modules.b(self.modules.a(batch[0]))
...
...     def compute_objectives(self, predictions, batch, stage):
...         return (predictions - batch[1]).square().sum()
>>> brain = Regression(
...     {"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 1)},
...     opt_class=lambda parameters: torch.optim.SGD(
...         [{"params": [parameter]} for parameter in parameters], lr=1.0
...     ),
...     run_opts={"max_grad_norm": 0.5},
... )
>>> brain.init_optimizers()
>>> before = [p.detach().clone() for p in brain.modules.parameters()]
>>> loss = brain.fit_batch((torch.ones(4, 2), 100 * torch.ones(4, 1)))
>>> after = [p.detach() for p in brain.modules.parameters()]
>>> step = [(new - old).norm() for new, old in zip(after, before)]
>>> round(float(torch.stack(step).norm()), 4)
0.5

Authors
 * The speechbrain_merge authors 2026
"""

import torch


class ClipAllGroups:
    """A mixin with which a Brain clips the gradients of all groups.

    All else is as in the Brain: ``max_grad_norm`` from the run options,
    gradients accumulated and unscaled before they are clipped, optimizers
    that ``freeze_optimizers`` leaves out not stepped, and gradients that are
    not finite left to the gradient scaler or, with ``skip_nonfinite_grads``,
    to ``check_gradients``. One of them makes the norm, hence all gradients of
    its optimizer, not finite, whatever group it is in, as it is with one
    group; so with ``skip_nonfinite_grads`` no half of a step is taken.
    """

    def optimizers_step(self):
        """Unscales, clips and steps the optimizers, all groups of each."""
        if self.optimizers_dict is not None:
            optimizers = self.freeze_optimizers(self.optimizers_dict)
        elif self.opt_class is not None:
            # A Brain whose own init_optimizers() keeps no dict
            optimizers = {"optimizer": self.optimizer}
        else:
            return
        for optimizer in optimizers.values():
            self.scaler.unscale_(optimizer)
        for optimizer in optimizers.values():
            torch.nn.utils.clip_grad_norm_(
                [
                    parameter
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                ],
                self.max_grad_norm,
            )
        # With a scaler that is on, its step() leaves such gradients out
        if self.skip_nonfinite_grads and not self.scaler.is_enabled():
            self.check_gradients()
        for optimizer in optimizers.values():
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
