import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import classifier_free
from guidance.classifier_free import classifier_free_predict, other_class_token
from maskgit_jax.halton import Halton
from maskgit_jax.model import with_class_token
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
    def guided(scale):
        model = shallow.transformer, shallow.transformer_params
        return classifier_free_predict(*model, jnp.int32(28), scale)(ids, jnp.int32(0))

    for scale in (0.0, 0.6, 2.0):
        expected = (1 + scale) * wanted - scale * other
        np.testing.assert_allclose(guided(scale), expected, rtol=1e-4, atol=1e-4)


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
