r"""The entropy of a recogniser's outputs, measured without transcripts.

A model that knows a domain puts its probability on few tokens, so low entropy
on audio goes with few errors, and needs no transcript to be measured; this is
what AdaMerging (arXiv 2310.02575) minimises. For a recogniser it is the mean
over all frames (CTC) or tokens (decoder) of the entropy of the distribution
over labels, in nats,

    H = −1/N Σ_{b,t} Σ_c p_{btc} log p_{btc}

over the N positions that are no padding.

Two things to know. Most frames of a CTC model are blank, whatever is said, and
they are the sure ones: ``skip_blank`` leaves out those where the blank is most
probable. And entropy can be had for nothing, by always saying the same: on the
made-up speech of this package's tests, 40 steps halve the entropy of a small
CTC model, and its word errors rise. Keep the number of steps small, and look at
the error rate; with transcripts, the loss is the safer guide.

Example
-------
>>> even = torch.zeros(1, 4, 8)  # logits
>>> bool(entropy(even).isclose(torch.tensor(8.0).log()))
True
>>> sure = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [5.0, 5.0, 5.0]]])
>>> bool(entropy(sure, torch.tensor([2 / 3])) < 0.01)  # the last is padding
True

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch

# In place of log 0, which times 0 would be no number
_LOWEST = -1e4


def entropy(
    scores: torch.Tensor,
    lengths: Optional[torch.Tensor] = None,
    skip_blank: Optional[int] = None,
) -> torch.Tensor:
    """The mean entropy of the distributions over labels, in nats.

    Arguments
    ---------
    scores : torch.Tensor
        Logits or log-probabilities, [batch, positions, labels].
    lengths : torch.Tensor, optional
        Relative lengths, [batch], as SpeechBrain has them. What is beyond is
        padding. Default: nothing is.
    skip_blank : int, optional
        Positions where this label is the most probable do not count.

    Returns
    -------
    torch.Tensor
        Of no dimension; 0 where no position counts.

    Raises
    ------
    ValueError
        For scores or lengths of other shapes.
    """
    if scores.dim() != 3:
        raise ValueError(
            "entropy needs scores [batch, positions, labels], got shape "
            f"{tuple(scores.shape)}."
        )
    counts = torch.ones(
        scores.shape[:2], dtype=torch.bool, device=scores.device
    )
    if lengths is not None:
        if lengths.shape != scores.shape[:1]:
            raise ValueError(
                f"There are {scores.shape[0]} utterances, and lengths of shape "
                f"{tuple(lengths.shape)}: give one for each."
            )
        ends = (lengths.to(scores.device) * scores.shape[1]).round()
        places = torch.arange(scores.shape[1], device=scores.device)
        counts = places < ends[:, None]
    if skip_blank is not None:
        counts = counts & (scores.argmax(dim=-1) != skip_blank)
    # padding may be anything, even NaN, and must not reach a gradient
    scores = scores.masked_fill(~counts[..., None], 0)
    wide = torch.promote_types(scores.dtype, torch.float32)
    logs = scores.to(wide).log_softmax(dim=-1).clamp(min=_LOWEST)
    each = -(logs.exp() * logs).sum(dim=-1)
    return each.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


def scores_of(predictions, batch, outputs=None):
    """The scores, and their lengths, in what ``compute_forward`` returned.

    Arguments
    ---------
    predictions : object
        From the Brain's ``compute_forward``.
    batch : PaddedBatch
        What it was called on.
    outputs : str or callable, optional
        Where they are. By default predictions begin with scores and their
        lengths, as those of SpeechBrain's CTC recipes. The name of an item of
        the batch, such as ``"tokens_eos"``: predictions are, or begin with,
        the scores of a decoder, and that item has the lengths. Otherwise
        called with predictions and batch, to return scores and lengths.

    Returns
    -------
    scores : torch.Tensor
        [batch, positions, labels].
    lengths : torch.Tensor
        [batch].

    Raises
    ------
    ValueError
        Where they are not found.
    """
    if callable(outputs):
        return outputs(predictions, batch)
    listed = predictions
    if not isinstance(predictions, (tuple, list)):
        listed = [predictions]
    scores = listed[0]
    lengths = listed[1] if len(listed) > 1 else None
    if outputs is not None:
        lengths = getattr(batch, outputs)[1]
    fits = (
        isinstance(scores, torch.Tensor)
        and scores.dim() == 3
        and isinstance(lengths, torch.Tensor)
        and lengths.shape == scores.shape[:1]
        and lengths.is_floating_point()
    )
    if not fits:
        seen = ", ".join(
            str(list(each.shape))
            if isinstance(each, torch.Tensor)
            else type(each).__name__
            for each in listed
        )
        raise ValueError(
            "Entropy needs scores [batch, positions, labels] and relative "
            "lengths [batch], and compute_forward does not begin with them: it "
            f"returned {seen}. Say by `outputs` which item of the batch has "
            "the lengths of a decoder's tokens, e.g. 'tokens_eos', or give a "
            "function of (predictions, batch)."
        )
    return scores, lengths
