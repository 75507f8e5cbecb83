"""MaskGIT-Edit: parts of a picture made anew, led by painted strokes.

The ids of the painted picture, `guide_ids`, lead what is drawn inside the stroke. Rules of the
MaskGIT-Edit project (github.com/joel99/maskgit_edit): context guidance, self-guidance, the
iterative form. Of this one: guide ids shown in place of the mask without tuning (`zero_shot`), and
`tilt`, whose confidence is a usable knob.

Self-guidance's is none. It multiplies logits by weights around 1: a logit below 0 becomes less
likely by what should favour it, and logits that mean the same, shifted by a number, come out
different. The published loop besides keeps the confidence as an integer: all below 1 is 0.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax.devices import spread_over_devices
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check, knob
from maskgit_jax.model import Model
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.batched import decode_batch, sample_keys
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

METHODS = (
    "baseline",
    "context",
    "identity",
    "code_distance",
    "learned",
    "iterative",
    "zero_shot",
    "tilt",
)
"""What `sample` can do; `baseline` hides the region and does not look at the stroke."""

_RULES = {
    "baseline": "plain",
    "identity": "self",
    "code_distance": "self",
    "learned": "self",
    "iterative": "iterative",
    "zero_shot": "zero_shot",
    "tilt": "tilt",
}

_LEAST_SHARPNESS, _MOST_SHARPNESS = 1e-6, 100.0

_HALVINGS = 16
_LEAST_TILT, _MOST_TILT = -8.0, 12.0  # logarithms, in units of 1 / mean energy


class StrokeInputs(NamedTuple):
    """A sample's own arrays.

    Attributes:
      guide_ids: the painted picture's ids; `MASK_ID` where there is no guidance.
      num_hidden: number of ids hidden at the very start.
      temperature: of the choice which ids to keep.
      confidence: how far the stroke is trusted, in [0, 1]; of self-guidance and `tilt`.
      token_temperature: τ of `loop.tempered`.
    """

    guide_ids: Int[Array, "*b S"]
    num_hidden: Int[Array, "*b"]
    temperature: Float[Array, "*b"]
    confidence: Float[Array, "*b"]
    token_temperature: Float[Array, "*b"] | float = 1.0


Energy = Float[Array, "K K"]
"""How well each code (column) agrees with each guide code (row): the higher, the better."""


def identity_energy(codebook: Float[Array, "K d"]) -> Energy:
    """1 for the guide's own code, 0 for every other."""
    return jnp.eye(len(codebook))


def code_distance_energy(codebook: Float[Array, "K d"]) -> Energy:
    """Minus the mean squared difference of two codes."""
    squares = jnp.sum(codebook**2, axis=1)
    # "highest": the guide's own code must come out nearest, on every device.
    products = jnp.matmul(codebook, codebook.T, precision="highest")
    distances = squares[:, None] - 2 * products + squares
    distances = jnp.maximum(distances, 0) * (1 - jnp.eye(len(codebook)))
    return -distances / codebook.shape[1]


def guided(ids: Tokens, guide_ids: Tokens) -> Bool[Array, "S"]:
    """Where an id is hidden that the stroke says something about."""
    return (ids == MASK_ID) & (guide_ids != MASK_ID)


def reweighting(
    energies: Float[Array, "*b K"], confidence: Float[Array, ""] | float
) -> Float[Array, "*b K"]:
    """Self-guidance's factors on the logits: softmax(κ·energies), scaled to mean 1 over codes.

    κ goes from 1e-6 to 100 in even ratios as `confidence` goes from 0 to 1.
    """
    least, most = np.log(_LEAST_SHARPNESS), np.log(_MOST_SHARPNESS)
    sharpness = jnp.exp(least + confidence * (most - least))
    weights = jax.nn.softmax(sharpness * energies)
    return weights / jnp.mean(weights, axis=-1, keepdims=True)


def tilt(
    logits: Float[Array, "*b K"],
    energies: Float[Array, "*b K"],
    confidence: Float[Array, ""] | float,
) -> Float[Array, "*b K"]:
    """Logits of the distribution nearest to the model's that agrees with the stroke so far.

    p(k) ∝ p_model(k)·exp(β·energy_k) is of all distributions with its mean energy the nearest in
    Kullback-Leibler divergence to the model's (exponential tilting: Csiszár, 1975). β is found such
    that the mean energy is (1 - confidence) times the model's: at 0.3 the expected code distance to
    the stroke is 0.7 of what it is without guidance, whatever the model, the code and the step.

    Args:
      logits: the model's.
      energies: of each code: 0 the best, others below.
      confidence: in [0, 1]. 0 gives the logits back, 1 leaves the codes of energy 0 alone.
    """
    target = (1 - confidence) * jnp.sum(jax.nn.softmax(logits) * energies, axis=-1, keepdims=True)
    unit = -1 / jnp.mean(energies, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        tilted = jax.nn.softmax(logits + unit * jnp.exp(middle) * energies)
        short = jnp.sum(tilted * energies, axis=-1, keepdims=True) < target
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    bounds = jnp.full(target.shape, _LEAST_TILT), jnp.full(target.shape, _MOST_TILT)
    _, found = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
    tilted = logits + jnp.where(confidence > 0, unit * jnp.exp(found), 0) * energies
    return jnp.where(confidence < 1, tilted, jnp.where(energies < 0, -jnp.inf, logits))


def _plain(transformer, params, energy, inputs) -> Predict:
    return maskgit_predict(transformer, params)


def _self_guided(transformer, params, energy: Energy, inputs: StrokeInputs) -> Predict:
    def predict(ids, step):
        weights = reweighting(energy[inputs.guide_ids], inputs.confidence)
        weights = jnp.where(guided(ids, inputs.guide_ids)[:, None], weights, 1)
        return code_logits(transformer, params, ids) * weights

    return predict


def _tilted(transformer, params, energy: Energy, inputs: StrokeInputs) -> Predict:
    def predict(ids, step):
        logits = code_logits(transformer, params, ids)
        tilted = tilt(logits, energy[inputs.guide_ids], inputs.confidence)
        return jnp.where(guided(ids, inputs.guide_ids)[:, None], tilted, logits)

    return predict


def _iterative(transformer, params, energy, inputs: StrokeInputs) -> Predict:
    return lambda ids, step: code_logits(transformer, params, ids, inputs.guide_ids)


def _zero_shot(transformer, params, energy, inputs: StrokeInputs) -> Predict:
    def predict(ids, step):
        shown = jnp.where(guided(ids, inputs.guide_ids), inputs.guide_ids, ids)
        return code_logits(transformer, params, shown)

    return predict


_PREDICTS: dict[str, Callable[..., Predict]] = {
    "plain": _plain,
    "self": _self_guided,
    "tilt": _tilted,
    "iterative": _iterative,
    "zero_shot": _zero_shot,
}


@dataclasses.dataclass(frozen=True)
class Guidance:
    """A method that ranks ids as MaskGIT does and predicts otherwise; see `batched.Method`.

    Attributes:
      name: "plain", "self" (self-guidance), "tilt", "iterative" or "zero_shot".
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    name: str
    schedule: str = "cosine"

    def __call__(
        self, transformer: Transformer, params: Any, shared: Any, inputs: StrokeInputs, num_steps
    ):
        """See `batched.Method`; `shared` is the energy of "self" and "tilt"."""
        predict = _PREDICTS[self.name](transformer, params, shared, inputs)
        predict = tempered(predict, inputs.token_temperature)
        return predict, _remask(inputs, num_steps, self.schedule)


def _remask(inputs: StrokeInputs, num_steps, schedule: str) -> Remask:
    return maskgit_remask(
        inputs.num_hidden, num_steps=num_steps, temperature=inputs.temperature, schedule=schedule
    )


@dataclasses.dataclass(frozen=True)
class ContextGuidance:
    """Context guidance: most hidden ids are shown as the stroke's; see `batched.Method`.

    A step chooses the least sure of the hidden ids by the step before, shows the stroke's ids there
    and masks at the few others, draws all of them and keeps the others.

    Tokens are followed by as many marks: `MASK_ID` at a mark says that its id is shown as the
    stroke's. So the loop carries what was chosen. Marks' logits are 0: nobody looks at what is
    drawn for them.

    Attributes:
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    schedule: str = "cosine"

    def start(
        self,
        tokens: Tokens,
        inputs: StrokeInputs,
        first_step: Int[Array, ""] | int,
        num_steps: Int[Array, ""] | int,
        key: RandomKey,
    ) -> DecodeState:
        """One sample before its first step; the model has said nothing, so all ids rank alike."""
        logits = jnp.zeros((len(tokens), 1))
        before = jnp.asarray(first_step - 1)
        chosen = self._choose(inputs, num_steps, before, tokens, tokens * 0, logits, key)
        marked = jnp.concatenate([tokens, jnp.where(chosen, MASK_ID, 0)])
        return DecodeState(marked, marked, key)

    def __call__(
        self, transformer: Transformer, params: Any, shared: Any, inputs: StrokeInputs, num_steps
    ):
        """See `batched.Method`; nothing is shared."""

        def predict(ids, step):
            tokens, marks = jnp.split(ids, 2)
            shown = (marks == MASK_ID) & guided(tokens, inputs.guide_ids)
            logits = code_logits(transformer, params, jnp.where(shown, inputs.guide_ids, tokens))
            return jnp.concatenate([logits, jnp.zeros_like(logits)])

        def remask(step, ids, sampled, logits, key):
            key, _ = jax.random.split(key)
            hide = jnp.split(ids, 2)[1] == MASK_ID
            drawn, logits = sampled[: len(hide)], logits[: len(hide)]
            hidden = jnp.where(hide, MASK_ID, drawn)
            chosen = self._choose(inputs, num_steps, step, hidden, drawn, logits, key)
            return jnp.concatenate([hide, chosen]), key

        return tempered(predict, inputs.token_temperature), remask

    def _choose(self, inputs, num_steps, step, ids, sampled, logits, key):
        """The ids that the step after `step` shows as the stroke's, chosen with that step's key."""
        rank = _remask(inputs, num_steps, self.schedule)
        # That step will split the key once to sample; the next split is the choice's.
        return rank(step, ids, sampled, logits, jax.random.split(key)[0])[0]


@dataclasses.dataclass(frozen=True)
class StrokeSettings(EditSettings):
    """The knobs of sampling led by a stroke.

    Attributes:
      confidence: how far the stroke is trusted; of self-guidance and `tilt`.
    """

    confidence: Any = knob(0.7, "How far the stroke is followed.", low=0.0, high=1.0)


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    guide_ids: Int[Array, "B N"],
    *,
    method: str,
    num_steps: int,
    seed: int,
    indices: Int[Array | np.ndarray, "B"],
    confidence: Float[Array, "B"] | float = 1.0,
    energy: Float[Array | np.ndarray, "_ _"] | None = None,
    first_step: int = 0,
    temperature: float = 4.5,
    token_temperature: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> Int[Array, "B N"]:
    """Fills the hidden ids, led by a stroke; one sample per row, spread over devices.

    Args:
      model: the generator; for "iterative" one that was tuned for it.
      tokens: class token (K + label) and image ids; -1 in the region that is made anew.
      guide_ids: the painted picture's ids; read in the region alone, -1 where it has no stroke.
      method: one of `METHODS`.
      num_steps: T.
      seed: with the index, all that a sample's randomness depends on.
      indices: the samples' numbers.
      confidence: in [0, 1], of "identity", "code_distance", "learned" and "tilt".
      energy: of "learned", and of it alone; see `Energy`.
      first_step: where in the schedule to start, 0 .. T - 1.
      temperature: of the choice which ids to keep.
      token_temperature: τ of `loop.tempered`.
      progress: called with the number of the next step each time some are done.

    Raises:
      InputError: unknown method, confidence or token temperature out of its range, no step to run,
        or an energy that is missing, not finite or of another codebook's size.
    """
    check(
        StrokeSettings(
            num_steps=num_steps,
            temperature=temperature,
            token_temperature=token_temperature,
            confidence=confidence,
        )
    )
    if not 0 <= first_step < num_steps:
        raise InputError(f"first_step is {first_step} of {num_steps}: expected 0 to num_steps - 1")
    shared = _shared(model, method, energy)
    batch = len(tokens)
    class_token = jnp.full((batch, 1), MASK_ID, guide_ids.dtype)
    inputs = StrokeInputs(
        guide_ids=jnp.concatenate([class_token, guide_ids], axis=1),
        num_hidden=jnp.sum(tokens == MASK_ID, axis=1),
        temperature=jnp.full(batch, temperature, jnp.float32),
        confidence=jnp.broadcast_to(jnp.float32(confidence), batch),
        token_temperature=jnp.full(batch, token_temperature, jnp.float32),
    )
    keys = sample_keys(seed, indices)
    if method == "context":
        rule = ContextGuidance()
        state = _start_context(rule, tokens, inputs, first_step, num_steps, keys)
    else:
        rule = Guidance(_RULES[method])
        # Copies: the loop takes the state's memory.
        state = DecodeState(jnp.array(tokens), jnp.array(tokens), keys)
    inputs, state = spread_over_devices((inputs, state))
    state = decode_batch(
        model,
        rule,
        shared,
        inputs,
        state,
        num_steps=num_steps,
        first_step=first_step,
        progress=progress,
    )
    return state.sampled[:batch, 1 : tokens.shape[1]]


def check_energy(energy: Float[Array | np.ndarray, "_ _"], codebook_size: int) -> None:
    """Raises InputError where an energy is not finite or not of the codebook's size."""
    if energy.shape != (codebook_size, codebook_size):
        rows, columns = energy.shape
        raise InputError(
            f"the energy is {rows}x{columns}: the model has {codebook_size} codes, expected "
            f"{codebook_size}x{codebook_size}"
        )
    if not np.all(np.isfinite(energy)):
        raise InputError("the energy is not finite everywhere: it was not learned")


def _shared(model: Model, method: str, energy) -> Energy | tuple[()]:
    """What the method's samples share: its energy, if it has one."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if (method == "learned") != (energy is not None):
        raise InputError("an energy goes with the method 'learned', and it with an energy")
    if energy is not None:
        check_energy(energy, model.config.transformer.codebook_size)
        return jnp.asarray(energy, jnp.float32)
    codebook = model.tokenizer_params["quantizer"]["codebook"]
    if method == "identity":
        return identity_energy(codebook)
    return code_distance_energy(codebook) if method in ("code_distance", "tilt") else ()


@functools.partial(jax.jit, static_argnums=0)
def _start_context(rule, tokens, inputs, first_step, num_steps, keys):
    def one(tokens, inputs, key):
        return rule.start(tokens, inputs, first_step, num_steps, key)

    return jax.vmap(one)(tokens, inputs, keys)
