"""MaskSketch: sketches to pictures by structure-guided decoding (arXiv:2302.05496, section 3)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from guidance.classifier_free import classifier_free_predict, other_class_token
from guidance.structure import (
    DIVERGENCES,
    KERNELS,
    StructureSettings,
    Target,
    TracedSettings,
    check_kernel,
    least_distance_draw,
    mask_start,
    structure_distance,
    structure_remask,
    traced,
)
from maskgit_jax.devices import copy_to_devices, spread_over_devices
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check, knob
from maskgit_jax.model import Model
from maskgit_jax.networks.stacked import attention_inputs
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.final_passes import filling_steps, with_final_passes
from maskgit_jax.sampling.loop import (
    MASK_ID,
    DecodeState,
    RandomKey,
    Tokens,
    num_steps_knob,
    sample_key,
    tempered,
)
from maskgit_jax.sampling.maskgit import maskgit_predict


class Conditioning(NamedTuple):
    """What leads one sample through all its steps.

    Attributes:
      target: attention of the sketch.
      other_token: class token that classifier-free guidance leads away from.
      num_masked: number of ids masked at the start.
      region: where ids may be masked. Position 0 is true: the class token takes part in the
        structure ranking, as published, and may use up a place, but is unmasked afterwards.
      token_weights: of the tokens' distances.
      settings: the knobs.
    """

    target: Target
    other_token: Int[Array, "*b"]
    num_masked: Int[Array, "*b"]
    region: Bool[Array, "*b S"]
    token_weights: Float[Array, "*b S"]
    settings: TracedSettings


def make_guide(
    transformer: Transformer,
    params: Any,
    sketch_tokens: Tokens,
    start_tokens: Tokens,
    region: Bool[Array, "S"],
    other_token: Int[Array, ""],
    paper_ids: Int[Array, "N"],
    settings: TracedSettings,
) -> Conditioning:
    """The guide of one sample; one pass over the sketch's ids.

    `paper_ids` are a blank picture's: where the sketch has the same, it is paper.
    """
    weights = settings.knobs.layer_weights
    paper = sketch_tokens[1:] == paper_ids
    token_weights = jnp.where(paper, settings.knobs.paper_weight, 1.0)
    return Conditioning(
        target=Target(attention_inputs(transformer, params, sketch_tokens, len(weights)), weights),
        other_token=other_token,
        num_masked=jnp.sum(start_tokens == MASK_ID),
        region=region,
        token_weights=jnp.concatenate([jnp.ones(1), token_weights]),
        settings=settings,
    )


def start(
    transformer: Transformer,
    params: Any,
    paper_ids: Int[Array, "N"],
    sketch_tokens: Tokens,
    region: Bool[Array, "S"],
    settings: TracedSettings,
    key: RandomKey,
) -> tuple[Conditioning, DecodeState]:
    """One sample before its first step: the sketch's ids, most of the region's masked.

    Args:
      transformer: the model.
      params: its weights.
      paper_ids: a blank picture's ids.
      sketch_tokens: class token and the sketch's ids.
      region: where ids may be masked. Position 0 is true: the class token takes part in the
        structure ranking, as published, and may use up a place, but is unmasked afterwards.
      settings: the knobs.
      key: the sample's key; nothing else is random.
    """
    loop_key, start_key = jax.random.split(key)
    # One for each token; the class token's own is free for the other class.
    draws = jax.random.uniform(start_key, sketch_tokens.shape)
    other_token = other_class_token(draws[0], sketch_tokens[0], transformer)
    start_tokens = mask_start(sketch_tokens, region, settings.knobs.max_mask_rate, draws)
    guide = make_guide(
        transformer, params, sketch_tokens, start_tokens, region, other_token, paper_ids, settings
    )
    return guide, DecodeState(start_tokens, start_tokens, loop_key, no_distances(start_tokens))


def no_distances(tokens: Tokens) -> tuple[Float[Array, "S"]]:
    """What the loop remembers before it has seen a distance."""
    return (jnp.zeros(tokens.shape, jnp.float32),)


@dataclasses.dataclass(frozen=True)
class SketchPlan:
    """The knobs read before tracing.

    The number of steps is traced as the loop's bound, the layers become `layer_weights`.

    Attributes:
      num_steps: T.
      layers: a text for `knobs.read_layers`.
    """

    num_steps: int = num_steps_knob(500)
    layers: str = knob(
        "all", "Layers whose attention is compared: all, early or late (halves), or 1,3,16."
    )


@dataclasses.dataclass(frozen=True)
class MaskSketch:
    """MaskSketch's method; see `batched.Method`.

    Attributes:
      divergence: one of `structure.DIVERGENCES`; "cross_entropy" is the released code's.
      num_proposals: samples drawn in each step, see `structure.least_distance_draw`.
      kernel: one of `structure.KERNELS`.
      schedule: how the mask rate falls, one of `schedules.SCHEDULE_NAMES`.
      guided: false where no sample of the batch has classifier-free guidance: the other class's
        logits are not computed.
    """

    divergence: str = knob("jeffreys", "How attention is compared.", choices=tuple(DIVERGENCES))
    num_proposals: int = knob(
        1, "Samples drawn in each step; the nearest ids are kept.", low=1, high=10**6
    )
    kernel: str = knob(
        "jnp", "fused: JAX's fused attention on TPU and GPU; experimental.", choices=KERNELS
    )
    schedule: str = "linear"
    guided: bool = True

    def __call__(
        self,
        transformer: Transformer,
        params: Any,
        used_layers: Bool[Array, "L"],
        guide: Conditioning,
        num_steps: Int[Array, ""] | int,
    ):
        """See `batched.Method`; `used_layers` as in `structure.structure_distance`."""

        def distance(ids):
            return structure_distance(
                transformer,
                params,
                ids,
                guide.target,
                used_layers,
                divergence=self.divergence,
                kernel=self.kernel,
            )

        knobs = guide.settings.knobs
        filling = filling_steps(num_steps, knobs.final_passes)
        predict = maskgit_predict(transformer, params)
        if self.guided:
            predict = classifier_free_predict(
                transformer,
                params,
                guide.other_token,
                knobs.guidance_scale,
                knobs.guidance_power,
                num_steps,
            )
        predict = tempered(predict, knobs.token_temperature)
        remask = structure_remask(
            distance,
            guide.num_masked,
            guide.region,
            guide.token_weights,
            guide.settings,
            num_steps=filling,
            schedule=self.schedule,
        )
        predict, remask = with_final_passes(
            predict,
            remask,
            guide.region.at[0].set(False),
            filling=filling,
            num_steps=num_steps,
            temperature=knobs.final_temperature,
        )
        return predict, remask, least_distance_draw(distance, self.num_proposals)


class Samples(NamedTuple):
    """Samples, finished or on the way (`stream`).

    Attributes:
      ids: image ids.
      structure_distance: of each sample to its sketch, the mean over the sampled tokens.
      token_distances: of each token; what stays of a picture counts 0.
      masked: the ids that are sampled again in the next step.
      step: how many steps are done.
    """

    ids: Int[np.ndarray, "B N"]
    structure_distance: Float[np.ndarray, "B"]
    token_distances: Float[np.ndarray, "B N"]
    masked: Bool[np.ndarray, "B N"]
    step: int


def stream(
    model: Model,
    sketch_tokens: Int[Array | np.ndarray, "B S"],
    settings: StructureSettings,
    *,
    num_steps: int,
    seed: int | UInt32[Array, "B"],
    indices: Int[Array | np.ndarray, "B"],
    region: Bool[Array | np.ndarray, "B N"] | None = None,
    guided: bool = False,
    every: int = 1,
    **options: Any,
) -> Iterator[Samples]:
    """Samples one picture per row, spread over all local devices, and shows them on the way.

    Args:
      model: the generator.
      sketch_tokens: class token (K + label) and sketch ids of each sample.
      settings: one setting for all, or a leading axis of B where samples differ.
      num_steps: T.
      seed: with the index, all that a sample's randomness depends on; one for all, or each's own.
      indices: the samples' numbers.
      region: the ids that are sampled, one at least of each sample; all when None. The others
        stay what `sketch_tokens` says, so it holds a picture's ids there.
      guided: compute the other class's logits even if all guidance scales are 0 here, so that
        batches with and without guidance share a compilation; the samples are the same.
      every: steps between two `Samples` that are shown; the last is the result.
      options: the other fields of `MaskSketch`.

    Raises:
      InputError: a setting out of its range, no steps, more layer weights than layers, a kernel
        that does not have the divergence.
    """
    guided = guided or bool(np.any(settings.guidance_scale))
    method = MaskSketch(guided=guided, **options)
    check(method)
    check(SketchPlan(num_steps=num_steps))
    check_kernel(method.kernel, method.divergence)
    layers, weights = model.config.transformer.num_layers, np.shape(settings.layer_weights)[-1]
    if weights > layers:
        raise InputError(f"{weights} layer weights: the model has {layers} layers")
    used_layers, guide, state = begin(
        model, sketch_tokens, settings, seed=seed, indices=indices, region=region
    )
    batch = len(sketch_tokens)
    sampled_here = np.asarray(guide.region)[:batch, 1:]
    steps = batched.stream(
        model, method, used_layers, guide, state, num_steps=num_steps, every=every
    )
    for step, state in steps:
        # In NumPy: nothing is compiled for so little.
        ids, shown, distances = (
            np.asarray(x)[:batch, 1:] for x in (state.sampled, state.ids, *state.memory)
        )
        means = np.mean(distances, axis=1, where=sampled_here)
        yield Samples(ids, means, np.where(sampled_here, distances, 0), shown == MASK_ID, step)


def sample(
    *arguments: Any,
    num_steps: int,
    progress: Callable[[int], None] | None = None,
    steps_per_call: int = 8,
    **options: Any,
) -> Samples:
    """The result of `stream`, whose arguments these are.

    Args:
      arguments: the model, the sketches' tokens, the settings.
      num_steps: T.
      progress: called with the number of steps done, first with 0, before anything is compiled.
      steps_per_call: steps between two calls of `progress`; without one, all are run at once.
      options: the others.

    Raises:
      InputError: as there.
    """
    every = num_steps if progress is None else steps_per_call
    if progress is not None:
        progress(0)
    for samples in stream(*arguments, num_steps=num_steps, every=max(1, every), **options):
        if progress is not None:
            progress(samples.step)
    return samples


def begin(
    model: Model,
    sketch_tokens: Int[Array | np.ndarray, "B S"],
    settings: StructureSettings,
    *,
    seed: int | UInt32[Array, "B"],
    indices: Int[Array | np.ndarray, "B"],
    region: Bool[Array | np.ndarray, "B N"] | None = None,
) -> tuple[Bool[Array, "L"], Conditioning, DecodeState]:
    """What `batched.decode_batch` is given, arguments as for `sample`.

    Returns:
      The layers that some sample weighs, and the samples, each with its guide, before their first
      step, spread over devices: rows beyond B repeat the last.
    """
    batch, length = sketch_tokens.shape
    if region is None:
        region = np.ones((batch, length - 1), bool)
    region = np.concatenate([np.ones((batch, 1), bool), region], axis=1)
    seeds = np.broadcast_to(np.asarray(seed, np.uint32), batch)
    inputs = (sketch_tokens, region, _per_sample(settings, batch), seeds, np.asarray(indices))
    shared = model.params_on_devices, copy_to_devices(_paper_ids(model))
    guide, state = _start(model.transformer, *shared, *spread_over_devices(inputs))
    weights = np.shape(settings.layer_weights)[-1]
    used_layers = np.any(np.reshape(settings.layer_weights, (-1, weights)), axis=0)
    return copy_to_devices(used_layers), guide, state


def _paper_ids(model: Model) -> Int[Array, "N"]:
    """The ids of blank paper."""
    side = model.config.tokenizer.image_size
    return model.encode(jnp.asarray(np.ones((1, side, side, 3), np.float32)))[0]


def _per_sample(settings: StructureSettings, batch: int) -> TracedSettings:
    """Gives every setting a leading axis of samples."""

    ready = traced(settings)
    weights = ready.knobs.layer_weights

    def spread(value: Float[Array, "..."]) -> Float[np.ndarray, "B *_"]:
        own_axes = 1 if value is weights else 0
        value = np.asarray(value)
        return value if value.ndim > own_axes else np.broadcast_to(value, (batch, *value.shape))

    return jax.tree.map(spread, ready)


@functools.partial(jax.jit, static_argnums=0)
def _start(transformer, params, paper_ids, sketch_tokens, region, settings, seeds, indices):
    def each(sketch_tokens, region, settings, seed, index):
        key = sample_key(seed, index)
        return start(transformer, params, paper_ids, sketch_tokens, region, settings, key)

    return jax.vmap(each)(sketch_tokens, region, settings, seeds, indices)
