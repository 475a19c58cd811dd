"""Guided CTC: one model's spikes say where another's are to be.

CTC leaves open in which frame a label is given out, and two trainings decide
differently, so that neither their posteriors nor their weights can be averaged.
Kurata and Audhkhasi ("Guiding CTC posterior spike timings for improved
posterior fusion and knowledge distillation", Interspeech 2019, arXiv
1904.08311) train a model with a mask ``M`` that a guide makes: 1 for the label
that the guide finds most probable in a frame, 0 for all others, and 0 for all
labels in frames where that is the blank. With the posteriors ``P`` of the model
in training, their loss for an utterance is::

    L = L_CTC + L_G,    L_G = - sum over frames and labels of (M * P)

The mask here is theirs. Two things differ. With the masked frames ``S`` of a
batch and the guide's label ``k_t``, the term is::

    loss = - 1 / |S| * sum over t in S of log p(k_t | t)

where ``form="posterior"`` has ``p`` in the place of ``log p``, as the paper
does. The logarithm is our choice: it has a gradient where the model is sure of
something else. And the term is a mean over the spikes of the batch, where the
paper's is a sum over each utterance: SpeechBrain's ``ctc_loss`` with its
default reduction is a mean over labels, of which there are about as many as
spikes, so that a weight of 1 stands for the paper's sum of the two. Beside a
CTC loss that is summed over utterances, multiply by ``|S|``.

Models that share a guide have their spikes in the same frames, without their
being alike in anything else.

Example
-------
>>> guide = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]).log()  # blank is 0
>>> model = torch.tensor([[[0.5, 0.5], [0.1, 0.9]]]).log()
>>> round(guided_ctc_loss(model, guide).item(), 4)  # - log 0.5
0.6931

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch

from speechbrain.dataio.dataio import length_to_mask

FORMS = ("log", "posterior")


def guided_ctc_loss(
    log_probs: torch.Tensor,
    guide: torch.Tensor,
    lengths: Optional[torch.Tensor] = None,
    blank_index: int = 0,
    form: str = "log",
) -> torch.Tensor:
    """How improbable the guide's labels are in the frames of its spikes.

    Arguments
    ---------
    log_probs : torch.Tensor
        Log-posteriors of the model in training, [batch, time, labels].
    guide : torch.Tensor
        Log-posteriors or logits of the guide, the same shape.
    lengths : torch.Tensor, optional
        Relative lengths, [batch]: what is beyond is padding.
    blank_index : int
        Place of the blank.
    form : str
        "log" or "posterior"; the second times the number of spikes is the
        paper's ``L_G``, see above.

    Returns
    -------
    torch.Tensor
        A number; 0 where the guide has no spike at all.

    Raises
    ------
    ValueError
        Where the shapes differ, or the form is not known.
    """
    if form not in FORMS:
        raise ValueError(f"`form` is {form!r}; expected {' or '.join(FORMS)}.")
    if log_probs.shape != guide.shape or log_probs.dim() != 3:
        raise ValueError(
            "Model and guide must have the same shape [batch, time, labels], "
            f"got {tuple(log_probs.shape)} and {tuple(guide.shape)}: both need "
            "the same labels and the same rate of frames."
        )
    labels = guide.detach().argmax(-1)
    spikes = labels != blank_index
    if lengths is not None:
        steps = labels.shape[1]
        ends = (lengths.to(labels.device) * steps).round()
        spikes &= length_to_mask(ends, steps).bool()
    found = log_probs.gather(-1, labels[..., None])[..., 0][spikes]
    if form == "posterior":
        found = found.exp()
    return -found.sum() / max(int(spikes.sum()), 1)
