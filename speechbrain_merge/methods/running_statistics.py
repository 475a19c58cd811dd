"""Which entries of a model are running statistics, not learned weights.

Normalisation layers measure means, variances and counts of what passes through
them, and keep them among their weights. A formula on task vectors makes nonsense
of them: with a base of standard deviation 2 and experts of 0.5 and 0.4, task
arithmetic gives −1.1. Every method takes the plain mean of the experts' instead,
which is as positive as they are.

They are known by the names that modules give them:

- all that begins with ``running_`` or ``moving_``: ``running_mean`` and
  ``running_var`` of batch and instance norms (also SpeechBrain's, and those of
  its quaternion networks), ``running_std`` of ``GlobalNorm``, ``moving_mean``,
  ``moving_Vrr``, ``moving_Vii`` and ``moving_Vri`` of ``CBatchNorm``, whose mean
  is a covariance again;
- ``glob_mean`` and ``glob_std`` of ``InputNormalization``;
- ``weight`` beside a ``running_std``: ``GlobalNorm``'s count of samples. Beside a
  ``running_var`` it is the learned scale of a batch norm;
- and, in modules that nobody knows, what is named as a variance, a standard
  deviation or a count, and is not negative in any expert. A learned parameter of
  such a name is averaged too, which keeps it above zero; logarithms, which are
  negative somewhere, are not.

Example
-------
>>> import torch
>>> from speechbrain.processing.features import GlobalNorm
>>> from speechbrain_merge.weights import open_weights
>>> with open_weights(GlobalNorm()) as weights:
...     [name for name in weights.names() if is_statistic(name, [weights])]
['running_mean', 'running_std', 'weight']

Authors
 * The speechbrain_merge authors 2026
"""

import re

PREFIXES = ("running_", "moving_")
NAMES = ("glob_mean", "glob_std")
WORDS = {"var", "variance", "std", "stddev", "count", "counts"}


def is_statistic(name: str, experts: list) -> bool:
    """Whether an entry is a measurement, to be averaged by every method.

    Arguments
    ---------
    name : str
        Name of the entry.
    experts : list of Weights
        Open weights. Their values are looked at where only the last word of
        the name says what it is.

    Returns
    -------
    is_statistic : bool

    Example
    -------
    >>> import torch
    >>> from speechbrain_merge.weights import open_weights
    >>> with open_weights({"speed.variance": torch.ones(2)}) as weights:
    ...     is_statistic("speed.variance", [weights])
    True
    >>> with open_weights({"speed.variance": -torch.ones(2)}) as weights:
    ...     is_statistic("speed.variance", [weights])
    False
    """
    module, _, leaf = name.rpartition(".")
    if leaf.startswith(PREFIXES) or leaf in NAMES:
        return True
    if leaf == "weight":
        beside = f"{module}.running_std" if module else "running_std"
        return beside in experts[0].names()
    words = re.findall("[a-z]+|[A-Z][a-z]*", leaf)
    if not WORDS.intersection(word.lower() for word in words):
        return False
    return all(bool((expert[name] >= 0).all()) for expert in experts)
