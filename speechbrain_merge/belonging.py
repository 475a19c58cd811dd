"""Whether experts belong together: one start, one vocabulary.

Tensors of the same names and shapes can always be averaged. But if the models
were fine-tuned from different weights, or if row 3 of their heads stands for
different letters, the average recognises nothing. Three sources are checked:

- the record of a pool: the digest of the weights that a run started from;
- the files beside the weights: label encoders, tokenizers, vocabularies
  (``speechbrain_merge.weights.vocabulary``);
- the heads and embeddings themselves, which stand at right angles where they
  were initialised apart (``speechbrain_merge.weights.kinship``).

All doors ask here: the merge stage, ``speechbrain_merge.merge``, the command
line. Each has its way to say that it is meant. Methods that are made for models
of different starts (``optimal_transport``, ``attention_merge``) are not asked,
nor are parts that a ``restricted`` method does not mix.

Authors
 * The speechbrain_merge authors 2026
"""

from contextlib import ExitStack

from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.pool.candidate import BASE, Candidate
from speechbrain_merge.weights import fold, open_weights, part, widened
from speechbrain_merge.weights.kinship import strangers
from speechbrain_merge.weights.vocabulary import folder_of, vocabularies

OUTPUTS = ("output", "embedding")


def check_belonging(
    method: MergeMethod,
    experts: list,
    base=None,
    option: str = "`same_base: False`",
    opened=None,
):
    """Refuses experts that do not belong together.

    Arguments
    ---------
    method : MergeMethod
        What merges them.
    experts : list
        Candidates, paths, or anything else that ``open_weights`` opens.
    base : object, optional
        What they were fine-tuned from, likewise.
    option : str
        How one says that it is meant, for the message.
    opened : list of Weights, optional
        The experts, open, where they are open already.

    Raises
    ------
    ValueError
        Names two experts, what tells them apart, and what to do.

    Example
    -------
    >>> import torch
    >>> from speechbrain_merge.methods import create
    >>> heads = [
    ...     {"ctc_lin.weight": torch.nn.Linear(40, 30).weight.detach()}
    ...     for _ in range(2)
    ... ]
    >>> check_belonging(create("average"), heads)
    ... # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    ValueError: the experts do not belong together: 'ctc_lin.weight' of expert 0
    (a state dict) and expert 1 (a state dict) have a cosine of ..., as matrices
    have that were initialised apart. ...
    >>> check_belonging(create("average"), heads[:1])
    """
    if len(experts) + (base is not None) < 2 or not _asks(method):
        return
    check_one_original(experts, option=option)
    with ExitStack() as stack:
        models = [
            stack.enter_context(fold(widened(weights)))
            for weights in (opened or map(open_weights, experts))
        ]
        titles = [
            f"{each.name if isinstance(each, Candidate) else f'expert {number}'}"
            f" ({model.label})"
            for number, (each, model) in enumerate(zip(experts, models))
        ]
        _check_vocabularies(method, experts, models[0], titles, option)
        pairs = [
            (0, number)
            for number in range(1, len(models))
            if not _same_original(experts[0], experts[number], experts)
        ]
        known = getattr(experts[0], "base_digest", None) is not None
        if base is not None and method.needs_base and not known:
            models.append(
                stack.enter_context(fold(widened(open_weights(base))))
            )
            titles.append(f"the base ({models[-1].label})")
            pairs.append((0, len(models) - 1))
        for first, second in pairs:
            found = strangers(
                models[first],
                models[second],
                lambda name: is_mixed(method, name),
            )
            if found:
                others = f" (and {len(found) - 1} more)" if found[1:] else ""
                raise ValueError(
                    f"the experts do not belong together: '{found[0].name}'"
                    f"{others} of {titles[first]} and {titles[second]} have a "
                    f"cosine of {found[0].cosine:.3f}, as matrices have that "
                    "were initialised apart. Their mean is no model of either. "
                    "Merge experts that were fine-tuned from the same weights, "
                    "heads included, leave such parts out (`restricted`), or, "
                    f"if you know what you do, set {option}."
                )


def check_one_original(experts, needed=True, option="`same_base: False`"):
    """Refuses experts that were fine-tuned from different weights.

    Arguments
    ---------
    experts : list of Candidate
        Those whose pool kept no base are taken on trust.
    needed : bool
        False refuses nothing.
    option : str
        How one says so, for the message.

    Raises
    ------
    ValueError
        Names an expert of each original, and the originals.

    Example
    -------
    >>> check_one_original(
    ...     [
    ...         Candidate(
    ...             "a/1", "a", "a", base="a/base", base_digest="0c" * 32
    ...         ),
    ...         Candidate(
    ...             "b/1", "b", "b", base="b/base", base_digest="7f" * 32
    ...         ),
    ...     ]
    ... )
    Traceback (most recent call last):
    ...
    ValueError: the experts were fine-tuned from different originals:
      'a/1' from a/base (sha256 0c0c0c0c0c0c)
      'b/1' from b/base (sha256 7f7f7f7f7f7f)
    Their mean is no model of either. Leave out those of other originals, or, if you know what you do, set `same_base: False`.
    """
    originals = {}
    for expert in experts:
        if getattr(expert, "base_digest", None) is not None:
            originals.setdefault(expert.base_digest, []).append(expert)
    if not needed or len(originals) < 2:
        return
    lines = []
    for code, theirs in originals.items():
        names = [f"'{expert.name}'" for expert in theirs[:3]]
        if len(theirs) > 3:
            names.append(f"{len(theirs) - 3} more")
        lines.append(
            f"  {', '.join(names)} from {theirs[0].base} (sha256 {code[:12]})"
        )
    raise ValueError(
        "the experts were fine-tuned from different originals:\n"
        + "\n".join(lines)
        + "\nTheir mean is no model of either. Leave out those of other "
        f"originals, or, if you know what you do, set {option}."
    )


def is_mixed(method: MergeMethod, name: str) -> bool:
    """Whether a method mixes the experts in a tensor.

    Arguments
    ---------
    method : MergeMethod
        A method, or a wrapper around one.
    name : str
        Name of the tensor.

    Returns
    -------
    bool
        False where a ``restricted`` method takes it from one model.
    """
    chooses = getattr(method, "chooses", None)
    if chooses is not None and not chooses(name):
        return method.otherwise == "average"
    inside = getattr(method, "method", None)
    return not isinstance(inside, MergeMethod) or is_mixed(inside, name)


def _asks(method):
    """Whether a method needs models that belong together."""
    while isinstance(method, MergeMethod):
        if not (method.needs_same_base and method.needs_same_names):
            return False
        method = getattr(method, "method", None)
    return True


def _check_vocabularies(method, experts, model, titles, option):
    outputs = [name for name in model.names() if part(name).role in OUTPUTS]
    if outputs and not any(is_mixed(method, name) for name in outputs):
        return
    seen, folders = {}, set()
    for title, expert in zip(titles, experts):
        folder = folder_of(expert)
        if folder in folders:
            continue
        folders.add(folder)
        for kind, vocabulary in vocabularies(expert).items():
            other_title, other = seen.setdefault(kind, (title, vocabulary))
            if other.tokens == vocabulary.tokens:
                continue
            raise ValueError(
                f"the experts do not belong together: {other_title} and "
                f"{title} have different vocabularies. The {kind} "
                f"{other.path} has {len(other.tokens)} tokens, "
                f"{vocabulary.path} {len(vocabulary.tokens)}; "
                f"{_difference(other.tokens, vocabulary.tokens)}. Their heads "
                "say different things in the same places. Train with one "
                "vocabulary, merge the other parts alone (`restricted`), or, "
                f"if you know what you do, set {option}."
            )


def _difference(one, other):
    for token in [*one, *other]:
        if one.get(token) != other.get(token):
            numbers = [
                "missing" if token not in each else f"number {each[token]}"
                for each in (one, other)
            ]
            return f"{token!r} is {numbers[0]} there and {numbers[1]} here"
    return "they differ in their order"


def _same_original(first, second, experts):
    """Whether a pool says that two experts began as one.

    The base may be a member of the merge. Where a pool knows what its experts
    began as, another one is given on purpose: the first original of experts
    that began as an average.
    """
    code = getattr(first, "base_digest", None)
    if code is None:
        return False
    # each run of a pool has its own link to the base
    bases = [
        expert.base
        for expert in experts
        if getattr(expert, "base_digest", None) == code
    ]
    return (
        code == getattr(second, "base_digest", None)
        or getattr(second, "name", None) == BASE
        or str(getattr(second, "path", second)) in map(str, bases)
    )
