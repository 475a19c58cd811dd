"""An adapter into a file for SpeechBrain, or a folder for PEFT.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from pathlib import Path

from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.lineage import EXPORT_RECORD, KEY
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.folders import (
    refuse_other_kind,
    refuse_own_source,
    whole_folder,
)
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.adapter_files import CONFIG, WEIGHTS


def write_adapter(merging, sources: dict, path: Path) -> Path:
    """Streams an adapter into its place.

    Arguments
    ---------
    merging : AdapterMerge or LoraExtraction
        What makes the factors.
    sources : dict
        Arguments of ``speechbrain_merge.merge``.
    path : Path
        The ``.safetensors`` file for SpeechBrain, the folder for PEFT.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        Where the path is not of the format.
    FileExistsError
        Where the adapter would take the place of what it is made of, or of
        something else than an adapter.
    """
    if merging.format == "speechbrain":
        return merge(
            merging, output=path, metadata=merging.metadata(), **sources
        )
    if path.suffix == ".safetensors":
        raise ValueError(
            f"`output` is '{path}', but PEFT loads a folder: leave the suffix "
            "out, or give format='speechbrain'."
        )
    refuse_other_kind(path, CONFIG, "a merge of adapters")
    base = sources.get("base")
    for source in [*sources["experts"], *([] if base is None else [base])]:
        with open_weights(source) as weights:
            refuse_own_source(path, [weights.label])
    with whole_folder(path) as folder:
        file = merge(
            merging,
            output=folder / WEIGHTS,
            metadata={"format": "pt"},
            **sources,
        )
        write_whole(folder / CONFIG, merging.config())
        record = json.dumps({KEY: provenance(file)}, indent=2) + "\n"
        write_whole(folder / EXPORT_RECORD, record)
    return path
