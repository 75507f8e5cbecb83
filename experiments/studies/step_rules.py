"""Ways to need fewer steps: the rules that `steps_study` compares.

Those that do not lie in `masksketch.sample`'s own arguments work on the samples between two steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from guidance import masksketch
from guidance.structure import StructureSettings
from maskgit_jax.model import Model
from maskgit_jax.sampling.batched import decode_batch
from maskgit_jax.sampling.loop import MASK_ID, DecodeState

POPULATION = 4
"""Samples of one sketch that are recombined."""
_STABLE = 0.9  # share of the hidden ids that were hidden a step ago
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


def settled(**choices: Any) -> Rule:
    """`masksketch.sample` with these choices."""

    def rule(batch: Batch) -> Made:
        samples = masksketch.sample(
            batch.model,
            batch.tokens,
            batch.settings,
            num_steps=batch.num_steps,
            seed=batch.seed,
            indices=batch.indices,
            **choices,
        )
        return _made(samples.ids, batch.num_steps)

    return rule


def schedule_lambda(first: float, last: float) -> Rule:
    """λ_s goes from one value to another over the steps."""

    def rule(batch: Batch) -> Made:
        run = _Run(batch)
        for step in range(batch.num_steps):
            share = first + (last - first) * step / max(batch.num_steps - 1, 1)
            settings = run.guide.settings
            lambda_s = jnp.full_like(settings.knobs.lambda_s, share)
            settings = settings._replace(
                knobs=dataclasses.replace(settings.knobs, lambda_s=lambda_s),
                realism_share=jnp.full_like(settings.realism_share, 1 - share),
            )
            run.guide = run.guide._replace(settings=settings)
            run.advance(step)
        return _made(run.sampled[:, 1:], batch.num_steps)

    return rule


def best_seen(batch: Batch) -> Made:
    """Of each sample's steps, the ids of least distance instead of the last."""
    run = _Run(batch)
    best, least = np.zeros(batch.tokens.shape, np.int32), np.full(len(batch.tokens), np.inf)
    for step in range(batch.num_steps):
        run.advance(step)
        distance = np.mean(run.distances[:, 1:], axis=1)
        best = np.where((distance < least)[:, None], run.sampled, best)
        least = np.minimum(distance, least)
    return _made(best[:, 1:], batch.num_steps)


def stop_early(batch: Batch) -> Made:
    """A sample ends when nearly the same ids are hidden as a step ago, twice in a row."""
    run = _Run(batch)
    ids = np.zeros(batch.tokens.shape, np.int32)
    steps = np.zeros(len(ids))
    hidden, calm = np.zeros(ids.shape, bool), np.zeros(len(ids), int)
    going = np.ones(len(ids), bool)
    for step in range(batch.num_steps):
        run.advance(step)
        ids[going] = run.sampled[going]
        steps[going] += 1
        now = run.masked
        kept = np.sum(now & hidden, axis=1) / np.maximum(np.sum(now, axis=1), 1)
        calm = np.where(kept >= _STABLE, calm + 1, 0)
        hidden = now
        going &= calm < _STABLE_STEPS
        if not np.any(going):
            break
    return Made(ids[:, 1:], steps)


def evolve(batch: Batch) -> Made:
    """Several samples of each sketch, recombined after every step.

    Each place takes the ids of the member that is nearest to the sketch in the 3×3 tokens around
    it. All go on from this child, each with its own ids hidden.
    """
    run = _Run(_populated(batch))
    for step in range(batch.num_steps):
        run.advance(step)
        run.state = _recombine(run.state)
    return _made(run.sampled[::POPULATION, 1:], batch.num_steps)


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


class _Run:
    """A batch between two steps, spread over the devices.

    `state` and `guide` have rows that fill up the devices' shares; what is read from here has the
    batch's alone.
    """

    def __init__(self, batch: Batch):
        self.batch = batch
        guided = bool(np.any(batch.settings.guidance_scale))
        self.method = masksketch.MaskSketch(guided=guided)
        self.used_layers, self.guide, self.state = masksketch.begin(
            batch.model, batch.tokens, batch.settings, seed=batch.seed, indices=batch.indices
        )

    def advance(self, step: int) -> None:
        self.state = decode_batch(
            self.batch.model,
            self.method,
            self.used_layers,
            self.guide,
            self.state,
            num_steps=self.batch.num_steps,
            first_step=step,
            last_step=step + 1,
        )

    @property
    def sampled(self) -> Int[np.ndarray, "B S"]:
        """The newest samples."""
        return np.asarray(self.state.sampled)[: len(self.batch.tokens)]

    @property
    def masked(self) -> Bool[np.ndarray, "B S"]:
        """Where the next step is shown a mask."""
        return np.asarray(self.state.ids)[: len(self.batch.tokens)] == MASK_ID

    @property
    def distances(self) -> Float[np.ndarray, "B S"]:
        """The newest samples' distances, token by token."""
        return np.asarray(self.state.memory[0])[: len(self.batch.tokens)]


def _populated(batch: Batch) -> Batch:
    rows = jnp.repeat(jnp.arange(len(batch.tokens)), POPULATION)
    members = jnp.tile(jnp.arange(POPULATION), len(batch.tokens))
    indices = batch.indices[rows] * POPULATION + members
    return batch._replace(tokens=batch.tokens[rows], indices=indices)


def _made(ids: Int[Array | np.ndarray, "B N"], num_steps: int) -> Made:
    return Made(np.asarray(ids), np.full(len(ids), float(num_steps)))
