"""Training that hears every domain equally often, whatever its size.

Without it, a training on several domains at once hears most of the largest. It
is what the Average of Domain Experts is compared with as "resampled" (Plantinga
et al.).

Authors
 * The speechbrain_merge authors 2026
"""

from collections import Counter
from typing import Any

from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler


def balanced_sampler(
    dataset: Any, seed: int, column: str = "domain"
) -> ReproducibleWeightedRandomSampler:
    """Draws each domain of a dataset equally often.

    An utterance of a small domain is drawn more often than one of a large
    domain. An epoch has as many draws as there are utterances.

    Arguments
    ---------
    dataset : DynamicItemDataset
        The training set.
    seed : int
        The seed of the draws.
    column : str
        The column of the data that names the domain of each utterance.

    Returns
    -------
    ReproducibleWeightedRandomSampler
        For the Brain's ``train_sampler`` and for ``sampler`` of the loader. The
        Brain tells it the epoch, so that each epoch draws other utterances.

    Raises
    ------
    ValueError
        When an utterance has no such column, naming it.

    Example
    -------
    >>> from speechbrain.dataio.dataset import DynamicItemDataset
    >>> domains = ["few"] + 9 * ["many"]
    >>> dataset = DynamicItemDataset(
    ...     {str(i): {"domain": domain} for i, domain in enumerate(domains)}
    ... )
    >>> sampler = balanced_sampler(dataset, seed=7)
    >>> [round(weight, 2) for weight in sampler.weights.tolist()[:2]]
    [1.0, 0.11]
    """
    rows = {name: dataset.data[name] for name in dataset.data_ids}
    for name, row in rows.items():
        if column not in row:
            raise ValueError(
                f"The utterance '{name}' has no column '{column}', so that "
                "domains cannot be drawn equally often. It has "
                f"{', '.join(sorted(row))}."
            )
    domains = [row[column] for row in rows.values()]
    sizes = Counter(domains)
    return ReproducibleWeightedRandomSampler(
        [1 / sizes[domain] for domain in domains],
        num_samples=len(domains),
        replacement=True,
        seed=seed,
    )
