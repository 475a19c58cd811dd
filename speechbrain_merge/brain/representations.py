"""Outputs of each layer of two models for the same utterances.

To choose layers for attention merging by data (Sundar et al., 2024, arXiv
2312.14378), the target hears utterances and the source reads their
transcripts. The output of each layer is averaged over time: one vector for
each layer and utterance. ``speechbrain_merge.search.layer_similarity`` compares
them.

The paper takes "hidden representations at the output of each attention block",
which may be the layer or the attention within it: ``capture`` is "layer" or
"attention". The latter is what the module of self-attention returns, which in
BERT and ViT is after the residual connection, and elsewhere before.

How a batch gets into a model is the caller's business, as a function of model
and batch that runs the model and returns how much of each sample is no
padding, as SpeechBrain's relative lengths::

    def hear(hubert, batch):
        wavs, lengths = batch.sig
        hubert(wavs, lengths)
        return lengths


    def read(bert, batch):
        tokens = tokenizer(batch.text, padding=True, return_tensors="pt")
        bert(**tokens)
        return tokens["attention_mask"].float().mean(dim=1)


    said, written = paired_representations(
        hubert, bert, loader, hear=hear, read=read
    )

Example
-------
>>> from transformers import BertConfig, BertModel
>>> bert = BertModel(
...     BertConfig(
...         vocab_size=8,
...         hidden_size=4,
...         num_hidden_layers=2,
...         num_attention_heads=2,
...         intermediate_size=4,
...     )
... )
>>> def read(model, tokens):
...     model(tokens)
>>> batches = [torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 1]])]
>>> found = layer_representations(bert, batches, read, progress=False)
>>> found.vectors.shape  # layers, samples, width
torch.Size([2, 3, 4])

Authors
 * The speechbrain_merge authors 2026
"""

import re
from dataclasses import dataclass
from typing import Callable, Optional

import torch
from tqdm import tqdm

from speechbrain_merge.weights import part

CAPTURES = ("layer", "attention")

# Modules whose layers have time before batch
_TIME_FIRST = ("speechbrain.lobes.models.beats",)


@dataclass(frozen=True)
class Representations:
    """A vector for each layer and sample of one model.

    Arguments
    ---------
    vectors : torch.Tensor
        (layers, samples, width), float32, on the CPU.
    label : str
        What errors and pictures call the model.
    """

    vectors: torch.Tensor
    label: str


def layer_representations(
    model: torch.nn.Module,
    batches,
    run: Callable,
    capture: str = "layer",
    stack: Optional[str] = None,
    time_first: Optional[bool] = None,
    label: Optional[str] = None,
    progress: bool = True,
) -> Representations:
    """The output of each layer of a model for some samples, averaged over time.

    The model is in evaluation mode meanwhile, and computes no gradients.

    Arguments
    ---------
    model : torch.nn.Module
        With attention layers that ``speechbrain_merge.weights.part`` knows.
    batches : iterable
        Such as a DataLoader.
    run : callable
        Takes the model and a batch, runs the one on the other, and returns
        the relative length of each sample (batch,), from 0 to 1, or None
        where nothing is padding. Of T frames the first ``round(length · T)``
        count, and one at least. (Whisper pads to 30 s: lengths are then parts
        of 30 s.)
    capture : str
        "layer" or "attention": see the module's text.
    stack : str, optional
        "encoder" or "decoder"; needed where the model has both.
    time_first : bool, optional
        Whether layers return (time, batch, width). Default: as the known
        models do; only SpeechBrain's BEATs does.
    label : str, optional
        What to call the model. Default: its hub name, or its class.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Representations

    Raises
    ------
    ValueError
        Where the model has no layers that are known, the run does not reach
        them, or a vector is not finite.
    """
    return _together(
        [model],
        [run],
        batches,
        capture,
        [stack],
        [time_first],
        [label],
        progress,
    )[0]


def paired_representations(
    target: torch.nn.Module,
    source: torch.nn.Module,
    batches,
    hear: Callable,
    read: Callable,
    capture: str = "layer",
    target_stack: Optional[str] = None,
    source_stack: Optional[str] = None,
    progress: bool = True,
) -> tuple:
    """Both models over the same samples, in one pass.

    Arguments
    ---------
    target : torch.nn.Module
        The model of speech.
    source : torch.nn.Module
        The model of text.
    batches : iterable
        Of samples with both: the paper takes a tenth of the training data.
    hear, read : callable
        How the target and the source are run on a batch; see ``run`` of
        ``layer_representations``.
    capture : str
        "layer" or "attention".
    target_stack, source_stack : str, optional
        Where a model has an encoder and a decoder, which of them.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    target : Representations
    source : Representations
        Sample n of the one belongs to sample n of the other.

    Raises
    ------
    ValueError
        As ``layer_representations``, or where the two saw different numbers
        of samples.
    """
    heard, written = _together(
        [target, source],
        [hear, read],
        batches,
        capture,
        [target_stack, source_stack],
        [None, None],
        [None, None],
        progress,
    )
    counts = heard.vectors.shape[1], written.vectors.shape[1]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{heard.label} saw {counts[0]} samples and {written.label} "
            f"{counts[1]}: each batch must give both the same ones, in order."
        )
    return heard, written


def _together(
    models, runs, batches, capture, stacks, orders, labels, progress
) -> list:
    """Several models over the batches, side by side."""
    if capture not in CAPTURES:
        raise ValueError(
            f"`capture` is one of {', '.join(CAPTURES)}, not {capture!r}."
        )
    watches = [
        _Watch(model, run, capture, stack, order, label)
        for model, run, stack, order, label in zip(
            models, runs, stacks, orders, labels
        )
    ]
    try:
        with torch.no_grad():
            for batch in tqdm(
                batches, desc="representations", disable=not progress
            ):
                for watch in watches:
                    watch.see(batch)
    finally:
        for watch in watches:
            watch.close()
    return [watch.result() for watch in watches]


class _Watch:
    """Looks at what the layers of one model return."""

    def __init__(self, model, run, capture, stack, time_first, label):
        self.model, self.run, self.time_first = model, run, time_first
        self.label = (
            label or getattr(model, "name_or_path", "") or type(model).__name__
        )
        modules = _layer_modules(model, capture, stack, self.label)
        self.layers = list(modules)
        self.returned = {}
        self.means = {layer: [] for layer in self.layers}
        self.training = {each: each.training for each in model.modules()}
        model.eval()
        self.handles = [
            module.register_forward_hook(self._hook(layer))
            for layer, module in modules.items()
        ]

    def _hook(self, layer):
        def look(module, inputs, output):
            first = output if torch.is_tensor(output) else output[0]
            order = self.time_first
            if order is None:
                order = type(module).__module__ in _TIME_FIRST
            self.returned[layer] = first.transpose(0, 1) if order else first

        return look

    def see(self, batch):
        """Runs the model on one more batch."""
        self.returned = {}
        lengths = self.run(self.model, batch)
        missed = [layer for layer in self.layers if layer not in self.returned]
        if missed:
            raise ValueError(
                f"{self.label}: running it does not reach layers {missed} of "
                f"{len(self.layers)}. Choose the stack that is run."
            )
        for layer in self.layers:
            self.means[layer].append(
                self._mean(self.returned[layer], lengths, layer)
            )

    def _mean(self, output, lengths, layer):
        """The mean over the frames that are no padding, (batch, width)."""
        output = output.detach().to(torch.float32)
        if lengths is None:
            mean = output.mean(dim=1)
        else:
            lengths = torch.as_tensor(lengths).to(output).reshape(-1)
            if len(lengths) != len(output):
                raise ValueError(
                    f"{self.label}: layer {layer} returned "
                    f"{tuple(output.shape)} for {len(lengths)} lengths, and "
                    "should (batch, time, width): give time_first, or one "
                    "length a sample."
                )
            frames = output.shape[1]
            valid = (lengths * frames).round().clamp(1, frames)
            mask = torch.arange(frames).to(valid) < valid[:, None]
            # where, as padding may hold anything, also NaN
            kept = torch.where(mask[:, :, None], output, 0.0)
            mean = kept.sum(dim=1) / valid[:, None]
        if not torch.isfinite(mean).all():
            raise ValueError(
                f"{self.label}: layer {layer} returned NaN or infinity."
            )
        return mean.cpu()

    def result(self):
        """All vectors."""
        if not self.means[self.layers[0]]:
            raise ValueError("there are no batches to see.")
        vectors = [torch.cat(self.means[layer]) for layer in self.layers]
        return Representations(torch.stack(vectors), self.label)

    def close(self):
        """Leaves the model as it was."""
        for handle in self.handles:
            handle.remove()
        for module, training in self.training.items():
            module.training = training


def _layer_modules(model, capture, stack, label):
    """Layer to the module whose output is looked at."""
    found = {}
    for name in model.state_dict():
        where = part(name)
        if where.role == "attention" and where.layer is not None:
            place = re.match(
                rf"(.*?(?:^|\.)(?:layers?|blocks)\.{where.layer})\.(\w+)\.",
                name,
            )
            path = place[1] if capture == "layer" else f"{place[1]}.{place[2]}"
            found.setdefault(where.stack, {})[where.layer] = path
    if not found:
        raise ValueError(
            f"{label} has no attention layers that are known: names like "
            f"{', '.join(list(model.state_dict())[:2])}."
        )
    if stack is None and len(found) > 1:
        raise ValueError(
            f"{label} has layers in {' and '.join(found)}: choose one stack."
        )
    chosen = next(iter(found)) if stack is None else stack
    if chosen not in found:
        raise ValueError(
            f"{label} has no layers in '{chosen}', but in {', '.join(found)}."
        )
    return {
        layer: model.get_submodule(path)
        for layer, path in sorted(found[chosen].items())
    }
