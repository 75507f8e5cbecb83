"""Structure guidance: the distance between attention maps and the remask rule that lowers it.

MaskSketch (arXiv:2302.05496), sections 3.2 and 3.3.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from guidance.classifier_free import guidance_power_knob
from guidance.divergence import attend_and_compare
from guidance.fused import attend_and_compare_fused
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check, check_layers, knob
from maskgit_jax.networks.stacked import AttentionInputs, sum_over_layers
from maskgit_jax.networks.transformer import Transformer, softmax_attention
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.final_passes import final_passes_knob, final_temperature_knob
from maskgit_jax.sampling.loop import (
    MASK_ID,
    Draw,
    Remask,
    Tokens,
    draw_each,
    mark_lowest,
    token_temperature_knob,
)

DIVERGENCES = {
    "jeffreys": attend_and_compare,
    "cross_entropy": functools.partial(attend_and_compare, divergence="cross_entropy"),
}
"""How rows of attention maps are compared: the paper's way, and the released code's, which is the
Jeffreys divergence and both rows' entropies and so also punishes diffuse attention. Each is a
function as `divergence.attend_and_compare` without its options."""

KERNELS = ("jnp", "fused")
"""What computes a compared layer's attention and divergence: `divergence`, or `fused`, the fused
attention that comes with JAX for TPUs and GPUs (experimental: it has not run on one yet)."""


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
        # The key stands in for the value: what is attended is not used.
        heads = (query, key, key, target_query, target_key)
        return jnp.mean(DIVERGENCES[divergence](*heads)[1], axis=0)

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
      ids: nothing masked.
      target: what they are compared with.
      used_layers: false where no sample of the batch weighs a layer: not compared there.
      divergence: one of `DIVERGENCES`.
      kernel: one of `KERNELS`; "fused" has the divergence "jeffreys" alone.

    Raises:
      InputError: no such kernel, or not with this divergence.
    """
    check_kernel(kernel, divergence)
    attend_and = attend_and_compare_fused if kernel == "fused" else DIVERGENCES[divergence]

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StructureSettings:
    """The knobs of structure-guided sampling; all become traced values (`traced`).

    Numbers, or arrays with a leading axis where samples differ. The defaults are the released
    ones, for 500 to 1000 steps.

    Attributes:
      layer_weights: weight of each layer's distance, ≥ 0, from layer 0 up; see `layer_weights`.
      lambda_s: share of the masked ids chosen by structure; 1 is all structure, 0 all realism.
      guidance_scale: of classifier-free guidance.
      max_mask_rate: share of the N ids masked at the start, above 0; then the rate that falls.
      min_mask_rate: what the rate falls to, up to max_mask_rate; rates in the loop are of N₀, the
        number masked at the start.
      structure_temperature: of the Gumbel noise on the structure scores, rescaled to [0, 1].
      confidence_temperature: of the Gumbel noise on the confidences, rescaled to [0, 1].
      paper_weight: weight of the distance of tokens where the sketch is blank paper. 1 is the
        published rule; lower lets backgrounds differ from paper.
      token_temperature: τ of `loop.tempered`.
      guidance_power: p of `classifier_free.guidance_share`; 0 is constant guidance.
      final_passes: how many of the steps are such (`sampling.final_passes`); 0 is published.
      final_temperature: theirs.
    """

    layer_weights: Any
    lambda_s: Any = knob(0.9, "Share of structure; the rest is realism.", low=0.0, high=1.0)
    guidance_scale: Any = knob(0.6, "Classifier-free guidance, 0 for none.", low=0.0, high=1e6)
    max_mask_rate: Any = knob(0.95, "Share of ids masked at the start.", low=0.0, high=1.0)
    min_mask_rate: Any = knob(0.35, "Where that share falls to by the end.", low=0.0, high=1.0)
    structure_temperature: Any = knob(
        0.0, "Noise in telling which ids stray from the sketch.", low=0.0, high=1e6
    )
    confidence_temperature: Any = knob(
        0.0, "Noise in telling which ids are unsure.", low=0.0, high=1e6
    )
    paper_weight: Any = knob(
        1.0, "Weight of the distance where the sketch is blank.", low=0.0, high=1.0
    )
    token_temperature: Any = token_temperature_knob()
    guidance_power: Any = guidance_power_knob()
    final_passes: Any = final_passes_knob()
    final_temperature: Any = final_temperature_knob()


class TracedSettings(NamedTuple):
    """`StructureSettings` as float32 arrays, ready to be traced; changing one compiles nothing.

    The two differences are taken in float64 before, as the published code does: in float32
    1 - 0.28 is just under 0.72, and 0.72 · 75 would count 53 instead of 54.

    Attributes:
      knobs: the settings.
      realism_share: 1 − λ_s.
      mask_rate_span: highest minus lowest mask rate.
    """

    knobs: StructureSettings
    realism_share: Float[Array, "*b"]
    mask_rate_span: Float[Array, "*b"]


def traced(settings: StructureSettings) -> TracedSettings:
    """Checks settings and makes them traceable.

    Raises:
      InputError: a setting is no number or out of its range.
    """
    check_settings(settings)
    exact = jax.tree.map(lambda value: np.asarray(value, np.float64), settings)
    values = TracedSettings(
        knobs=exact,
        realism_share=1 - exact.lambda_s,
        mask_rate_span=exact.max_mask_rate - exact.min_mask_rate,
    )
    return jax.tree.map(lambda value: jnp.asarray(value.astype(np.float32)), values)


def check_settings(settings: StructureSettings) -> None:
    """Raises InputError unless every setting is a number in its range, and they fit together."""
    check(settings)
    weights = np.asarray(settings.layer_weights)
    if not np.all((weights >= 0) & (weights <= 1e6)) or not np.all(np.sum(weights, axis=-1) > 0):
        raise InputError(
            f"layer_weights are {weights}: expected numbers from 0 to 1e+06, one at least above 0"
        )
    highest, lowest = np.asarray(settings.max_mask_rate), np.asarray(settings.min_mask_rate)
    if np.any(lowest > highest) or np.any(highest == 0):
        raise InputError(
            f"mask rates fall from {highest} to {lowest}: expected max_mask_rate above 0 and not "
            "below min_mask_rate"
        )


def structure_remask(
    distance: Callable[[Tokens], Float[Array, "S"]],
    num_masked: Int[Array, ""],
    region: Bool[Array, "S"],
    token_weights: Float[Array, "S"],
    settings: TracedSettings,
    *,
    num_steps: Int[Array, ""] | int,
    schedule: str = "linear",
) -> Remask:
    """Masks what strays from the sketch's structure, and what the model is unsure of (section 3.3).

    Of n = floor(rate · N₀) ids, the floor(λ_s · n) of largest distance and the floor((1 − λ_s) · n)
    of lowest confidence are masked, whether or not they were masked before; where the two overlap,
    fewer than n. The rate falls from the highest to the lowest mask rate. What is remembered is the
    newest sample's distances.

    Args:
      distance: of sampled ids from the sketch, token by token.
      num_masked: N₀, the number of ids masked at the start.
      region: where ids may be masked. Position 0 is true: the class token takes part in the
        structure ranking, as published, and may use up a place, but is unmasked afterwards.
      token_weights: of the distances, in [0, 1].
      settings: see `StructureSettings`.
      num_steps: T.
      schedule: how the rate falls, one of `schedules.SCHEDULE_NAMES`.
    """

    knobs = settings.knobs

    def choose(step, sampled, distances, logits, key):
        probabilities = jax.nn.softmax(logits)
        confidence = jnp.take_along_axis(probabilities, sampled[:, None], axis=-1)[:, 0]

        falling = schedules.mask_ratio(schedule, (step + 1.0) / num_steps, num_masked)
        rate = knobs.min_mask_rate + falling * settings.mask_rate_span
        count = jnp.floor(num_masked * rate)

        # The key is returned unsplit, as in the released code. `split(key)` gives what `fold_in`
        # gives of 0 and 1, so 2 is free for noise (and 3 for final passes).
        noise = jax.random.gumbel(jax.random.fold_in(key, 2), 2 * len(sampled)).reshape(2, -1)
        # The class token is no candidate for the confidence mask.
        regions = jnp.stack([region, region.at[0].set(False)])
        scores = jnp.stack([-token_weights * distances, confidence])
        scores = jax.vmap(_rescale)(scores, regions)
        shares = jnp.stack([knobs.lambda_s, settings.realism_share])
        temperatures = jnp.stack([knobs.structure_temperature, knobs.confidence_temperature])
        scores += temperatures[:, None] * noise
        counts = jnp.floor(count * shares).astype(jnp.int32)
        # Scores are equal only at temperature 0, where the noise is free to break the ties.
        mask = jax.vmap(mark_lowest)(scores, counts, noise)
        return jnp.any(mask, axis=0).at[0].set(False)

    def remask(step, ids, sampled, logits, key, _):
        distances = distance(sampled)
        return choose(step, sampled, distances, logits, key), key, distances

    return remask


def least_distance_draw(
    distance: Callable[[Tokens], Float[Array, "S"]], num_proposals: int
) -> Draw:
    """Draws several samples, of which each position takes the id that is nearest the sketch.

    One prediction then serves several looks at the structure (docs/steps.md). Each position's
    distance is that within its own proposal; the mixture's is measured by the remask rule.

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


def mask_start(
    tokens: Tokens,
    region: Bool[Array, "S"],
    rate: Float[Array, ""] | float,
    draws: Float[Array, "S"],
) -> Tokens:
    """Masks a random ceil(rate · N) of a region's N image ids: those of the lowest draws."""
    region = region.at[0].set(False)
    num_tokens = jnp.sum(region)
    # 0.95 · 20 is 19.000002 in float32 and means 19.
    count = jnp.ceil(num_tokens * rate - 1e-3).astype(jnp.int32)
    count = jnp.clip(count, 1, num_tokens)
    mask = mark_lowest(jnp.where(region, draws, jnp.inf), count, draws)
    return jnp.where(mask, MASK_ID, tokens)


def _rescale(scores: Float[Array, "S"], region: Bool[Array, "S"]) -> Float[Array, "S"]:
    """A region's scores to [0, 1], lowest to highest, all 0 where all agree; infinite outside."""
    low = jnp.min(scores, where=region, initial=jnp.inf)
    high = jnp.max(scores, where=region, initial=-jnp.inf)
    scores = (scores - low) / jnp.maximum(high - low, jnp.finfo(scores.dtype).tiny)
    return jnp.where(region, scores, jnp.inf)
