"""Masks, blends and windows against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskgit_jax.editing.blend import blend, blend_weights
from maskgit_jax.editing.masks import fit_mask, latent_mask
from maskgit_jax.editing.outpaint import plan_windows
from maskgit_jax.errors import InputError


def random_mask(seed: int, height: int = 12, width: int = 18, share: float = 0.03) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


@pytest.mark.parametrize("seed", range(3))
def test_an_id_is_hidden_where_the_mask_touches_it(seed):
    mask = random_mask(seed, 12, 12)
    expected = np.zeros((4, 4), bool)
    for row, column in np.argwhere(mask):
        expected[row // 3, column // 3] = True
    np.testing.assert_array_equal(latent_mask(mask, 4), expected.reshape(-1))


def test_a_mask_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="18x12 pixels"):
        latent_mask(random_mask(0), 4)


@pytest.mark.parametrize("height, width", [(5, 7), (12, 18), (30, 19)])
def test_a_fitted_mask_has_every_pixel_that_the_mask_touches(height, width):
    mask = random_mask(1)
    expected = np.zeros((height, width), bool)
    for row, column in np.ndindex(height, width):
        # The pixel's area on the mask; a rounding must not add a neighbour.
        top, bottom = row * 12 / height, (row + 1) * 12 / height
        left, right = column * 18 / width, (column + 1) * 18 / width
        rows = slice(int(top + 1e-9), int(np.ceil(bottom - 1e-9)))
        columns = slice(int(left + 1e-9), int(np.ceil(right - 1e-9)))
        expected[row, column] = mask[rows, columns].any()
    np.testing.assert_array_equal(fit_mask(mask, height, width), expected)


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_blend_weights_are_1_on_the_mask_and_0_beyond_the_radius(radius):
    mask = random_mask(2, 20, 30, share=0.01)
    weights = blend_weights(mask, radius)
    distance = np.full(mask.shape, np.inf)
    places = np.stack(np.indices(mask.shape), axis=-1)
    for place in np.argwhere(mask):
        distance = np.minimum(distance, np.abs(places - place).max(axis=-1))
    assert (weights[mask] == 1).all()
    assert (weights[distance > radius] == 0).all()
    near = (distance > 0) & (distance <= radius // 2)
    assert ((weights[near] > 0.4) & (weights[near] <= 1)).all()


def test_the_blend_falls_as_a_gaussian_blur():
    mask = np.zeros((3, 40), bool)
    mask[:, :10] = True
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * 2.0**2))
    wide = np.arange(-4, 44) < 14
    expected = np.convolve(wide, kernel / kernel.sum(), mode="valid")
    np.testing.assert_allclose(blend_weights(mask, 8)[1], expected, atol=1e-6)


def test_pixels_of_weight_0_keep_their_bytes_and_those_of_weight_1_are_the_new_ones():
    rng = np.random.default_rng(3)
    image, made = rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    mask = random_mask(4, 40, 40, share=0.005)
    weights = blend_weights(mask, 6)
    result = blend(image, made, weights)
    np.testing.assert_array_equal(result[weights == 0], image[weights == 0])
    np.testing.assert_array_equal(result[mask], made[mask])
    between = (weights > 0) & (weights < 1)
    low, high = np.minimum(image, made)[between], np.maximum(image, made)[between]
    assert between.any() and ((low <= result[between]) & (result[between] <= high)).all()


@given(known=st.integers(1, 200), new=st.integers(1, 500), half=st.integers(1, 40))
def test_windows_cover_what_is_new_and_keep_half(known, new, half):
    size, end = 2 * half, known + new
    for start in plan_windows(known, new, size):
        assert 0 <= start < known
        assert known - start >= min(known, half)  # half of it is known, or all there is
        assert known < start + size
        known = start + size
    assert known == max(end, size)


def test_windows_of_a_panorama():
    assert plan_windows(48, 72, 48) == [24, 48, 72]
    assert plan_windows(48, 30, 48) == [24, 30]
    assert plan_windows(16, 16, 48) == [0]
