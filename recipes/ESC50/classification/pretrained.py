"""What the recipe asks of pretrained models: BEATs' width, a Transformer's folder.

Authors
 * The speechbrain_merge authors 2026
"""

import os


def width_of(beats) -> int:
    """The width of BEATs' states.

    Arguments
    ---------
    beats : speechbrain.lobes.models.beats.BEATs
        Any.

    Returns
    -------
    int
    """
    return beats.cfg.encoder_embed_dim


def fetch_transformer(source: str) -> str:
    """The folder of a Hugging Face model; one on the hub is downloaded.

    Arguments
    ---------
    source : str
        A folder, or a name on the hub.

    Returns
    -------
    str
        The folder.
    """
    if os.path.isdir(source):
        return source
    from huggingface_hub import snapshot_download

    return snapshot_download(
        source, allow_patterns=["*.safetensors*", "*.json"]
    )
