"""Structure guidance: the distance between attention maps and the remask rule that lowers it.

MaskSketch (arXiv:2302.05496), sections 3.2 and 3.3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from guidance.divergence import attend_and_compare
from guidance.fused import attend_and_compare_fused
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import KNOBS, check_layers
from maskgit_jax.networks.stacked import AttentionInputs, sum_over_layers
from maskgit_jax.networks.transformer import Transformer, softmax_attention
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.loop import (
    MASK_ID,
    Draw,
    Remask,
    Tokens,
    draw_each,
    mark_lowest,
)

DIVERGENCES = KNOBS["masksketch"]["divergence"]
"""How rows of attention maps are compared: the paper's way, and the released code's, which is the
Jeffreys divergence and both rows' entropies and so also punishes diffuse attention."""

KERNELS = ("jnp", "fused")
"""What computes a compared layer's attention and divergence: `streaming`, or `fused`, the fused
attention that comes with JAX for TPUs and GPUs (experimental: it has not run on one yet)."""


def check_divergence(name: str) -> None:
    """Raises InputError for a name that is none of `DIVERGENCES`."""
    if name not in DIVERGENCES:
        raise InputError(f"unknown divergence {name!r}: expected one of {', '.join(DIVERGENCES)}")


def check_kernel(name: str, divergence: str) -> None:
    """Raises InputError for a name that is none of `KERNELS`, or without that divergence."""
    if name not in KERNELS:
        raise InputError(f"unknown kernel {name!r}: expected one of {', '.join(KERNELS)}")
    if name == "fused" and divergence != "jeffreys":
        raise InputError(
            f"the kernel fused has no divergence {divergence}: choose the divergence jeffreys, or "
            "the kernel jnp"
        )


def layer_weights(layers: Sequence[int] | None, num_layers: int) -> Float[np.ndarray, "L"]:
    """Equal weights for the chosen layers, 0 for the others below the highest one.

    The length of the array is the number of layers that are run. None chooses all.

    Raises:
      InputError: no layer, one twice, or one that the model lacks.
    """
    chosen = list(range(num_layers)) if layers is None else list(layers)
    check_layers(chosen, num_layers)
    weights = np.zeros(max(chosen) + 1, np.float32)
    weights[chosen] = 1.0
    return weights


def layer_distances(
    target: AttentionInputs, sampled: AttentionInputs, divergence: str = "jeffreys"
) -> Float[Array, "L S"]:
    """Distance of each token between two attention stacks, layer by layer (section 3.2).

    The mean over heads of the divergence between a token's rows of the maps.

    Args:
      target: of the sketch's ids.
      sampled: of the sampled ids.
      divergence: one of `DIVERGENCES`.
    """

    def of_layer(layer: tuple[AttentionInputs, AttentionInputs]) -> Float[Array, "S"]:
        (target_query, target_key), (query, key) = layer
        heads = (query, key, key, target_query, target_key)
        return jnp.mean(attend_and_compare(*heads, divergence=divergence)[1], axis=0)

    return jax.lax.map(of_layer, (target, sampled))


class Target(NamedTuple):
    """What a sample's structure is compared with.

    Attributes:
      attention: inputs of the sketch's maps.
      layer_weights: weight of each layer's distance.
    """

    attention: AttentionInputs
    layer_weights: Float[Array, "L"]


def structure_distance(
    transformer: Transformer,
    params: Any,
    ids: Tokens,
    target: Target,
    used_layers: Bool[Array, "L"],
    divergence: str = "jeffreys",
    kernel: str = "jnp",
) -> Float[Array, "S"]:
    """Distance d_i of each token: the weighted mean over layers of `layer_distances`.

    One pass over the ids; the attention logits that it needs serve the divergence too.

    Args:
      transformer: the model.
      params: its weights, stacked.
      ids: nothing hidden.
      target: what they are compared with.
      used_layers: false where no sample of the batch weighs a layer: not compared there.
      divergence: one of `DIVERGENCES`.
      kernel: one of `KERNELS`; "fused" has the divergence "jeffreys" alone.

    Raises:
      InputError: no such kernel, or not with this divergence.
    """
    check_kernel(kernel, divergence)
    if kernel == "fused":
        attend_and = attend_and_compare_fused
    else:
        attend_and = functools.partial(attend_and_compare, divergence=divergence)

    def attend(given, *heads):
        sketch, weight, used = given

        def compare():
            mixed, distance = attend_and(*heads, *sketch)
            return mixed, weight * jnp.mean(distance, axis=0)

        def pass_by():
            return softmax_attention(*heads), jnp.zeros(ids.shape, jnp.float32)

        return jax.lax.cond(used, compare, pass_by)

    inputs = (target.attention, target.layer_weights / jnp.sum(target.layer_weights), used_layers)
    return sum_over_layers(transformer, params, ids, attend, inputs, len(used_layers))


class StructureSettings(NamedTuple):
    """The knobs of structure-guided decoding; all become traced values (`traced`).

    Numbers, or arrays with a leading axis where samples differ. The defaults are the released
    ones, for 500 to 1000 steps.

    Attributes:
      layer_weights: weight of each layer's distance, ≥ 0, from layer 0 up; see `layer_weights`.
      lambda_s: share of the hidden ids chosen by structure, in [0, 1]; the rest by confidence.
        1 is all structure, 0 all realism.
      guidance_scale: of classifier-free guidance, ≥ 0.
      max_mask_rate: share of ids hidden at the start, in (0, 1].
      min_mask_rate: share that the fall ends at, in [0, max_mask_rate].
      structure_temperature: of the Gumbel noise on the structure scores, rescaled to [0, 1].
      confidence_temperature: of the Gumbel noise on the confidences, rescaled to [0, 1].
      paper_weight: weight in [0, 1] of the distance of tokens where the sketch is blank paper.
        1 is the published rule; lower lets backgrounds differ from paper.
      token_temperature: τ of `loop.tempered`.
      guidance_power: p of `classifier_free.guidance_share`; 0 is constant guidance.
    """

    layer_weights: Any
    lambda_s: Any = 0.9
    guidance_scale: Any = 0.6
    max_mask_rate: Any = 0.95
    min_mask_rate: Any = 0.35
    structure_temperature: Any = 0.0
    confidence_temperature: Any = 0.0
    paper_weight: Any = 1.0
    token_temperature: Any = 1.0
    guidance_power: Any = 0.0


class TracedSettings(NamedTuple):
    """`StructureSettings` as float32 arrays, ready to be traced; changing one compiles nothing.

    The two differences are taken in float64 before, as the published code does: in float32
    1 - 0.28 is just under 0.72, and 0.72 · 75 would count 53 instead of 54.

    Attributes:
      layer_weights: as given.
      structure_share: λ_s.
      realism_share: 1 − λ_s.
      guidance_scale: as given.
      max_mask_rate: as given.
      min_mask_rate: as given.
      mask_rate_span: highest minus lowest mask rate.
      structure_temperature: as given.
      confidence_temperature: as given.
      paper_weight: as given.
      token_temperature: as given.
      guidance_power: as given.
    """

    layer_weights: Float[Array, "*b L"]
    structure_share: Float[Array, "*b"]
    realism_share: Float[Array, "*b"]
    guidance_scale: Float[Array, "*b"]
    max_mask_rate: Float[Array, "*b"]
    min_mask_rate: Float[Array, "*b"]
    mask_rate_span: Float[Array, "*b"]
    structure_temperature: Float[Array, "*b"]
    confidence_temperature: Float[Array, "*b"]
    paper_weight: Float[Array, "*b"]
    token_temperature: Float[Array, "*b"]
    guidance_power: Float[Array, "*b"]


def traced(settings: StructureSettings) -> TracedSettings:
    """Checks settings and makes them traceable.

    Raises:
      InputError: a setting is no number or out of its range.
    """
    check_settings(settings)
    given = StructureSettings(*(np.asarray(value, np.float64) for value in settings))
    values = TracedSettings(
        layer_weights=given.layer_weights,
        structure_share=given.lambda_s,
        realism_share=1 - given.lambda_s,
        guidance_scale=given.guidance_scale,
        max_mask_rate=given.max_mask_rate,
        min_mask_rate=given.min_mask_rate,
        mask_rate_span=given.max_mask_rate - given.min_mask_rate,
        structure_temperature=given.structure_temperature,
        confidence_temperature=given.confidence_temperature,
        paper_weight=given.paper_weight,
        token_temperature=given.token_temperature,
        guidance_power=given.guidance_power,
    )
    return TracedSettings(*(jnp.asarray(value.astype(np.float32)) for value in values))


def check_settings(settings: StructureSettings) -> None:
    """Raises InputError unless every setting is a number in its range."""
    for name, given in settings._asdict().items():
        low, high = (0.0, 1e6) if name == "layer_weights" else KNOBS["masksketch"][name][:2]
        value = np.asarray(given)
        # A NaN is in no range.
        if not np.all((value >= low) & (value <= high)):
            raise InputError(f"{name} is {value}: expected a number from {low:g} to {high:g}")
    if not np.all(np.sum(settings.layer_weights, axis=-1) > 0):
        raise InputError("layer_weights are all 0: give one layer at least a weight")
    highest, lowest = np.asarray(settings.max_mask_rate), np.asarray(settings.min_mask_rate)
    if np.any(lowest > highest) or np.any(highest == 0):
        raise InputError(
            f"mask rates fall from {highest} to {lowest}: expected max_mask_rate above 0 and not "
            "below min_mask_rate"
        )


def structure_remask(
    distance: Callable[[Tokens], Float[Array, "S"]],
    num_hidden: Int[Array, ""],
    region: Bool[Array, "S"],
    token_weights: Float[Array, "S"],
    settings: TracedSettings,
    *,
    num_steps: Int[Array, ""] | int,
    schedule: str = "linear",
) -> Remask:
    """Hides what strays from the sketch's structure, and what the model is unsure of (section 3.3).

    Of n = floor(rate · N₀) ids, floor(λ_s · n) of largest distance or floor((1 − λ_s) · n) of
    lowest confidence are hidden, whether or not they were hidden before. The rate falls from the
    highest to the lowest mask rate. What is remembered is the newest sample's distances.

    Args:
      distance: of sampled ids from the sketch, token by token.
      num_hidden: N₀, the number of ids hidden at the start.
      region: where ids may be hidden; the class token among them, which never is.
      token_weights: of the distances, in [0, 1].
      settings: see `StructureSettings`.
      num_steps: T.
      schedule: how the rate falls, one of `schedules.SCHEDULE_NAMES`.
    """

    def choose(step, sampled, distances, logits, key):
        probabilities = jax.nn.softmax(logits)
        confidence = jnp.take_along_axis(probabilities, sampled[:, None], axis=-1)[:, 0]

        falling = schedules.mask_ratio(schedule, (step + 1.0) / num_steps, num_hidden)
        rate = settings.min_mask_rate + falling * settings.mask_rate_span
        count = jnp.floor(num_hidden * rate)

        # The loop's key goes on as if nothing were drawn; its splits are what `fold_in` gives of 0
        # and 1.
        noise = jax.random.gumbel(jax.random.fold_in(key, 2), 2 * len(sampled)).reshape(2, -1)
        # The class token is no candidate for the confidence mask.
        regions = jnp.stack([region, region.at[0].set(False)])
        scores = jnp.stack([-token_weights * distances, confidence])
        scores = jax.vmap(_rescale)(scores, regions)
        shares = jnp.stack([settings.structure_share, settings.realism_share])
        temperatures = jnp.stack([settings.structure_temperature, settings.confidence_temperature])
        scores += temperatures[:, None] * noise
        counts = jnp.floor(count * shares).astype(jnp.int32)
        # Scores are equal only at temperature 0, where the noise is free to break the ties.
        hide = jax.vmap(mark_lowest)(scores, counts, noise)
        return jnp.any(hide, axis=0).at[0].set(False)

    def remask(step, ids, sampled, logits, key, _):
        distances = distance(sampled)
        return choose(step, sampled, distances, logits, key), key, distances

    return remask


def least_distance_draw(
    distance: Callable[[Tokens], Float[Array, "S"]], num_proposals: int
) -> Draw:
    """Draws several samples, of which each position takes the id that is nearest the sketch.

    One prediction then serves several looks at the structure (docs/steps.md).

    Args:
      distance: of sampled ids from the sketch, token by token.
      num_proposals: how many samples are drawn, ≥ 1; 1 is the published rule.
    """
    if num_proposals == 1:
        return draw_each

    def draw(ids, logits, key):
        def propose(key):
            return jnp.where(ids == MASK_ID, draw_each(ids, logits, key), ids)

        proposals = jax.vmap(propose)(jax.random.split(key, num_proposals))
        # One at a time: each needs as much memory as the pass that follows.
        nearest = jnp.argmin(jax.lax.map(distance, proposals), axis=0)
        return jnp.take_along_axis(proposals, nearest[None], axis=0)[0]

    return draw


def hide_start(
    tokens: Tokens,
    region: Bool[Array, "S"],
    rate: Float[Array, ""] | float,
    draws: Float[Array, "S"],
) -> Tokens:
    """Hides a random ceil(rate · N) of a region's N image ids: those of the lowest draws."""
    region = region.at[0].set(False)
    num_tokens = jnp.sum(region)
    # 0.95 · 20 is 19.000002 in float32 and means 19.
    count = jnp.ceil(num_tokens * rate - 1e-3).astype(jnp.int32)
    count = jnp.clip(count, 1, num_tokens)
    hide = mark_lowest(jnp.where(region, draws, jnp.inf), count, draws)
    return jnp.where(hide, MASK_ID, tokens)


def _rescale(scores: Float[Array, "S"], region: Bool[Array, "S"]) -> Float[Array, "S"]:
    """A region's scores to [0, 1], lowest to highest, all 0 where all agree; infinite outside."""
    low = jnp.min(scores, where=region, initial=jnp.inf)
    high = jnp.max(scores, where=region, initial=-jnp.inf)
    scores = (scores - low) / jnp.maximum(high - low, jnp.finfo(scores.dtype).tiny)
    return jnp.where(region, scores, jnp.inf)
