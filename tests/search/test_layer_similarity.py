"""Distances between layers: formulas, invariances, and what is chosen."""

import pytest
import torch

from speechbrain_merge.brain.representations import Representations
from speechbrain_merge.report import plot_layer_distances
from speechbrain_merge.search import LayerDistances, layer_distances

LAYERS, SAMPLES, WIDTH = 6, 40, 8
ALL = [
    {"distance": "sliced_wasserstein"},
    {"distance": "sliced_wasserstein", "reading": "pairs"},
    {"distance": "euclidean"},
    {"distance": "inner_product"},
]
by_distance = pytest.mark.parametrize("parameters", ALL, ids=str)


def vectors(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, SAMPLES, WIDTH, generator=draw)


def values(source, target, **parameters):
    found = layer_distances(source, target, progress=False, **parameters)
    return torch.tensor(found.values, dtype=torch.float64)


@by_distance
def test_the_layers_that_are_alike_are_found(parameters):
    """Layers 1, 4 and 5 of the source are the target's, a little disturbed."""
    target = vectors(0)
    source = 3 * vectors(1) + 2
    for layer in (1, 4, 5):
        source[layer] = target[layer] + 0.05 * vectors(2)[layer]
    if parameters["distance"] == "inner_product":
        # alike in direction and longer than the others
        source[[0, 2, 3]] = vectors(1)[[0, 2, 3]] / 3
    found = layer_distances(source, target, progress=False, **parameters)
    assert found.closest(3) == [1, 4, 5]
    assert found.closest(6) == list(range(6))


def test_formulas():
    source, target = vectors(0).double(), vectors(1).double()
    moved = source - target
    torch.testing.assert_close(
        values(source, target, distance="euclidean"),
        moved.square().sum(dim=2).sqrt().mean(dim=1),
    )
    torch.testing.assert_close(
        values(source, target, distance="inner_product"),
        torch.einsum("lnd,lnd->ln", source, target).mean(dim=1),
    )
    for order in (1, 2):
        expected = [
            torch.stack(
                [
                    (x.sort().values - y.sort().values)
                    .abs()
                    .pow(order)
                    .mean()
                    .pow(1 / order)
                    for x, y in zip(source[layer], target[layer])
                ]
            ).mean()
            for layer in range(LAYERS)
        ]
        torch.testing.assert_close(
            values(source, target, reading="pairs", order=order),
            torch.stack(expected),
        )


def test_the_sliced_distance_of_a_shift_is_known():
    """Moved by t, a cloud's image on a line moves by ⟨θ, t⟩, and |t|/√d is
    the root mean square of that over all θ."""
    target = vectors(0).double()
    shift = torch.zeros(WIDTH, dtype=torch.float64)
    shift[0] = 3.0
    found = values(target + shift, target, projections=20_000)
    expected = torch.full((LAYERS,), 3 / WIDTH**0.5, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    # and with two different clouds, the same lines by hand
    import ot

    source = vectors(1).double()
    lines = torch.from_numpy(
        ot.sliced.get_random_projections(WIDTH, 50, seed=7)
    )
    images = [(each @ lines).sort(dim=1).values for each in (source, target)]
    expected = (images[0] - images[1]).square().mean(dim=(1, 2)).sqrt()
    found = values(source, target, projections=50, seed=7)
    torch.testing.assert_close(found, expected)


@by_distance
def test_order_of_samples(parameters):
    """Only the clouds of the sliced distance know no pairs."""
    source, target = vectors(0), vectors(1)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    plain = values(source, target, **parameters)
    turned = values(source[:, order], target, **parameters)
    both = values(source[:, order], target[:, order], **parameters)
    torch.testing.assert_close(both, plain)
    if parameters == {"distance": "sliced_wasserstein"}:
        torch.testing.assert_close(turned, plain, rtol=1e-12, atol=1e-12)
    else:
        assert ((turned - plain).abs() > 1e-4).all()


def test_a_seed_repeats_and_more_lines_settle():
    source, target = vectors(0), vectors(1)
    first = layer_distances(source, target, seed=4, progress=False)
    assert first == layer_distances(source, target, seed=4, progress=False)
    assert first != layer_distances(source, target, seed=5, progress=False)

    def spread(projections):
        return torch.stack(
            [
                values(source, target, seed=seed, projections=projections)
                for seed in range(10)
            ]
        ).std(dim=0)

    assert (spread(1000) < spread(10)).all()


def test_models_of_unequal_depth_by_a_map():
    source, target = vectors(0), vectors(0)[[0, 2, 3, 5]]
    found = values(source, target, distance="euclidean", layer_map="even")
    assert (found == 0).all()


def test_what_does_not_fit_names_both_models():
    bert = Representations(vectors(0), "bert-large")
    for other, message in (
        (vectors(0)[:4], "4 layers in the target, 6 in the source"),
        (vectors(0)[:, :, :4], "widths 8 and 4"),
        (vectors(0)[:, :9], "40 and 9 samples"),
        (vectors(0)[0], "must be .layers, samples, width."),
    ):
        hubert = Representations(other, "hubert-large")
        with pytest.raises(ValueError, match=message) as error:
            layer_distances(bert, hubert, "euclidean", progress=False)
        assert "bert-large (source) and hubert-large (target)" in str(
            error.value
        )
    # clouds need no pairs
    fewer = Representations(vectors(1)[:, :9], "hubert-large")
    assert len(layer_distances(bert, fewer, progress=False).values) == LAYERS


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"distance": "cosine"}, "`distance` is one of"),
        ({"reading": "both"}, "`reading` is one of"),
        ({"projections": 0}, "must be at least 1"),
        ({"order": 0.5}, "must be at least 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        layer_distances(vectors(0), vectors(1), progress=False, **parameters)
    with pytest.raises(ValueError, match="must be from 1 to 2"):
        LayerDistances("euclidean", (1.0, 2.0)).closest(3)


def test_equal_layers_are_taken_from_below():
    found = LayerDistances("euclidean", (2.0, 1.0, 1.0, 1.0))
    assert found.ranked() == [1, 2, 3, 0] and found.closest(2) == [1, 2]
    assert found.to_dict()["ranked"] == [1, 2, 3, 0]


def test_pictures(tmp_path):
    source, target = vectors(0), vectors(1)
    listed = [
        layer_distances(source, target, progress=False, **parameters)
        for parameters in ALL[::2] + ALL[3:]
    ]
    one = plot_layer_distances(listed[0], tmp_path / "one.png", chosen=2)
    three = plot_layer_distances(listed, tmp_path / "three.svg", chosen=3)
    assert one.read_bytes().startswith(b"\x89PNG")
    stars = ", ".join(map(str, listed[2].closest(3)))
    # text is drawn as shapes, with a comment that says what it reads
    assert f"inner product, most similar: {stars}" in three.read_text()


def test_a_measure_of_ones_own_is_drawn_under_its_name(tmp_path):
    found = LayerDistances("cka_loss", (2.0, 1.0))
    drawn = plot_layer_distances(found, tmp_path / "own.svg")
    assert "cka_loss" in drawn.read_text()
