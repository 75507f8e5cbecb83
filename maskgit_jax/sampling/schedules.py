"""Mask schedules γ: which share of the ids is masked after a share of the steps.

MaskGIT (arXiv:2202.04200), section 3.4 and appendix A; "arccos" is that of the Halton scheduler
(arXiv:2503.17076); "cosine_alpha" what ReMDM's image code (arXiv:2503.00307) calls cosine: there
the share of unmasked ids is the cosine of the time that remains, so that γ falls fastest at first.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob

_SCHEDULES = {
    "cosine": lambda r, n: jnp.cos(math.pi / 2 * r),
    "cosine_alpha": lambda r, n: 1 - jnp.cos(math.pi / 2 * (1 - r)),
    "arccos": lambda r, n: 2 / math.pi * jnp.arccos(r),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r**2.0,
    "cubic": lambda r, n: 1 - r**3.0,
    "square_root": lambda r, n: 1 - r**0.5,
    "logarithmic": lambda r, n: -jnp.log2(r) / jnp.log2(n),
    "exponential": lambda r, n: 1 - jnp.exp2(-jnp.log2(n) * (1 - r)),
}

SCHEDULE_NAMES = tuple(_SCHEDULES)


def schedule_knob(default: str) -> Any:
    """The field `schedule` of a method's settings."""
    return knob(default, "How the share of masked ids falls.", choices=SCHEDULE_NAMES, static=True)


def mask_ratio(
    name: str,
    ratio: Float[Array, "*b"] | float,
    num_masked: Int[Array, ""] | int,
) -> Float[Array, "*b"]:
    """γ(ratio): the share of ids to mask, in [1e-6, 1], falling in `ratio`.

    Args:
      name: one of `SCHEDULE_NAMES`.
      ratio: share of the steps done, t / T in [0, 1]; in training drawn uniformly.
      num_masked: number of ids masked at the start; the logarithmic and exponential schedules
        end at one of them.

    Raises:
      InputError: unknown name.
    """
    if name not in _SCHEDULES:
        raise InputError(f"schedule={name}: expected one of {', '.join(SCHEDULE_NAMES)}")
    ratio = jnp.asarray(ratio, jnp.float32)
    # Two schedules divide by, or end at, the logarithm of the count.
    count = jnp.maximum(jnp.asarray(num_masked, jnp.float32), 2)
    return jnp.clip(_SCHEDULES[name](ratio, count), 1e-6, 1.0)
