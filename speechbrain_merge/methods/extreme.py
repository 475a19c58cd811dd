"""Entry by entry, the expert that went farthest, or least far.

Aggregators that Plantinga et al. compare with the mean in "Average of Domain
Experts" (Table IV there): the most extreme value of each parameter, or the
least extreme. With the base as the point of reference, the most extreme is
MagMax (Marczak et al., ECCV 2024).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Extreme
>>> experts = [
...     {"w": torch.tensor([-3.0, 1.0])},
...     {"w": torch.tensor([2.0, 2.0])},
... ]
>>> Extreme()(experts)
{'w': tensor([-3.,  2.])}
>>> Extreme(keep="least")(experts)
{'w': tensor([2., 1.])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.registry import register


@register("extreme")
class Extreme(MergeMethod):
    """Keeps, for each entry, the expert that is largest or smallest.

    The paper does not state what "extreme" is measured from; that the least
    extreme makes "dead neurons with values close to zero" says that it is
    zero, our default. Sign is kept; of equal sizes the first expert wins.

    Arguments
    ---------
    keep : str
        ``"most"`` or ``"least"``.
    reference : str
        ``"zero"`` compares weights, ``"base"`` compares task vectors.
    scale : float
        Multiplies the chosen task vector; only with ``reference="base"``.

    Example
    -------
    >>> magmax = Extreme(reference="base", scale=0.5)
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([-3.0])}]
    >>> magmax(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([-1.])}
    """

    def __init__(self, keep="most", reference="zero", scale=1):
        super().__init__()
        if keep not in ("most", "least"):
            raise ValueError(f"`keep` is 'most' or 'least', got {keep!r}.")
        check_choice(reference, "reference", ("zero", "base"))
        check_number(scale, "scale")
        if reference == "zero" and scale != 1:
            raise ValueError(
                "`scale` multiplies task vectors: with `reference='zero'` "
                f"it must stay 1, got {scale!r}."
            )
        self.keep, self.reference, self.scale = keep, reference, scale
        self.needs_base = reference == "base"

    def merge_tensor(self, name, experts, base):
        """Chooses among the experts' entries of one tensor."""
        moved = self.reference == "base"
        chosen = experts[0] - base if moved else experts[0]
        for expert in experts[1:]:
            other = expert - base if moved else expert
            if self.keep == "most":
                better = other.abs() > chosen.abs()
            else:
                better = other.abs() < chosen.abs()
            chosen = torch.where(better, other, chosen)
        return base + self.scale * chosen if moved else chosen
