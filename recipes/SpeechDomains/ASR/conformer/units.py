"""Characters as the units of CTC: what models must share to be merged.

A merge adds up the weights of equal places of the output. That a place means
the same character in all of them, weights do not show; the pool keeps it beside
them.

Example
-------
>>> hparams = {"characters": " AB", "blank_index": 0, "output_neurons": 4}
>>> units_of(hparams)
['', ' ', 'A', 'B']

Authors
 * The speechbrain_merge authors 2026
"""

import math

import torch


def units_of(hparams):
    """The characters that CTC gives out, by their places; blank is none.

    Arguments
    ---------
    hparams : dict
        With ``characters``, ``blank_index`` and ``output_neurons``.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        When a character is there twice, or the output has another size.
    """
    units = list(hparams["characters"])
    twice = sorted({unit for unit in units if units.count(unit) > 1})
    if twice:
        raise ValueError(f"`characters` of the YAML has {twice} twice.")
    units.insert(hparams["blank_index"], "")
    if len(units) != hparams["output_neurons"]:
        raise ValueError(
            f"`output_neurons` of the YAML is {hparams['output_neurons']}, "
            f"expected {len(units)}: the characters and one blank."
        )
    return units


def check_units(candidates, hparams):
    """Refuses candidates that give out other units.

    Arguments
    ---------
    candidates : list of Candidate
        What is to be merged. Files that no pool describes are not checked.
    hparams : dict
        With ``characters`` and ``blank_index``.

    Raises
    ------
    ValueError
        When a candidate was trained with others.
    """
    for candidate in candidates:
        for name in ("characters", "blank_index"):
            found = candidate.hyperparameters.get(name, hparams[name])
            if found != hparams[name]:
                raise ValueError(
                    f"{candidate.name} was trained with `{name}` {found!r}, "
                    f"and the YAML has {hparams[name]!r}: models of different "
                    "units cannot be merged."
                )


def tokens_of(text, units):
    """A transcript as places of its characters.

    Arguments
    ---------
    text : str
        The transcript.
    units : list of str
        See ``units_of``.

    Returns
    -------
    torch.Tensor
        [characters].

    Raises
    ------
    ValueError
        When the transcript has other characters.

    Example
    -------
    >>> tokens_of("AB A", ["", " ", "A", "B"])
    tensor([2, 3, 1, 2])
    """
    unknown = sorted(set(text) - set(units))
    if unknown:
        raise ValueError(
            f"The transcript {text!r} has {unknown}, which are not among the "
            "`characters` of the YAML."
        )
    return torch.LongTensor([units.index(character) for character in text])


def words_of(log_posteriors, units, blank):
    """Words of a greedy CTC path, and how probable their characters were.

    Arguments
    ---------
    log_posteriors : torch.Tensor
        [frames, units].
    units : list of str
        The character of each unit.
    blank : int
        The unit that is none.

    Returns
    -------
    words : list of str
    confidences : list of float
        Of each word, the geometric mean of the posteriors of its characters,
        each in the frame where it is the most probable.

    Example
    -------
    >>> path = [1, 1, 0, 1, 2, 0, 1]  # A A _ A space _ A
    >>> frames = torch.full((7, 3), 0.1)
    >>> frames[range(7), path] = 0.8
    >>> frames[1, 1] = 0.9  # the first A, which two frames say
    >>> words, confidences = words_of(frames.log(), ["", "A", " "], 0)
    >>> words, [round(confidence, 4) for confidence in confidences]
    (['AA', 'A'], [0.8485, 0.8])
    """
    values, path = log_posteriors.max(-1)
    words, before = [[]], blank
    for value, unit in zip(values.tolist(), path.tolist()):
        if unit == before and unit != blank and words[-1]:
            words[-1][-1][1] = max(words[-1][-1][1], value)
        elif unit != blank and units[unit] == " ":
            words.append([])
        elif unit != blank:
            words[-1].append([units[unit], value])
        before = unit
    words = [word for word in words if word]
    return (
        ["".join(character for character, _ in word) for word in words],
        [
            math.exp(sum(value for _, value in word) / len(word))
            for word in words
        ],
    )
