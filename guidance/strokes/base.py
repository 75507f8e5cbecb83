"""What a way to be led by a stroke is made of, and the ways that only change what is shown."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax.errors import InputError
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.loop import (
    MASK_ID,
    DecodeState,
    Predict,
    RandomKey,
    Remask,
    Tokens,
    tempered,
)
from maskgit_jax.sampling.maskgit import maskgit_predict, maskgit_remask

Energy = Float[Array, "K K"]
"""How well each code (column) agrees with each guide code (row): the higher, the better."""


class StrokeInputs(NamedTuple):
    """A sample's own arrays.

    Attributes:
      guide_ids: the painted picture's ids; `MASK_ID` where there is no guidance.
      num_masked: number of ids masked at the very start.
      temperature: of the confidence ranking.
      confidence: how far the stroke is trusted, in [0, 1].
      token_temperature: τ of `loop.tempered`.
    """

    guide_ids: Int[Array, "*b S"]
    num_masked: Int[Array, "*b"]
    temperature: Float[Array, "*b"]
    confidence: Float[Array, "*b"]
    token_temperature: Float[Array, "*b"] | float = 1.0


def has_guide(ids: Tokens, guide_ids: Tokens) -> Bool[Array, "S"]:
    """Where an id is masked that the stroke says something about."""
    return (ids == MASK_ID) & (guide_ids != MASK_ID)


@dataclasses.dataclass(frozen=True)
class StrokeMethod:
    """A `batched.Method` that ranks ids as MaskGIT does; this one does not look at the stroke.

    Attributes:
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    schedule: str = "cosine"

    has_confidence: ClassVar[bool] = False
    """Whether a confidence changes it."""
    is_learned: ClassVar[bool] = False
    """Whether it takes an energy that was learned."""

    def energy(
        self, codebook: Float[Array, "K d"], learned: Float[Array | np.ndarray, "_ _"] | None
    ) -> Energy | tuple[()]:
        """What all samples share: the method's energy, if it has one.

        Raises:
          InputError: a learned energy that is missing, or given and of no use.
        """
        if self.is_learned != (learned is not None):
            raise InputError("an energy goes with the method 'learned', and it with an energy")
        return ()

    def predict(
        self, transformer: Transformer, params: Any, energy: Any, inputs: StrokeInputs
    ) -> Predict:
        """One sample's logits before the token temperature; see `energy`."""
        return maskgit_predict(transformer, params)

    def remask(self, inputs: StrokeInputs, num_steps: Int[Array, ""] | int) -> Remask:
        """MaskGIT's rule."""
        return maskgit_remask(
            inputs.num_masked,
            num_steps=num_steps,
            temperature=inputs.temperature,
            schedule=self.schedule,
        )

    def start(
        self,
        tokens: Tokens,
        inputs: StrokeInputs,
        first_step: Int[Array, ""] | int,
        num_steps: Int[Array, ""] | int,
        key: RandomKey,
    ) -> DecodeState:
        """One sample before its first step."""
        return DecodeState(tokens, tokens, key)

    def __call__(
        self, transformer: Transformer, params: Any, energy: Any, inputs: StrokeInputs, num_steps
    ):
        """See `batched.Method`; what is shared is the energy."""
        predict = self.predict(transformer, params, energy, inputs)
        return tempered(predict, inputs.token_temperature), self.remask(inputs, num_steps)


@dataclasses.dataclass(frozen=True)
class Iterative(StrokeMethod):
    """The iterative form: guides are added to the masks' embeddings, by a model tuned for it."""

    def predict(self, transformer, params, energy, inputs):
        """See `StrokeMethod`."""
        return lambda ids, step: code_logits(transformer, params, ids, inputs.guide_ids)


@dataclasses.dataclass(frozen=True)
class ZeroShot(StrokeMethod):
    """Guide ids are shown in place of the masks, without tuning."""

    def predict(self, transformer, params, energy, inputs):
        """See `StrokeMethod`."""

        def predict(ids, step):
            shown = jnp.where(has_guide(ids, inputs.guide_ids), inputs.guide_ids, ids)
            return code_logits(transformer, params, shown)

        return predict
