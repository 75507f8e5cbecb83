import functools

import jax
import jax.numpy as jnp
import numpy as np

from maskgit_jax.networks.stacked import attention_inputs
from maskgit_jax.networks.transformer import Embed
from tests.conftest import released


def test_the_mask_is_the_last_row_of_the_vocabulary(tiny):
    ids = jnp.array([[24, *range(8), *[-1] * 8]])
    apply = functools.partial(tiny.transformer.apply, {"params": released(tiny)})
    last = tiny.config.transformer.vocabulary_size - 1
    np.testing.assert_array_equal(apply(ids), apply(jnp.where(ids == -1, last, ids)))


def test_samples_do_not_see_each_other(tiny):
    ids = jax.random.randint(jax.random.key(0), (3, 17), 0, 24)
    apply = functools.partial(tiny.transformer.apply, {"params": released(tiny)})
    np.testing.assert_allclose(apply(ids)[1], apply(ids[1]), rtol=1e-5, atol=1e-5)


def test_queries_and_keys_are_those_that_attention_uses(tiny):
    """Layer 1's output, put together by hand from its queries, keys and weights."""
    ids = jax.random.randint(jax.random.key(0), (17,), 0, 24)
    params = released(tiny)
    _, states = tiny.transformer.apply({"params": params}, ids, capture_intermediates=True)
    layer = states["intermediates"]["TransformerLayer_1"]["Attention_0"]["self_attention"]
    inputs = attention_inputs(tiny.transformer, tiny.transformer_params, ids, 2)
    value = np.asarray(layer["value"]["__call__"][0], np.float64)
    logits = np.einsum("qhd,khd->hqk", *(np.asarray(x[1], np.float64) for x in inputs))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = params["TransformerLayer_1"]["Attention_0"]["self_attention"]["out"]
    mixed = np.einsum("hqk,khd->qhd", weights, value)
    expected = np.einsum("qhd,hdo->qo", mixed, out["kernel"]) + out["bias"]
    np.testing.assert_allclose(layer["__call__"][0][0], expected, rtol=1e-4, atol=1e-5)


def test_a_guide_is_added_to_the_mask_where_both_are(tiny):
    """Guides of visible ids change nothing; elsewhere the two normalised embeddings are added."""
    ids = jnp.array([24, *range(8), *[-1] * 8])
    guides = jnp.array([-1, *[5] * 8, *range(4), *[-1] * 4])
    params = released(tiny)["Embed_0"]
    embed = functools.partial(Embed(tiny.config.transformer).apply, {"params": params})
    plain, guided = embed(ids, True)[0], embed(ids, True, guides)[0]
    alone = embed(guides, True)[0]
    expected = plain + np.where(np.isin(np.arange(17), range(9, 13))[:, None], alone, 0)
    np.testing.assert_allclose(guided, expected, rtol=1e-5)
