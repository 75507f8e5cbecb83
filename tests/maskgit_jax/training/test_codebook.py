"""The codebook of running averages against a count by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskgit_jax.training import codebook, losses, optimizers, train_state


def take_in(averages, latents):
    """One update of the averages by the optimizer that trains them."""
    codes = codebook.codes_of(averages)
    distances = jnp.sum((latents[:, None] - codes) ** 2, axis=-1)
    value, gradient = jax.value_and_grad(codebook.usage_term)(averages, latents, distances)
    updates, _ = optimizers.moving_average(codebook.DECAY).update(gradient, (), averages)
    return float(value), jax.tree.map(jnp.add, averages, updates)


@pytest.fixture
def latents():
    """40 latents, of which the first 8 lie far from the others."""
    rng = np.random.default_rng(0)
    rows = rng.normal(9, 0.1, (8, 3)), rng.normal(0, 1, (32, 3))
    return jnp.asarray(np.concatenate(rows, dtype=np.float32))


def test_codes_become_running_averages_of_the_latents_nearest_to_them(latents):
    codes = jnp.concatenate([latents[:1], latents[10:15]])
    averages = codebook.init_averages(codes)
    np.testing.assert_array_equal(codebook.codes_of(averages), codes)
    chosen = np.argmin(np.sum((latents[:, None] - codes) ** 2, axis=-1), axis=1)
    use = np.array([0.99 + 0.01 * 6 / 40 * np.sum(chosen == k) for k in range(6)])
    sums = [
        0.99 * code + 0.01 * 6 / 40 * latents[chosen == k].sum(axis=0)
        for k, code in enumerate(codes)
    ]
    value, averages = take_in(averages, latents)
    assert value == 0
    np.testing.assert_allclose(averages["use"], use, rtol=1e-5)
    np.testing.assert_allclose(codebook.codes_of(averages), sums / use[:, None], rtol=1e-4)


def test_four_codes_that_nobody_uses_move_to_the_latents_farthest_from_any(latents):
    far = jnp.full((6, 3), 50.0) + jnp.arange(6)[:, None]
    codes = jnp.concatenate([latents[9:15], far])
    averages = codebook.init_averages(codes)
    averages["use"] = averages["use"].at[6:].set(0.01 + 0.001 * jnp.arange(6))
    averages["sums"] = codes * averages["use"][:, None]
    _, averages = take_in(averages, latents)
    found = np.asarray(codebook.codes_of(averages))
    np.testing.assert_allclose(averages["use"][6:10], 1, rtol=1e-4)
    np.testing.assert_allclose(found[10:], codes[10:], rtol=1e-4)
    # All moved codes are latents of the far group, each another one.
    gaps = np.abs(found[6:10, None] - latents[:8]).max(axis=-1)
    assert gaps.min(axis=1).max() < 1e-3
    assert len(set(gaps.argmin(axis=1))) == 4


def test_a_tokenizer_learns_with_averages_and_its_codebook_is_that_of_the_averages(tiny):
    params = {**tiny.tokenizer_params}
    plain = params["quantizer"]["codebook"]
    params["quantizer"] = codebook.init_averages(plain)
    assert codebook.with_codes(tiny.tokenizer_params) is tiny.tokenizer_params
    np.testing.assert_array_equal(codebook.with_codes(params)["quantizer"]["codebook"], plain)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    loss = functools.partial(losses.tokenizer_loss, tiny.tokenizer, entropy_weight=0.0)

    @jax.jit  # all at once: the network is compiled once
    def run(params):
        optimizer = optax.multi_transform(
            {"a": optimizers.moving_average(0.99), "b": optax.sgd(0.0)},
            {"encoder": "b", "decoder": "b", "quantizer": "a"},
        )
        state = train_state.init_state(params, optimizer)
        after, metrics = train_state.update(loss, optimizer, state, images, jax.random.key(0))
        latents = tiny.tokenizer.apply(
            {"params": codebook.with_codes(params)}, images, method="latents"
        )
        return after.params, metrics, loss(tiny.tokenizer_params, images)[0], latents

    after, metrics, as_plain, latents = run(params)
    np.testing.assert_allclose(metrics["loss"], as_plain, rtol=1e-6)
    latents = latents.reshape(-1, latents.shape[-1])
    expected = take_in(params["quantizer"], latents)[1]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        after["quantizer"],
        expected,
    )


def test_edge_error_is_the_mean_difference_of_neighbours_errors():
    error = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    down = jnp.abs(error[:, 1:] - error[:, :-1]).mean()
    right = jnp.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
    np.testing.assert_allclose(losses.edge_error(error), down + right, rtol=1e-6)
