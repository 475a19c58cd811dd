"""One merge, streamed: files in, one file out, a tensor at a time.

``merge`` runs a method of ``speechbrain_merge.methods`` over weights that may
be larger than memory. A tensor of each expert is read, merged and written
before the next; what is in memory at once is one tensor of each expert and of
the result, for each worker. The output appears under its name only when it is
whole, and carries in its metadata what it was made of: sources and their
hashes, method, parameters and versions, and the same of each source that is a
merge itself (``speechbrain_merge.lineage``).

Example
-------
>>> import torch
>>> from speechbrain_merge.engine import merge, provenance
>>> from speechbrain_merge.methods import Average
>>> from speechbrain_merge.weights import open_weights, write_weights
>>> folder = getfixture("tmp_path")
>>> for value in (1.0, 2.0):
...     expert = {"w": torch.tensor([value])}
...     _ = write_weights(folder / f"{value}.safetensors", expert)
>>> path = merge(
...     Average(),
...     [folder / "1.0.safetensors", folder / "2.0.safetensors"],
...     output=folder / "merged.safetensors",
...     progress=False,
... )
>>> with open_weights(path) as merged:
...     merged["w"]
tensor([1.5000])
>>> provenance(path)["method"]
'average'

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import torch
from tqdm import tqdm

from speechbrain.utils.logger import get_logger
from speechbrain_merge.belonging import check_belonging
from speechbrain_merge.lineage import KEY, chain_of, check_record
from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.methods.list_of_experts import list_of_experts
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.pool.on_record import on_record
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.records.signing import Signer, signer_of
from speechbrain_merge.records.versions import versions
from speechbrain_merge.source_hashes import NO_HASH, SourceHashes, placeholders
from speechbrain_merge.weights import (
    Weights,
    WeightWriter,
    common_heads,
    differing_integers,
    float_dtype,
    narrowed,
    open_weights,
    own_hash,
    promoted,
    stored_as,
    ties_to_text,
)
from speechbrain_merge.weights.mapped import files_opened
from speechbrain_merge.weights.metadata_check import KEY as METADATA_CHECK
from speechbrain_merge.weights.own_hash import KEY as OWN_HASH
from speechbrain_merge.weights.replacing import refuse_foreign

logger = get_logger(__name__)

# Small tensors are merged together until they have so many entries: handing a
# task to a thread takes as long as merging a few thousand.
TASK = 1 << 20


def merge(
    method: Union[MergeMethod, str],
    experts: Iterable[Any],
    base: Optional[Any] = None,
    output: Union[str, Path, None] = None,
    workers: int = 1,
    progress: bool = True,
    labels: Optional[list[str]] = None,
    hashes: Optional[list[str]] = None,
    metadata: Optional[dict] = None,
    dtype: Union[str, torch.dtype, None] = None,
    same_base: bool = True,
    sign: Union[Signer, str, Path, None] = None,
    record: Optional[Mapping] = None,
    device: Union[str, torch.device] = "cpu",
) -> Any:
    """Merges weights from anywhere, streamed.

    Arguments
    ---------
    method : MergeMethod or str
        The method, or its registered name (then with default parameters).
    experts : list
        What ``speechbrain_merge.weights.open_weights`` opens: files, folders,
        candidates of a pool, state dicts, modules.
    base : object, optional
        The model that the experts were fine-tuned from, likewise.
    output : str or Path, optional
        The ``.safetensors`` file to write. ``None`` gives a state dict.
    workers : int
        Threads that merge tensors side by side. The result does not depend on
        it.
    progress : bool
        Whether to show a bar.
    labels : list of str, optional
        Names of the experts, one for each, for coefficients and provenance.
        By default the candidate's name or the file's path.
    hashes : list of str, optional
        Hashes of the experts, if known already, and of the base after them, if
        that is known too; computed otherwise, while merging, when there is an
        output to record them in.
    metadata : dict, optional
        More text entries for the output's metadata, beside the record of the
        merge and, as ``content``, the hash of the merged tensors, which
        ``speechbrain_merge.weights.verify_own_hash`` compares with them.
    dtype : str or torch.dtype, optional
        Of the result's floating-point tensors: ``"float32"``, ``"float16"``,
        ``"bfloat16"`` or ``"float64"``. By default that of the inputs; where
        they differ (experts in float32, a base in float16), they are promoted
        to the type that holds all.
    same_base : bool
        Whether experts that do not belong together are refused, unless the
        method is made for them: fine-tuned from different weights, with other
        vocabularies beside them, with heads that were initialised apart. See
        ``speechbrain_merge.belonging``.
    sign : Signer, str or Path, optional
        Signs the output: with a private key in a file, or as the signer says,
        see ``speechbrain_merge.records.signing``.
    record : dict, optional
        Entries of the output's record as they shall be: its time (``created``),
        or what its sources are called, which may be at another place now. With
        those of another merge, and the same of everything else, the same bytes
        are written. Hashes are always those of what is merged.
    device : str or torch.device
        Where tensors are merged: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or
        ``"auto"``, a GPU if there is one. With two workers or more, tensors
        are read while others are merged. See
        ``speechbrain_merge.methods.devices``.

    Returns
    -------
    merged : Path or dict
        The output's path, or the state dict when there is no output.

    Raises
    ------
    IncompatibleWeights
        When the experts do not fit together; before anything is written.
    ValueError
        When the method's demands are not met, the experts do not belong
        together or have different numbers of attention heads, a tensor is not
        finite, or a file was written to while it was merged; nothing is left
        behind then.
    ChangedContent
        When a candidate's content is not what its pool has on record.
    FileExistsError
        When the output is one of the models that are merged, or a file that
        no merge made, or what is in the place of its signature is none.
        Nothing is changed then.

    Example
    -------
    >>> import torch
    >>> merge(
    ...     "average",
    ...     [{"w": torch.zeros(1)}, {"w": torch.ones(1)}],
    ...     progress=False,
    ... )
    {'w': tensor([0.5000])}
    """
    if not isinstance(method, MergeMethod):
        method = create(method)
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    signer = signer_of(sign)
    if signer is not None:
        if output is None:
            raise ValueError("`sign` signs a file: give an `output` as well.")
        signer.check(output)
    method = method.using(device_of(device))
    experts = list_of_experts(experts, method.name)
    dtype = float_dtype(dtype)
    allowed = (len(experts), len(experts) + (base is not None))
    for given, what in ((labels, "labels"), (hashes, "hashes")):
        most = 1 if what == "labels" else 2
        if given is not None and len(given) not in allowed[:most]:
            raise ValueError(
                f"{len(given)} `{what}` were given for {len(experts)} experts: "
                "give one for each, in their order."
            )
    method.check_experts(len(experts))
    with ExitStack() as stack:
        files = stack.enter_context(files_opened())
        opened = [
            stack.enter_context(open_weights(expert)) for expert in experts
        ]
        anchor = None
        if base is not None:
            anchor = stack.enter_context(open_weights(base))
        if output is not None:
            check_output(output, [*opened, *filter(None, [anchor])])
        labels = labels or [
            getattr(expert, "name", None) or weights.label
            for expert, weights in zip(experts, opened)
        ]
        if same_base:
            check_belonging(method, experts, base, "`same_base=False`", opened)
        # by names, so that other kinds of models may have other heads
        common = {}
        if method.needs_same_names:
            common = common_heads(opened)
            if integers := differing_integers(opened):
                logger.warning_once(
                    f"{len(integers)} tensors without fractions differ between "
                    f"the experts ({', '.join(integers[:3])}): those of "
                    f"{opened[0].label} are taken."
                )
        # in the asked type before the formula, so that nothing is rounded twice
        models = [*opened] if anchor is None else [*opened, anchor]
        if dtype is not None:
            models = [promoted([model], dtype)[0] for model in models]
        merged = method.merged(
            models[: len(opened)],
            None if anchor is None else models[-1],
            labels,
            workers,
            progress,
        )
        method_notes = merged.metadata
        merged = (
            stored_as(merged, dtype)
            if dtype is not None
            else narrowed(merged, method.deciding(opened, anchor))
        )
        tied = merged.tied
        names = [name for name in merged.names() if name not in tied]
        whole = [*opened] if anchor is None else [*opened, anchor]
        pool = stack.enter_context(_threads(workers))
        hashing = stack.enter_context(SourceHashes(pool))
        sources = [*experts] if base is None else [*experts, base]
        for claim in _on_record(sources, whole, experts, stack):
            hashing.verify(*claim)
        for source, weights in zip(sources, whole):
            hashing.verify_own(source, weights)
        run = partial(_run, merged, names, method, workers, progress)
        if output is None:
            made: dict = {}
            run(lambda name: made.update({name: merged[name]}))
            hashing.results()
            _check_files(files)
            return {name: made[tied.get(name, name)] for name in merged.names()}
        specification = {
            name: (merged.dtype(name), merged.shape(name)) for name in names
        }
        notes = {**method_notes, **(metadata or {})}
        if record is None:  # else that of another merge has it, or had it not
            notes = {**common, **notes, OWN_HASH: NO_HASH, METADATA_CHECK: ""}
        if tied:
            notes["tied"] = ties_to_text(tied)
        known = list(hashes or [])
        for source, weights in list(zip(sources, whole))[len(known) :]:
            hashing.record(source, weights)
        blank = placeholders(known, len(sources))
        told = _describe(method, experts, base, labels, blank)
        told["dtype"] = None if dtype is None else str(dtype).split(".")[-1]
        told["same_base"] = same_base
        chain, own = chain_of(whole, blank)
        told.update(chain)
        told.update(copy.deepcopy(dict(record or {})))
        if told.get("files"):
            for entry, code in zip(told["files"], method.files().values()):
                entry["digest"] = code
        else:  # as earlier versions wrote it
            told.pop("files", None)
        for source, code in zip(told["sources"], blank):
            source["digest"] = code
        if base is not None:
            told["base"]["digest"] = blank[-1]
        notes["merge"] = json.dumps(told)
        output = Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with WeightWriter(output, specification, notes) as writer:
            run(lambda name: writer.write_pieces(name, merged.pieces(name)))
            # they take their places in the header, which is as long as before
            codes = known + hashing.results()
            _check_files(files)
            for source, code in zip(told["sources"], codes):
                source["digest"] = code
            if base is not None:
                told["base"]["digest"] = codes[-1]
            for index, entry in own.items():
                entry["digest"] = codes[index]
            notes["merge"] = json.dumps(told)
            if OWN_HASH in notes:
                with writer.written() as tensors:
                    notes[OWN_HASH] = own_hash(tensors)
            writer.describe(notes)
    if signer is not None:
        signer.sign(output)
    return output


def provenance(source: Union[str, Path]) -> dict:
    """The record in a merged file: its method, sources and versions.

    Arguments
    ---------
    source : str or Path
        A file that ``merge`` wrote.

    Returns
    -------
    record : dict
        ``method``, ``parameters``, ``files`` (statistics or maps that the
        parameters name, each with ``path`` and ``digest``), ``sources`` (each with ``label``, ``path``
        and ``digest``), ``base``, ``dtype`` (where one was asked for),
        ``same_base``, ``versions``, ``created``; and, where a source is a
        merge itself, ``chain``, see ``speechbrain_merge.lineage``.

    Raises
    ------
    ValueError
        When the file was not written by ``merge``, or its record is damaged.
    """
    with open_weights(source) as weights:
        if "merge" not in weights.metadata:
            raise ValueError(
                f"{weights.label} has no record of a merge in its metadata: it "
                "was not written by speechbrain_merge."
            )
        where = f"{weights.label}, metadata 'merge'"
        return check_record(parse_json(weights.metadata["merge"], where), where)


def check_output(
    output: Union[str, Path], opened: Iterable[Weights] = ()
) -> None:
    """Refuses to write a merged file in the place of what no merge made.

    Arguments
    ---------
    output : str or Path
        The file to be. Nothing, an empty file, or a merged one may be there.
    opened : list of Weights
        What is to be merged.

    Raises
    ------
    FileExistsError
        Where there is something else, a link, or what is to be merged.
    ValueError
        Where it does not end in ``.safetensors``, or there is a folder.

    Example
    -------
    >>> path = getfixture("tmp_path") / "merged.safetensors"
    >>> check_output(path)
    >>> path.symlink_to("elsewhere")
    >>> check_output(path)
    Traceback (most recent call last):
    ...
    FileExistsError: .../merged.safetensors is a link to elsewhere. Nothing was changed. Name the file that it leads to, or remove the link.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        # else hours of merging end in a file that nothing opens
        raise ValueError(f"`output` must end in .safetensors, got '{output}'.")
    for weights in opened:
        place = Path(weights.label)
        if output.is_file() and place.is_file() and place.samefile(output):
            raise FileExistsError(
                f"{output} is among the models that are merged. Nothing was "
                "changed. Choose another output."
            )
    if output.is_symlink():
        raise FileExistsError(
            f"{output} is a link to {os.readlink(output)}. Nothing was changed. "
            "Name the file that it leads to, or remove the link."
        )
    refuse_foreign(output, KEY, "weights that no merge made")


def _check_files(files):
    """Refuses files that were written to while they were merged."""
    for file in files:
        file.check()


def _run(merged, names, method, workers, progress, use):
    """Calls a function with each name, the largest tensors first.

    So no thread has to wait for another's at the end. Where a method goes over
    pieces, torch does not split these once more over threads of its own.
    """
    sizes = {name: math.prod(merged.shape(name)) for name in names}
    tasks: list[list[str]] = []
    room = 0
    for name in sorted(names, key=lambda name: -sizes[name]):
        if room < sizes[name] or not tasks:
            tasks.append([])
            room = TASK
        tasks[-1].append(name)
        room -= sizes[name]
    bar = tqdm(
        total=len(names), desc=f"merge ({method.name})", disable=not progress
    )

    def work(task):
        for name in task:
            use(name)
            bar.update()

    alone = single_thread() if method.piecewise else nullcontext()
    with bar, alone, _threads(workers) as pool:
        for done in as_completed([pool.submit(work, task) for task in tasks]):
            done.result()


@contextmanager
def _threads(number):
    """A thread pool that starts no further work after a failure."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _describe(method, experts, base, labels, hashes):
    """The record that travels with a merged file."""
    files = [
        {"path": path, "digest": code} for path, code in method.files().items()
    ]
    return {
        "method": method.name,
        "parameters": json.loads(
            json.dumps(method.configuration(), default=str)
        ),
        **({"files": files} if files else {}),
        "sources": [
            {"label": label, "path": _path(expert), "digest": code}
            for label, expert, code in zip(labels, experts, hashes)
        ],
        "base": None
        if base is None
        else {"path": _path(base), "digest": hashes[-1]},
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _on_record(sources, opened, experts, stack):
    """Open weights with the digest that a pool has of them, name and file."""
    known = []
    for source, weights in zip(sources, opened):
        for found in on_record(source, experts):
            if isinstance(source, Weights):
                # may go by other names than those in its file
                weights = stack.enter_context(open_weights(found.path))
            known.append((weights, *found))
    return known


def _path(source):
    """The path of a source, or None for weights in memory."""
    if isinstance(source, Weights):
        return source.label
    path = getattr(source, "path", source)
    return str(path) if isinstance(path, (str, Path)) else None
