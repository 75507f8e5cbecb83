import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance.divergence import attend_and_compare
from tests.divergence import HEADS, WIDTH, definition, eighths, make_cases, random
from tests.precision import products

DIVERGENCES = ("jeffreys", "cross_entropy")


@pytest.fixture(scope="module")
def cases():
    return make_cases()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("block_size", [7, 8, 100])
def test_all_forms_are_the_definition(cases, block_size, divergence):
    call = functools.partial(attend_and_compare, divergence=divergence, block_size=block_size)
    outputs = jax.jit(jax.vmap(call))(*(jnp.stack(x) for x in zip(*cases.values(), strict=True)))
    for (name, case), attention, distance in zip(cases.items(), *outputs, strict=True):
        expected_attention, expected_distance = definition(*case, divergence)
        assert np.all(distance >= 0), name
        np.testing.assert_allclose(attention, expected_attention, rtol=1e-5, atol=1e-5)
        # The sum of two logarithms of numbers near 1 has no more digits.
        atol = 1e-7 if divergence == "jeffreys" else 5e-7
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-5, atol=atol, err_msg=name)
        if divergence == "jeffreys" and "identical" in name and "nearly" not in name:
            np.testing.assert_array_equal(distance, 0)


def test_unrounded_identical_inputs_have_no_distance():
    query, key, value = 5 * random(0, 3, 101, HEADS, WIDTH)
    for block_size in (9, 101):
        call = jax.jit(functools.partial(attend_and_compare, block_size=block_size))
        np.testing.assert_array_equal(call(query, key, value, query, key)[1], 0)


small_call = jax.jit(functools.partial(attend_and_compare, block_size=2))
whole_numbers = st.integers(-300, 300)


@given(st.integers(0, 10**6), *[st.lists(whole_numbers, min_size=4, max_size=4)] * 2)
@settings(max_examples=25, deadline=None)
def test_constants_added_to_the_rows_of_logits_change_nothing(seed, shift, target_shift):
    """A vector added to all keys adds query · vector to a row; all logits here are exact."""
    inputs = eighths(random(seed, 5, 11, HEADS, 4))
    query, key, value, target_query, target_key = inputs
    shifted = small_call(
        query, key + np.float32(shift), value, target_query, target_key + np.float32(target_shift)
    )
    for one, other in zip(small_call(*inputs), shifted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_half_precision_inputs_lose_nothing_on_the_way(cases):
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in cases["random"]]
    expected_attention, expected_distance = definition(*inputs, "jeffreys")
    call = functools.partial(attend_and_compare, block_size=7)
    attention, distance = jax.jit(call)(*inputs)
    assert attention.dtype == jnp.bfloat16
    np.testing.assert_allclose(attention, expected_attention, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-5)


@pytest.mark.parametrize("block_size", [7, 100])
def test_logits_are_exact_on_every_backend(cases, block_size):
    """Two products give the logits; the third, of weights and values, is not compared."""
    call = functools.partial(attend_and_compare, block_size=block_size)
    exact = [exact for _, exact in products(call, *cases["random"])]
    assert sorted(exact) == [False, True, True]


def test_no_map_is_held():
    """The compiled program's memory is below that of one map; the whole form's is not."""
    length = 1025
    inputs = [jax.ShapeDtypeStruct((length, HEADS, WIDTH), jnp.float32)] * 5

    def memory(block_size: int) -> int:
        call = jax.jit(functools.partial(attend_and_compare, block_size=block_size))
        return call.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    one_map = 4 * HEADS * length**2
    assert memory(64) < one_map / 2
    assert memory(length) >= one_map
