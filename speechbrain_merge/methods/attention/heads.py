"""Which heads of a projection take part in a merge.

HSA-Merge ranks the heads of each projection by how much fine-tuning moved
them, ``h = ‖(|τ_1| + |τ_2|) rows of the head‖_F``, and merges the first ones
only. The paper's K = 60 % of 12 heads are 7: the share is rounded down, to one
head at least.

Example
-------
>>> import torch
>>> moved = torch.tensor([[0.1], [0.2], [3.0], [0.0]])  # two heads of two rows
>>> head_scores([moved], heads=2)
tensor([0.2236, 3.0000], dtype=torch.float64)
>>> chosen_heads(0.5, head_scores([moved], heads=2))
[1]

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Union

import torch

from speechbrain_merge.methods.parameters import check_number, check_whole


def check_heads(heads):
    """Checks a choice of heads when a method is made.

    Arguments
    ---------
    heads : None, float or list of int
        All, the share with the highest scores, or these.

    Raises
    ------
    ValueError
        For anything else.
    """
    if isinstance(heads, (list, tuple)):
        if not heads or len(set(heads)) < len(heads):
            raise ValueError(
                f"`heads` must name each head once, and one at least; got "
                f"{heads!r}."
            )
        for head in heads:
            check_whole(head, "heads")
    elif heads is not None:
        check_number(heads, "heads", above=0, at_most=1)


def head_scores(moves: list, heads: int) -> torch.Tensor:
    """How far the rows of each head moved from the base.

    Arguments
    ---------
    moves : list of torch.Tensor
        Task vectors of one projection, (E, input) or (E,).
    heads : int
        Number of heads H.

    Returns
    -------
    torch.Tensor
        (H,), in float64.
    """
    size = sum(move.to(torch.float64).abs() for move in moves)
    return size.reshape(heads, -1).square().sum(dim=1).sqrt()


def chosen_heads(
    choice: Union[float, list, tuple], scores: torch.Tensor
) -> list:
    """The heads that are merged.

    Arguments
    ---------
    choice : float or list of int
        A share, or the heads themselves.
    scores : torch.Tensor
        Score of each head. Of equal ones the first counts as higher.

    Returns
    -------
    list of int
        In ascending order.

    Raises
    ------
    ValueError
        Where there is no such head.
    """
    if isinstance(choice, (list, tuple)):
        beyond = [head for head in choice if head >= len(scores)]
        if beyond:
            raise ValueError(
                f"there is no head {beyond[0]}: there are {len(scores)}, 0 to "
                f"{len(scores) - 1}."
            )
        return sorted(choice)
    # 0.7 of 10 heads is 7, and 6.999… in binary
    number = max(int(choice * len(scores) + 1e-9), 1)
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:number].tolist())


def choose_heads(method, of_names: dict, experts: list, base) -> dict:
    """The heads of each projection, by its weight or else its bias.

    Arguments
    ---------
    method : MergeMethod
        Whose ``heads`` says which, and on whose threads models are read.
    of_names : dict
        Name of a tensor to its projections (``AttentionProjection``).
    experts : list of Weights
        Open weights.
    base : Weights
        What they moved from.

    Returns
    -------
    dict
        Key of a projection to its heads.
    """
    names = {}
    for name, takers in of_names.items():
        for taker in takers:
            taker.check_heads()
            # weights come before biases
            names.setdefault(taker.key, (name, taker))

    def choose(key):
        name, taker = names[key]
        origin = taker.take(base[name])
        moves = [taker.take(each[name]) - origin for each in experts]
        return chosen_heads(method.heads, head_scores(moves, taker.heads))

    chosen = method.each(choose, list(names), "rank heads")
    return dict(zip(names, chosen))
