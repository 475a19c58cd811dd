"""What speaks against merging some models, in sentences.

Of the files: other starts, other vocabularies, other shapes. Of the values:
models that are the same, or that did not move, and outliers. A model is an
outlier where its modified z-score [1], ``0.6745 (x − median) / MAD``, is beyond
3.5, for the logarithm of its norm or for its mean cosine with the others.

Example
-------
>>> [round(z, 1) for z in scores([1.0, 1.0, 1.1, 9.0], 0.1)]
[-0.3, -0.3, 0.3, 53.6]

References
----------
[1] B. Iglewicz, D. Hoaglin, "How to Detect and Handle Outliers", 1993.

Authors
 * The speechbrain_merge authors 2026
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from speechbrain_merge.belonging import check_one_original
from speechbrain_merge.weights import Weights
from speechbrain_merge.weights.kinship import strangers
from speechbrain_merge.weights.vocabulary import vocabularies

LIMIT = 3.5

# Spreads below these are those of training alone: a factor of 1.1, a cosine
_NORM_FLOOR = 0.1
_COSINE_FLOOR = 0.02


def source_warnings(
    models: Sequence, opened: Sequence[Weights], titles: Sequence, based: bool
) -> list[str]:
    """What the files tell.

    Arguments
    ---------
    models : list
        As they were given, without the base.
    opened : list of Weights
        The same, open; then the base, if there is one.
    titles : list of str
        What they are called.
    based : bool
        Whether there is a base.

    Returns
    -------
    warnings : list of str
    """
    found = []
    try:
        check_one_original(models)
    except ValueError as error:
        found.append(" ".join(str(error).split()))
    anchor = len(opened) - 1 if based else 0
    for number, weights in enumerate(opened):
        if number == anchor:
            continue
        odd = strangers(opened[anchor], weights)
        if odd:
            found.append(
                f"{titles[number]} does not share a start with "
                f"{titles[anchor]}: '{odd[0].name}' has a cosine of "
                f"{odd[0].cosine:.3f}, as matrices have that were initialised "
                "apart."
            )
    found += _vocabulary_warnings(models, titles)
    for number, weights in enumerate(opened[1:], start=1):
        names = [
            name
            for name in dict.fromkeys([*opened[0].names(), *weights.names()])
            if name not in opened[0]
            or name not in weights
            or opened[0].shape(name) != weights.shape(name)
        ]
        if names:
            found.append(
                f"{titles[number]} and {titles[0]} differ in the shape or "
                f"presence of {len(names)} tensors, which are left out: "
                f"{', '.join(names[:3])}" + (", …" if names[3:] else "") + "."
            )
    return found


def _vocabulary_warnings(models, titles):
    """Vocabularies that differ from the first of their kind."""
    found, seen = [], {}
    for title, model in zip(titles, models):
        for kind, vocabulary in vocabularies(model).items():
            other, first = seen.setdefault(kind, (title, vocabulary))
            if first.tokens != vocabulary.tokens:
                differ = sum(
                    first.tokens.get(token) != vocabulary.tokens.get(token)
                    for token in {**first.tokens, **vocabulary.tokens}
                )
                found.append(
                    f"{title} has another {kind} than {other}: {differ} tokens "
                    "are missing or have other numbers, so heads and embeddings "
                    "say different things in the same places."
                )
    return found


def value_warnings(found: Mapping) -> list[str]:
    """What the measures tell.

    Arguments
    ---------
    found : dict
        Of ``compare_models``.

    Returns
    -------
    warnings : list of str
    """
    labels = [model["label"] for model in found["models"]]
    bounds = found["pairs"]["barrier_risk"].get("all", [])
    cosines = found["pairs"]["cosine"].get("all", [])
    warnings = [
        f"{labels[a]} and {labels[b]} are the same model."
        for a in range(len(bounds))
        for b in range(a)
        if bounds[a][b] == 0
    ]
    norms = [model["norm"] for model in found["models"]]
    if found["base"]:
        warnings += [
            f"{label} is the base: it has no task vector."
            for label, norm in zip(labels, norms)
            if norm == 0
        ]
    if len(labels) < 3 or not all(norms) or not cosines:
        return warnings
    for label, norm, score in zip(
        labels, norms, scores([math.log(norm) for norm in norms], _NORM_FLOOR)
    ):
        if abs(score) > LIMIT:
            warnings.append(
                f"{label} is an outlier: its norm is {norm:.3g}, and the "
                f"median is {statistics.median(norms):.3g}."
            )
    means = [
        statistics.fmean(row[b] for b in range(len(row)) if b != a)
        for a, row in enumerate(cosines)
    ]
    for label, mean, score in zip(labels, means, scores(means, _COSINE_FLOOR)):
        if score < -LIMIT:
            warnings.append(
                f"{label} is an outlier: its mean cosine with the others is "
                f"{mean:.3f}, and the median is {statistics.median(means):.3f}."
            )
    return warnings


def scores(values: Sequence[float], floor: float) -> list[float]:
    """Modified z-scores.

    Arguments
    ---------
    values : list of float
        One for each model.
    floor : float
        The least spread that is believed, where most values are the same.

    Returns
    -------
    list of float
    """
    middle = statistics.median(values)
    spread = statistics.median(abs(value - middle) for value in values)
    return [0.6745 * (value - middle) / max(spread, floor) for value in values]
