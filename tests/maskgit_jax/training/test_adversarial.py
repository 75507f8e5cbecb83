import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.training import adversarial
from maskgit_jax.training.adversarial import Discriminator

LOGITS = np.array([-30.0, -2.0, 0.0, 0.5, 30.0])


def minus_log_sigmoid(x):
    return np.log1p(np.exp(-np.asarray(x, np.float64)))


def test_losses_are_those_of_logistic_regression():
    """−log σ on what should be called real, −log(1 − σ) on what should be called fake."""
    logits = jnp.asarray(LOGITS, jnp.float32)
    as_real, as_fake = minus_log_sigmoid(LOGITS).mean(), minus_log_sigmoid(-LOGITS).mean()
    np.testing.assert_allclose(adversarial.generator_loss(logits), as_real, rtol=1e-6)
    loss = adversarial.discriminator_loss(logits + 1, logits)
    expected = minus_log_sigmoid(LOGITS + 1).mean() + as_fake
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_generator_s_gradient_does_not_saturate():
    """Where the discriminator is sure, log(1 − σ) would have a gradient of 1e-9."""
    gradient = jax.grad(adversarial.generator_loss)(jnp.array([-20.0]))
    np.testing.assert_allclose(gradient, [-1.0], rtol=1e-6)


class Polynomial(nn.Module):
    """D(x) = a · Σx + ½ · b · Σx²: its gradient is a + b · x."""

    @nn.compact
    def __call__(self, images):
        a, b = (self.param(name, nn.initializers.ones, ()) for name in "ab")
        return jnp.sum(a * images + b / 2 * images**2, axis=(1, 2, 3))


@pytest.mark.parametrize(("a", "b"), [(0.25, 0.0), (1.0, -3.0)])
def test_r1_is_half_the_squared_gradient(a, b):
    images = np.random.default_rng(0).uniform(size=(5, 4, 6, 3))
    params = {"a": jnp.float32(a), "b": jnp.float32(b)}
    penalty = adversarial.r1_penalty(Polynomial(), params, jnp.asarray(images, jnp.float32))
    expected = 0.5 * np.mean(np.sum((a + b * images) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(penalty, expected, rtol=1e-5)


@pytest.mark.parametrize(("batch", "group"), [(8, 4), (6, 2), (5, 1)])
def test_batch_deviation(batch, group):
    """Strided groups: for 8 pictures, 0 2 4 6 and 1 3 5 7."""
    x = np.random.default_rng(batch).normal(size=(batch, 3, 2, 4))
    out = np.asarray(adversarial.append_batch_deviation(jnp.asarray(x, jnp.float32)))
    np.testing.assert_array_equal(out[..., :-1], x.astype(np.float32))
    for i in range(batch):
        members = x[i % (batch // group) :: batch // group]
        expected = np.mean(np.sqrt(np.var(members, axis=0) + 1e-8))
        np.testing.assert_allclose(out[i, ..., -1], expected, rtol=1e-4)


def test_blur_is_the_binomial_filter():
    """An impulse becomes the kernel; an even area stays as it is; every other pixel is dropped."""
    x = np.zeros((1, 7, 7, 2), np.float32)
    x[0, 3, 3] = 1, -2
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    blur = jax.jit(adversarial.blur, static_argnames=("padding", "stride"))
    out = np.asarray(blur(x, padding=2))
    assert out.shape == (1, 8, 8, 2)
    np.testing.assert_allclose(out[0, 2:6, 2:6, 0], kernel, rtol=1e-6)
    np.testing.assert_allclose(out[..., 1], -2 * out[..., 0], rtol=1e-6)
    np.testing.assert_allclose(np.abs(out).sum(), 3, rtol=1e-6)
    dropped = np.asarray(blur(x, padding=2, stride=2))
    np.testing.assert_allclose(dropped, out[:, ::2, ::2], rtol=1e-6)


@pytest.fixture(scope="module")
def tiny_discriminator():
    discriminator = Discriminator(image_size=8, filters=8)
    images = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(discriminator.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)

    def fill(shape):
        """As the initialisers do it, which would take seconds to compile."""
        fan_in = np.prod(shape.shape[:-1])
        values = rng.normal(0, np.sqrt(2 / fan_in), shape.shape) * (len(shape.shape) > 1)
        return jnp.asarray(values, shape.dtype)

    return discriminator, jax.tree.map(fill, shapes)


def test_the_side_is_halved_to_3_and_the_channels_double_up_to_8_times():
    """48, 24, 12, 6, 3; nothing is computed."""
    images = jax.ShapeDtypeStruct((2, 48, 48, 3), jnp.float32)
    params = jax.eval_shape(Discriminator(48, 4).init, jax.random.key(0), images)["params"]
    blocks = sorted(name for name in params if "Block" in name)
    widths = [params[name]["Conv_2"]["kernel"].shape for name in blocks]
    assert widths == [(3, 3, 4, 8), (3, 3, 8, 16), (3, 3, 16, 32), (3, 3, 32, 32)]
    assert params["Dense_0"]["kernel"].shape == (3 * 3 * 32, 32)


@pytest.mark.slow
def test_it_learns_to_tell_two_textures_apart(tiny_discriminator):
    """Same mean and variance: stripes along and across. Guessing would give log 4."""
    discriminator, params = tiny_discriminator
    optimizer = optax.adam(2e-3, b1=0.0)

    def draw(key):
        """Stripes of two pixels at a random offset and strength, across and along."""
        keys = jax.random.split(key)
        offset = jax.random.randint(keys[0], (8, 1, 1, 1), 0, 4)
        strength = jax.random.uniform(keys[1], (8, 1, 1, 1), minval=0.1, maxval=0.4)
        line = (jnp.arange(8)[None, :, None, None] + offset) // 2 % 2
        across = jnp.broadcast_to(0.5 + strength * (2 * line - 1), (8, 8, 8, 3))
        return across, across.swapaxes(1, 2)

    def logits(params, key):
        return [discriminator.apply({"params": params}, images) for images in draw(key)]

    @jax.jit
    def step(carry, key):
        def loss(params):
            return adversarial.discriminator_loss(*logits(params, key))

        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    carry = params, optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), 40):
        carry = step(carry, key)
    real, fake = jax.jit(logits)(carry[0], jax.random.key(2))
    assert real.min() > fake.max()
    assert adversarial.discriminator_loss(real, fake) < 0.5 * np.log(4)


def test_gradients_are_finite_for_equal_pictures(tiny_discriminator):
    """The deviation of equal pictures is 0, where a plain square root has no gradient."""
    discriminator, params = tiny_discriminator
    images = jnp.full((8, 8, 8, 3), 0.5)
    penalty, gradient = jax.jit(
        jax.value_and_grad(lambda p: adversarial.r1_penalty(discriminator, p, images))
    )(params)
    assert penalty > 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("image_size", "filters", "side", "words"),
    [(22, 4, 22, "is 22"), (2, 4, 2, "is 2"), (16, 0, 16, "filters is 0"), (16, 4, 8, "8x8")],
)
def test_bad_sizes_are_named(image_size, filters, side, words):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(Discriminator(image_size, filters).init, jax.random.key(0), images)
