"""In which layers a speech encoder and a text Transformer are alike.

The encoder hears utterances and the text Transformer reads their transcripts;
what comes out of each layer is averaged over time and compared, layer by layer
(``speechbrain_merge.brain.representations``, ``speechbrain_merge.search``).

Authors
 * The speechbrain_merge authors 2026
"""

import math
import random

import torch
from speech_encoder import WhisperEncoder
from speechbrain_merge.brain.representations import paired_representations
from speechbrain_merge.search import layer_distances
from speechbrain_merge.search.layer_similarity import DISTANCES
from speechbrain_merge.training.windowed_whisper import SAMPLES_PER_POSITION
from transformers import AutoModel, AutoTokenizer

from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import FilteredSortedDynamicItemDataset


def similar_layers(
    run,
    domain,
    text_folder,
    distances=DISTANCES,
    fraction=0.1,
    seed=0,
    capture="layer",
    layer_map=None,
    **settings,
):
    """How far each layer of the encoder is from that of a text Transformer.

    Arguments
    ---------
    run : Run
        Its Brain has the encoder, as ``speech_encoder`` gives it, and its
        training data a column ``domain``.
    domain : str
        Of which utterances.
    text_folder : str
        The text Transformer, a Hugging Face folder.
    distances : list of str
        Of ``speechbrain_merge.search.layer_similarity``.
    fraction : float
        So much of the domain's training data; the paper's is a tenth.
    seed : int
        Decides which, and along which lines clouds are compared.
    capture : str
        What stands for a layer: ``layer``, or its ``attention``.
    layer_map : dict, list or "even", optional
        As the merge has it.
    **settings : dict
        More for ``layer_distances``: ``reading``, ``projections``, ``order``.

    Returns
    -------
    list of LayerDistances
        One for each distance.
    """
    encoder = run.brain.modules.encoder
    names = [
        name
        for name, row in run.train_set.data.items()
        if row["domain"] == domain
    ]
    number = max(1, round(fraction * len(names)))
    drawn = random.Random(seed).sample(sorted(names), number)
    loader = make_dataloader(
        FilteredSortedDynamicItemDataset(run.train_set, drawn),
        **run.loader_kwargs("valid"),
    )
    text = AutoModel.from_pretrained(
        text_folder, trust_remote_code=False
    ).float()
    tokenizer = AutoTokenizer.from_pretrained(
        text_folder, trust_remote_code=False
    )
    device = next(encoder.parameters()).device

    def read(model, batch):
        tokens = tokenizer(
            [wrd.lower() for wrd in batch.wrd],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        model(**tokens)
        return tokens["attention_mask"].float().mean(dim=1)

    heard, written = paired_representations(
        encoder,
        text,
        loader,
        hear=lambda model, batch: hear(model, *batch.to(device).sig),
        read=read,
        capture=capture,
    )
    return [
        layer_distances(
            written,
            heard,
            distance,
            seed=seed,
            layer_map=layer_map,
            progress=False,
            **settings,
        )
        for distance in distances
    ]


def hear(encoder, wavs, lengths):
    """Runs the encoder; which part of its layers' frames is no padding.

    Arguments
    ---------
    encoder : torch.nn.Module
        As ``speech_encoder`` gives it.
    wavs : torch.Tensor
        Waveforms of shape (batch, samples).
    lengths : torch.Tensor
        Relative lengths of shape (batch,).

    Returns
    -------
    torch.Tensor
        Relative lengths of shape (batch,).
    """
    if not isinstance(encoder, WhisperEncoder):
        encoder(wavs, lengths)
        return lengths
    # Whisper's layers see silence after the longest utterance, too
    frames = encoder.whisper(wavs).shape[1]
    spoken = math.ceil(wavs.shape[1] / SAMPLES_PER_POSITION)
    return torch.clamp(lengths * spoken / frames, max=1.0)
