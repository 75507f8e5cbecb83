"""The Halton scheduler: ids are revealed in an order that spreads over the picture.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer" (arXiv:2503.17076).
Neighbours tell much about each other, so those that are sampled in one step, each without a look at
the others, had better lie apart; confidence would take them from one place.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from maskgit_jax.knobs import check_static, knob
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.loop import MASK_ID, Predict, RandomKey, Remask, mark_lowest
from maskgit_jax.sampling.maskgit import count_masked_next

_BASES = 2, 3
_TURN = 2  # folded into a sample's key; the loop's own splits are as folding in 0 and 1


def halton_order(height: int, width: int) -> Int[np.ndarray, "N"]:
    """A grid's cells, each once, in the order of the 2-D Halton sequence's first visits.

    Cell (row, column) is number row · width + column; rows follow base 2, columns base 3.
    """
    num_cells = height * width
    num_points = num_cells
    while True:
        points = np.arange(1, num_points + 1)
        row, column = (
            side * numerator // denominator
            for side, (numerator, denominator) in zip(
                (height, width), (_radical_inverse(points, base) for base in _BASES), strict=True
            )
        )
        cells, first_visits = np.unique(row * width + column, return_index=True)
        if len(cells) == num_cells:
            return cells[np.argsort(first_visits)]
        num_points *= 2


def _radical_inverse(numbers: Int[np.ndarray, "n"], base: int) -> tuple[np.ndarray, int]:
    """Numbers with their digits mirrored at the point, as fractions: in base 2, 6 (110) is 3/8."""
    numerator, denominator = np.zeros_like(numbers), 1
    while np.any(numbers):
        numbers, digit = np.divmod(numbers, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator, denominator


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halton:
    """Reveals ids in the Halton order of a square grid; see `batched.Sampler`.

    Each sample starts the order, taken as a ring, at a place of its own.

    Attributes:
      sharpness: what logits are multiplied by in the last step; from 1 in the first it changes
        linearly. The released code's example has 1.2.
      schedule: one of `schedules.SCHEDULE_NAMES`; the paper's is "arccos".
    """

    sharpness: Any = knob(1.0, "Factor of the last step's logits.", low=0.0, high=1e6)
    schedule: str = schedules.schedule_knob("arccos")

    def __post_init__(self):
        check_static(self)

    def memory(self, tokens: Int[Array, "B S"]) -> tuple:
        """See `batched.Sampler`."""
        return ()

    def __call__(
        self,
        predict: Predict,
        to_fill: Bool[Array, "S"],
        key: RandomKey,
        num_steps: Int[Array, ""] | int,
    ) -> tuple[Predict, Remask]:
        """See `batched.Sampler`."""
        side = math.isqrt(len(to_fill) - 1)
        order = halton_order(side, side)
        start = jax.random.randint(jax.random.fold_in(key, _TURN), (), 0, len(order))
        # The class token comes first and is never masked.
        turns = jnp.concatenate([jnp.array([-1]), (np.argsort(order) - start) % len(order)])

        def sharpened(ids, step):
            done = step / jnp.maximum(num_steps - 1, 1)
            return predict(ids, step) * (1 + (self.sharpness - 1) * done)

        def remask(step, ids, sampled, logits, key):
            masked = ids == MASK_ID
            count = count_masked_next(self.schedule, step, num_steps, ids, jnp.sum(to_fill))
            # The last in the order stay masked.
            scores = jnp.where(masked, -turns.astype(jnp.float32), jnp.inf)
            return mark_lowest(scores, count, jnp.zeros(scores.shape)) & masked, key

        return sharpened, remask
