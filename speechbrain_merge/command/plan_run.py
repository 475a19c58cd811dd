"""Running a plan: what is out of date, and what that needs.

Example
-------
>>> import torch
>>> from speechbrain_merge.command.plan import Plan
>>> from speechbrain_merge.weights import open_weights
>>> folder = getfixture("tmp_path")
>>> for value in (1.0, 3.0):
...     torch.save({"w": torch.tensor([value])}, folder / f"{value}.pt")
>>> plan = Plan(
...     {
...         "mean": {"method": "average", "experts": [f"{folder}/*.pt"]},
...         "final": {
...             "method": "average",
...             "experts": ["mean", f"{folder}/3.0.pt"],
...             "output": f"{folder}/final.safetensors",
...         },
...     }
... )
>>> PlanRun(plan).run(progress=False)
{'mean': 'merged', 'final': 'merged'}
>>> with open_weights(folder / "final.safetensors") as merged:
...     merged["w"]
tensor([2.5000])
>>> PlanRun(plan).run(progress=False)
{'final': 'up to date'}

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.belonging import check_belonging
from speechbrain_merge.command.model_folder import (
    check_model_folder,
    model_folder,
)
from speechbrain_merge.engine import check_output, merge
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.candidate import Candidate
from speechbrain_merge.records.checked import digest_text, fields
from speechbrain_merge.records.folders import clear_remains, working_folder
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.stage.content import decided_by
from speechbrain_merge.weights import (
    ChangedContent,
    check_compatible,
    digest,
    fold,
    open_weights,
    renamed,
    verify_own_hash,
)
from speechbrain_merge.weights.replacing import keep_damaged

logger = get_logger(__name__)

_made = fields({}, {"digest": digest_text})
"""What a file says of the stage that made it."""


class PlanRun:
    """One run of a plan; what it finds on the disk is read once.

    Arguments
    ---------
    plan : Plan
        What to do.

    Raises
    ------
    ValueError
        When experts that are there do not fit together, or there are too few
        of them.
    """

    def __init__(self, plan):
        self.plan = plan
        self._found, self._digests = {}, {}
        self._damaged: set[str] = set()  # outputs of before
        for name in plan.order:
            try:
                self._check(name)
            except ValueError as error:
                raise ValueError(f"{plan.where(name)}{error}") from None

    def describe(self) -> list:
        """Describes what a run would do, without doing it.

        Returns
        -------
        stages : list of dict
            In the order of work: ``stage``, ``state`` ("up to date", "to be
            merged", "not needed"), ``method``, ``experts``, ``base`` and
            ``output``, of which the last two may be None.
        """
        needed, stages = self._needed(), []
        for name in self.plan.order:
            state = "not needed"
            if name in needed:
                fresh = self._up_to_date(name)
                state = "up to date" if fresh else "to be merged"
            base = self._base(name)
            stages.append(
                {
                    "stage": name,
                    "state": state,
                    "method": str(self.plan.methods[name]),
                    "experts": [
                        each if isinstance(each, str) else each.name
                        for each in self._experts(name)
                    ],
                    "base": None if base is None else str(base),
                    "output": self.plan.stages[name].get("output"),
                }
            )
        return stages

    def run(
        self,
        workers: int = 1,
        progress: bool = True,
        signer: Optional[Signer] = None,
        device: Union[str, torch.device] = "cpu",
    ) -> dict:
        """Merges what is not up to date, and what that needs.

        Arguments
        ---------
        workers : int
            Threads of each merge.
        progress : bool
            Whether to show bars.
        signer : Signer, optional
            Signs each output, also those that are up to date.
        device : str or torch.device
            Where tensors are merged.

        Returns
        -------
        done : dict
            Stage to ``"merged"`` or ``"up to date"``; stages that nothing
            needed are not in it.
        """
        done, made = {}, {}
        how = {"workers": workers, "progress": progress, "device": device}
        outputs = [
            stage["output"]
            for stage in self.plan.stages.values()
            if "output" in stage
        ]
        for output in outputs:
            if signer is not None:
                signer.check(None if self._is_folder(output) else output)
            clear_remains(Path(output).absolute())
        needed = self._needed()
        with ExitStack() as stack:
            kept = stack.enter_context(
                working_folder(Path(outputs[-1]).absolute())
            )
            for number, name in enumerate(needed):
                output = self.plan.stages[name].get("output")
                if self._up_to_date(name):
                    if signer is not None:
                        signer.sign(output)
                    made[name] = Candidate(name, Path(output), "")
                    done[name] = "up to date"
                    continue
                target = Path(output or kept / f"{number}.safetensors")
                sign = None if output is None else signer
                if output is not None and self._is_folder(output):
                    like = self._first_expert(name)
                    dtype = self.plan.stages[name].get("dtype")
                    with model_folder(like, output, dtype, sign) as inside:
                        self._merge(name, made, inside, None, how)
                else:
                    self._merge(name, made, target, sign, how)
                # Open, a file that does not stay has no path to be recorded
                weights: Any = target
                if output is None:
                    weights = stack.enter_context(open_weights(target))
                made[name] = Candidate(name, weights, "")
                done[name] = "merged"
        return done

    def _merge(self, name, made, output, signer, how):
        """Merges one stage into a file."""
        stage, method = self.plan.stages[name], self.plan.methods[name]
        experts = [
            made[each] if isinstance(each, str) else each
            for each in self._experts(name)
        ]
        base = known = self._base(name)
        if base is not None:
            stays = "output" in self.plan.stages.get(base, ["output"])
            base = made.get(base, self.plan.downloaded.get(base, base))
            if method.needs_same_names:
                # stays open: some entries may be the expert's
                base = renamed(fold(base), fold(experts[0]))
                base = base if stays else Candidate(known, base, "")
        record = {"stage": name, "digest": self._digest(name)}
        metadata = {"plan": json.dumps(record)}
        if self._is_folder(stage.get("output", ".safetensors")):
            metadata["format"] = "pt"  # transformers asks for it
        if stage.get("output") in self._damaged:
            if moved := keep_damaged(stage["output"]):
                logger.warning(f"{stage['output']} is made again{moved}.")
            self._damaged.discard(stage["output"])
        merge(
            method,
            experts,
            base,
            output,
            metadata=metadata,
            dtype=stage.get("dtype"),
            same_base=not stage.get("different_bases"),
            sign=signer,
            **how,
        )

    def _experts(self, name):
        """Candidates of a stage; of other stages their names."""
        if name not in self._found:
            self._found[name] = []
            for source in map(str, self.plan.stages[name]["experts"]):
                if source in self.plan.stages:
                    self._found[name].append(source)
                elif source in self.plan.downloaded:
                    folder = Path(self.plan.downloaded[source])
                    self._found[name].append(Candidate(source, folder, ""))
                else:
                    self._found[name] += read_pool(source)
        return self._found[name]

    def _base(self, name):
        """The base of a stage: as given, or as the experts' pool kept it."""
        stage, method = self.plan.stages[name], self.plan.methods[name]
        if "base" in stage or not method.needs_base:
            return stage.get("base")
        experts = self._experts(name)
        codes = {getattr(each, "base_digest", None) for each in experts}
        if len(codes) != 1 or None in codes:
            return None
        return str(experts[0].base)

    def _is_folder(self, output):
        """Whether an output is a folder like that of the first expert."""
        return not str(output).endswith(".safetensors")

    def _first_expert(self, name):
        """Where the first expert of a stage is, or of what that is made of."""
        first = self._experts(name)[0]
        return (
            self._first_expert(first) if isinstance(first, str) else first.path
        )

    def _check(self, name):
        """Raises a ValueError when the experts cannot be merged."""
        method = self.plan.methods[name]
        method.check_experts(len(self._experts(name)))
        base = self._base(name)
        if method.needs_base and base is None:
            raise ValueError(
                f"method '{method.name}' works on task vectors and needs the "
                "model that the experts were fine-tuned from, which no pool "
                "of theirs kept: give `base`."
            )
        output = self.plan.stages[name].get("output")
        if output is not None and self._is_folder(output):
            check_model_folder(self._first_expert(name), output)
        base = self.plan.downloaded.get(base, base)
        if not method.needs_same_names:
            # it finds what belongs together, and says what does not
            return
        read = [
            each for each in self._experts(name) if not isinstance(each, str)
        ]
        opened = [fold(each) for each in read]
        if opened:
            check_compatible(opened, finite=False)
            if not self.plan.stages[name].get("different_bases"):
                known = base is None or base in self.plan.stages
                check_belonging(
                    method,
                    read,
                    None if known else renamed(fold(base), opened[0]),
                    "`different_bases: true` (--different-bases)",
                )
            if base is not None and base not in self.plan.stages:
                renamed(fold(base), opened[0]).close()
        for weights in opened:
            weights.close()

    def _digest(self, name):
        """A hash of all that decides what a stage makes."""
        if name not in self._digests:
            method = self.plan.methods[name]
            base = self._base(name)
            if base is not None:
                known = base in self.plan.stages
                place = self.plan.downloaded.get(base, base)
                base = self._digest(base) if known else digest(place)
            content = {
                "method": [method.name, method.configuration()],
                **decided_by(method),
                "experts": [
                    [each, self._digest(each)]
                    if isinstance(each, str)
                    else [each.name, each.digest]
                    for each in self._experts(name)
                ],
                "base": base,
            }
            if "dtype" in self.plan.stages[name]:
                content["dtype"] = self.plan.stages[name]["dtype"]
            text = json.dumps(content, sort_keys=True, default=str)
            self._digests[name] = hashlib.sha256(text.encode()).hexdigest()
        return self._digests[name]

    def _up_to_date(self, name):
        """Whether the output of a stage was made just so.

        Raises where it is to be made, and what is there is a person's.
        """
        output = self.plan.stages[name].get("output")
        if output is None:
            return False
        fresh = self._is_written(output) and self._is_of(output, name)
        if not (fresh or output in self._damaged or self._is_folder(output)):
            check_output(output)  # that of folders is known by now
        return fresh

    def _is_written(self, output):
        """Whether there is a file or folder with something in it."""
        if self._is_folder(output):
            return os.path.isdir(output) and bool(os.listdir(output))
        return os.path.isfile(output) and os.path.getsize(output) > 0

    def _is_of(self, output, name):
        """Whether an output that is there was made by a stage as it is now."""
        try:
            with open_weights(output) as weights:
                where = f"{output}, metadata 'plan'"
                made = parse_json(weights.metadata.get("plan", "{}"), where)
                if _made(made, where).get("digest") != self._digest(name):
                    return False
                verify_own_hash(weights)
        except ChangedContent as error:
            if output not in self._damaged:
                logger.warning(f"{error} This one is made again.")
                self._damaged.add(output)
            return False
        return True

    def _needed(self):
        """Stages that have an output to be made, and what making it needs."""
        needed = set()

        def need(name):
            needed.add(name)
            if not self._up_to_date(name):
                for source in self.plan.sources(name):
                    if source in self.plan.stages:
                        need(source)

        for name, stage in self.plan.stages.items():
            if "output" in stage:
                need(name)
        return [name for name in self.plan.order if name in needed]
