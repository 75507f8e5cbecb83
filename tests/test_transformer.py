import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import make_model


def flops(model, method, ids, *static):
    """Floating-point operations of one call, as XLA counts them."""

    def call(params, ids):
        return model.transformer.apply({"params": params}, ids, *static, method=method)

    lowered = jax.jit(call).lower(model.transformer_params, ids)
    return lowered.compile().cost_analysis()["flops"]


def test_the_mask_is_the_last_row_of_the_vocabulary(tiny):
    ids = jnp.array([[24, *range(8), *[-1] * 8]])
    apply = functools.partial(tiny.transformer.apply, {"params": tiny.transformer_params})
    last = tiny.config.transformer.vocabulary_size - 1
    np.testing.assert_array_equal(apply(ids), apply(jnp.where(ids == -1, last, ids)))


def test_samples_do_not_see_each_other(tiny):
    ids = jax.random.randint(jax.random.key(0), (3, 17), 0, 24)
    apply = functools.partial(tiny.transformer.apply, {"params": tiny.transformer_params})
    np.testing.assert_allclose(apply(ids)[1], apply(ids[1]), rtol=1e-5, atol=1e-5)


def test_queries_and_keys_are_those_that_attention_uses(tiny):
    """Layer 1's output, put together by hand from its queries, keys and weights."""
    ids = jax.random.randint(jax.random.key(0), (17,), 0, 24)
    params = tiny.transformer_params
    _, states = tiny.transformer.apply({"params": params}, ids, capture_intermediates=True)
    layer = states["intermediates"]["TransformerLayer_1"]["Attention_0"]["self_attention"]
    inputs = tiny.transformer.apply({"params": params}, ids, 2, method="attention")
    value = np.asarray(layer["value"]["__call__"][0], np.float64)
    logits = np.einsum("qhd,khd->hqk", *(np.asarray(x[1], np.float64) for x in inputs))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = params["TransformerLayer_1"]["Attention_0"]["self_attention"]["out"]
    mixed = np.einsum("hqk,khd->qhd", weights, value)
    expected = np.einsum("qhd,hdo->qo", mixed, out["kernel"]) + out["bias"]
    np.testing.assert_allclose(layer["__call__"][0][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_layers_above_the_last_one_asked_for_are_not_run():
    model = make_model(num_layers=6)
    ids = jnp.zeros((17,), jnp.int32)
    cost = {depth: flops(model, "attention", ids, depth) for depth in (1, 3, 6)}
    assert cost[1] < 0.3 * cost[3]
    assert cost[3] < 0.55 * cost[6]
    assert cost[6] < flops(model, "__call__", ids)
