"""The structure divergence of two self-attention layers without an attention map.

With s and r the logits of a row of the target's and of the sampled ids' map, p and q their
softmaxes, the normalisers cancel in the Jeffreys divergence of MaskSketch (arXiv:2302.05496,
section 3.2):

    Σ_j (p_j − q_j)(log p_j − log q_j) = E_p[s − r] + E_q[r − s]

So sums over keys are all that is needed, and sums can be taken block by block, the softmaxes'
maxima being corrected on the way (Milakov and Gimelshein, arXiv:1805.02867), as attention itself
can. q is the attention of the pass over the sampled ids: one pass over the keys gives both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ABSENT_LOGIT = -1e30
"""The logit of a key that does not exist. Finite: differences of two are no NaN."""

_INTEGRANDS = {
    "jeffreys": lambda target, sampled: (target - sampled, sampled - target),
    "cross_entropy": lambda target, sampled: (-sampled, -target),
}
"""What the divergence takes expectations of, first under p, then under q.

They are linear in the logits: f(s + a, r + b) = f(s, r) + f(a, b), by which `merge` moves the
maxima. The cross-entropies take the log-normalisers besides.
"""


class Statistics(NamedTuple):
    """Sums over some keys, for each query.

    All logits are taken relative to their maximum over these keys. The difference of the two maxima
    lies between the values of s − r where s and where r is largest, so what is summed is small
    where the sums have their weight: constants per row cost no digits.

    Attributes:
      target_max: maximum of s.
      sampled_max: maximum of r.
      target_sum: Σ exp(s).
      sampled_sum: Σ exp(r).
      target_integral: Σ exp(s) · p's integrand.
      sampled_integral: Σ exp(r) · q's integrand.
      attended: Σ exp(r) · value.
    """

    target_max: Float[Array, "*b i 1"]
    sampled_max: Float[Array, "*b i 1"]
    target_sum: Float[Array, "*b i 1"]
    sampled_sum: Float[Array, "*b i 1"]
    target_integral: Float[Array, "*b i 1"]
    sampled_integral: Float[Array, "*b i 1"]
    attended: Float[Array, "*b i d"]


def attend_and_compare(
    query: Float[Array, "S H d"],
    key: Float[Array, "S H d"],
    value: Float[Array, "S H d"],
    target_query: Float[Array, "S H d"],
    target_key: Float[Array, "S H d"],
    *,
    divergence: str = "jeffreys",
    block_size: int = 128,
) -> tuple[Float[Array, "S H d"], Float[Array, "H S"]]:
    """Attention of the sampled ids' pass, and how far its map is from the target's.

    Logits, softmaxes and sums are float32 whatever the inputs are. Above 4 · `block_size` keys the
    memory is O(S · block_size).

    Args:
      query: of the sampled ids, divided by √(head width).
      key: of the sampled ids.
      value: of the sampled ids.
      target_query: of the sketch's ids, divided by √(head width).
      target_key: of the sketch's ids.
      divergence: `jeffreys`, or `cross_entropy`, −Σ_j (p_j log q_j + q_j log p_j).
      block_size: largest number of keys at a time in the long form; 128 fit the caches of CPUs.

    Returns:
      The attention output, in the value's type, and the divergence of each row of each head's map,
      ≥ 0.
    """
    length = query.shape[0]
    # Heads first: the products run on contiguous matrices.
    query, key, value, target_query, target_key = (
        jnp.swapaxes(x, 0, 1) for x in (query, key, value, target_query, target_key)
    )
    if length <= 4 * block_size:
        target, sampled = logits(target_query, target_key), logits(query, key)
        attention, distance = _compare_whole(target, sampled, value, divergence)
    else:
        num_blocks = -(-length // block_size)
        block_size = -(-length // num_blocks)
        padding = num_blocks * block_size - length

        def blocks(x: Float[Array, "H S d"]) -> Float[Array, "n H block d"]:
            padded = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
            return jnp.swapaxes(padded.reshape(x.shape[0], num_blocks, block_size, -1), 0, 1)

        def step(statistics, block):
            start, key, value, target_key = block
            target, sampled = logits(target_query, target_key), logits(query, key)
            if padding:
                exists = start + jnp.arange(block_size) < length
                target, sampled = (jnp.where(exists, x, ABSENT_LOGIT) for x in (target, sampled))
            statistics = merge(statistics, of_keys(target, sampled, value, divergence), divergence)
            return statistics, None

        starts = jnp.arange(num_blocks) * block_size
        statistics, _ = jax.lax.scan(
            step, of_no_keys(value.shape), (starts, blocks(key), blocks(value), blocks(target_key))
        )
        attention, distance = finish(statistics, divergence)
    return jnp.swapaxes(attention, 0, 1).astype(value.dtype), distance[..., 0]


def logits(query: Float[Array, "*b i d"], key: Float[Array, "*b j d"]) -> Float[Array, "*b i j"]:
    """Rows of an attention map before the softmax, in float32.

    At the highest precision whatever the backend's default: distances decide which ids are masked,
    and which proposal's are kept.
    """
    return jnp.einsum(
        "...id,...jd->...ij",
        query,
        key,
        precision="highest",
        preferred_element_type=jnp.float32,
    )


def of_no_keys(shape: tuple[int, ...]) -> Statistics:
    """What `merge` leaves the other side unchanged with; `shape` is that of `attended`."""
    lowest, zero = jnp.full((*shape[:-1], 1), ABSENT_LOGIT), jnp.zeros((*shape[:-1], 1))
    return Statistics(lowest, lowest, zero, zero, zero, zero, jnp.zeros(shape))


def of_keys(
    target: Float[Array, "*b i j"],
    sampled: Float[Array, "*b i j"],
    value: Float[Array, "*b j d"],
    divergence: str,
) -> Statistics:
    """Statistics of some keys from their logits."""
    target_max, target, p = _exponentials(target)
    sampled_max, sampled, q = _exponentials(sampled)
    of_p, of_q = _INTEGRANDS[divergence](target, sampled)
    return Statistics(
        target_max, sampled_max, _sum(p), _sum(q), _sum(p * of_p), _sum(q * of_q), _mix(q, value)
    )


def merge(one: Statistics, other: Statistics, divergence: str) -> Statistics:
    """Statistics of two disjoint sets of keys together."""
    target_max = jnp.maximum(one.target_max, other.target_max)
    sampled_max = jnp.maximum(one.sampled_max, other.sampled_max)

    def sums(x: Statistics) -> tuple[Float[Array, "..."], ...]:
        target, sampled = x.target_max - target_max, x.sampled_max - sampled_max
        p, q = jnp.exp(target), jnp.exp(sampled)
        of_p, of_q = _INTEGRANDS[divergence](target, sampled)
        return (
            p * x.target_sum,
            q * x.sampled_sum,
            p * (x.target_integral + x.target_sum * of_p),
            q * (x.sampled_integral + x.sampled_sum * of_q),
            q * x.attended,
        )

    added = (a + b for a, b in zip(sums(one), sums(other), strict=True))
    return Statistics(target_max, sampled_max, *added)


def finish(
    statistics: Statistics, divergence: str
) -> tuple[Float[Array, "*b i d"], Float[Array, "*b i 1"]]:
    """Attention output and divergence from the statistics of all keys."""
    x = statistics
    expectation = x.target_integral / x.target_sum + x.sampled_integral / x.sampled_sum
    distance = _with_normalisers(expectation, x.target_sum, x.sampled_sum, divergence)
    return x.attended / x.sampled_sum, distance


def _compare_whole(target, sampled, value, divergence):
    """`finish` of `of_keys`, with one sum over keys less."""
    _, target, p = _exponentials(target)
    _, sampled, q = _exponentials(sampled)
    target_sum, sampled_sum = _sum(p), _sum(q)
    of_p, of_q = _INTEGRANDS[divergence](target, sampled)
    expectation = _sum(p / target_sum * of_p + q / sampled_sum * of_q)
    distance = _with_normalisers(expectation, target_sum, sampled_sum, divergence)
    return _mix(q, value) / sampled_sum, distance


def _with_normalisers(expectation, target_sum, sampled_sum, divergence):
    if divergence == "cross_entropy":
        expectation += jnp.log(target_sum) + jnp.log(sampled_sum)
    return jnp.maximum(expectation, 0)


def _exponentials(logits):
    """The maximum, the logits relative to it, and their exponentials."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    relative = logits - highest
    return highest, relative, jnp.exp(relative)


def _sum(x):
    return jnp.sum(x, axis=-1, keepdims=True)


def _mix(weights, value):
    """Σ_j weights_j value_j; matrix units want both in the value's type."""
    return jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
