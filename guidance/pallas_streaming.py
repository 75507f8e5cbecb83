"""`streaming.attend_and_compare` as one kernel for TPUs and NVIDIA GPUs.

Flash attention (Dao et al., arXiv:2205.14135) with the statistics of `streaming` in place of the
softmax's: a block of queries stays on the chip while the keys pass by, so that neither logits nor
attention maps are ever written to memory.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from guidance import streaming


class Tiling(NamedTuple):
    """How a backend divides the work.

    Attributes:
      query_block: queries of one kernel instance.
      key_block: keys at a time.
      compiler_params: also what chooses the compiler.
    """

    query_block: int
    key_block: int
    compiler_params: Any


_TPU = Tiling(128, 128, None)
# Triton: JAX compiles kernels without parameters for GPUs by Mosaic, which asks for another kernel.
# JAX 0.12 still has it and warns that it will go.
_GPU = Tiling(64, 64, triton.CompilerParams(num_warps=4, num_stages=2))


def attend_and_compare_pallas(
    query: Float[Array, "S H d"],
    key: Float[Array, "S H d"],
    value: Float[Array, "S H d"],
    target_query: Float[Array, "S H d"],
    target_key: Float[Array, "S H d"],
    *,
    divergence: str = "jeffreys",
    query_block: int | None = None,
    key_block: int | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "S H d"], Float[Array, "H S"]]:
    """See `streaming.attend_and_compare`, which is also what other backends run.

    The precision of the matrix products is the backend's (`jax_default_matmul_precision`).

    Args:
      query: of the sampled ids, divided by √(head width).
      key: of the sampled ids.
      value: of the sampled ids.
      target_query: of the sketch's ids, divided by √(head width).
      target_key: of the sketch's ids.
      divergence: `jeffreys` or `cross_entropy`.
      query_block: queries of one kernel instance: a power of two, from 16 on GPUs, from 128 on
        TPUs. None: the backend's.
      key_block: keys at a time, likewise.
      interpret: run the kernel's body by XLA, on any backend.
    """
    operands = query, key, value, target_query, target_key

    def kernel(tiling: Tiling):
        tiling = tiling._replace(
            query_block=query_block or tiling.query_block, key_block=key_block or tiling.key_block
        )
        return functools.partial(_call, divergence=divergence, tiling=tiling, interpret=interpret)

    if interpret:
        return kernel(_TPU)(*operands)
    plain = functools.partial(streaming.attend_and_compare, divergence=divergence)
    return jax.lax.platform_dependent(*operands, tpu=kernel(_TPU), cuda=kernel(_GPU), default=plain)


def _call(*operands, divergence: str, tiling: Tiling, interpret: bool):
    length, num_heads, width = operands[0].shape
    num_queries = pl.cdiv(length, tiling.query_block) * tiling.query_block
    num_keys = pl.cdiv(length, tiling.key_block) * tiling.key_block
    # Triton's tiles are powers of two, and its products take 16 at least.
    padded_width = max(16, pl.next_power_of_2(width))

    def pad(x, rows):
        padding = (0, 0), (0, rows - length), (0, padded_width - width)
        return jnp.pad(jnp.swapaxes(x, 0, 1), padding)

    query, key, value, target_query, target_key = operands
    of_queries = pl.BlockSpec((None, tiling.query_block, padded_width), lambda h, i: (h, i, 0))
    of_rows = pl.BlockSpec((None, 1, tiling.query_block), lambda h, i: (h, 0, i))
    of_keys = pl.BlockSpec((None, num_keys, padded_width), lambda h, i: (h, 0, 0))
    attention, distance = pl.pallas_call(
        functools.partial(
            _kernel, length=length, key_block=tiling.key_block, divergence=divergence
        ),
        grid=(num_heads, num_queries // tiling.query_block),
        in_specs=[of_queries, of_keys, of_keys, of_queries, of_keys],
        out_specs=[of_queries, of_rows],
        out_shape=[
            jax.ShapeDtypeStruct((num_heads, num_queries, padded_width), value.dtype),
            jax.ShapeDtypeStruct((num_heads, 1, num_queries), jnp.float32),
        ],
        compiler_params=tiling.compiler_params,
        interpret=interpret,
        name="attend_and_compare",
    )(
        pad(query, num_queries),
        pad(key, num_keys),
        pad(value, num_keys),
        pad(target_query, num_queries),
        pad(target_key, num_keys),
    )
    return jnp.swapaxes(attention, 0, 1)[:length, :, :width], distance[:, 0, :length]


def _kernel(
    query_ref,
    key_ref,
    value_ref,
    target_query_ref,
    target_key_ref,
    attention_ref,
    distance_ref,
    *,
    length: int,
    key_block: int,
    divergence: str,
):
    """One head's block of queries against all its keys, `length` of which exist."""
    query, target_query = query_ref[...], target_query_ref[...]

    def step(index, statistics):
        start = index * key_block
        keys = pl.ds(start, key_block)
        target = streaming.logits(target_query, target_key_ref[keys, :])
        sampled = streaming.logits(query, key_ref[keys, :])
        exists = start + jax.lax.broadcasted_iota(jnp.int32, target.shape, 1) < length
        target, sampled = (jnp.where(exists, x, streaming.MASKED) for x in (target, sampled))
        block = streaming.of_keys(target, sampled, value_ref[keys, :], divergence)
        return streaming.merge(statistics, block, divergence)

    nothing = streaming.of_no_keys(query.shape)
    statistics = jax.lax.fori_loop(0, key_ref.shape[0] // key_block, step, nothing)
    attention, distance = streaming.finish(statistics, divergence)
    attention_ref[...] = attention.astype(attention_ref.dtype)
    distance_ref[...] = distance.T
