"""Losses of both training stages (MaskGIT, sections 3.1 and 3.3)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import schedules
from maskgit_jax.training import adversarial, codebook, perceptual

Params = Any


Batch = Any


Metrics = dict[str, Float[Array, ""]]


LossFn = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
"""`(params, batch, key) -> (loss, metrics)`: a loss of this module without its first arguments.

A metric named "weight" is what the loss was divided by; without it all micro-batches weigh alike.
"""


def tokenizer_loss(
    tokenizer: Tokenizer,
    params: Params,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
    **options: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction (L1 + L2), codebook, commitment and entropy terms of the VQGAN.

    The entropy term asks that each latent is sure of its code and that all codes are used
    (MaskGIT's published tokenizer loss; the defaults are its weights).

    Args:
      tokenizer: the model.
      params: its weights; the quantizer's may be `codebook.Averages`.
      images: pictures in [0, 1].
      key: unused.
      **options: `commitment_cost` (default 0.25), `entropy_weight` (0.1), `entropy_temperature`
        (0.01), `edge_weight` (0) of `edge_error`, and `dtype` (float32), in which encoder and
        decoder compute; the terms are float32.
    """
    _, loss, metrics = _tokenizer_terms(tokenizer, params, images, **options)
    return loss, metrics


def _tokenizer_terms(
    tokenizer: Tokenizer,
    params: Params,
    images: Float[Array, "b H W 3"],
    *,
    commitment_cost: float = 0.25,
    entropy_weight: float = 0.1,
    entropy_temperature: float = 0.01,
    edge_weight: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "b H W 3"], Float[Array, ""], Metrics]:
    """Reconstruction, loss and metrics of `tokenizer_loss`."""
    quantizer = averages = params["quantizer"]
    averaged = "codebook" not in averages
    if averaged:
        quantizer = {"codebook": jax.lax.stop_gradient(codebook.codes_of(averages))}
    # Distances between latents and codes are small differences: the codebook stays in float32.
    variables = {"params": {**cast(params, dtype), "quantizer": quantizer}}
    outputs = tokenizer.apply(variables, cast(images, dtype))
    reconstruction, latents, distances = cast(outputs, jnp.float32)
    codes = tokenizer.apply(variables, jnp.argmin(distances, axis=-1), method="codes")
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
        + edge_weight * edge_error(error)
    )
    if averaged:
        flat = latents.reshape(-1, latents.shape[-1]), distances.reshape(-1, distances.shape[-1])
        loss += codebook.usage_term(averages, *flat)
    metrics = {
        "loss": loss,
        "psnr": psnr(error),
        "quantization_error": commitment_term,
        "codes_used": jnp.exp(usage_entropy),
    }
    return reconstruction, loss, metrics


def autoencoder_loss(
    tokenizer: Tokenizer,
    params: Params,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
    *,
    edge_weight: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction (L1 + L2, `edge_error`) without the quantizer; computes in `dtype`.

    Trained on this first, the latents spread over what pictures need; a codebook put among them
    then starts with all its codes in use.
    """
    variables = {"params": cast(params, dtype)}
    reconstruction, _, _ = tokenizer.apply(variables, cast(images, dtype), quantize=False)
    error = reconstruction.astype(jnp.float32) - images
    loss = jnp.mean(jnp.abs(error)) + jnp.mean(error**2) + edge_weight * edge_error(error)
    return loss, {"loss": loss, "psnr": psnr(error)}


def edge_error(error: Float[Array, "b H W 3"]) -> Float[Array, ""]:
    """Mean difference of errors beside or below each other: large where an edge is blurred."""
    return sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))


def adversarial_loss(
    tokenizer: Tokenizer,
    discriminator: adversarial.Discriminator,
    params: Params,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
    *,
    step: Int[Array, ""],
    adversarial_start: int,
    adversarial_weight: Float[Array, ""] | float = 0.1,
    perceptual_weight: float = 0.1,
    r1_weight: float = 10.0,
    **options: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """The VQGAN's whole loss: one gradient trains tokenizer and discriminator, each on its own.

    The tokenizer gets `tokenizer_loss`, the perceptual distance and the generator's adversarial
    term; the discriminator gets its logistic loss with R1 (weights as published with MaskGIT).
    Neither gets a gradient of the other's terms.

    Args:
      tokenizer: the generator.
      discriminator: tells pictures from reconstructions; computes in float32.
      params: {"tokenizer": weights, "discriminator": weights}.
      images: pictures in [0, 1].
      key: unused.
      step: updates done; traced.
      adversarial_start: from this step on the adversarial terms count, the discriminator's too.
      adversarial_weight: of the generator's term.
      perceptual_weight: of the perceptual distance.
      r1_weight: of the gradient penalty on real pictures.
      **options: of `tokenizer_loss`.
    """
    reconstruction, loss, metrics = _tokenizer_terms(
        tokenizer, params["tokenizer"], images, **options
    )
    fixed = {"params": jax.lax.stop_gradient(params["discriminator"])}
    active = (step >= adversarial_start).astype(jnp.float32)
    perceptual_term = jnp.mean(perceptual.perceptual_distance(images, reconstruction))
    generator_term = adversarial.generator_loss(discriminator.apply(fixed, reconstruction))
    loss += perceptual_weight * perceptual_term + active * adversarial_weight * generator_term

    trained = {"params": params["discriminator"]}
    fake_logits = discriminator.apply(trained, jax.lax.stop_gradient(reconstruction))
    discriminator_term = adversarial.discriminator_loss(
        discriminator.apply(trained, images), fake_logits
    )
    penalty = adversarial.r1_penalty(discriminator, params["discriminator"], images)
    metrics |= {
        "loss": loss,
        "perceptual": perceptual_term,
        "generator": generator_term,
        "discriminator": discriminator_term,
        "r1": penalty,
    }
    return loss + active * (discriminator_term + r1_weight * penalty), metrics


def psnr(error: Float[Array, "..."]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of an error on pictures in [0, 1]."""
    return -10 * jnp.log10(jnp.mean(error**2))


def mask_at_random(
    key: Key[Array, ""], ids: Int[Array, "b N"], schedule: str = "cosine"
) -> Int[Array, "b N"]:
    """Masks a random share γ(r), r ~ U[0, 1), of each row's ids: at least one (section 3.1)."""
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
    **options: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """Masked visual token modelling: cross-entropy of the masked ids (equation 1).

    Args:
      transformer: the model.
      params: its weights.
      batch: image ids in [0, K) and classes in [0, num_classes).
      key: draws the masks and the dropout.
      **options: of `token_loss`.
    """
    ids, labels = batch
    mask_key, dropout_key = jax.random.split(key)
    class_tokens = labels[:, None] + transformer.config.codebook_size
    tokens = jnp.concatenate([class_tokens, mask_at_random(mask_key, ids)], axis=1)
    return token_loss(transformer, params, tokens, ids, dropout_key, **options)


def token_loss(
    transformer: Transformer,
    params: Params,
    tokens: Int[Array, "b S"],
    ids: Int[Array, "b N"],
    dropout_key: Key[Array, ""],
    guide_ids: Int[Array, "b S"] | None = None,
    *,
    label_smoothing: float = 0.1,
    deterministic: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy of the ids that the transformer does not see.

    Args:
      transformer: the model.
      params: its weights.
      tokens: what it sees: class tokens and image ids, -1 where masked.
      ids: the true image ids, in [0, K).
      dropout_key: draws the dropout.
      guide_ids: as in `Transformer`.
      label_smoothing: share of the target spread over all codes.
      deterministic: turns dropout off.
      dtype: what the transformer computes in; the cross-entropy is float32.
    """
    logits = transformer.apply(
        {"params": cast(params, dtype)},
        tokens,
        deterministic,
        guide_ids,
        rngs={"dropout": dropout_key},
    )[:, 1:, : transformer.config.codebook_size]
    return masked_cross_entropy(logits, ids, tokens[:, 1:] == -1, label_smoothing)


def masked_cross_entropy(
    logits: Float[Array, "b N K"],
    ids: Int[Array, "b N"],
    masked: Bool[Array, "b N"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross-entropy of the ids where `masked`, in float32; how many are the likeliest."""
    logits = logits.astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(ids, logits.shape[-1]), label_smoothing)
    loss = optax.losses.softmax_cross_entropy(logits, targets)
    loss = jnp.mean(loss, where=masked)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == ids, where=masked)
    weight = jnp.sum(masked).astype(jnp.float32)
    return loss, {"loss": loss, "accuracy": accuracy, "weight": weight}


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """All floating-point arrays of a tree in `dtype`; gradients come back in the old one."""

    def one(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)
