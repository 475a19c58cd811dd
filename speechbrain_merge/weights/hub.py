"""Models of the Hugging Face hub as folders on this machine.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from pathlib import Path
from typing import Any


def local_source(source: Any) -> Any:
    """A source of weights on this machine; a name on the hub is downloaded.

    Arguments
    ---------
    source : Any
        A file, a folder, a name on the hub such as
        ``google-bert/bert-base-uncased``, or any other source of
        ``open_weights``, which stays as it is.

    Returns
    -------
    Any
        The source. A name on the hub becomes the folder with its weights,
        its configuration and its vocabulary.

    Example
    -------
    >>> local_source(getfixture("tmp_path")) == getfixture("tmp_path")
    True
    """
    if not isinstance(source, str) or os.path.exists(source):
        return source
    if source.count("/") == 1 and not source.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors*", "*.bin*", "*.json", "*.txt", "*.model"]
        return Path(snapshot_download(source, allow_patterns=patterns))
    return source
