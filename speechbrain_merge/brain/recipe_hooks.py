"""The Brain's hooks that merging extends, around the recipe's own.

See ``docs/recipe_hooks.md`` for what a recipe may override and what holds then.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import functools
from types import SimpleNamespace
from typing import Any

from speechbrain_merge.brain.before_training import (
    check_before_training,
    check_trackers,
)
from speechbrain_merge.brain.decisive import running
from speechbrain_merge.brain.evaluated import log_evaluated
from speechbrain_merge.brain.promised_weights import (
    Guard,
    file_of,
    untouched_checkpoints,
)
from speechbrain_merge.brain.validation_loader import ValidationLoader
from speechbrain_merge.pool import CheckpointPool
from speechbrain_merge.pool.half_written import pass_over_remains
from speechbrain_merge.training.moving_average import MovingAverage


class RecipeHooks:
    """The part of ``MergeMixin`` that stands between Brain and recipe."""

    checkpointer: Any  # the Brain's
    promised = None  # what use_weights() was given
    _promised_file = None  # which file that was
    scoring = False  # whether candidates are scored just now
    own_weights = None  # of modules with adapters, while others are in them
    _validation = None
    _says_weights = False
    _evaluating = False
    _training = False
    _restored = False  # whether fit() or evaluate() has loaded a checkpoint
    _guard = None
    _averages = contextlib.ExitStack()  # while they are evaluated

    def fit(
        self,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs={},
        valid_loader_kwargs={},
    ):
        """Trains, and records how the validation set is loaded.

        Arguments
        ---------
        epoch_counter : iterable
            As for ``Brain.fit``.
        train_set : Dataset, DataLoader
            As for ``Brain.fit``.
        valid_set : Dataset, DataLoader
            As for ``Brain.fit``.
        progressbar : bool
            As for ``Brain.fit``.
        train_loader_kwargs : dict
            As for ``Brain.fit``.
        valid_loader_kwargs : dict
            As for ``Brain.fit``. ``merge`` loads its selection set by these.
        """
        with running(self):
            self.validation_loader.remember(valid_set, valid_loader_kwargs)
            limit = getattr(epoch_counter, "limit", None)
            check_before_training(self, limit)
            self._let_pools_collect(True)
            self._training = True
            try:
                super().fit(
                    epoch_counter,
                    train_set,
                    valid_set,
                    progressbar,
                    train_loader_kwargs,
                    valid_loader_kwargs,
                )
            finally:
                self._training = False

    def on_fit_start(self):
        """Lets the pools keep what training starts from, then starts it."""
        self._lift_guard()
        self._restore()
        self._restored = True
        for pool in self.pools():
            pool.begin(self)
        pass_over_remains(self.checkpointer)
        super().on_fit_start()
        for pool in self.pools():
            pool.check_features(self)

    def _fit_valid(self, *arguments, **keywords):
        """Validates with the moving averages, where these are to be used.

        The recipe's ``on_stage_end``, which saves checkpoints, finds the
        modules' own weights again.
        """
        self._validate(*arguments, **keywords)
        for pool in self.pools():
            pool.saved()
        check_trackers(self)

    def _validate(self, *arguments, **keywords):
        with contextlib.ExitStack() as averages:
            if not self._enter_averages(averages):
                super()._fit_valid(*arguments, **keywords)
                return
            on_stage_end = self.on_stage_end

            def with_own_weights(*stage, **more):
                averages.close()
                return on_stage_end(*stage, **more)

            self.on_stage_end = with_own_weights
            try:
                super()._fit_valid(*arguments, **keywords)
            finally:
                del self.on_stage_end

    def _enter_averages(self, stack) -> bool:
        """Puts the moving averages into the modules until a stack is closed."""
        if self.checkpointer is None:
            return False
        used = [
            recoverable
            for recoverable in self.checkpointer.recoverables.values()
            if isinstance(recoverable, MovingAverage)
            and recoverable.use_average
        ]
        for average in used:
            stack.enter_context(average.in_modules())
        return bool(used)

    def evaluate(
        self,
        test_set,
        max_key=None,
        min_key=None,
        progressbar=None,
        test_loader_kwargs={},
    ):
        """Evaluates with the weights that ``use_weights`` names.

        Whatever the recipe's hooks load when evaluation starts, the first
        batch finds the promised weights in the modules. While these are
        evaluated no checkpoint is saved or deleted, and no pool collects until
        ``fit`` is called again.

        Arguments
        ---------
        test_set : Dataset, DataLoader
            As for ``Brain.evaluate``.
        max_key : str
            As for ``Brain.evaluate``.
        min_key : str
            As for ``Brain.evaluate``.
        progressbar : bool
            As for ``Brain.evaluate``.
        test_loader_kwargs : dict
            As for ``Brain.evaluate``.

        Returns
        -------
        average test loss

        Raises
        ------
        RuntimeError
            Where other weights than the promised ones would be evaluated.
        """
        with running(self), self._evaluation():
            return super().evaluate(
                test_set, max_key, min_key, progressbar, test_loader_kwargs
            )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Restores the best checkpoint, then the weights to evaluate."""
        self._restore()
        self._restored = True
        self._let_pools_collect(self._training and not self._evaluating)
        pass_over_remains(self.checkpointer)
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        # The checkpoint brings the step counter of its training along, by
        # which evaluate() would then divide the test loss.
        self.step = 0
        if self.promised is not None:
            self.check_promised_file()
            self.load_weights(self.promised)
            if not self._evaluating:
                # A recipe with a loop of its own, to transcribe for instance
                self._set_guard("compute_forward", "evaluate_batch")

    def check_promised_file(self):
        """Raises where other weights have taken the promised ones' place.

        Raises
        ------
        RuntimeError
            Naming the file.
        """
        if file_of(self.promised) != self._promised_file:
            raise RuntimeError(
                f"{self.promised} was replaced since it was chosen to be "
                "evaluated, perhaps by another process that runs a merge stage "
                "of the same name in the same folder. Run the merge stage "
                "again, under a name of its own."
            )

    @functools.cached_property
    def hparams(self):
        """Of a Brain that is given none, and so has none."""
        return SimpleNamespace()

    @property
    def validation_loader(self):
        """How the recipe loads its validation set, as far as is known."""
        if self._validation is None:
            self._validation = ValidationLoader(self.hparams)
        return self._validation

    @contextlib.contextmanager
    def _evaluation(self):
        """The context of ``evaluate``: checked weights, kept checkpoints."""
        pass_over_remains(self.checkpointer)
        self._restore()
        self._restored = True
        self._let_pools_collect(False)
        self._set_guard("evaluate_batch", on_ready=self._ready_to_evaluate)
        outer, self._evaluating = self._evaluating, True
        self._averages = contextlib.ExitStack()
        try:
            with untouched_checkpoints(self):
                yield
        finally:
            self._averages.close()
            self._evaluating = outer
            self._lift_guard()
            # Some evaluate each epoch; else the modules now hold no state of
            # a training, until fit() is called again
            self._let_pools_collect(self._training)

    def _ready_to_evaluate(self):
        # Not every recipe's hook calls ours, which resets the counter
        self.step = 1
        if self.promised is None:
            self._enter_averages(self._averages)
        if self._says_weights:
            log_evaluated(self)

    def _set_guard(self, *methods, on_ready=None):
        self._lift_guard()
        self._guard = Guard(self, methods, on_ready)
        self._guard.set()

    def _lift_guard(self):
        if self._guard is not None:
            self._guard.lift()
            self._guard = None

    @contextlib.contextmanager
    def _candidates_scored(self):
        """While candidates are scored, the promised weights wait."""
        self._restore_checkpoint()
        outer, self.scoring = self.scoring, True
        try:
            yield
        finally:
            self.scoring = outer
            self._restore()

    def _restore_checkpoint(self):
        """Loads the newest checkpoint, unless fit() or evaluate() has."""
        if not self._restored and self.checkpointer is not None:
            # With --test_only, fit() has restored no normaliser
            self._restored = True
            pass_over_remains(self.checkpointer)
            self.checkpointer.recover_if_possible()
            self.step = 0

    def _restore(self):
        """Gives modules with adapters their own weights back."""
        if self.own_weights is not None:
            self.own_weights.restore()

    def _let_pools_collect(self, collecting):
        for pool in self.pools():
            pool.collecting = collecting

    def pools(self) -> list:
        """The pools among the checkpointer's recoverables.

        Returns
        -------
        list of CheckpointPool
        """
        if self.checkpointer is None:
            return []
        return [
            recoverable
            for recoverable in self.checkpointer.recoverables.values()
            if isinstance(recoverable, CheckpointPool)
        ]
