"""The transducer loss in plain torch, for machines without numba and CUDA.

SpeechBrain's own needs both. This one walks over the lattice cell by cell, all
utterances of a batch at once: of two seconds and a few words, a batch takes
some hundredths of a second.

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
    last = (input_lens * logits.shape[1]).round().long() - 1
    labels = (target_lens * targets.shape[1]).round().long()
    scores = logits.log_softmax(-1)
    wanted = targets.long()[:, None, :, None].expand(-1, scores.shape[1], -1, 1)
    emitted = scores[:, :, :-1].gather(3, wanted).squeeze(3)
    blanks = scores[..., blank_index]
    # [frames][labels] of scores of the batch
    blanks = [row.unbind(1) for row in blanks.unbind(1)]
    emitted = [row.unbind(1) for row in emitted.unbind(1)]
    ends, row = [], []
    for frame, blank in enumerate(blanks):
        cells = []
        for label in range(len(blank)):
            ways = []
            if frame > 0:
                ways.append(row[label] + blanks[frame - 1][label])
            if label > 0:
                ways.append(cells[-1] + emitted[frame][label - 1])
            if ways:
                cells.append(torch.logsumexp(torch.stack(ways), 0))
            else:
                cells.append(torch.zeros_like(blank[0]))
        row = cells
        ends.append(torch.stack([c + b for c, b in zip(cells, blank)], 1))
    each = torch.arange(len(logits))
    return -torch.stack(ends, 1)[each, last, labels].mean()
