"""What the tuned forms of MaskGIT-Edit are trained on: the learned energy, the iterative form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from guidance.strokes.energies import reweighting
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, decode
from maskgit_jax.sampling.maskgit import maskgit_remask
from maskgit_jax.training import losses


def energy_loss(
    params: dict[str, Float[Array, "K K"]],
    batch: tuple[Float[Array, "b S K"], Int[Array, "b S"], Int[Array, "b S"]],
    key: Key[Array, ""] | None = None,
    *,
    confidence: float,
) -> tuple[Float[Array, ""], losses.Metrics]:
    """Cross-entropy of the true ids under self-guidance by strokes (MaskGIT-Edit, learned form).

    Args:
      params: the energy M, under "energy".
      batch: the frozen transformer's logits where the strokes are masked; the pictures' tokens;
        the strokes' ids, -1 outside.
      key: unused.
      confidence: in the strokes, in [0, 1].
    """
    logits, tokens, guide_ids = batch
    logits = logits * reweighting(params["energy"][guide_ids], confidence)
    return losses.masked_cross_entropy(logits[:, 1:], tokens[:, 1:], guide_ids[:, 1:] != MASK_ID)


def iterative_loss(
    transformer: Transformer,
    params: Any,
    batch: tuple[Int[Array, "b S"], Int[Array, "b S"]],
    key: Key[Array, ""],
    *,
    stroke_share: Float[Array, ""] | float,
    **options: Any,
) -> tuple[Float[Array, ""], losses.Metrics]:
    """Masked modelling with guides on the masked ids (MaskGIT-Edit, iterative form).

    Some rows get a stroke: its place is masked and its ids are the guides. The others get what
    the model itself is unsure of, see `own_guides`. Only ids that are still masked count; the
    published code also counts those that it has just filled in, whose logits no decoding reads.

    Args:
      transformer: the model.
      params: its weights, in the form of the files.
      batch: the pictures' tokens; the strokes' ids, -1 outside.
      key: draws rows, masks, samples and dropout.
      stroke_share: chance of a row to get its stroke; published: 0.
      **options: of `losses.token_loss`.
    """
    pictures, stroke_ids = batch
    row_key, mask_key, own_key, dropout_key = jax.random.split(key, 4)
    hidden_ids = losses.mask_at_random(mask_key, pictures[:, 1:])
    tokens, guide_ids = own_guides(
        transformer, params, jnp.concatenate([pictures[:, :1], hidden_ids], axis=1), own_key
    )
    gets_stroke = jax.random.bernoulli(row_key, stroke_share, (len(pictures), 1))
    tokens = jnp.where(gets_stroke, mask_strokes(pictures, stroke_ids), tokens)
    guide_ids = jnp.where(gets_stroke, stroke_ids, guide_ids)
    return losses.token_loss(
        transformer, params, tokens, pictures[:, 1:], dropout_key, guide_ids, **options
    )


def mask_strokes(tokens: Int[Array, "b S"], stroke_ids: Int[Array, "b S"]) -> Int[Array, "b S"]:
    """The tokens with all ids masked that have a stroke's id, not -1, on them."""
    return jnp.where(stroke_ids == MASK_ID, tokens, MASK_ID)


def own_guides(
    transformer: Transformer,
    params: Any,
    tokens: Int[Array, "b S"],
    key: Key[Array, ""],
    temperature: Float[Array, ""] | float = 4.5,
) -> tuple[Int[Array, "b S"], Int[Array, "b S"]]:
    """The first of two steps of MaskGIT, which keeps what it is unsure of as guides.

    There is no dropout, and no gradient passes.

    Args:
      transformer: the model.
      params: its weights, in the form of the files.
      tokens: class tokens and image ids, -1 where masked.
      key: draws the samples and the choice among them.
      temperature: of that choice; the default is the published one.

    Returns:
      The tokens with the likelier samples filled in; the other samples, -1 elsewhere.
    """
    variables = {"params": jax.lax.stop_gradient(params)}

    def predict(ids, step):
        return transformer.apply(variables, ids)[:, : transformer.config.codebook_size]

    def one(tokens, key):
        count = jnp.sum(tokens == MASK_ID)
        remask = maskgit_remask(count, num_steps=2, temperature=temperature)
        state = decode(predict, remask, DecodeState(tokens, tokens, key), 0, 1)
        return state.ids, jnp.where(state.ids == MASK_ID, state.sampled, MASK_ID)

    return jax.vmap(one)(tokens, jax.random.split(key, len(tokens)))
