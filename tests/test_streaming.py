import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance.pallas_streaming import attend_and_compare_pallas
from guidance.streaming import attend_and_compare
from tests.precision import products

LENGTH, HEADS, WIDTH = 40, 2, 8
DIVERGENCES = ("jeffreys", "cross_entropy")


def definition(query, key, value, target_query, target_key, divergence):
    """Attention output [S, H, d] and divergence [H, S] from whole maps, in float64."""
    query, key, value, target_query, target_key = (
        np.asarray(x, np.float64) for x in (query, key, value, target_query, target_key)
    )
    log_p, log_q = (
        logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for logits in (
            np.einsum("ihd,jhd->hij", target_query, target_key),
            np.einsum("ihd,jhd->hij", query, key),
        )
    )
    p, q = np.exp(log_p), np.exp(log_q)
    if divergence == "jeffreys":
        distance = np.sum((p - q) * (log_p - log_q), axis=-1)
    else:
        distance = -np.sum(p * log_q + q * log_p, axis=-1)
    return np.einsum("hij,jhd->ihd", q, value), distance


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def eighths(x):
    """Rounded so that float32 logits are exact: what is left to test is what follows them."""
    return np.round(8 * x) / 8


@pytest.fixture(scope="module")
def cases():
    """By name: query, key, value, target's query and key, each [S, H, d]."""
    query, key, value, target_query, target_key = eighths(random(0, 5, LENGTH, HEADS, WIDTH))
    # The first rows attend to one key alone; the target gives that one the lowest logit, by 600.
    far = np.eye(LENGTH, WIDTH, dtype=np.float32)[:, None] * np.ones((HEADS, 1), np.float32)
    offset = 50 * np.arange(1, WIDTH + 1, dtype=np.float32)
    return {
        "random": (query, key, value, target_query, target_key),
        "peaked": (30 * query, key, value, 30 * target_query, target_key),
        "identical": (query, key, value, query, key),
        "peaked, identical": (30 * query, key, value, 30 * query, key),
        "nearly identical": (query, key, value, query, key + eighths(target_key) / 64),
        "underflowing": (far, 600 * far, value, far, -600 * far),
        "offset": (query, key + offset, value, target_query, target_key - offset),
        "nearly identical, offset": (query, key + offset, value, query, key + target_key / 64),
    }


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
    blockwise = functools.partial(attend_and_compare, block_size=7)
    kernel = functools.partial(
        attend_and_compare_pallas, query_block=16, key_block=32, interpret=True
    )
    expected_attention, expected_distance = definition(*inputs, "jeffreys")
    for call in (blockwise, kernel):
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


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_kernel_is_the_blockwise_form(divergence):
    inputs = 2 * random(0, 5, 3, 37, HEADS, 12)
    kernel = functools.partial(
        attend_and_compare_pallas,
        divergence=divergence,
        query_block=16,
        key_block=16,
        interpret=True,
    )
    blockwise = functools.partial(attend_and_compare, divergence=divergence)
    outputs = (jax.jit(jax.vmap(call))(*inputs) for call in (kernel, blockwise))
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_other_backends_run_the_blockwise_form(cases):
    inputs = [jnp.asarray(x) for x in cases["random"]]
    expected = definition(*inputs, "jeffreys")
    for ours, theirs in zip(jax.jit(attend_and_compare_pallas)(*inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # JAX 0.12
@pytest.mark.parametrize(("platform", "target"), [("tpu", "tpu_custom_call"), ("cuda", "triton")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernel_lowers_for_accelerators_at_full_size(platform, target, dtype):
    inputs = [jax.ShapeDtypeStruct((2, 1025, 16, 48), dtype)] * 5
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")  # asked by JAX 0.11
    mesh = jax.sharding.AbstractMesh((1,), ("any",), abstract_device=device)
    try:
        with jax.sharding.use_abstract_mesh(mesh) if platform == "cuda" else nullcontext():
            traced = jax.jit(jax.vmap(attend_and_compare_pallas)).trace(*inputs)
            lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    except RuntimeError as error:
        if "compilation handler" not in str(error):
            raise
        pytest.skip("this jaxlib translates Triton's code only with the CUDA plugin installed")
    assert target in lowered
