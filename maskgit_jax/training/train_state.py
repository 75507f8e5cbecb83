"""One update of any loss: accumulated over micro-batches, averaged over steps.

Spread over devices when its inputs are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Int, Key

from maskgit_jax.errors import InputError
from maskgit_jax.training.losses import Batch, LossFn, Metrics, Params


class TrainState(NamedTuple):
    """Everything that a training run needs to go on.

    Attributes:
      step: number of updates done.
      params: the weights.
      average: their exponential moving average, the weights to use.
      opt_state: the optimizer's state.
    """

    step: Int[Array, ""]
    params: Params
    average: Params
    opt_state: optax.OptState


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; shares no memory with `params`."""

    @jax.jit
    def init(params: Params) -> TrainState:
        # Copies: updates may give their input's memory away, and each array only once.
        params, average = (jax.tree.map(jnp.copy, params) for _ in range(2))
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))

    return init(params)


def update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One update; the randomness depends on `key` and the step alone, so a run can resume.

    Args:
      loss_fn: what to minimize.
      optimizer: makes steps of gradients.
      state: before the update.
      batch: tree of arrays with a leading axis of rows.
      key: the run's randomness.
      accumulate: micro-batches that the batch is cut into, one in memory at a time. The gradient
        is that of the whole batch where the loss is a mean over rows, or over what its "weight"
        counts.
      ema_decay: of the average weights; 0: they are the weights. It warms up, to
        min(ema_decay, (1 + step) / (10 + step)).

    Raises:
      InputError: the rows cannot be cut into `accumulate` equal parts.
    """
    key = jax.random.fold_in(key, state.step)
    gradients = jax.value_and_grad(loss_fn, has_aux=True)

    def weighted(batch: Batch, key: Key[Array, ""]):
        (_, metrics), grads = gradients(state.params, batch, key)
        metrics = dict(metrics)
        weight = metrics.pop("weight", jnp.ones(()))
        return jax.tree.map(lambda x: weight * x, (metrics, grads)), weight

    if accumulate == 1:
        total, weight = weighted(batch, key)
    else:
        parts = _cut(batch, accumulate), jax.random.split(key, accumulate)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape[1:], x.dtype), jax.eval_shape(jax.vmap(weighted), *parts)
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, weighted(*part)), None

        (total, weight), _ = jax.lax.scan(add, zeros, parts)
    metrics, grads = jax.tree.map(lambda x: x / weight, total)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
    return TrainState(state.step + 1, params, average, opt_state), metrics


def _cut(batch: Batch, parts: int) -> Batch:
    """Micro-batches: part i holds the rows i, i + parts, …, so that devices keep their rows."""

    def one(x: Array) -> Array:
        rows = len(x)
        if rows % parts:
            raise InputError(
                f"a batch of {rows} cannot be accumulated from {parts} equal parts: "
                f"choose a batch size that is a multiple of {parts}"
            )
        return x.reshape(rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(one, batch)
