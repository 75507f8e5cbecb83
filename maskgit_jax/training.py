"""Losses and update steps of both training stages (MaskGIT, sections 3.1 and 3.3)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from maskgit_jax import schedules
from maskgit_jax.tokenizer import Tokenizer
from maskgit_jax.transformer import Transformer

Params = Any
Batch = Any
Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
"""`(params, batch, key) -> (loss, metrics)`: a loss of this module without its first argument."""


class TrainState(NamedTuple):
    """Everything that a training run needs to go on.

    Attributes:
      step: number of updates done.
      params: the weights.
      opt_state: the optimizer's state.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


def tokenizer_loss(
    tokenizer: Tokenizer,
    params: Params,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
    *,
    commitment_cost: float = 0.25,
    entropy_weight: float = 0.1,
    entropy_temperature: float = 0.01,
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction (L1 + L2), codebook, commitment and entropy terms of the VQGAN.

    The entropy term asks that each latent is sure of its code and that all codes are used
    (MaskGIT's published tokenizer loss, its default weights).
    """
    reconstruction, latents, distances = tokenizer.apply({"params": params}, images)
    codes = tokenizer.apply({"params": params}, jnp.argmin(distances, axis=-1), method="codes")
    codebook_term = jnp.mean((codes - jax.lax.stop_gradient(latents)) ** 2)
    commitment_term = jnp.mean((jax.lax.stop_gradient(codes) - latents) ** 2)

    log_affinity = jax.nn.log_softmax(-distances / entropy_temperature)
    affinity = jnp.exp(log_affinity)
    sample_entropy = -jnp.mean(jnp.sum(affinity * log_affinity, axis=-1))
    usage = jnp.mean(affinity.reshape(-1, affinity.shape[-1]), axis=0)
    usage_entropy = -jnp.sum(usage * jnp.log(usage + 1e-9))

    error = reconstruction - images
    loss = (
        jnp.mean(jnp.abs(error))
        + jnp.mean(error**2)
        + codebook_term
        + commitment_cost * commitment_term
        + entropy_weight * (sample_entropy - usage_entropy)
    )
    return loss, {
        "loss": loss,
        "psnr": psnr(error),
        "quantization_error": commitment_term,
        "codes_used": jnp.exp(usage_entropy),
    }


def autoencoder_loss(
    tokenizer: Tokenizer,
    params: Params,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction (L1 + L2) without the quantizer.

    Trained on this first, the latents spread over what pictures need; a codebook put among them
    then starts with all its codes in use.
    """
    reconstruction, _, _ = tokenizer.apply({"params": params}, images, quantize=False)
    error = reconstruction - images
    loss = jnp.mean(jnp.abs(error)) + jnp.mean(error**2)
    return loss, {"loss": loss, "psnr": psnr(error)}


def psnr(error: Float[Array, "..."]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of an error on pictures in [0, 1]."""
    return -10 * jnp.log10(jnp.mean(error**2))


def hide_at_random(
    key: Key[Array, ""], ids: Int[Array, "b N"], schedule: str = "cosine"
) -> Int[Array, "b N"]:
    """Hides a random share γ(r), r ~ U[0, 1), of each row's ids: at least one (section 3.1)."""
    ratio_key, order_key = jax.random.split(key)
    batch, length = ids.shape
    share = schedules.mask_ratio(schedule, jax.random.uniform(ratio_key, (batch, 1)), length)
    order = jnp.argsort(jnp.argsort(jax.random.uniform(order_key, ids.shape), axis=-1), axis=-1)
    return jnp.where(order < jnp.maximum(jnp.floor(share * length), 1), -1, ids)


def masked_token_loss(
    transformer: Transformer,
    params: Params,
    batch: tuple[Int[Array, "b N"], Int[Array, "b"]],
    key: Key[Array, ""],
    *,
    label_smoothing: float = 0.1,
    deterministic: bool = False,
) -> tuple[Float[Array, ""], Metrics]:
    """Masked visual token modelling: cross-entropy of the hidden ids (equation 1).

    Args:
      transformer: the model.
      params: its weights.
      batch: image ids in [0, K) and classes in [0, num_classes).
      key: draws the masks and the dropout.
      label_smoothing: share of the target spread over all codes.
      deterministic: turns dropout off.
    """
    ids, labels = batch
    codebook_size = transformer.config.codebook_size
    mask_key, dropout_key = jax.random.split(key)
    hidden_ids = hide_at_random(mask_key, ids)
    hidden = hidden_ids == -1
    tokens = jnp.concatenate([labels[:, None] + codebook_size, hidden_ids], axis=1)
    logits = transformer.apply(
        {"params": params}, tokens, deterministic, rngs={"dropout": dropout_key}
    )[:, 1:, :codebook_size]
    targets = optax.smooth_labels(jax.nn.one_hot(ids, codebook_size), label_smoothing)
    loss = optax.losses.softmax_cross_entropy(logits, targets)
    loss = jnp.mean(loss, where=hidden)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == ids, where=hidden)
    return loss, {"loss": loss, "accuracy": accuracy}


def make_optimizer(
    learning_rate: float, num_steps: int, warmup_steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay to zero, and gradients clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.96, weight_decay=weight_decay),
    )


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One update; the randomness depends on `key` and the step alone, so a run can resume."""
    key = jax.random.fold_in(key, state.step)
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics
