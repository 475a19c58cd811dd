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

import functools
import time
from pathlib import Path

from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.decisive import scored_with, while_running
from speechbrain_merge.brain.own_weights import OwnWeights, borrowed_weights
from speechbrain_merge.brain.promised_weights import file_of
from speechbrain_merge.brain.ranks import sent_by_main, unwrapped
from speechbrain_merge.brain.recipe_hooks import RecipeHooks
from speechbrain_merge.brain.scorer import Scorer
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.alone import alone
from speechbrain_merge.records.recipe_modules import remember
from speechbrain_merge.search.trials import error_of
from speechbrain_merge.stage.job import resolve
from speechbrain_merge.stage.merge_records import remember_merge
from speechbrain_merge.stage.result import (
    clear_stage,
    known_result,
    store_result,
)
from speechbrain_merge.stage.running_mean import RunningMean
from speechbrain_merge.stage.selection import Scoring
from speechbrain_merge.weights import has_adapters

logger = get_logger(__name__)


class MergeMixin(RecipeHooks):
    """Adds the merge stage to a Brain: ``class ASR(MergeMixin, sb.Brain)``.

    It must stand before ``sb.Brain``, since it extends what the Brain does
    when training and evaluation start.
    """

    def __init_subclass__(cls, **arguments):
        """The text of the recipe counts as it is now, whatever is edited."""
        super().__init_subclass__(**arguments)
        remember()

    def use_weights(self, source):
        """Says which weights ``evaluate`` evaluates from now on.

        Arguments
        ---------
        source : Candidate, str, Path or None
            A merged file, a candidate, the base of a pool. ``None``: what the
            recipe itself would evaluate, as without merging.
        """
        self.promised, self._says_weights = source, True
        self._promised_file = file_of(source)

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
            When names or shapes do not match the modules, or a candidate, or
            a file of a pool, is not what is on record of it.
        """
        if not self._evaluating and not self.scoring:
            self._lift_guard()  # these are wanted now, and no others
        states = {}
        with open_on_record(source) as weights:
            for name in weights.names():
                module, _, parameter = name.partition(".")
                states.setdefault(module, {})[parameter] = weights[name]
            for name, state in states.items():
                module = self.module_named(name, weights.label)
                if has_adapters(module):
                    if self.own_weights is None:
                        self.own_weights = OwnWeights(self.checkpointer)
                    self.own_weights.lend(module, state)
                else:
                    try:
                        module.load_state_dict(state, strict=True)
                    except RuntimeError as error:
                        raise ValueError(
                            f"{weights.label} does not fit the module "
                            f"'{name}' of this Brain: {error}"
                        ) from error

    def borrowed_weights(self, source):
        """Computes with other weights for a while.

        Arguments
        ---------
        source : object
            As for ``load_weights``.

        Returns
        -------
        context manager
            While it is entered, the modules hold these weights. Afterwards
            they hold again what they held before.

        Example
        -------
        >>> import speechbrain as sb
        >>> import torch
        >>> class ASR(MergeMixin, sb.Brain): ...
        >>> linear = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(linear.weight)
        >>> brain = ASR({"head": linear}, run_opts={"device": "cpu"})
        >>> with brain.borrowed_weights({"head.weight": torch.ones(1, 1)}):
        ...     linear.weight.item()
        1.0
        >>> linear.weight.item()
        0.0
        """
        return borrowed_weights(self, source)

    @while_running
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
            When there are no candidates, no base where one is needed, no
            selection set for a search, or no key to sign with.
        """
        started = time.perf_counter()
        if stage.sign is not None:
            run_on_main(stage.sign.check)
        scorer = self._scorer_of(stage, valid_set, valid_loader_kwargs)
        # its normaliser is among what decides how candidates score
        self._restore_checkpoint()
        title = f"Merge stage '{stage.name}'"
        partial = stage.partial or any(pool.partial for pool in self.pools())
        job = resolve(
            stage,
            self._stage_folder(stage),
            functools.partial(scored_with, self, title, partial),
            None if scorer is None else scorer.key(),
        )
        run_on_main(clear_stage, args=[job.folder])
        # One process looks, and all hear the same: another might look when the
        # first one has begun to write already.
        result = run_on_main(known_result, args=[job])
        if result is None:
            result = self._make(job, scorer, title, started)
        else:
            logger.info(f"{title}: found in {job.folder}.")
            self._use(job, result)
        if stage.sign is not None:
            run_on_main(stage.sign.sign, args=[result.path])
        return result

    @while_running
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
        scoring = Scoring(tracker, decode)
        scorer = self._scorer(scoring, valid_set, valid_loader_kwargs)
        with self._candidates_scored(), self.borrowed_weights(source):
            return scorer.score(progress=not self.noprogressbar)

    def _scorer_of(self, stage, valid_set, valid_loader_kwargs):
        """The scorer of a stage's trials; None where it has no search."""
        if stage.search is None:
            return None
        if valid_set is None:
            raise ValueError(
                f"Merge stage '{stage.name}' searches, and compares "
                "candidates on a selection set: give `valid_set`."
            )
        return self._scorer(stage.score, valid_set, valid_loader_kwargs)

    def _scorer(self, scoring, valid_set, valid_loader_kwargs):
        """A scorer of weights on a selection set."""
        loaders = self.validation_loader.loaders(
            self, valid_set, scoring.stage, valid_loader_kwargs
        )
        batches = FixedBatches(self, loaders, stage=scoring.stage)
        return Scorer(self, batches, scoring.tracker, scoring.average)

    def _make(self, job, scorer, title, started):
        """The result of a stage that no other process runs meanwhile."""
        run_on_main(
            job.folder.mkdir, kwargs={"parents": True, "exist_ok": True}
        )
        advice = (
            f"Wait until it has finished in {job.folder}, or give the stage "
            "another `name` or `folder`."
        )
        with alone(job.folder, title, advice), self._candidates_scored():
            # Another may have finished just now
            result = run_on_main(known_result, args=[job])
            if result is None:
                result = self._run(job, scorer)
                result.seconds = time.perf_counter() - started
                run_on_main(store_result, args=[job, result])
            # Nobody replaces the file before it is known which one it is
            self._use(job, result)
        return result

    def _use(self, job, result):
        """Remembers a merge in its pools, and promises its weights."""
        run_on_main(remember_merge, args=[job, result])
        self.use_weights(result.path)

    def _run(self, job, scorer):
        """Searches if asked to, and writes the merged weights."""
        show = not self.noprogressbar
        running = RunningMean()

        def score(proposal, incumbent):
            """Merges into the Brain's modules and counts errors."""
            self._load_trial(job, proposal, running)
            return scorer.score(
                incumbent, job.accept, error=error_of(job.racing)
            )

        outcome = None
        if job.search is not None:
            outcome = job.run_search(score, progress=show)
        run_on_main(job.merge, args=[job.found(outcome), job.output, show])
        return job.result(job.output, outcome)

    def _load_trial(self, job, proposal, running):
        """Puts the merge of a proposal into the modules.

        Several processes would all read all candidates, so the main one
        merges, and sends the others what it has merged.
        """
        merged = None
        if if_main_process():
            merged = job.merge(proposal, trial=True, running=running)
        self.load_weights(sent_by_main(merged, self.device))

    def module_named(self, name, label="the source"):
        """A module by the name that candidates know it by."""
        owners = [getattr(self, "modules", {})]
        for pool in self.pools():
            owners.insert(0, pool.modules)
        if self.checkpointer is not None:
            owners.append(self.checkpointer.recoverables)
        for owner in owners:
            if name in owner:
                return unwrapped(owner[name])
        known = sorted({key for owner in owners for key in owner})
        raise ValueError(
            f"{label} has weights of a module '{name}', which this Brain does "
            f"not have; it has {known}."
        )

    def _stage_folder(self, stage):
        """The folder for the results of a stage."""
        if stage.folder is not None:
            return Path(stage.folder) / stage.name
        output = getattr(self.hparams, "output_folder", None)
        if output is None:
            raise ValueError(
                f"Merge stage '{stage.name}' does not know where its results "
                "go: give it a `folder`, or the recipe an `output_folder`."
            )
        return Path(output) / "merge" / stage.name
