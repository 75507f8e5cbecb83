import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from maskgit_jax.networks import stacked
from maskgit_jax.networks.transformer import softmax_attention
from tests.conftest import released


def test_stacking_is_undone_by_unstacking(tiny):
    params = released(tiny)
    assert sorted(params)[2:] == [f"TransformerLayer_{i}" for i in range(3)]
    by_layer = stacked.stack_layers(params)
    kernel = by_layer["TransformerLayer"]["Mlp_0"]["layer_output"]["kernel"]
    for i in range(3):
        layer = params[f"TransformerLayer_{i}"]["Mlp_0"]["layer_output"]["kernel"]
        np.testing.assert_array_equal(kernel[i], layer)
    jax.tree.map(np.testing.assert_array_equal, stacked.unstack_layers(by_layer), params)


def test_more_than_ten_layers_keep_their_order():
    params = {f"TransformerLayer_{i}": {"kernel": jnp.float32(i)} for i in (11, 2, *range(2), 10)}
    params |= {f"TransformerLayer_{i}": {"kernel": jnp.float32(i)} for i in range(3, 10)}
    by_layer = stacked.stack_layers(params)
    np.testing.assert_array_equal(by_layer["TransformerLayer"]["kernel"], np.arange(12))


def test_code_logits_are_the_module_s(tiny):
    ids = jnp.array([[24, *range(8), *[-1] * 8], [26, *[-1] * 12, *range(4)]])
    guides = jnp.full_like(ids, 3).at[:, 10].set(-1)
    apply = functools.partial(tiny.transformer.apply, {"params": released(tiny)})
    logits = functools.partial(stacked.code_logits, tiny.transformer, tiny.transformer_params)

    @jax.jit  # all at once: the layers are compiled once
    def run(ids, guides):
        plain = logits(ids), apply(ids)[..., :24]
        return plain, (logits(ids, guides), apply(ids, guide_ids=guides)[..., :24])

    plain, guided = run(ids, guides)
    np.testing.assert_allclose(*plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*guided, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(guided[1] - plain[1])) > 0.1


def test_bfloat16_is_near_and_gives_float32_logits(tiny):
    ids = jnp.array([24, *range(8), *[-1] * 8])

    @jax.jit
    def run(params):
        halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return [stacked.code_logits(tiny.transformer, each, ids) for each in (params, halved)]

    full, half = run(tiny.transformer_params)
    assert half.dtype == jnp.float32
    error = np.sqrt(np.mean((half - full) ** 2) / np.mean(full**2))
    assert 1e-4 < error < 0.05


def test_the_head_keeps_float32_of_bfloat16_weights(tiny):
    """Product and bias are float64's to seven digits; bfloat16 has three and makes codes tie."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), released(tiny))
    rng = np.random.default_rng(0)
    bias = jnp.asarray(rng.normal(size=params["MlmLayer_0"]["mlm_bias"]["bias"].shape), "bfloat16")
    params["MlmLayer_0"] |= {"mlm_bias": {"bias": bias}}
    ids = jnp.array([24, *range(8), *[-1] * 8])

    apply = functools.partial(tiny.transformer.apply, capture_intermediates=True)
    logits, states = jax.jit(apply)({"params": params}, ids)
    (states,) = states["intermediates"]["MlmLayer_0"]["mlm_ln"]["__call__"]
    words = np.asarray(params["Embed_0"]["word_embeddings"]["embedding"], np.float64)
    expected = np.asarray(states, np.float64) @ words.T + np.asarray(bias, np.float64)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


def summed(model, depth):
    """A function of ids: each token's Σ |query|² + |key|² over the first layers."""

    def attend(weight, query, key, value):
        norms = jnp.sum(query**2, axis=(-2, -1)) + jnp.sum(key**2, axis=(-2, -1))
        return softmax_attention(query, key, value), weight * norms

    modules = model.transformer, model.transformer_params
    weights = jnp.arange(1.0, depth + 1)
    return jax.jit(lambda ids: stacked.sum_over_layers(*modules, ids, attend, weights, depth))


def test_the_sum_is_over_the_layers_each_with_its_inputs(tiny):
    ids = jnp.array([24, *range(8), *[-1] * 8])
    inputs = stacked.attention_inputs(tiny.transformer, tiny.transformer_params, ids, 3)
    norms = sum(np.sum(np.square(x), axis=(-2, -1)) for x in inputs)
    expected = norms[0] + 2 * norms[1] + 3 * norms[2]
    assert np.min(np.abs(norms[1] - norms[0])) > 1e-3
    np.testing.assert_allclose(summed(tiny, 3)(ids), expected, rtol=1e-5)


def test_what_nobody_reads_is_not_run(tiny):
    """Neither layers above the last one asked for nor, of that one, what follows its attention."""
    ids = jnp.zeros((17,), jnp.int32)
    one, three = (summed(tiny, depth).lower(ids).compile() for depth in (1, 3))
    # Queries and keys of one layer; its values, output and MLP would be five times as much.
    projections = 2 * 2 * 17 * 16 * 16
    assert projections < one.cost_analysis()["flops"] < 1.5 * projections
    assert re.search(r'known_trip_count"?:\{"n":"3"\}', three.as_text())
