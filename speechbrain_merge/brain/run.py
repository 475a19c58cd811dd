"""What a recipe prepares for one run: a Brain, its training and its data.

A recipe that wants studies has one function, ``build``, which reads a YAML with
some overrides and gives a ``Run``::

    def build(hparams_file, overrides, run_opts):
        with open(hparams_file, encoding="utf-8") as fin:
            hparams = load_hyperpyyaml(fin, overrides)
        ...
        return Run(
            brain=asr_brain,
            fit=lambda: asr_brain.fit(
                hparams["epoch_counter"], train_data, valid_data, ...
            ),
            train_set=train_data,
            valid_sets={"clean": valid_data},
            test_sets={"clean": test_clean, "other": test_other},
        )

The recipe's own ``train.py`` can use the same function for a single training.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, Optional

from speechbrain_merge.brain.statistics import collect_statistics

# Under which names upstream's recipes keep the options of their loaders
LOADER_OPTIONS = {
    "valid": (
        "valid_loader_kwargs",
        "valid_dataloader_opts",
        "valid_dataloader_options",
        "valid_dataloader_kwargs",
    ),
    "test": (
        "test_loader_kwargs",
        "test_dataloader_opts",
        "test_dataloader_options",
        "test_dataloader_kwargs",
    ),
}


@dataclasses.dataclass
class Run:
    """A Brain that is ready to train and to evaluate, with its data.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``, and a ``CheckpointPool`` among the recoverables of
        its checkpointer.
    fit : callable
        Trains it, and goes on where an earlier attempt was stopped.
    train_set : Dataset, optional
        What it trains on. None where nothing is to be trained.
    valid_sets : dict
        Domain to selection set.
    test_sets : dict
        Name to test set.
    valid_loader_kwargs, test_loader_kwargs : dict, optional
        Options of the loaders; by default those of the YAML.
    export : callable, optional
        ``export(weights, folder, texts)`` writes merged weights as a model that
        other programs load, with more files in its folder (name to text).

    Example
    -------
    >>> run = Run(brain=None, fit=print, valid_sets={}, test_sets={})
    >>> run.train_set is None
    True
    """

    brain: Any
    fit: Callable
    train_set: Any = None
    valid_sets: Mapping = dataclasses.field(default_factory=dict)
    test_sets: Mapping = dataclasses.field(default_factory=dict)
    valid_loader_kwargs: Optional[dict] = None
    test_loader_kwargs: Optional[dict] = None
    export: Optional[Callable] = None

    def loader_kwargs(self, split: str) -> dict:
        """The options of a loader, as given or as the YAML has them.

        Arguments
        ---------
        split : str
            "valid" or "test".

        Returns
        -------
        dict
            For tests, those of validation where there are no others.
        """
        given = getattr(self, f"{split}_loader_kwargs")
        if given is not None:
            return dict(given)
        hparams = self.brain.hparams
        for name in LOADER_OPTIONS[split]:
            if hasattr(hparams, name):
                return dict(getattr(hparams, name))
        return {} if split == "valid" else self.loader_kwargs("valid")

    def merge(self, stage: Any) -> Any:
        """Merges candidates; the Brain evaluates the merge from then on.

        A search uses the run's selection sets; a method that needs statistics
        of its candidates collects them there.

        Arguments
        ---------
        stage : MergeStage
            What to merge, such as the checkpoints of the run's own training.

        Returns
        -------
        MergeResult
        """
        loader_kwargs = self.loader_kwargs("valid")
        if stage.needs_statistics:
            data = {each.name: self.valid_sets for each in stage.chosen()}
            collect_statistics(self.brain, stage, data, loader_kwargs)
        return self.brain.merge(stage, self.valid_sets, loader_kwargs)
