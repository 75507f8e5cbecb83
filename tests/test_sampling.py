import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax import sampling
from maskgit_jax.errors import InputError
from maskgit_jax.model import with_class_token


def blank(model, count):
    return with_class_token(model.config, jnp.arange(count) % 5, jnp.full((count, 16), -1))


def draw(model, tokens, indices, **kwargs):
    defaults = {"num_steps": 6, "seed": 3, "indices": jnp.asarray(indices)}
    return np.asarray(sampling.sample(model, tokens, **defaults | kwargs))


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_and_index_alone(tiny):
    tokens = blank(tiny, 8)
    eight = draw(tiny, tokens, range(8))
    np.testing.assert_array_equal(draw(tiny, tokens[5:6], [5]), eight[5:6])
    assert eight.min() >= 0 and eight.max() < 24


def test_editing_keeps_the_given_ids(tiny):
    tokens = blank(tiny, 8).at[:, 4:12].set(jnp.arange(8))
    ids = draw(tiny, tokens, range(8), first_step=2)
    np.testing.assert_array_equal(ids[:, 3:11], np.tile(np.arange(8), (8, 1)))


def test_bad_arguments_are_named(tiny):
    for words, arguments in {
        "first_step is 6 of 6": {"first_step": 6},
        "first_step is 0 of 0": {"num_steps": 0},
        "unknown schedule 'sine'": {"schedule": "sine"},
    }.items():
        with pytest.raises(InputError, match=words):
            draw(tiny, blank(tiny, 1), [0], **arguments)


def test_steps_temperature_and_start_compile_once(tiny):
    tokens = blank(tiny, 8)
    draw(tiny, tokens, range(8))
    before = sampling._sample._cache_size()
    draw(tiny, tokens, range(8), num_steps=9, first_step=1, temperature=1.0)
    assert sampling._sample._cache_size() == before
