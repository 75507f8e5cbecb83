"""ReMDM: ancestral sampling in which ids that were revealed can be hidden again.

Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling" (arXiv:2503.00307).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax import schedules
from maskgit_jax.decoding import MASK_ID, Predict, RandomKey, Remask
from maskgit_jax.errors import InputError
from maskgit_jax.presets import KNOBS

STRATEGIES = KNOBS["remdm"]["remask"]


def remask_probability(
    strategy: str,
    eta: Float[Array, ""] | float,
    alpha_now: Float[Array, ""],
    alpha_next: Float[Array, ""],
    visible: Bool[Array, "S"],
    confidence: Float[Array, "S"],
) -> Float[Array, "S"]:
    """σ of each id: the probability that it is hidden again if it is visible (section 4.1).

    With σ_max = min(1, (1 − α_next) / α_now), beyond which more would be hidden than α_next allows:
    "rescale" is η σ_max and "cap" min(η, σ_max), of all ids; "confidence" shares η σ_max among the
    visible ids by the softmax of −ψ and is 0 for the others.

    Args:
      strategy: one of `STRATEGIES`.
      eta: η in [0, 1].
      alpha_now: share of ids that are visible now, by the schedule.
      alpha_next: share after the step.
      visible: which ids can be hidden again.
      confidence: ψ, their probabilities when they were sampled.
    """
    highest = jnp.minimum(1.0, (1 - alpha_next) / jnp.maximum(alpha_now, 1e-6))
    if strategy == "cap":
        return jnp.full(visible.shape, jnp.minimum(eta, highest))
    sigma = eta * highest
    if strategy == "rescale":
        return jnp.full(visible.shape, sigma)
    weights = jnp.where(visible, jnp.exp(-confidence), 0.0)
    return sigma * weights / jnp.maximum(jnp.sum(weights), 1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReMdm:
    """Reveals and hides ids by chance; see `sampling.Sampler`.

    A hidden id is revealed with probability (α_next − (1 − σ) α_now) / (1 − α_now), a visible one
    is hidden again with σ (section 3); given ids never are. α is 1 − γ. Whatever σ, a share α of
    the ids is visible in expectation; not so under "confidence", as σ is 0 for hidden ids there:
    nothing makes up for the η σ_max ids that a step hides. η = 0 is MDLM's ancestral sampler.

    Attributes:
      eta: η in [0, 1], how readily ids are hidden again.
      remask: one of `STRATEGIES`.
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    eta: Any = 0.05
    remask: str = dataclasses.field(default="rescale", metadata={"static": True})
    schedule: str = dataclasses.field(default="cosine", metadata={"static": True})

    def __post_init__(self):
        schedules.check_schedule(self.schedule)
        if self.remask not in STRATEGIES:
            names = ", ".join(STRATEGIES)
            raise InputError(f"unknown strategy {self.remask!r}: expected one of {names}")

    def memory(self, tokens: Int[Array, "B S"]) -> tuple:
        """The ids' confidences; see `sampling.Sampler`."""
        return (jnp.zeros(tokens.shape),)

    def __call__(
        self,
        predict: Predict,
        to_fill: Bool[Array, "S"],
        key: RandomKey,
        num_steps: Int[Array, ""] | int,
    ) -> tuple[Predict, Remask]:
        """See `sampling.Sampler`."""

        def alpha(step):
            return 1 - schedules.mask_ratio(self.schedule, step / num_steps, jnp.sum(to_fill))

        def remask(step, ids, sampled, logits, key, confidence):
            hidden = ids == MASK_ID
            probabilities = jax.nn.softmax(logits)
            drawn = jnp.take_along_axis(probabilities, sampled[:, None], axis=-1)[:, 0]
            now, after = alpha(step), alpha(step + 1)
            visible = to_fill & ~hidden
            sigma = remask_probability(self.remask, self.eta, now, after, visible, confidence)
            reveal = (after - (1 - sigma) * now) / (1 - now)
            key, choice_key = jax.random.split(key)
            chance = jax.random.uniform(choice_key, ids.shape)
            hide = to_fill & (chance < jnp.where(hidden, 1 - reveal, sigma))
            return hide, key, jnp.where(hidden, drawn, confidence)

        return predict, remask
