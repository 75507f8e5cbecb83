"""Where all random keys begin."""

import jax
from jaxtyping import Array, Key, UInt32

_GENERATOR = "threefry2x32"


def seed_key(seed: int | UInt32[Array, ""]) -> Key[Array, ""]:
    """The key of a seed, for the same generator whatever `jax_default_prng_impl` says.

    Threefry, because its numbers are the same under `vmap`: those of JAX's "rbg" are not, so a
    sample would depend on the batch that it is in.
    """
    return jax.random.key(seed, impl=_GENERATOR)
