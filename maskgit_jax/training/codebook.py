"""A codebook of running averages (van den Oord et al., arXiv:1711.00937, appendix A.1).

Each code is the average of the latents that chose it. That needs no loss of the codebook, and keeps
codes in use that a gradient would leave behind: under Muon the gradient's codebook fell from 875
codes to 251.

The averages are trained as weights are: `usage_term` is zero, but its gradient is what the averages
take in, and `optimizers.moving_average` applies it. So they are accumulated, spread over devices,
saved and resumed as weights are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Averages = dict[str, Float[Array | np.ndarray, "..."]]
"""What each code stands for, "sums" [K, d], by how often, "use" [K]: the quantizer's weights in
training, in place of "codebook"."""

DECAY = 0.99
"""Of the averages, an update."""

_MOVED = 4  # codes at most, an update
_UNUSED = 0.02  # of the mean use


def init_averages(codes: Float[Array | np.ndarray, "K d"]) -> Averages:
    """The averages of a codebook whose codes are all used alike."""
    return {"use": jnp.ones(len(codes)), "sums": jnp.asarray(codes)}


def codes_of(averages: Averages) -> Float[Array | np.ndarray, "K d"]:
    """The codebook that averages stand for."""
    return averages["sums"] / averages["use"][:, None]


def with_codes(params: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's weights with the codebook that averages, if it has them, stand for."""
    quantizer = params["quantizer"]
    if "codebook" in quantizer:
        return params
    return {**params, "quantizer": {"codebook": codes_of(quantizer)}}


def usage_term(
    averages: Averages, latents: Float[Array, "n d"], distances: Float[Array, "n K"]
) -> Float[Array, ""]:
    """Zero; its gradient is what the averages take in of a batch.

    For each code the share of latents nearest to it, times K, and their sum, likewise. Up to four
    codes used less than 0.02 of the mean move to the latents farthest from any code.

    Args:
      averages: of `init_averages`.
      latents: of a batch.
      distances: squared, of the latents to the codes.
    """
    averages_now, latents, distances = jax.lax.stop_gradient((averages, latents, distances))
    num_codes = len(averages_now["use"])
    chosen, scale = jnp.argmin(distances, axis=-1), num_codes / len(latents)

    def of_codes(x: Float[Array, "n ..."]) -> Float[Array, "K ..."]:
        return scale * jax.ops.segment_sum(x, chosen, num_codes)

    taken = {"use": of_codes(jnp.ones(len(latents))), "sums": of_codes(latents)}
    moved = min(_MOVED, num_codes, len(latents))
    use, candidates = jax.lax.top_k(-averages_now["use"], moved)
    _, farthest = jax.lax.top_k(jnp.min(distances, axis=-1), moved)
    unused = -use < _UNUSED

    def move(taken: Float[Array, "K ..."], now: Float[Array, "K ..."], to: Float[Array, "m ..."]):
        # What brings the average to `to` in this one update.
        needed = (to - DECAY * now[candidates]) / (1 - DECAY)
        keep = unused.reshape(-1, *[1] * (to.ndim - 1))
        return taken.at[candidates].set(jnp.where(keep, needed, taken[candidates]))

    taken = {
        "use": move(taken["use"], averages_now["use"], jnp.ones(moved)),
        "sums": move(taken["sums"], averages_now["sums"], latents[farthest]),
    }
    products = jax.tree.map(
        lambda average, now, x: jnp.sum((average - now) * x), averages, averages_now, taken
    )
    return products["use"] + products["sums"]
