"""Statistics of an expert on data, which some merge methods need.

Some methods need to know more of an expert than its weights: Fisher merging,
how much its loss depends on each of them; RegMean, what its layers get to see;
optimal transport by activations, what its units do, or which permutation of
them has the lowest loss. All of it comes from
running the Brain's own ``compute_forward`` and ``compute_objectives`` over data
that the expert knows, usually what it was trained on, with the expert's weights
loaded. A recipe says which data belong to which candidates::

    collect_statistics(
        asr_brain,
        hparams["merge_stage"],
        {"digits": digits_train, "telephony": telephony_train},
        hparams["train_loader_kwargs"],
    )
    asr_brain.merge(hparams["merge_stage"])

The outcome is a safetensors file with the names of the candidate's weights, in
a folder ``statistics`` beside it. It is named by all that decided it, and is
found there the next time. Its metadata have the hash of its content: a file
that was damaged or replaced is collected anew, and no merge reads it.

By default, utterances go through one at a time. The squared gradient of a
batch is not the mean of its utterances' squared gradients, and a batch is
padded, which layers see as inputs. Modules are in evaluation mode: no dropout,
running statistics stay. The Brain is told ``Stage.TRAIN``, since other stages
decode, which takes long and shows layers each beginning of a hypothesis again;
a recipe that augments its training data does so here too.

Under ``torchrun`` each process goes through all the data, and one writes.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.collectors import (
    ActivationCollector,
    FisherCollector,
    GramCollector,
)
from speechbrain_merge.brain.decisive import (
    beside,
    decisive_settings,
    while_running,
)
from speechbrain_merge.brain.matching import learn_matching
from speechbrain_merge.brain.without_training import (
    same_draws,
    without_training,
)
from speechbrain_merge.methods.expert_statistics import KEY
from speechbrain_merge.methods.transport.learning import check_learning
from speechbrain_merge.records.files import check_writable
from speechbrain_merge.weights import (
    digest,
    fold,
    open_weights,
    verify_own_hash,
    write_with_hash,
)
from speechbrain_merge.weights.replacing import refuse_foreign

logger = get_logger(__name__)

COLLECTORS = {
    "fisher": FisherCollector,
    "gram": GramCollector,
    "activations": ActivationCollector,
}


@while_running
def collect_statistics(
    brain,
    stage,
    data,
    loader_kwargs=None,
    folder=None,
    per_example=True,
    limit=None,
    decode=None,
    train=None,
):
    """Gives the method of a merge stage the statistics of its candidates.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Afterwards it has its own weights again.
    stage : MergeStage
        Its method, or the method that this wraps, is ``Fisher``, ``RegMean``
        or ``OptimalTransport`` with ``cost="activations"`` or ``"learned"``.
    data : Dataset, DataLoader or dict
        What to run over: for all candidates the same, or a dict by the name of
        the candidate, of its run, or one of its tags.
    loader_kwargs : dict, optional
        As for ``fit``.
    folder : str or Path, optional
        Where the files go; by default ``statistics`` beside each candidate.
    per_example : bool
        Whether utterances go through one at a time.
    limit : int, optional
        Only so many utterances (or batches), spread evenly over the data.
    decode : str, optional
        ``"valid"`` or ``"test"`` runs the Brain in that stage instead.
    train : Dataset, DataLoader or dict, optional
        What permutations are learned on; `data` then choose among them.
        Default: `data`.

    Returns
    -------
    files : dict
        Name of the candidate to its file; of learned permutations, the first
        candidate, to which the others are aligned, has None.

    Raises
    ------
    ValueError
        When the method needs no statistics, or a candidate has no data.
    """
    if not stage.needs_statistics:
        raise ValueError(
            f"Merge stage '{stage.name}': method '{stage.method.name}' needs "
            "no statistics."
        )
    files = {}
    for method in stage.needs_statistics:
        if method.statistics_kind == "maps":
            files = _learn_maps(
                brain, stage, method, data, train, loader_kwargs, folder
            )
            method.statistics = dict(files)
            continue
        for candidate in stage.chosen():
            files[candidate.name] = str(
                _collect(
                    method.statistics_kind,
                    brain,
                    candidate,
                    _data_of(candidate, data),
                    loader_kwargs,
                    Path(folder or candidate.path.parent / "statistics"),
                    per_example,
                    limit,
                    decode,
                    **method.statistics_options,
                )
            )
        method.statistics = dict(files)
    return files


def _learn_maps(brain, stage, method, data, train, loader_kwargs, folder):
    """Learns the permutations of all candidates but the first."""
    learning = check_learning(method.learning)
    anchor, *others = stage.chosen()

    def activations_of(candidate):
        return _collect(
            "activations",
            brain,
            candidate,
            _data_of(candidate, data),
            loader_kwargs,
            Path(folder or candidate.path.parent / "statistics"),
            True,
            None,
            "valid",
            **method.statistics_options,
        )

    files = {anchor.name: None}
    for candidate in others:
        with ExitStack() as stack:
            cost = "weights"
            if learning["start"] == "activations":
                cost = {
                    which: stack.enter_context(
                        open_weights(activations_of(model))
                    )
                    for which, model in (
                        ("anchor", anchor),
                        ("source", candidate),
                    )
                }
            path = learn_matching(
                brain,
                candidate,
                anchor,
                _data_of(candidate, data if train is None else train),
                _data_of(candidate, data),
                Path(folder or candidate.path.parent / "statistics"),
                loader_kwargs,
                learning,
                cost,
                **method.statistics_options,
            )
        files[candidate.name] = str(path)
    return files


@while_running
def collect_fisher(
    brain,
    source,
    data,
    loader_kwargs=None,
    output=None,
    per_example=True,
    limit=None,
    decode=None,
):
    """Diagonal Fisher information: the mean squared gradient of the loss.

    This is the empirical Fisher, with the transcripts of the data, of the
    recipe's own loss. Parameters without a gradient (frozen ones) get none.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Afterwards it has its own weights again.
    source : object
        The expert: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``.
    data : Dataset or DataLoader
        What to run over.
    loader_kwargs : dict, optional
        As for ``fit``.
    output : str or Path
        The ``.safetensors`` file to write, or a folder, in which the file is
        named by all that decides it, and found if it is there.
    per_example : bool
        Whether to square the gradient of each utterance, as in the paper, or
        of each batch of the loader, as in other implementations.
    limit : int, optional
        Only so many utterances (or batches), spread evenly over the data.
    decode : str, optional
        ``"valid"`` or ``"test"`` runs the Brain in that stage instead.

    Returns
    -------
    path : Path
        The file: parameter name to tensor of its shape.

    Raises
    ------
    FileExistsError
        When `output` is a file, and holds anything but such statistics.
    """
    passage = (data, loader_kwargs, output, per_example, limit, decode)
    return _collect("fisher", brain, source, *passage)


@while_running
def collect_grams(
    brain,
    source,
    data,
    loader_kwargs=None,
    output=None,
    per_example=True,
    limit=None,
    decode=None,
):
    """Gram matrices of the inputs of all linear layers: ``XᵀX / n``.

    Every ``torch.nn.Linear`` counts (that of SpeechBrain's wrapper, too) whose
    weight is its own. One that is tied to an embedding, or that is handed to a
    fused attention without being called, is not among them.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Afterwards it has its own weights again.
    source : object
        The expert: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``.
    data : Dataset or DataLoader
        What to run over.
    loader_kwargs : dict, optional
        As for ``fit``.
    output : str or Path
        The ``.safetensors`` file to write, or a folder, in which the file is
        named by all that decides it, and found if it is there.
    per_example : bool
        Whether utterances go through one at a time. In batches, the frames
        that pad the shorter ones count as inputs. (What a model pads by
        itself, as Whisper does to 30 s, counts always.)
    limit : int, optional
        Only so many utterances (or batches), spread evenly over the data.
    decode : str, optional
        ``"valid"`` or ``"test"`` runs the Brain in that stage instead; layers
        of a decoder then also see what the search tries.

    Returns
    -------
    path : Path
        The file: name of the weight ``[out, in]`` to matrix ``[in, in]``.

    Raises
    ------
    FileExistsError
        When `output` is a file, and holds anything but such statistics.
    """
    passage = (data, loader_kwargs, output, per_example, limit, decode)
    return _collect("gram", brain, source, *passage)


def _collect(
    kind,
    brain,
    source,
    data,
    loader_kwargs,
    output,
    per_example,
    limit,
    decode,
    **options,
):
    """One pass over the data, and its file."""
    if output is None:
        raise ValueError("`output` must name a file or a folder to write to.")
    collector = COLLECTORS[kind]
    if not per_example and getattr(collector, "one_at_a_time", False):
        raise ValueError(
            f"'{kind}' are collected of one utterance at a time: "
            "per_example=True."
        )
    if Path(output).suffix == ".safetensors":
        run_on_main(refuse_foreign, args=[output, KEY, "no statistics of ours"])
    stage = sb.Stage.TRAIN if decode is None else sb.Stage[decode.upper()]
    utterances = FixedBatches(brain, data, loader_kwargs)
    if per_example:
        utterances.one_by_one()
    about = {
        "statistics": kind,
        "weights": getattr(source, "digest", None) or digest(source),
        "data": utterances.key(),
        "per_example": per_example,
        "limit": limit,
        "stage": stage.name,
        **options,
        "hparams": decisive_settings(brain, stage=stage),
        "beside": beside(brain, source),
    }
    if hasattr(collector, "reading"):
        about["reading"] = collector.reading
    text = json.dumps(about, sort_keys=True, default=str)
    path = Path(output)
    if path.suffix != ".safetensors":
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = Path(getattr(source, "name", "") or "weights").name
        path = run_on_main(
            path.joinpath, args=[f"{name}.{kind}-{key}.safetensors"]
        )
        if run_on_main(_is_there, args=[path, text]):
            logger.info(f"Statistics of {name}: found in {path}.")
            return path
    run_on_main(check_writable, args=[path])
    with open_weights(source) as weights, fold(weights) as folded:
        names = folded.names()
    modules = {}
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        modules[name] = brain.module_named(name)
    with ExitStack() as stack:
        stack.enter_context(brain.borrowed_weights(source))
        stack.enter_context(without_training(brain, stage))
        stack.enter_context(same_draws())
        collected = collector(brain, stage, modules, set(names), **options)
        stack.callback(collected.close)
        for batch in _batches(utterances, limit, kind, brain):
            collected.see(batch)
        tensors = collected.means()
    if not tensors:
        raise ValueError(
            f"The weights {names[:3]}… have nothing that '{kind}' statistics "
            "could be collected of: no parameter is trained, or no linear "
            "layer is called."
        )
    # which makes the folder, too
    run_on_main(write_with_hash, args=[path, tensors, {KEY: text}])
    return path


def _is_there(path, about):
    """Whether a file has these statistics, and is as it was written."""
    if not path.exists():
        return False
    try:
        with open_weights(path) as found:
            known = found.metadata.get(KEY)
            if known != about:
                raise ValueError(
                    f"{path}, metadata '{KEY}': expected {about}, got {known}"
                )
            if not verify_own_hash(found):
                raise ValueError(
                    f"{path} has no hash of its content: an earlier version "
                    "wrote it"
                )
    except ValueError as error:
        logger.warning(f"{error}. These statistics are collected again.")
        return False
    return True


def _batches(utterances, limit, kind, brain):
    """The batches to look at, spread evenly over the data."""
    number = len(utterances)
    count = number if limit is None else min(limit, number)
    chosen = [place * number // count for place in range(count)]
    return tqdm(
        utterances.load(chosen),
        total=count,
        desc=f"{kind} statistics",
        disable=brain.noprogressbar,
    )


def _data_of(candidate, data):
    """The data of one candidate."""
    if not isinstance(data, dict):
        return data
    for key in (candidate.name, candidate.run, *candidate.tags):
        if key in data:
            return data[key]
    raise ValueError(
        f"No data for candidate '{candidate.name}': name its data by the "
        f"candidate, by its run '{candidate.run}' or by one of its tags "
        f"{list(candidate.tags)}; there are {sorted(data)}."
    )
