"""Which utterances a training draws, and how many before it validates.

Authors
 * The speechbrain_merge authors 2026
"""

from collections import Counter

from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler


def draw_steps(train_data, hparams):
    """Loader options by which an epoch is some steps, not all the data.

    Short epochs are validated more often, which makes the trajectory of
    checkpoints that can be merged.

    Arguments
    ---------
    train_data : DynamicItemDataset
        The training set.
    hparams : dict
        With ``steps_per_epoch``: None makes an epoch all the data.

    Returns
    -------
    dict
        Options for the training loader.
    """
    options = dict(hparams["train_loader_kwargs"])
    if hparams["balanced"]:
        options["sampler"] = balanced_sampler(train_data, hparams["seed"])
    else:
        options["shuffle"] = True
    if hparams["steps_per_epoch"] is not None:
        # The loop goes on where the last epoch stopped, so that every
        # utterance is seen once before any is seen twice
        options["looped_nominal_epoch"] = hparams["steps_per_epoch"]
    return options


def balanced_sampler(train_data, seed):
    """Draws each domain equally often, whatever its size.

    Arguments
    ---------
    train_data : DynamicItemDataset
        The training set, with the domain of each utterance.
    seed : int
        The seed of the draws.

    Returns
    -------
    ReproducibleWeightedRandomSampler
        An utterance of a small domain is drawn more often than one of a large
        domain; an epoch has as many as there are utterances.
    """
    domains = [train_data.data[name]["domain"] for name in train_data.data_ids]
    sizes = Counter(domains)
    return ReproducibleWeightedRandomSampler(
        [1 / sizes[domain] for domain in domains],
        num_samples=len(domains),
        replacement=True,
        seed=seed,
    )
