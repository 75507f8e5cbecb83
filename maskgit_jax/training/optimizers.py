"""Optimizers and their learning rates."""

from typing import Any

import jax
import optax
import optax.contrib
from jaxtyping import Array

from maskgit_jax.errors import InputError
from maskgit_jax.training.losses import Params

SCHEDULES = ("cosine", "constant")
"""What the learning rate does after warm-up: falls to zero, or stays."""


def learning_rate_schedule(
    learning_rate: float, num_steps: int, warmup_steps: int, decay: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up from zero to `learning_rate`, then one of `SCHEDULES`."""
    if decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    if decay == "constant":
        # optax.warmup_constant_schedule stays at zero when there is no warm-up.
        rise = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
        return optax.join_schedules([rise, optax.constant_schedule(learning_rate)], [warmup_steps])
    raise InputError(f"unknown decay {decay!r}: expected {' or '.join(SCHEDULES)}")


OPTIMIZERS = ("adamw", "muon")
"""AdamW, or Muon (orthogonalized momentum) for the matrices and Adam for the rest."""


def make_optimizer(
    schedule: optax.Schedule,
    weight_decay: float,
    *,
    name: str = "adamw",
    clip_norm: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.96),
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS` on gradients clipped to a global norm."""
    if name == "adamw":
        optimizer = optax.adamw(schedule, *betas, weight_decay=weight_decay)
    elif name == "muon":
        optimizer = optax.contrib.muon(
            schedule,
            weight_decay=weight_decay,
            adam_b1=betas[0],
            adam_b2=betas[1],
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,  # steps of the size that Adam's usually have
        )
    else:
        raise InputError(f"unknown optimizer {name!r}: expected {' or '.join(OPTIMIZERS)}")
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def moving_average(decay: float) -> optax.GradientTransformation:
    """For weights that are averages: an update takes in 1 - `decay` of their "gradient"."""
    return optax.stateless(
        lambda taken, averages: jax.tree.map(
            lambda x, average: (1 - decay) * (x - average), taken, averages
        )
    )


def no_optimizer() -> optax.GradientTransformation:
    """For weights that stay what they are."""
    return optax.set_to_zero()


def by_part(
    optimizers: dict[str, optax.GradientTransformation], part_of: Any
) -> optax.GradientTransformation:
    """An optimizer of its own for each part of the weights; `part_of` is a prefix of their tree."""
    return optax.multi_transform(optimizers, part_of)


def matrices(params: Params) -> Any:
    """Which axes of each weight are a matrix's inputs and outputs, for Muon; None for others.

    Kernels are matrices, embeddings, biases and scales are not. An attention's output kernel
    [H, d, D] has two axes of inputs, its query, key and value kernels [D, H, d] two of outputs, a
    convolution's [h, w, in, out] three of inputs.
    """

    def one(path: tuple, x: Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return None
        num_inputs = 1 if x.ndim == 3 and "out" not in names else x.ndim - 1
        axes = tuple(range(x.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:num_inputs], axes[num_inputs:])

    return jax.tree_util.tree_map_with_path(one, params)
