"""How a selection set is loaded: as the recipe loads its validation set.

Decoding the selection set is what a search spends its time on, so batches
matter. Most recipes do not say in a common place how they load: they hand
``fit`` settings that the script has put together, often with a sampler for
dynamic batching. So what ``fit`` was given is kept, also where it returns at
once because the training is over. What counts, in this order:

1. what ``merge`` is given,
2. what ``fit`` was given,
3. what the recipe's YAML says, under a name that recipes use.

Authors
 * The speechbrain_merge authors 2026
"""

from torch.utils.data import DataLoader

from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

NAMES = (
    "valid_loader_kwargs",
    "valid_dataloader_opts",
    "valid_dataloader_options",
    "valid_dataloader_kwargs",
)
"""How recipes call the settings of their validation loader in the YAML."""

BOUND = ("sampler", "batch_sampler")
"""Settings that number the utterances of one data set."""

KEPT = ("collate_fn", "num_workers", "pin_memory")
"""Settings of a ready loader that hold for other data as well."""


class ValidationLoader:
    """Remembers what ``fit`` was given, and loads selection sets by it.

    Arguments
    ---------
    hparams : SimpleNamespace
        The recipe's.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> recipe = SimpleNamespace(valid_dataloader_opts={"batch_size": 8})
    >>> loader = ValidationLoader(recipe)
    >>> loader.settings(["one", "two"])
    {'batch_size': 8}
    >>> loader.remember(["one", "two"], {"batch_size": 2})
    >>> loader.settings(["one", "two"])
    {'batch_size': 2}
    """

    def __init__(self, hparams):
        self.hparams = hparams
        self.known = False
        self.data, self.kwargs, self.loader = None, {}, None

    def remember(self, valid_set, loader_kwargs):
        """Keeps the arguments that ``fit`` was given.

        Arguments
        ---------
        valid_set : Dataset, DataLoader or None
            Nothing is kept where there is none.
        loader_kwargs : dict, optional
            As for ``fit``.
        """
        if valid_set is None:
            return
        self.known = True
        self.data, self.kwargs = valid_set, dict(loader_kwargs or {})
        self.loader = None
        if isinstance(valid_set, LoopedLoader):
            valid_set = valid_set.loader
        if isinstance(valid_set, DataLoader):
            self.loader, self.data = valid_set, valid_set.dataset

    def loaders(self, brain, data, stage, given=None):
        """Loaders of a selection set.

        Arguments
        ---------
        brain : speechbrain.Brain
            Makes the loaders.
        data : Dataset, DataLoader or dict
            The utterances; a dict names one such set for each domain.
        stage : speechbrain.Stage
            What the loaders are for.
        given : dict, optional
            What ``merge`` was given.

        Returns
        -------
        DataLoader or dict
            As `data`.
        """
        if isinstance(data, dict):
            return {
                domain: self.loaders(brain, each, stage, given)
                for domain, each in data.items()
            }
        if isinstance(data, (DataLoader, LoopedLoader)):
            return data
        if given is None and self.loader is not None and self._same(data):
            return self.loader
        settings = self.settings(data) if given is None else given
        settings = {**settings, "ckpt_prefix": None}
        return brain.make_dataloader(data, stage, **settings)

    def settings(self, data):
        """Settings for the loader of a data set, when none are given.

        Arguments
        ---------
        data : Dataset
            The utterances.

        Returns
        -------
        dict
        """
        named = self._named()
        if not self.known:
            if named is None:
                logger.warning(
                    "The selection set is loaded one utterance at a time: "
                    "fit() was not called, and the YAML has none of "
                    f"{', '.join(NAMES)}. Give `valid_loader_kwargs` to "
                    "merge(), e.g. {'batch_size': 8}."
                )
            return named or {}
        if self.loader is None:
            settings = self.kwargs or named or {}
        else:
            settings = {key: getattr(self.loader, key) for key in KEPT}
            settings["batch_size"] = self.loader.batch_size
            if self.loader.batch_size is None:
                settings["batch_sampler"] = self.loader.batch_sampler
                del settings["batch_size"]
        if self._same(data) or not any(key in settings for key in BOUND):
            return settings
        # A sampler numbers the utterances of its own data
        free = {k: v for k, v in settings.items() if k not in BOUND}
        size = (named or {}).get("batch_size")
        if "batch_size" not in free and size is not None:
            free["batch_size"] = size
        if "batch_size" not in free:
            logger.warning(
                "The selection set is loaded one utterance at a time: fit() "
                "had a sampler made for other data. Give "
                "`valid_loader_kwargs` to merge(), e.g. {'batch_size': 8} or "
                "a sampler for this data."
            )
        return free

    def _named(self):
        """The loader options in the YAML."""
        for name in NAMES:
            settings = getattr(self.hparams, name, None)
            if settings is not None:
                return dict(settings)
        return None

    def _same(self, data):
        """Whether these are the utterances that `fit` validated on."""
        ids = getattr(data, "data_ids", None)
        return data is self.data or (
            ids is not None and ids == getattr(self.data, "data_ids", None)
        )
