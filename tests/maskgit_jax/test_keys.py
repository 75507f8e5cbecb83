import re

import jax
import jax.numpy as jnp
import numpy as np

from maskgit_jax.keys import seed_key
from maskgit_jax.model import with_class_token
from maskgit_jax.sampling import batched
from tests.commands import ROOT


def test_a_sample_is_the_same_whatever_generator_is_configured(shallow):
    tokens = with_class_token(shallow.config, jnp.arange(3), jnp.full((3, 16), -1))

    def draw(*rows):
        rows = jnp.array(rows)
        return batched.sample(shallow, tokens[rows], num_steps=4, seed=3, indices=rows)

    expected = np.asarray(draw(0, 1, 2))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draw(0, 1, 2), expected)
        np.testing.assert_array_equal(draw(1), expected[1:2])


def test_a_seed_s_key_is_threefry_s():
    expected = jax.random.key_data(jax.random.key(2**32 - 1, impl="threefry2x32"))
    with jax.default_prng_impl("rbg"):
        key = seed_key(jnp.uint32(2**32 - 1))
    assert str(jax.random.key_impl(key)) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), expected)


def test_all_keys_begin_in_one_place():
    """Training commands too: runs that resume under another setting of JAX stay the same runs."""
    found = [
        path.name
        for package in ("maskgit_jax", "guidance", "experiments")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"random\.(key|PRNGKey)\(", path.read_text())
    ]
    assert found == ["keys.py"]
