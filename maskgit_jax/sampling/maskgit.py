"""MaskGIT's own sampling on the decode loop (arXiv:2202.04200, section 3.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax.knobs import check_static, knob
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.final_passes import (
    filling_steps,
    final_passes_knob,
    final_temperature_knob,
    with_final_passes,
)
from maskgit_jax.sampling.loop import MASK_ID, Predict, RandomKey, Remask, Step, Tokens, mask_lowest


def maskgit_predict(transformer: Transformer, params: Any) -> Predict:
    """The transformer alone."""
    return lambda ids, step: code_logits(transformer, params, ids)


def count_masked_next(
    schedule: str,
    step: Step,
    num_steps: Int[Array, ""] | int,
    ids: Tokens,
    num_masked: Int[Array, ""],
) -> Int[Array, ""]:
    """How many ids are masked after a step: γ((t+1)/T) · N₀, at least one and fewer than now."""
    share = schedules.mask_ratio(schedule, (step + 1.0) / num_steps, num_masked)
    count = jnp.floor(num_masked * share).astype(jnp.int32)
    return jnp.clip(count, 1, jnp.maximum(jnp.sum(ids == MASK_ID) - 1, 1))


def maskgit_remask(
    num_masked: Int[Array, ""],
    *,
    num_steps: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float = 4.5,
    schedule: str = "cosine",
) -> Remask:
    """Masks the ids that the model is least sure of (MaskGIT, section 3.2, step 4).

    Args:
      num_masked: number of ids masked at the very start, N₀; next are masked γ((t+1)/T)·N₀,
        at least one and fewer than now.
      num_steps: T.
      temperature: of the Gumbel noise on the log-confidence; falls linearly to 0.
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    def remask(step, ids, sampled, logits, key):
        masked = ids == MASK_ID
        count = count_masked_next(schedule, step, num_steps, ids, num_masked)
        log_probabilities = jax.nn.log_softmax(logits)
        confidence = jnp.take_along_axis(log_probabilities, sampled[:, None], axis=-1)[:, 0]
        key, choice_key = jax.random.split(key)
        noise = jax.random.gumbel(choice_key, confidence.shape)
        confidence = confidence + temperature * (1 - (step + 1.0) / num_steps) * noise
        # Ids that were unmasked are never masked again.
        confidence = jnp.where(masked, confidence, jnp.inf)
        mask = mask_lowest(confidence, count, jax.random.fold_in(choice_key, 1))
        return mask & masked, key

    return remask


def temperature_knob() -> Any:
    """The field `temperature` of what keeps the surest ids."""
    return knob(4.5, "Gumbel temperature of the confidence ranking.", low=0.0, high=1e6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskGit:
    """MaskGIT's sampler: the surest ids are kept; see `batched.Sampler`.

    Attributes:
      temperature: of the choice which ids to keep, ≥ 0.
      schedule: one of `schedules.SCHEDULE_NAMES`.
      final_passes: how many of the steps are such (`final_passes`); 0 is published.
      final_temperature: theirs.
    """

    temperature: Any = temperature_knob()
    schedule: str = schedules.schedule_knob("cosine")
    final_passes: Any = final_passes_knob()
    final_temperature: Any = final_temperature_knob()

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
        filling = filling_steps(num_steps, self.final_passes)
        remask = maskgit_remask(
            jnp.sum(to_fill),
            num_steps=filling,
            temperature=self.temperature,
            schedule=self.schedule,
        )
        return with_final_passes(
            predict,
            remask,
            to_fill,
            filling=filling,
            num_steps=num_steps,
            temperature=self.final_temperature,
        )
