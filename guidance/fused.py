"""`divergence.attend_and_compare` by fused attention as it comes with JAX; experimental.

P and Q are the softmaxed maps of the sketch and of the sampled ids, s and r the queries, S and R
the keys. A row's Jeffreys divergence is E_p[s·S_j − r·R_j] − E_q[s·S_j − r·R_j] (see `divergence`),
and expectations of keys are attention whose values are keys:

    J_i = s_i·((P S)_i − (Q S)_i) − r_i·((P R)_i − (Q R)_i)

So any attention that writes no map to memory gives J too. Keys are centred first, S_j − mean_j S_j:
a vector c taken from all keys takes s_i·c from all logits of row i, which leaves its softmax as it
was, and c from both (P S)_i and (Q S)_i, whose rows sum to 1, which leaves their difference. What
the keys have in common, often the larger part of them, then costs no digits.

P S is the same in all steps. It is computed in each all the same: one of five products of maps and
values, where keeping it would cost half the memory of the sketch's queries and keys again.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from maskgit_jax.devices import device_mesh
from maskgit_jax.networks.transformer import softmax_attention

_TPU_BLOCK = 128

Heads = Float[Array, "S H d"]


def attend_and_compare_fused(
    query: Float[Array, "S H d"],
    key: Float[Array, "S H d"],
    value: Float[Array, "S H d"],
    target_query: Float[Array, "S H d"],
    target_key: Float[Array, "S H d"],
) -> tuple[Float[Array, "S H d"], Float[Array, "H S"]]:
    """See `divergence.attend_and_compare`; the Jeffreys divergence alone.

    On NVIDIA GPUs cuDNN's attention in float16, which has the digits of TF32: its results are
    rounded, and bfloat16 would round eight times as coarsely. On TPUs JAX's flash attention, in
    float32 with the backend's products. Elsewhere whole maps.

    Args:
      query: of the sampled ids, divided by √(head width).
      key: of the sampled ids.
      value: of the sampled ids.
      target_query: of the sketch's ids, divided by √(head width).
      target_key: of the sketch's ids.
    """
    # Not `lax.platform_dependent`, which traces all branches: cuDNN's cannot be where it is not
    # installed, and TPU kernels would be imported everywhere. Samples lie on the default backend.
    attention, dtype = _ATTENTION.get(_platform(), (softmax_attention, jnp.float32))
    # Divided before the sum: a mean's last division, fused with the subtraction, is rounded
    # otherwise in each place that needs the keys, and what these have in common would remain.
    key, target_key = (x - jnp.sum(x / len(x), axis=0) for x in map(jnp.float32, (key, target_key)))
    query, target_query, key, target_key, values = (
        x.astype(dtype) for x in (query, target_query, key, target_key, value)
    )
    mixed, q_target, q_sampled = _mix(attention, query, key, values, target_key, key)
    p_target, p_sampled = _mix(attention, target_query, target_key, target_key, key)
    distance = _dot(target_query, p_target, q_target) - _dot(query, p_sampled, q_sampled)
    return mixed.astype(value.dtype), jnp.maximum(distance, 0).T


def _dot(query, one, other) -> Float[Array, "S H"]:
    """query · (one − other), in float32."""
    query, one, other = map(jnp.float32, (query, one, other))
    return jnp.sum(query * (one - other), axis=-1)


def _platform() -> str:
    backend = get_backend()
    return "cuda" if "cuda" in backend.platform_version else backend.platform


def _mix(
    attention: Callable[[Heads, Heads, Heads], Heads], query: Heads, key: Heads, *values: Heads
) -> list[Heads]:
    """What several values become by the same attention; all in one call, each in heads of its own.

    Fused attention takes values that are as wide as its keys.
    """
    copies = len(values)
    query, key = (jnp.concatenate([x] * copies, axis=1) for x in (query, key))
    return jnp.split(attention(query, key, jnp.concatenate(values, axis=1)), copies, axis=1)


def _cudnn(query: Heads, key: Heads, value: Heads) -> Heads:
    """cuDNN's attention, of heads as wide as a multiple of 8."""
    width = query.shape[-1]
    query, key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, -width % 8))) for x in (query, key, value))
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    return attend(query, key, value)[..., :width]


@jax.custom_batching.custom_vmap
def _flash(query: Heads, key: Heads, value: Heads) -> Heads:
    """JAX's flash attention for TPUs."""
    return _flash_batch(query[None], key[None], value[None])[0]


@_flash.def_vmap
def _flash_vmap(size: int, batched: Sequence[bool], *heads: Array) -> tuple[Array, bool]:
    spread = (x if own else jnp.stack([x] * size) for x, own in zip(heads, batched, strict=True))
    return _flash_batch(*spread), True


def _flash_batch(
    query: Float[Array, "B S H d"], key: Float[Array, "B S H d"], value: Float[Array, "B S H d"]
) -> Float[Array, "B S H d"]:
    # The compiler does not divide such kernels between devices: each is given its own samples.
    mesh = device_mesh()
    share = PartitionSpec(*mesh.axis_names) if len(query) % mesh.size == 0 else PartitionSpec()
    call = jax.shard_map(_flash_share, mesh=mesh, in_specs=share, out_specs=share, check_vma=False)
    return call(query, key, value)


def _flash_share(query, key, value):
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    batch, length = query.shape[:2]
    # Blocks are whole; keys that only fill one up are of another segment than all queries.
    padding = (0, 0), (0, 0), (0, -length % _TPU_BLOCK), (0, 0)
    padded = [jnp.pad(jnp.swapaxes(x, 1, 2), padding) for x in (query, key, value)]
    whole = padded[0].shape[2]
    exists = jnp.broadcast_to(jnp.int32(jnp.arange(whole) < length), (batch, whole))
    mixed = flash.flash_attention(
        *padded,
        segment_ids=flash.SegmentIds(jnp.ones_like(exists), exists),
        block_sizes=flash.BlockSizes(_TPU_BLOCK, block_k_major=whole, block_k=whole, block_b=1),
    )
    return jnp.swapaxes(mixed, 1, 2)[:, :length]


_ATTENTION = {
    "cuda": (_cudnn, jnp.float16),
    "tpu": (_flash, jnp.float32),
}
"""By platform: the attention, and the type of what it is given."""
