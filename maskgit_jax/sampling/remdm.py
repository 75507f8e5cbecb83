"""ReMDM: ancestral sampling in which ids that were unmasked can be masked again.

Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling" (arXiv:2503.00307),
and their image code (github.com/yair-schiff/maskgit), whose posterior this is, step by step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check_static, knob
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.loop import MASK_ID, Logits, Predict, RandomKey, Remask, Step, Tokens

STRATEGIES = ("rescale", "cap", "confidence", "conf")
"""How likely ids are masked again; see `remask_probability`."""
_BY_ID = ("confidence", "conf")
WINDOWS = ("switch", "loop")
"""What the time between t_on and t_off is; see `ReMdm`."""

_TINY = 1e-6


def remask_probability(
    strategy: str,
    eta: Float[Array, ""] | float,
    alpha_now: Float[Array, ""],
    alpha_next: Float[Array, ""],
    unmasked: Bool[Array, "S"],
    doubts: Float[Array, "S"],
) -> Float[Array, "S"]:
    """σ of each id: the probability that it is masked again if it is not masked (section 4.1).

    With σ_max = min(1, (1 − α_next) / α_now), beyond which more would be masked than α_next allows:
    "rescale" is η σ_max and "cap" min(η, σ_max), of all ids. The others share among the unmasked
    ids, by the softmax of their doubts, "confidence" η σ_max and "conf" σ_max; σ is 0 for masked
    ids there.

    Args:
      strategy: one of `STRATEGIES`.
      eta: η in [0, 1]; not of "conf".
      alpha_now: share of ids that are unmasked now, by the schedule.
      alpha_next: share after the step.
      unmasked: which ids can be masked again.
      doubts: −∞ where an id has no part in the softmax; see `ReMdm.remember`.
    """
    highest = jnp.minimum(1.0, (1 - alpha_next) / jnp.maximum(alpha_now, _TINY))
    if strategy == "cap":
        return jnp.full(unmasked.shape, jnp.minimum(eta, highest))
    sigma = highest if strategy == "conf" else eta * highest
    if strategy not in _BY_ID:
        return jnp.full(unmasked.shape, sigma)
    weights = jnp.exp(doubts - jnp.max(doubts, initial=0.0))
    return sigma * jnp.where(unmasked, weights, 0.0) / jnp.maximum(jnp.sum(weights), _TINY)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReMdm:
    """Unmasks and masks ids by chance; see `batched.Sampler`.

    A masked id is unmasked with probability (α_next − (1 − σ) α_now) / (1 − α_now), an unmasked one
    masked again with σ (section 3); given ids never are. α is 1 − γ. Whatever σ, a share α of the
    ids is unmasked in expectation; not so by "confidence" and "conf", as σ is 0 for masked ids
    there: nothing makes up for those that a step masks. η = 0 is MDLM's ancestral sampler.

    Time t goes from 1 to 0. Ids are masked again only in the steps that begin at t_off < t ≤ t_on
    (section 4.2), by default in all. Under "loop" there are three phases: until t_on, α follows the
    schedule's curve from 0 to α_on; until t_off it stays there; then it follows the same curve from
    α_on to 1.

    Attributes:
      eta: η in [0, 1], how readily ids are masked again; not of "conf".
      remask: one of `STRATEGIES`.
      schedule: one of `schedules.SCHEDULE_NAMES`.
      window: one of `WINDOWS`; under "switch", α follows the schedule all the time.
      t_on: in [0, 1], when masking again begins.
      t_off: in [0, t_on], when it ends.
      alpha_on: in [0, 1), of "loop".

    Raises:
      InputError: an unknown name, or a strategy under which "loop" would unmask nothing.
    """

    eta: Any = knob(0.05, "How readily ids are masked again.", low=0.0, high=1.0)
    remask: str = knob("rescale", "How ids are masked again.", choices=STRATEGIES, static=True)
    schedule: str = schedules.schedule_knob("cosine")
    window: str = knob(
        "switch",
        "From t_on to t_off, ids are masked again while the schedule goes on (switch), or while "
        "the share of unmasked ids stays at alpha_on (loop).",
        choices=WINDOWS,
        static=True,
    )
    t_on: Any = knob(1.0, "Begin of the window, as time that remains.", low=0.0, high=1.0)
    t_off: Any = knob(0.0, "End of the window, likewise.", low=0.0, high=1.0)
    alpha_on: Any = knob(0.9, "Share of unmasked ids in the window loop.", low=0.0, high=0.999)

    def __post_init__(self):
        check_static(self)
        if self.window == "loop" and self.remask in _BY_ID:
            raise InputError(
                f"the window 'loop' with {self.remask!r}: no id would be unmasked while α is "
                "constant; expected 'rescale' or 'cap'"
            )

    def memory(self, tokens: Int[Array, "B S"]) -> tuple:
        """The ids' doubts; see `batched.Sampler`."""
        return (jnp.full(tokens.shape, -jnp.inf),)

    def alpha(
        self, step: Step, num_steps: Int[Array, ""] | int, num_masked: Int[Array, ""]
    ) -> Float[Array, ""]:
        """α, the share of the `num_masked` ids that is unmasked before a step, in expectation."""

        def masked_share(done):
            return schedules.mask_ratio(self.schedule, done, num_masked)

        done = step / num_steps
        if self.window == "switch":
            masked = masked_share(done)
        else:
            first = done / jnp.maximum(1 - self.t_on, _TINY)
            last = (done - (1 - self.t_off)) / jnp.maximum(self.t_off, _TINY)
            first, last = (masked_share(jnp.clip(phase, 0.0, 1.0)) for phase in (first, last))
            masked = self.alpha_on * first + (1 - self.alpha_on) * last
        # A schedule's least share is above 0.
        return 1 - jnp.where(step < num_steps, masked, 0.0)

    def mask_probability(
        self,
        step: Step,
        num_steps: Int[Array, ""] | int,
        ids: Tokens,
        to_fill: Bool[Array, "S"],
        doubts: Float[Array, "S"],
    ) -> Float[Array, "S"]:
        """The probability that each id is masked after a step: of a masked one, that it stays so.

        Args:
          step: from 0 on.
          num_steps: T.
          ids: what the step is shown.
          to_fill: the ids masked at the very start.
          doubts: see `remember`.
        """
        masked = ids == MASK_ID
        count = jnp.sum(to_fill)
        now, after = (self.alpha(s, num_steps, count) for s in (step, step + 1))
        sigma = remask_probability(self.remask, self.eta, now, after, to_fill & ~masked, doubts)
        # In steps; a thousandth of one, as shares of the steps are rounded.
        left = num_steps - step - 1e-3
        open_now = (self.t_off * num_steps < left) & (left < self.t_on * num_steps)
        sigma = jnp.where(open_now, sigma, 0.0)
        unmask = (after - (1 - sigma) * now) / jnp.maximum(1 - now, _TINY)
        return jnp.where(to_fill, jnp.where(masked, 1 - unmask, sigma), 0.0)

    def remember(
        self,
        ids: Tokens,
        sampled: Tokens,
        mask: Bool[Array, "S"],
        to_fill: Bool[Array, "S"],
        logits: Logits,
        doubts: Float[Array, "S"],
    ) -> Float[Array, "S"]:
        """How much each id is doubted after a step; −∞ where an id was given.

        By "confidence", the paper's rule, −ψ: ψ is the probability of an id when it was sampled;
        −∞ where an id is masked. By "conf", the released one, −log p: p is the probability of an id
        by this step's logits, also if it was sampled earlier. An id that is masked again keeps its
        last doubt, which takes part in the softmax; −∞ before it was ever unmasked.

        Args:
          ids: what the step was shown.
          sampled: nothing masked.
          mask: where ids are masked after the step.
          to_fill: the ids masked at the very start.
          logits: what was sampled from.
          doubts: of the step before.
        """
        if self.remask == "conf":
            new, renew = -jax.nn.log_softmax(logits), to_fill
        else:
            new, renew = -jax.nn.softmax(logits), ids == MASK_ID
            doubts = jnp.where(mask, -jnp.inf, doubts)
        new = jnp.take_along_axis(new, sampled[:, None], axis=-1)[:, 0]
        return jnp.where(renew & ~mask, new, doubts)

    def __call__(
        self,
        predict: Predict,
        to_fill: Bool[Array, "S"],
        key: RandomKey,
        num_steps: Int[Array, ""] | int,
    ) -> tuple[Predict, Remask]:
        """See `batched.Sampler`."""

        def remask(step, ids, sampled, logits, key, doubts):
            probability = self.mask_probability(step, num_steps, ids, to_fill, doubts)
            key, choice_key = jax.random.split(key)
            mask = jax.random.uniform(choice_key, ids.shape) < probability
            return mask, key, self.remember(ids, sampled, mask, to_fill, logits, doubts)

        return predict, remask
