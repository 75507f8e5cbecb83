"""Context guidance: most masked ids are shown as the stroke's."""

import dataclasses

import jax
import jax.numpy as jnp

from guidance.strokes.base import StrokeMethod, has_guide
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, tempered


@dataclasses.dataclass(frozen=True)
class ContextGuidance(StrokeMethod):
    """A step shows the stroke's ids at most of the masked places, samples all and keeps the others.

    Those that it shows are the least sure of the masked ids by the step before.

    Tokens are followed by as many marks: `MASK_ID` at a mark says that its id is shown as the
    stroke's. So the loop carries what was chosen. Marks' logits are 0: nobody looks at what is
    sampled for them.
    """

    def start(self, tokens, inputs, first_step, num_steps, key):
        """The model has said nothing, so all ids rank alike."""
        logits = jnp.zeros((len(tokens), 1))
        before = jnp.asarray(first_step - 1)
        chosen = self._choose(inputs, num_steps, before, tokens, tokens * 0, logits, key)
        marked = jnp.concatenate([tokens, jnp.where(chosen, MASK_ID, 0)])
        return DecodeState(marked, marked, key)

    def __call__(self, transformer, params, energy, inputs, num_steps):
        """See `batched.Method`."""

        def predict(ids, step):
            tokens, marks = jnp.split(ids, 2)
            shown = (marks == MASK_ID) & has_guide(tokens, inputs.guide_ids)
            logits = code_logits(transformer, params, jnp.where(shown, inputs.guide_ids, tokens))
            return jnp.concatenate([logits, jnp.zeros_like(logits)])

        def remask(step, ids, sampled, logits, key):
            key, _ = jax.random.split(key)
            mask = jnp.split(ids, 2)[1] == MASK_ID
            drawn, logits = sampled[: len(mask)], logits[: len(mask)]
            masked = jnp.where(mask, MASK_ID, drawn)
            chosen = self._choose(inputs, num_steps, step, masked, drawn, logits, key)
            return jnp.concatenate([mask, chosen]), key

        return tempered(predict, inputs.token_temperature), remask

    def _choose(self, inputs, num_steps, step, ids, sampled, logits, key):
        """The ids that the step after `step` shows as the stroke's, chosen with that step's key."""
        rank = self.remask(inputs, num_steps)
        # That step will split the key once to sample; the next split is the choice's.
        return rank(step, ids, sampled, logits, jax.random.split(key)[0])[0]
