import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import classifier_free
from guidance.classifier_free import (
    classifier_free_predict,
    guidance_share,
    other_class_token,
)
from maskgit_jax.model import with_class_token
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.halton import Halton
from tests.conftest import make_model, released


def test_other_class_is_never_the_wanted_one_and_all_others_come_evenly(tiny):
    draws = jnp.arange(2000) / 2000
    others = other_class_token(draws, jnp.int32(24 + 3), tiny.transformer)
    np.testing.assert_array_equal(np.bincount(others - 24), [500, 500, 500, 0, 500])
    largest = jnp.nextafter(jnp.float32(1), jnp.float32(0))
    assert other_class_token(largest, jnp.int32(24 + 3), tiny.transformer) == 24 + 2


def test_a_model_of_one_class_has_no_other():
    model = make_model(num_classes=1)
    assert other_class_token(jnp.float32(0.7), jnp.int32(24), model.transformer) == 24


def test_guided_logits_are_the_formula(shallow):
    ids = jnp.array([25, *range(8), *[-1] * 8])
    both = jnp.stack([ids, ids.at[0].set(28)])
    logits = jax.jit(shallow.transformer.apply)({"params": released(shallow)}, both)
    wanted, other = np.asarray(logits)[..., :24]
    assert np.max(np.abs(wanted - other)) > 0.1

    @jax.jit
    def guided(scale, power):
        model = shallow.transformer, shallow.transformer_params
        return classifier_free_predict(*model, jnp.int32(28), scale, power, 6)(ids, jnp.int32(3))

    for scale, power, share in ((0.0, 0.0, 1), (0.6, 0.0, 1), (2.0, 0.0, 1), (2.0, 1.0, 0.75)):
        expected = (1 + scale * share) * wanted - scale * share * other
        np.testing.assert_allclose(guided(scale, power), expected, rtol=1e-4, atol=1e-4)


def test_guidance_rises_to_its_whole_scale_in_the_last_step():
    steps, num_steps = jnp.arange(12), 12
    share = jax.jit(jax.vmap(guidance_share, in_axes=(0, None, None)))
    for power in (0.5, 1.0, 4.0):
        found = share(steps, num_steps, power)
        expected = (1 - np.cos(np.pi * (np.arange(1, 13) / 12) ** power)) / 2
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found[-1] == 1
    np.testing.assert_array_equal(share(steps, num_steps, 0.0), np.ones(12))


@pytest.mark.slow
def test_any_sampler_is_guided_sample_by_sample(tiny):
    tokens = with_class_token(tiny.config, jnp.arange(8) % 5, jnp.full((8, 16), -1))
    settings = {"num_steps": 4, "sampler": Halton(), "seed": 3}
    draw = functools.partial(classifier_free.sample, tiny, **settings)
    scales = jnp.array([0.0, 100.0] * 4)
    guided = np.asarray(draw(tokens, guidance_scale=scales, indices=jnp.arange(8)))
    plain = np.asarray(draw(tokens, guidance_scale=0.0, indices=jnp.arange(8)))
    np.testing.assert_array_equal(guided[::2], plain[::2])
    assert np.all(np.any(guided[1::2] != plain[1::2], axis=1))
    # A sample is the same among others.
    turned = draw(tokens[::-1], guidance_scale=scales[::-1], indices=jnp.arange(8)[::-1])
    np.testing.assert_array_equal(turned[::-1], guided)


def test_each_sample_has_its_rise_of_guidance(shallow):
    tokens = with_class_token(shallow.config, jnp.arange(4), jnp.full((4, 16), -1))
    draw = functools.partial(
        classifier_free.sample, shallow, tokens, num_steps=4, seed=3, indices=jnp.arange(4)
    )
    constant = np.asarray(draw(guidance_scale=100.0))
    before = batched._advance._cache_size()
    mixed = np.asarray(draw(guidance_scale=100.0, power=jnp.array([0.0, 4.0, 0.0, 4.0])))
    assert batched._advance._cache_size() == before
    np.testing.assert_array_equal(mixed[::2], constant[::2])
    assert np.all(np.any(mixed[1::2] != constant[1::2], axis=1))
    # The only step is the last.
    one = [draw(guidance_scale=100.0, power=power, num_steps=1) for power in (0.0, 4.0)]
    np.testing.assert_array_equal(*one)
