"""The merge stage: search, merge and load, inside SpeechBrain's Brain.

A recipe that wants merging names two things: a ``CheckpointPool`` among the
recoverables of its checkpointer, which collects, and a ``MergeStage``, which
says what to merge and how. ``MergeMixin`` gives the Brain the rest::

    class ASR(MergeMixin, sb.Brain): ...


    asr_brain.fit(...)
    asr_brain.merge(hparams["merge_stage"], valid_data, valid_loader_kwargs)
    asr_brain.evaluate(test_data, min_key="WER")  # the merged model

Nothing that SpeechBrain owns is touched: no checkpoint is deleted or renamed,
no metric is made up. ``evaluate`` first restores what it always restores (the
normaliser, counters), and then the merged weights over it, whatever the recipe
loads in its own hooks (``docs/recipe_hooks.md``).

Authors
 * The speechbrain_merge authors 2026
"""

import os
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_merge.engine import merge
from speechbrain_merge.stage.context import stage_context, trial_journal
from speechbrain_merge.stage.members import base_of
from speechbrain_merge.stage.merge_stage import (
    MergeResult,
    known_result,
    store_result,
)
from speechbrain_merge.stage.named_coefficients import with_coefficients
from speechbrain_merge.stage.own_weights import OwnWeights
from speechbrain_merge.stage.recipe_hooks import RecipeHooks
from speechbrain_merge.stage.remembered import remember_merge
from speechbrain_merge.stage.scoring import SelectionSet
from speechbrain_merge.weights import has_adapters, open_weights

logger = get_logger(__name__)


class MergeMixin(RecipeHooks):
    """Adds the merge stage to a Brain: ``class ASR(MergeMixin, sb.Brain)``.

    It must stand before ``sb.Brain``, since it extends what the Brain does
    when training and evaluation start.
    """

    def use_weights(self, source):
        """Says which weights ``evaluate`` evaluates from now on.

        Arguments
        ---------
        source : Candidate, str, Path or None
            A merged file, a candidate, the base of a pool. ``None``: what the
            recipe itself would evaluate, as without merging.
        """
        self.promised, self._says_weights = source, True

    def load_weights(self, source):
        """Loads weights into the Brain's modules, strictly.

        A module with LoRA then computes with these weights alone; its own
        ones come back when training, evaluation or a checkpoint need them.

        Arguments
        ---------
        source : object
            Anything that ``open_weights`` opens, with names
            ``<module>.<parameter>``.

        Raises
        ------
        ValueError
            When names or shapes do not match the modules.
        """
        if not self._evaluating:
            self._lift_guard()  # these are wanted now, and no others
        with open_weights(source) as weights:
            self._fill(weights.names(), weights.__getitem__, weights.label)

    def merge(self, stage, valid_set=None, valid_loader_kwargs=None):
        """Runs a merge stage and evaluates its outcome from then on.

        A stage that ran before on the same candidates, with the same method,
        search and data, is not run again; one that was interrupted goes on
        where it was.

        Arguments
        ---------
        stage : MergeStage
            What to do.
        valid_set : Dataset, DataLoader or dict, optional
            The selection set; a dict names one for each domain. Needed when
            the stage has a search.
        valid_loader_kwargs : dict, optional
            As for ``fit``. By default what ``fit`` was given, or else what
            the YAML says (``valid_loader_kwargs``, ``valid_dataloader_opts``).

        Returns
        -------
        result : MergeResult

        Raises
        ------
        ValueError
            When there are no candidates, no base where one is needed, or no
            selection set for a search.
        """
        started = time.perf_counter()
        stage = stage.resolved()
        candidates = stage.chosen()
        # a search over candidates begins with one, all else merges them all
        one = getattr(stage.search, "searches", None) == "candidates"
        stage.method.check_experts(1 if one else len(candidates))
        folder = self._stage_folder(stage)
        base = base_of(stage, candidates)
        selection, context = None, self._context(stage, candidates, base)
        if stage.search is not None:
            if valid_set is None:
                raise ValueError(
                    f"Merge stage '{stage.name}' searches, and compares "
                    "candidates on a selection set: give `valid_set`."
                )
            selection = SelectionSet(
                self,
                self.validation_loader.loaders(
                    self, valid_set, stage.decode, valid_loader_kwargs
                ),
                stage=stage.decode,
                tracker=stage.tracker,
                average=stage.average,
            )
            context["selection"] = selection.key()
        # One process looks, and all hear the same: another might look when the
        # first one has begun to write already.
        known = run_on_main(known_result, args=[folder, context])
        if known is None:
            with self._candidates_scored():
                result = self._search(
                    stage, candidates, base, selection, folder, context
                )
            result.seconds = time.perf_counter() - started
            run_on_main(store_result, args=[folder, result, context])
        else:
            result = known
            logger.info(f"Merge stage '{stage.name}': found in {folder}.")
        run_on_main(remember_merge, args=[stage, candidates, result])
        self.use_weights(result.path)
        return result

    def score_weights(
        self,
        source,
        valid_set,
        valid_loader_kwargs=None,
        tracker="wer_metric",
        decode="valid",
    ):
        """Word errors of any weights on a set, leaving no trace.

        Arguments
        ---------
        source : object
            Anything that ``open_weights`` opens.
        valid_set : Dataset, DataLoader or dict
            The utterances.
        valid_loader_kwargs : dict, optional
            As for ``fit``. By default as for ``merge``.
        tracker : str
            The Brain's attribute that holds the ``ErrorRateStats``.
        decode : str
            ``"valid"`` or ``"test"``: which of the recipe's searches.

        Returns
        -------
        tally : speechbrain_merge.search.Tally
        """
        stage = getattr(sb.Stage, decode.upper())
        selection = SelectionSet(
            self,
            self.validation_loader.loaders(
                self, valid_set, stage, valid_loader_kwargs
            ),
            stage=stage,
            tracker=tracker,
        )
        with self._candidates_scored():
            self.load_weights(source)
            return selection.score(progress=not self.noprogressbar)

    def _search(self, stage, candidates, base, selection, folder, context):
        """Searches if asked to, and writes the merged weights."""
        method = stage.method_for(candidates, candidates)
        members, found = candidates, None
        show = not self.noprogressbar

        def score(method, members, incumbent):
            """Merges into the Brain's modules and counts errors."""
            self._merge_into_modules(stage, method, members, base, folder)
            return selection.score(
                incumbent, getattr(stage.search, "accept", "lt")
            )

        if stage.search is not None:
            journal = trial_journal(stage, candidates, folder.parent, context)
            if stage.search.searches == "candidates":
                found = stage.search.run(
                    candidates,
                    lambda members, incumbent: score(
                        stage.method_for(members, candidates),
                        members,
                        incumbent,
                    ),
                    journal,
                    progress=show,
                    racing=stage.racing,
                )
                members = found.members
                method = stage.method_for(members, candidates)
            else:
                found = stage.search.run(
                    lambda parameters, incumbent: score(
                        with_coefficients(method, parameters, candidates),
                        candidates,
                        incumbent,
                    ),
                    journal,
                    progress=show,
                    racing=stage.racing,
                )
                method = with_coefficients(method, found.parameters, candidates)
        output = folder / "merged.safetensors"
        run_on_main(
            merge,
            args=[method, members],
            kwargs={
                "base": base,
                "output": output,
                "workers": stage.workers,
                "progress": show,
                "hashes": [member.digest for member in members],
                "dtype": stage.dtype,
                "same_base": stage.same_base,
            },
        )
        return MergeResult(
            path=output,
            name=stage.name,
            candidates=[candidate.name for candidate in candidates],
            selected=[member.name for member in members],
            method={"name": method.name, **method.configuration()},
            value=None if found is None else found.tally.value,
            trials=[] if found is None else found.trials,
            savings={} if found is None else found.savings.to_dict(),
        )

    def _merge_into_modules(self, stage, method, members, base, folder):
        """Puts a merge into the modules.

        One process merges in memory. Several would all read all candidates,
        so then the main one writes a file that all read.
        """
        if not torch.distributed.is_initialized():
            merged = merge(
                method,
                members,
                base,
                workers=stage.workers,
                progress=False,
                dtype=stage.dtype,
                same_base=False,  # asked once for all candidates
            )
            self._fill(merged, merged.__getitem__, "the merge")
            return
        trial = folder / "trial.safetensors"
        run_on_main(
            merge,
            args=[method, members],
            kwargs={
                "base": base,
                "output": trial,
                "workers": stage.workers,
                "progress": False,
                "hashes": [member.digest for member in members],
                "dtype": stage.dtype,
                "same_base": False,
            },
        )
        self.load_weights(trial)
        ddp_barrier()
        run_on_main(os.remove, args=[trial])

    def _fill(self, names, read, label):
        """Loads named tensors into the modules they belong to, strictly."""
        states = {}
        for name in names:
            module, _, parameter = name.partition(".")
            states.setdefault(module, {})[parameter] = read(name)
        for name, state in states.items():
            module = self.module_named(name, label)
            if has_adapters(module):
                if self._own_weights is None:
                    self._own_weights = OwnWeights(self.checkpointer)
                self._own_weights.lend(module, state)
            else:
                module.load_state_dict(state, strict=True)

    def module_named(self, name, label="the source"):
        """A module by the name that candidates know it by."""
        owners = [getattr(self, "modules", {})]
        for pool in self._pools():
            owners.insert(0, pool.modules)
        if self.checkpointer is not None:
            owners.append(self.checkpointer.recoverables)
        for owner in owners:
            if name in owner:
                module = owner[name]
                return getattr(module, "module", module)
        known = sorted({key for owner in owners for key in owner})
        raise ValueError(
            f"{label} has weights of a module '{name}', which this Brain does "
            f"not have; it has {known}."
        )

    def _stage_folder(self, stage):
        """Where the results of a stage go."""
        if stage.folder is not None:
            return Path(stage.folder) / stage.name
        output = getattr(self.hparams, "output_folder", None)
        if output is None:
            raise ValueError(
                f"Merge stage '{stage.name}' does not know where its results "
                "go: give it a `folder`, or the recipe an `output_folder`."
            )
        return Path(output) / "merge" / stage.name

    def _context(self, stage, candidates, base):
        """All that decides what a stage comes to."""
        return stage_context(self, stage, candidates, base)
