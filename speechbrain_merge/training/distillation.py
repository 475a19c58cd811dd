"""Learning without Forgetting: stay close to the outputs of the original.

Fine-tuning on a new domain may move a model away from all that it knew. With
the old data gone, the original model itself can still be asked: on the new
data, the outputs of the new model are kept near those of a frozen copy of the
original (Li & Hoiem, "Learning without Forgetting", 2016), by the distillation
loss of Hinton, Vinyals & Dean (2015). With temperature T, and logits z of the
new model and z0 of the original,

    loss = weight * T^2 * KL(softmax(z0 / T) || softmax(z / T))

averaged over the tokens of a decoder, or the frames of CTC, that are no
padding. T^2 keeps the gradients as large at any temperature; Li & Hoiem have
no such factor, so that their loss is this one with weight / T^2.

In the YAML of a recipe::

    distillation: !new:speechbrain_merge.training.LearningWithoutForgetting
        model: !ref <whisper>
        weight: 0.5

and in the Brain's ``compute_objectives``, where ``logits`` are the model's::

    if stage == sb.Stage.TRAIN:
        keep = self.hparams.distillation
        _, original, _ = keep.original_outputs(wavs, bos_tokens)
        loss = loss + keep(logits, original, tokens_eos_lens)

Several teachers teach by the mean of their posteriors, which is what an
ensemble of them gives out (`mean_posterior_loss`): of CTC models, where their
spikes are in the same frames (``training/guided_ctc.py``).

Example
-------
>>> model = torch.nn.Linear(4, 3)
>>> keep = LearningWithoutForgetting(model, temperature=1.0)
>>> frames = torch.randn(2, 5, 4)
>>> lengths = torch.tensor([1.0, 0.6])
>>> keep(model(frames), keep.original_outputs(frames), lengths).item()
0.0
>>> model.weight.data *= -2.0
>>> bool(keep(model(frames), keep.original_outputs(frames), lengths) > 0)
True

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Optional, Union

import torch

from speechbrain.dataio.dataio import length_to_mask


class LearningWithoutForgetting:
    """A loss term that keeps a model's outputs near the original's.

    It is no module, so that a Brain neither trains nor checkpoints the copy:
    the original is what the model is when this object is made, which is
    before ``fit`` brings a checkpoint back. Where the recipe loads weights
    into the model later (with a Pretrainer, say), call `remember` after it.

    Arguments
    ---------
    model : torch.nn.Module or dict
        The model, or those of several modules that make the outputs. Copied.
    weight : float
        Of the term in the whole loss, at least 0.
    temperature : float
        Above 1, the order of unlikely outputs counts more.

    Raises
    ------
    ValueError
        When weight or temperature is out of range.

    Example
    -------
    >>> keep = LearningWithoutForgetting(torch.nn.Linear(4, 3), weight=0.5)
    >>> logits, original = torch.zeros(1, 1, 2), torch.tensor([[[9.0, 0.0]]])
    >>> round(keep(logits, original).item(), 3)
    1.265
    """

    def __init__(
        self,
        model: Union[torch.nn.Module, Mapping],
        weight: float = 1.0,
        temperature: float = 2.0,
    ):
        if not 0 <= weight < math.inf:
            raise ValueError(f"`weight` must be at least 0, got {weight}.")
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` must be above 0, got {temperature}."
            )
        self.weight, self.temperature = weight, temperature
        if isinstance(model, Mapping):
            model = torch.nn.ModuleDict(model)
        self._model = model
        self.remember()

    def remember(self):
        """Keeps a copy of the model as it is now, as the original."""
        self.original = copy.deepcopy(self._model)
        self.original.requires_grad_(False)
        self.original.eval()

    def original_outputs(self, *inputs, forward: Optional[Callable] = None):
        """The outputs of the original, without dropout and without gradients.

        Arguments
        ---------
        *inputs : object
            As the model takes them. The original goes to the device of the
            first tensor among them.
        forward : callable, optional
            ``forward(original, *inputs)``, where calling the model is not
            all, as with several modules: ``lambda original, wavs:
            original["ctc_lin"](original["wav2vec2"](wavs))``.

        Returns
        -------
        object
            What the model returns.
        """
        for each in inputs:
            if isinstance(each, torch.Tensor):
                self.original.to(each.device)
                break
        with torch.no_grad():
            if forward is None:
                return self.original(*inputs)
            return forward(self.original, *inputs)

    def __call__(
        self,
        logits: torch.Tensor,
        original: torch.Tensor,
        lengths: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """The loss term.

        Arguments
        ---------
        logits : torch.Tensor
            Of the new model, shape [batch, time, classes]. Logarithms of
            probabilities do as well.
        original : torch.Tensor
            Of the original, the same.
        lengths : torch.Tensor, optional
            Relative lengths, shape [batch]: what is beyond is padding.

        Returns
        -------
        torch.Tensor
            A number, in float32.

        Raises
        ------
        ValueError
            When the shapes differ, e.g. as a head was replaced by one of
            other classes.
        """
        if logits.shape != original.shape or logits.dim() != 3:
            raise ValueError(
                "Both models' outputs must have the same shape [batch, time, "
                f"classes], got {tuple(logits.shape)} of the new model and "
                f"{tuple(original.shape)} of the original."
            )
        divergence = _divergence(
            (original.detach().float() / self.temperature).log_softmax(-1),
            (logits.float() / self.temperature).log_softmax(-1),
            lengths,
        )
        return self.weight * self.temperature**2 * divergence


def mean_posterior_loss(
    log_probs: torch.Tensor,
    teachers: Sequence[torch.Tensor],
    lengths: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """``KL(mean of the teachers' posteriors || posteriors of the model)``.

    Arguments
    ---------
    log_probs : torch.Tensor
        Log-posteriors of the model in training, [batch, time, classes].
    teachers : list of torch.Tensor
        Log-posteriors of each teacher, the same shape.
    lengths : torch.Tensor, optional
        Relative lengths, [batch]: what is beyond is padding.

    Returns
    -------
    torch.Tensor
        The mean over frames that are no padding, in float32.

    Raises
    ------
    ValueError
        Where there is no teacher, or shapes differ.

    Example
    -------
    >>> teachers = [torch.tensor([[p]]).log() for p in ([0.9, 0.1], [0.5, 0.5])]
    >>> student = torch.tensor([[[0.7, 0.3]]]).log()
    >>> mean_posterior_loss(student, teachers).abs().item() < 1e-6
    True
    """
    if not teachers:
        raise ValueError("There is no teacher: give one model or several.")
    for teacher in teachers:
        if teacher.shape != log_probs.shape or log_probs.dim() != 3:
            raise ValueError(
                "Teachers and model must have the same shape [batch, time, "
                f"classes], got {tuple(teacher.shape)} and "
                f"{tuple(log_probs.shape)}."
            )
    stacked = torch.stack([each.detach().float() for each in teachers])
    wanted = stacked.logsumexp(0) - math.log(len(teachers))
    return _divergence(wanted, log_probs.float(), lengths)


def _divergence(wanted, given, lengths):
    """``KL(wanted || given)`` of log-posteriors, the mean over frames."""
    divergence = torch.nn.functional.kl_div(
        given, wanted, reduction="none", log_target=True
    ).sum(-1)
    if lengths is not None:
        steps = divergence.shape[1]
        ends = (lengths.to(divergence.device) * steps).round()
        divergence = divergence[length_to_mask(ends, steps).bool()]
    return divergence.mean()
