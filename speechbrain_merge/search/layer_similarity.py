r"""Which layers of two models are alike: layers for attention merging, by data.

From a vector for each layer and sample, which
``speechbrain_merge.brain.representations`` takes, a distance for each layer:
layer i of the source against layer i of the target. The k most similar are
merged. As in Sundar et al. (2024, arXiv 2312.14378):

- ``sliced_wasserstein``: what the paper found to be best. It does not say over
  what the distance is taken, and there are two readings. ``"samples"``: each
  model's N vectors are a cloud of points, and the distance is between the
  clouds, along random lines θ,
  ``(mean_θ mean_n |sort(Xθ)_n − sort(Yθ)_n|^p)^{1/p}``. It needs no pairs.
  ``"pairs"``: the entries of one vector are a cloud on a line, and the
  distance ``(mean_d |sort(x)_d − sort(y)_d|^p)^{1/p}`` is averaged over pairs.
- ``euclidean``: ``‖x_n − y_n‖``, averaged over pairs.
- ``inner_product``: ``⟨x_n, y_n⟩``, averaged over pairs; here more is closer.

Example
-------
>>> import torch
>>> target = torch.zeros(3, 10, 4)
>>> source = torch.tensor([2.0, 0.5, 1.0])[:, None, None].expand(3, 10, 4)
>>> found = layer_distances(source, target, "euclidean", progress=False)
>>> found.values
(4.0, 1.0, 2.0)
>>> found.closest(2)
[1, 2]

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from speechbrain_merge.methods.attention.layers import source_layers

DISTANCES = ("sliced_wasserstein", "euclidean", "inner_product")
READINGS = ("samples", "pairs")


@dataclass(frozen=True)
class LayerDistances:
    """How far the layers of a source are from those of a target.

    Arguments
    ---------
    distance : str
        One of ``DISTANCES``.
    values : tuple of float
        One for each layer of the target.
    source, target : str
        What the models are called.
    """

    distance: str
    values: tuple
    source: str = "source"
    target: str = "target"

    def ranked(self) -> list:
        """The layers from the most to the least similar.

        Returns
        -------
        list of int
            Of equal ones the lower first.
        """
        sign = -1 if self.distance == "inner_product" else 1
        return sorted(
            range(len(self.values)), key=lambda layer: sign * self.values[layer]
        )

    def closest(self, number: int) -> list:
        """The most similar layers, for ``AttentionMerge(layers=…)``.

        Arguments
        ---------
        number : int
            How many, k.

        Returns
        -------
        list of int
            In ascending order.

        Raises
        ------
        ValueError
            Where there are not so many.

        Example
        -------
        >>> LayerDistances("inner_product", (1.0, 3.0, 2.0)).closest(2)
        [1, 2]
        """
        if not 1 <= number <= len(self.values):
            raise ValueError(
                f"`number` of layers must be from 1 to {len(self.values)}, got "
                f"{number}."
            )
        return sorted(self.ranked()[:number])

    def to_dict(self) -> dict:
        """Plain data, for a JSON file beside the results."""
        return {**asdict(self), "ranked": self.ranked()}


def layer_distances(
    source,
    target,
    distance: str = "sliced_wasserstein",
    reading: str = "samples",
    projections: int = 200,
    order: float = 2,
    seed: int = 0,
    layer_map=None,
    progress: bool = True,
) -> LayerDistances:
    """The distance of each layer.

    Arguments
    ---------
    source, target : Representations or torch.Tensor
        (layers, samples, width) of each model.
    distance : str
        One of ``DISTANCES``.
    reading : str
        Of the sliced Wasserstein distance: "samples" or "pairs".
    projections : int
        On how many random lines; the ranks of layers settle at some hundreds.
    order : float
        p of the sliced Wasserstein distance, 1 at least.
    seed : int
        Of the lines, which are the same for all layers.
    layer_map : dict, list or "even", optional
        Layer of the target to layer of the source, where the models differ in
        depth (``speechbrain_merge.methods.pair_attention``). All of the
        target's layers must have one.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    LayerDistances

    Raises
    ------
    ValueError
        Where depth, width or samples do not fit; names both models.
    ImportError
        Without POT; says how to install it.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"`distance` is one of {', '.join(DISTANCES)}, not {distance!r}."
        )
    if reading not in READINGS:
        raise ValueError(
            f"`reading` is one of {', '.join(READINGS)}, not {reading!r}."
        )
    if projections < 1 or order < 1:
        raise ValueError(
            f"`projections` and `order` must be at least 1, got {projections} "
            f"and {order}."
        )
    labels = [
        getattr(each, "label", name)
        for each, name in ((source, "source"), (target, "target"))
    ]
    theirs, ours = (
        getattr(each, "vectors", each).to(torch.float64)
        for each in (source, target)
    )
    paired = distance != "sliced_wasserstein" or reading == "pairs"
    layers = _checked(theirs, ours, labels, layer_map, paired)
    if distance == "euclidean":
        between = _euclidean
    elif distance == "inner_product":
        between = _inner_product
    elif reading == "pairs":
        between = _sorted_entries(order)
    else:
        between = _sliced(projections, order, seed)
    values = [
        float(between(theirs[layers[layer]], ours[layer]))
        for layer in tqdm(
            range(len(ours)), desc="layer distances", disable=not progress
        )
    ]
    return LayerDistances(distance, tuple(values), *labels)


def _euclidean(source, target):
    return (source - target).norm(dim=1).mean()


def _inner_product(source, target):
    return (source * target).sum(dim=1).mean()


def _sorted_entries(order):
    """Reading "pairs": each vector is a sample of numbers."""

    def between(source, target):
        moved = source.sort(dim=1).values - target.sort(dim=1).values
        return moved.abs().pow(order).mean(dim=1).pow(1 / order).mean()

    return between


def _sliced(projections, order, seed):
    """Reading "samples": each model's vectors are a cloud."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "The sliced Wasserstein distance needs POT: "
            "pip install 'speechbrain_merge[transport]'"
        ) from error

    def between(source, target):
        return ot.sliced_wasserstein_distance(
            source.numpy(),
            target.numpy(),
            n_projections=projections,
            p=order,
            seed=seed,
        )

    return between


def _checked(source, target, labels, layer_map, paired):
    """Layer of the target to layer of the source, where all fits."""
    names = f"{labels[0]} (source) and {labels[1]} (target)"
    if source.dim() != 3 or target.dim() != 3:
        raise ValueError(
            f"{names}: vectors must be (layers, samples, width), and are "
            f"{tuple(source.shape)} and {tuple(target.shape)}."
        )
    if source.shape[2] != target.shape[2]:
        raise ValueError(
            f"{names} have widths {source.shape[2]} and {target.shape[2]}: "
            "layers are comparable, and can be merged, in one width only."
        )
    if paired and source.shape[1] != target.shape[1]:
        raise ValueError(
            f"{names} have {source.shape[1]} and {target.shape[1]} samples: "
            "this distance compares pair by pair."
        )
    try:
        layers = source_layers(
            "", (len(target), len(source)), list(range(len(target))), layer_map
        )
    except ValueError as error:
        raise ValueError(f"{names}: {error}.") from None
    return layers
