"""An adapter into a file for SpeechBrain, or a folder for PEFT.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Iterable
from pathlib import Path

from speechbrain_merge.engine import check_output, merge, provenance
from speechbrain_merge.lineage import EXPORT_RECORD, KEY
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.folders import (
    check_replaceable,
    refuse_other_kind,
    refuse_own_source,
    whole_folder,
)
from speechbrain_merge.weights import Weights, open_weights
from speechbrain_merge.weights.adapter_files import CONFIG, WEIGHTS


def check_adapter_output(
    path: Path, format: str, opened: Iterable[Weights]
) -> None:
    """Refuses an output that an adapter cannot be written to.

    Before anything is computed that would be lost.

    Arguments
    ---------
    path : Path
        The ``.safetensors`` file for SpeechBrain, the folder for PEFT.
    format : str
        ``"peft"`` or ``"speechbrain"``.
    opened : list of Weights
        What the adapter is made of.

    Raises
    ------
    ValueError
        Where the path is not of the format.
    FileExistsError
        Where the adapter would take the place of what it is made of, or of
        something else than an adapter.
    """
    if format == "speechbrain":
        check_output(path, opened)
        return
    if path.suffix == ".safetensors":
        raise ValueError(
            f"`output` is '{path}', but PEFT loads a folder: leave the suffix "
            "out, or give format='speechbrain'."
        )
    refuse_other_kind(path, CONFIG, "a merge of adapters")
    refuse_own_source(path, [weights.label for weights in opened])
    check_replaceable(path)


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
    ValueError, FileExistsError
        As `check_adapter_output`.
    """
    if merging.format == "speechbrain":
        return merge(
            merging, output=path, metadata=merging.metadata(), **sources
        )
    base = sources.get("base")
    for source in [*sources["experts"], *([] if base is None else [base])]:
        with open_weights(source) as weights:
            check_adapter_output(path, merging.format, [weights])
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
