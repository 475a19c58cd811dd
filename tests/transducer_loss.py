"""The transducer loss in plain torch, for machines without numba and CUDA.

SpeechBrain's own needs both. This one walks over the lattice cell by cell, so
it is for a few frames and labels.

Reference: A. Graves, "Sequence Transduction with Recurrent Neural Networks",
2012, https://arxiv.org/abs/1211.3711

Example
-------
>>> logits = torch.zeros(1, 2, 2, 3)  # two frames, one label, three classes
>>> lengths = torch.ones(1)
>>> loss = transducer_loss(logits, torch.tensor([[1]]), lengths, lengths, 0)
>>> round(loss.item(), 4)  # two paths of three steps: -log(2 / 3^3)
2.6027

Authors
 * The speechbrain_merge authors 2026
"""

import torch


def transducer_loss(
    logits, targets, input_lens, target_lens, blank_index, reduction="mean"
):
    """Takes the place of `speechbrain.nnet.losses.transducer_loss`.

    Arguments
    ---------
    logits : torch.Tensor
        Shape [batch, frames, labels + 1, classes].
    targets : torch.Tensor
        Shape [batch, labels].
    input_lens : torch.Tensor
        Relative lengths in frames.
    target_lens : torch.Tensor
        Relative lengths in labels.
    blank_index : int
        The class of the blank.
    reduction : str
        Unused: the mean over the batch.

    Returns
    -------
    torch.Tensor
    """
    del reduction  # Unused
    frames = (input_lens * logits.shape[1]).round().int().tolist()
    labels = (target_lens * targets.shape[1]).round().int().tolist()
    scores = logits.log_softmax(-1)
    losses = [
        -_log_likelihood(
            scores[i, : frames[i], : labels[i] + 1],
            targets[i, : labels[i]],
            blank_index,
        )
        for i in range(len(scores))
    ]
    return torch.stack(losses).mean()


def _log_likelihood(scores, target, blank):
    """Log-probability of a target: scores [frames, labels + 1, classes]."""
    blanks = scores[:, :, blank]
    emitted = scores[:, :-1].gather(
        2, target.long().expand(len(scores), -1).unsqueeze(2)
    )[:, :, 0]
    row = None
    for frame in range(len(scores)):
        cells = []
        for label in range(scores.shape[1]):
            ways = []
            if frame > 0:
                ways.append(row[label] + blanks[frame - 1, label])
            if label > 0:
                ways.append(cells[-1] + emitted[frame, label - 1])
            if ways:
                cells.append(torch.logsumexp(torch.stack(ways), 0))
            else:
                cells.append(scores.new_zeros(()))
        row = cells
    return row[-1] + blanks[-1, -1]
