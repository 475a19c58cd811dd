"""A merged model as a Hugging Face folder, like that of its first expert.

The weights are in ``model.safetensors``, under the names that they have in the
first expert's folder. Its configuration, tokenizer, preprocessor and
generation configuration are copied, so that ``from_pretrained`` loads the
folder like any other.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from speechbrain_merge.lineage import CARD, EXPORT_RECORD, KEY
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.folders import check_replaceable, whole_folder
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.paths import refuse_link_outside
from speechbrain_merge.records.reading import parse_json, read_json
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.weights import digest, open_weights
from speechbrain_merge.weights.folders import HUGGING_FACE_FILES

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
COPIED = (".json", ".txt", ".model", ".tiktoken", ".jinja")
"""Endings of the files that are copied; configurations, tokenizers and
preprocessors have them."""


def check_model_folder(source, output) -> None:
    """Raises unless a merge can be written as a folder like its first expert's.

    Arguments
    ---------
    source : str or Path
        The first expert.
    output : str or Path
        The folder to write.

    Raises
    ------
    ValueError
        When the expert is no Hugging Face folder.
    FileExistsError
        When the output holds what was not written there by this package.
    """
    source, output = Path(source), Path(output)
    if not (source / CONFIG).is_file() or not any(
        (source / name).is_file() for name in HUGGING_FACE_FILES
    ):
        raise ValueError(
            f"the output '{output}' is a folder, so that the first "
            f"expert must be a Hugging Face folder, with {CONFIG} and "
            f"{WEIGHTS}; {source} is not. Name a file that ends in "
            ".safetensors."
        )
    check_replaceable(output)


@contextmanager
def model_folder(
    source,
    output,
    dtype: Optional[str] = None,
    signer: Optional[Signer] = None,
):
    """Gives the file of weights to write, in a folder that is otherwise done.

    Arguments
    ---------
    source : str or Path
        The Hugging Face folder of the first expert.
    output : str or Path
        The folder, which takes its place when it is complete.
    dtype : str, optional
        Of the merged weights, where it is not that of the expert.
    signer : Signer, optional
        Signs the folder, before it takes its place.

    Yields
    ------
    weights : Path
        To be written by ``merge``.
    """
    with whole_folder(output) as folder:
        check_unchanged(source, but=[CARD])
        for file in sorted(Path(source).iterdir()):
            name = file.name
            ours = name.startswith(".") or name == EXPORT_RECORD
            if ours or name.endswith(".index.json") or not file.is_file():
                continue
            if file.suffix in COPIED:
                refuse_link_outside(source, file)
                shutil.copyfile(file, folder / name)
        if dtype is not None:
            config = read_json(folder / CONFIG)
            for key in {"torch_dtype", "dtype"} & set(config):
                config[key] = dtype
            write_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        yield folder / WEIGHTS
        with open_weights(folder / WEIGHTS) as weights:
            record = {**weights.metadata, "weights": WEIGHTS}
        record[KEY] = parse_json(record[KEY], f"{output}, metadata '{KEY}'")
        record["digest"] = digest(folder / WEIGHTS)
        text = json.dumps(record, indent=2) + "\n"
        write_whole(folder / EXPORT_RECORD, text)
        if signer is not None:
            signer.sign(folder)
