"""Normalisers that have no statistics yet.

They get them by training, or from a checkpoint. A Brain that does neither would
give a model features that it has never seen, and its error rates would be of
those.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Collection

from speechbrain.processing.features import GlobalNorm, InputNormalization


def without_statistics(brain, names: Collection[str] = ()) -> list[str]:
    """The normalisers of a Brain that have no statistics.

    Arguments
    ---------
    brain : speechbrain.Brain
        With its modules.
    names : list of str
        Names of the tensors that are loaded into them,
        ``<module>.<parameter>``.

    Returns
    -------
    list of str
        For each the name of the module, quoted, and its class in brackets.

    Example
    -------
    >>> import speechbrain as sb
    >>> brain = sb.Brain(
    ...     {"normalize": InputNormalization()}, run_opts={"device": "cpu"}
    ... )
    >>> without_statistics(brain)
    ["'normalize' (InputNormalization)"]
    """
    loaded = {name.partition(".")[0] for name in names}
    return [
        f"'{name}' ({type(module).__name__})"
        for name, module in brain.modules.named_modules()
        if name.partition(".")[0] not in loaded and _is_empty(module)
    ]


def _is_empty(module):
    if isinstance(module, InputNormalization):
        return module.norm_type == "global" and not module.count
    return isinstance(module, GlobalNorm) and not module.weight
