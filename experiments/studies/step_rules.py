"""Ways to need fewer steps: the rules that `steps_study` compares.

Those that are more than options of `masksketch.sample` work on the samples between two steps.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from guidance import masksketch
from guidance.structure import StructureSettings
from maskgit_jax.model import Model
from maskgit_jax.sampling.batched import decode_batch
from maskgit_jax.sampling.loop import MASK_ID, DecodeState

POPULATION = 4
"""Samples of one sketch that are recombined."""
_STABLE = 0.9  # share of the masked ids that were masked a step ago
_STABLE_STEPS = 2


class Batch(NamedTuple):
    """What a rule makes samples from.

    Attributes:
      model: the generator.
      tokens: class token and sketch ids.
      settings: of the guidance.
      num_steps: T.
      seed: of the samples.
      indices: their numbers.
    """

    model: Model
    tokens: Int[Array, "B S"]
    settings: StructureSettings
    num_steps: int
    seed: int
    indices: Int[Array, "B"]


class Made(NamedTuple):
    """Ids, and the number of steps that each sample took."""

    ids: Int[np.ndarray, "B N"]
    steps: Float[np.ndarray, "B"]


Rule = Callable[[Batch], Made]


def settled(**options: Any) -> Rule:
    """`masksketch.sample` with these options."""

    def rule(batch: Batch) -> Made:
        *_, samples = _stream(batch, every=batch.num_steps, **options)
        return _made(samples.ids, batch.num_steps)

    return rule


def schedule_lambda(first: float, last: float) -> Rule:
    """λ_s goes from one value to another over the steps."""

    def rule(batch: Batch) -> Made:
        def change(guide: masksketch.Conditioning, step: int) -> masksketch.Conditioning:
            share = first + (last - first) * step / max(batch.num_steps - 1, 1)
            lambda_s = jnp.full_like(guide.settings.knobs.lambda_s, share)
            settings = guide.settings._replace(
                knobs=dataclasses.replace(guide.settings.knobs, lambda_s=lambda_s),
                realism_share=jnp.full_like(lambda_s, 1 - share),
            )
            return guide._replace(settings=settings)

        return _made(_run(batch, change_guide=change), batch.num_steps)

    return rule


def best_seen(batch: Batch) -> Made:
    """Of each sample's steps, the ids of least distance instead of the last."""
    best, least = np.int32(0), np.full(len(batch.tokens), np.inf)
    for samples in _stream(batch):
        nearer = samples.structure_distance < least
        best = np.where(nearer[:, None], samples.ids, best)
        least = np.minimum(samples.structure_distance, least)
    return _made(best, batch.num_steps)


def stop_early(batch: Batch) -> Made:
    """A sample ends when nearly the same ids are masked as a step ago, twice in a row."""
    count, length = batch.tokens.shape
    ids, steps = np.zeros((count, length - 1), np.int32), np.zeros(count)
    masked, calm = np.zeros(ids.shape, bool), np.zeros(count, int)
    going = np.ones(count, bool)
    for samples in _stream(batch):
        ids[going] = samples.ids[going]
        steps[going] += 1
        kept = np.sum(samples.masked & masked, axis=1)
        kept = kept / np.maximum(np.sum(samples.masked, axis=1), 1)
        calm = np.where(kept >= _STABLE, calm + 1, 0)
        masked = samples.masked
        going &= calm < _STABLE_STEPS
        if not np.any(going):
            break
    return Made(ids, steps)


def evolve(batch: Batch) -> Made:
    """Several samples of each sketch, recombined after every step.

    Each place takes the ids of the member that is nearest to the sketch in the 3×3 tokens around
    it. All go on from this child, each with its own ids masked.
    """
    rows = jnp.repeat(jnp.arange(len(batch.tokens)), POPULATION)
    members = jnp.tile(jnp.arange(POPULATION), len(batch.tokens))
    indices = batch.indices[rows] * POPULATION + members
    populated = batch._replace(tokens=batch.tokens[rows], indices=indices)
    return _made(_run(populated, change_state=_recombine)[::POPULATION], batch.num_steps)


@jax.jit
def _recombine(state: DecodeState) -> DecodeState:
    # What fills up the devices' shares is no whole population, and nobody looks at it.
    rows = len(state.sampled) // POPULATION * POPULATION
    distances = state.memory[0][:rows]
    side = round((distances.shape[1] - 1) ** 0.5)
    maps = distances[:, 1:].reshape(-1, side, side)
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3))
    nearest = jnp.argmin(around.reshape(-1, POPULATION, side**2), axis=1)
    members = state.sampled[:rows, 1:].reshape(-1, POPULATION, side**2)
    child = jnp.take_along_axis(members, nearest[:, None], axis=1)[:, 0]
    sampled = state.sampled.at[:rows, 1:].set(jnp.repeat(child, POPULATION, axis=0))
    return state._replace(ids=jnp.where(state.ids == MASK_ID, MASK_ID, sampled), sampled=sampled)


def _stream(batch: Batch, **options: Any) -> Iterator[masksketch.Samples]:
    model, tokens, settings, num_steps, seed, indices = batch
    given = {"num_steps": num_steps, "seed": seed, "indices": indices, **options}
    return masksketch.stream(model, tokens, settings, **given)


def _run(
    batch: Batch,
    change_guide: Callable[
        [masksketch.Conditioning, int], masksketch.Conditioning
    ] = lambda guide, step: guide,
    change_state: Callable[[DecodeState], DecodeState] = lambda state: state,
) -> Int[np.ndarray, "B N"]:
    """Ids that come of changes between the steps; rows that fill up the devices are dropped."""
    model, tokens, settings, num_steps, seed, indices = batch
    method = masksketch.MaskSketch(guided=bool(np.any(settings.guidance_scale)))
    used_layers, guide, state = masksketch.begin(
        model, tokens, settings, seed=seed, indices=indices
    )
    for step in range(num_steps):
        steps = {"num_steps": num_steps, "first_step": step, "last_step": step + 1}
        changed = change_guide(guide, step)
        state = change_state(decode_batch(model, method, used_layers, changed, state, **steps))
    return np.asarray(state.sampled)[: len(tokens), 1:]


def _made(ids: Int[Array | np.ndarray, "B N"], num_steps: int) -> Made:
    return Made(np.asarray(ids), np.full(len(ids), float(num_steps)))
