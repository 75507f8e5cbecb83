import numpy as np
import pytest

from experiments.demo_world import world
from guidance.strokes import automatic as strokes
from maskgit_jax.errors import InputError


@pytest.fixture(scope="module")
def image():
    return world.draw_scene(77, 0).image


def test_the_stroke_alone_is_painted_in_one_colour(image):
    for kind in strokes.KINDS:
        painted, mask = strokes.automatic_stroke(image, kind, 3)
        np.testing.assert_array_equal(painted[~mask], image[~mask])
        assert len(np.unique(painted[mask], axis=0)) == 1
        assert 0 < mask.sum() < mask.size


def test_inversion_takes_the_mean_of_the_smoothed_picture(image):
    painted, mask = strokes.automatic_stroke(image, "inversion", 3)
    smooth, _ = strokes.superpixels(image)
    expected = smooth[mask].astype(float).mean(axis=0)
    np.testing.assert_allclose(painted[mask][0], expected, atol=0.5)


def test_counterfactual_asks_for_clearly_another_colour(image):
    inversion = strokes.automatic_stroke(image, "inversion", 3)
    for seed in range(3, 200):
        painted, mask = strokes.paint(
            image, inversion.mask, "counterfactual", np.random.default_rng(seed)
        )
        change = painted[mask][0].astype(float) - image[mask].mean(axis=0)
        assert np.abs(change).mean() >= 47
    other = strokes.automatic_stroke(image, "counterfactual", 3)
    np.testing.assert_array_equal(other.mask, inversion.mask)


def test_the_seed_decides(image):
    first, again = (strokes.automatic_stroke(image, "counterfactual", 8) for _ in range(2))
    np.testing.assert_array_equal(first.painted, again.painted)
    masks = {strokes.automatic_stroke(image, "inversion", seed).mask.tobytes() for seed in range(6)}
    assert len(masks) > 1


def test_areas_are_kept_to_and_the_nearest_taken_where_none_fits(image):
    _, segments = strokes.superpixels(image)
    shares = np.unique(segments, return_counts=True)[1] / segments.size
    low, high = np.sort(shares)[[1, 3]]
    for seed in range(8):
        mask = strokes.automatic_stroke(
            image, "inversion", seed, least_area=low, most_area=high
        ).mask
        assert low <= mask.mean() <= high
    largest = strokes.automatic_stroke(image, "inversion", 0, least_area=0.99, most_area=1.0).mask
    assert largest.mean() == shares.max()


@pytest.mark.parametrize("shape", [(8, 40), (97, 61)])
def test_any_size(shape):
    image = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    painted, mask = strokes.automatic_stroke(image, "counterfactual", 0)
    assert mask.shape == shape and mask.any()
    np.testing.assert_array_equal(painted[~mask], image[~mask])


def test_one_flat_colour():
    image = np.full((24, 24, 3), 200, np.uint8)
    painted, mask = strokes.automatic_stroke(image, "inversion", 0)
    assert mask.any()
    np.testing.assert_array_equal(painted, image)


def test_an_unknown_kind_is_named(image):
    with pytest.raises(InputError, match="unknown stroke 'paint': expected inversion or"):
        strokes.automatic_stroke(image, "paint", 0)
