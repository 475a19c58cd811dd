"""Extending a merge: the same again with domains added or left out.

An Average of Domain Experts is continued without the old domains' data: one
expert is trained on the new domain, from the same original and into the same
pool, and the average is formed again. The pool has a record of each merge
(`speechbrain_merge.pool.read_merges`), so that its members and weights need not
be given again::

    remerge("results/pool", "aode.safetensors")  # and the new domain
    remerge("results/pool", "aode.safetensors", without=["noisy"])  # roll back

In a recipe, a merge stage does the same, with a search if one likes::

    merge_stage: !new:speechbrain_merge.MergeStage
        method: average
        candidates: [!ref <pool_folder>]
        per_run: best
        extends: aode

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path
from typing import Optional

from speechbrain_merge.methods import create
from speechbrain_merge.pool import read_merges
from speechbrain_merge.pool.merges import find_merge
from speechbrain_merge.stage.job import resolve
from speechbrain_merge.stage.members import unweighted
from speechbrain_merge.stage.merge_records import remember_merge
from speechbrain_merge.stage.merge_stage import MergeStage
from speechbrain_merge.stage.result import MergeResult


def remerge(
    pool,
    output,
    name: Optional[str] = None,
    runs: Optional[list] = None,
    without: Optional[list] = None,
    weights: Optional[dict] = None,
    with_base: Optional[bool] = None,
    per_run: str = "best",
    workers: int = 1,
    progress: bool = True,
) -> MergeResult:
    """Repeats a merge that is recorded in a pool, with runs added or left out.

    Arguments
    ---------
    pool : str, Path or CheckpointPool
        The pool.
    output : str or Path
        The `.safetensors` file to write.
    name : str, optional
        Of the merge; by default the last one.
    runs : list of str, optional
        Of the runs that it did not have, those to add. By default all.
    without : list of str, optional
        Runs to leave out.
    weights : dict, optional
        Of runs that are new, or other ones of old runs. Needed for new runs
        where the merge was given weights.
    with_base : bool, optional
        Whether the original is one more member. By default as it was.
    per_run : str
        Which candidates of a new run are added: "best", "last" or "all".
    workers : int
        Threads for merging.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    MergeResult
        The pool records this merge as well, under the same name.

    Raises
    ------
    ValueError
        Where no merge is recorded, a member or a run is missing, or
        the weights do not match.

    Example
    -------
    >>> import torch
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> from speechbrain_merge import CheckpointPool
    >>> folder, model = getfixture("tmp_path"), torch.nn.Linear(1, 1)
    >>> def train(run, value):
    ...     pool = CheckpointPool(folder / "pool", {"model": model}, run)
    ...     saver = Checkpointer(folder / run, {"model": model, "pool": pool})
    ...     _ = torch.nn.init.constant_(model.weight, value)
    ...     _ = saver.save_checkpoint(meta={"WER": 9.0, "epoch": 1})
    >>> train("digits", 0.0)
    >>> train("read", 1.0)

    A merge stage of a recipe would have left this:

    >>> from speechbrain_merge.pool import read_pool
    >>> from speechbrain_merge.pool.merges import Member, MergeRecord, remember
    >>> members = tuple(
    ...     Member(each.name, each.run, each.digest)
    ...     for each in read_pool(folder / "pool")
    ... )
    >>> record = MergeRecord("aode", {"name": "average"}, members)
    >>> remember(folder / "pool", record)
    True

    Next month:

    >>> train("street", 5.0)
    >>> output = folder / "aode.safetensors"
    >>> result = remerge(folder / "pool", output, progress=False)
    >>> result.selected
    ['digits/epoch-0001', 'read/epoch-0001', 'street/epoch-0001']
    >>> from speechbrain_merge.weights import open_weights
    >>> with open_weights(result.path) as merged:
    ...     merged["model.weight"].item()
    2.0
    """
    folder = Path(getattr(pool, "folder", pool))
    if name is None:
        merges = read_merges(folder)
        if not merges:
            raise ValueError(
                f"{folder} has no record of a merge: its candidates were never "
                "merged, or by an older version. Run a merge stage first."
            )
        name = merges[-1].name
    record = find_merge([folder], name)
    parameters = dict(record.method)
    method = create(parameters.pop("name"), **parameters)
    if record.weights is not None:
        method = unweighted(method)
    stage = MergeStage(
        method,
        [folder],
        name=name,
        extends=name,
        per_run=per_run,
        runs=runs,
        without=without,
        weights=weights,
        with_base=with_base,
        workers=workers,
    )
    output = Path(output)
    job = resolve(stage, output.parent)
    job.merge(output=output, progress=progress)
    result = job.result(output)
    remember_merge(job, result)
    return result
