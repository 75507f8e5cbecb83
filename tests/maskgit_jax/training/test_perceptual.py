import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from maskgit_jax.training.perceptual import perceptual_distance

distance = jax.jit(perceptual_distance)


def blur(images, sigma):
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0)).astype(np.float32)


@pytest.fixture(scope="module")
def texture():
    """Coloured noise of about four pixels' wavelength, 4 pixels larger than what is compared."""
    noise = blur(np.random.default_rng(0).normal(size=(4, 36, 36, 3)), 1)
    return np.clip(0.5 + 0.18 * noise / noise.std(), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def crop(texture):
    return texture[:, 2:34, 2:34]


def test_distance_is_zero_for_equal_pictures_symmetric_and_at_most_2(crop):
    np.testing.assert_array_equal(distance(crop, crop), 0)
    forth, back = distance(crop, 1 - crop), distance(1 - crop, crop)
    np.testing.assert_allclose(forth, back, rtol=1e-6)
    assert np.all(forth > 0.1) and np.all(forth <= 2)


def test_distance_grows_with_blur(crop):
    by_sigma = np.array([distance(crop, blur(crop, sigma)) for sigma in (0.3, 0.7, 1, 2, 4)])
    assert np.all(np.diff(by_sigma, axis=0) > 0)


def test_shifted_texture_is_nearer_than_lost_texture(texture, crop):
    """A squared error of pixels says the opposite: it prefers the even area to the shift."""
    shifted = texture[:, 4:36, 2:34]
    for lost in (blur(crop, 4), np.broadcast_to(crop.mean((1, 2), keepdims=True), crop.shape)):
        squared = [np.mean((crop - other) ** 2, axis=(1, 2, 3)) for other in (shifted, lost)]
        assert np.all(squared[0] > 1.2 * squared[1])
        assert np.all(distance(crop, shifted) < 0.9 * distance(crop, lost))


def test_even_areas_differ_in_brightness_and_colour():
    """Without biases in the network, all bright greys would look the same."""
    levels = np.float32([0.6, 0.95, 0.6])
    areas = np.ones((3, 32, 32, 3), np.float32) * levels[:, None, None, None]
    areas[2, ..., 0] = 0.9
    # Four pairs, one of them twice: what `distance` has been compiled for.
    assert np.all(distance(areas[[0, 0, 1, 1]], areas[[1, 2, 2, 2]]) > 0.003)


def test_gradient_points_towards_the_other_picture_and_is_zero_there(crop):
    gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(perceptual_distance(x, y))))
    np.testing.assert_allclose(gradient(crop, crop), 0, atol=1e-8)
    other = blur(crop, 1)
    descent = -gradient(other, crop)
    assert np.all(np.isfinite(descent))
    step = other + 0.05 * descent / np.abs(descent).max()
    assert np.all(distance(step, crop) < distance(other, crop))


def test_any_side_works_and_pictures_do_not_mix(crop):
    """Odd sides; each picture's distance is its own, whatever stands beside it."""
    odd = crop[:, :17, :21]
    together = distance(odd, odd[::-1])
    for i in range(2):
        among_its_like = distance(odd[[i] * 4], odd[[3 - i] * 4])
        np.testing.assert_allclose(among_its_like, together[i], rtol=1e-4)


def test_values_are_those_of_the_definition():
    """In float64 NumPy, and a number: the weights must stay as they are."""
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32)[:, None, None], (16, 16, 3))
    rng, channels, expected = np.random.default_rng(0), 3, 0.0
    pair = [2.0 * ramp - 1, 2.0 * ramp.swapaxes(0, 1) - 1]
    for scale, width in enumerate((16, 32, 64, 64)):
        if scale:
            pair = [x.reshape(len(x) // 2, 2, -1, 2, channels).max(axis=(1, 3)) for x in pair]
        for _ in range(2):
            kernel = rng.normal(0, np.sqrt(2 / (9 * channels)), (3, 3, channels, width))
            bias = rng.normal(0, 0.1, width)
            pair = [np.maximum(convolve(x, kernel) + bias, 0) for x in pair]
            channels = width
        a, b = (x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6) for x in pair)
        expected += np.mean(np.sum((a - b) ** 2, axis=-1)) / 4
    value = distance(ramp[None], ramp.swapaxes(0, 1)[None])[0]
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(value, 0.40762, rtol=1e-4)


def convolve(x, kernel):
    """3×3, zeros around the picture."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width, _ = x.shape
    return sum(
        padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )
