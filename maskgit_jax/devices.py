"""Arrays on all local devices: samples spread, weights copied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def spread_over_devices(tree: Any) -> Any:
    """Places arrays with a leading axis of samples so that every local device has its share.

    The last row is repeated until the devices have equal numbers of rows; callers drop the rest
    of the result.
    """

    def place(x: Array | np.ndarray) -> Array:
        missing = -len(x) % len(jax.local_devices())
        x = jnp.concatenate([x, *[x[-1:]] * missing]) if missing else x
        return jax.device_put(x, _sharding("samples"))

    return jax.tree.map(place, tree)


def copy_to_devices(tree: Any) -> Any:
    """Places a whole copy of every array on each local device."""
    return jax.device_put(tree, _sharding())


def device_mesh() -> jax.sharding.Mesh:
    """The local devices along one axis, of samples."""
    return jax.sharding.Mesh(jax.local_devices(), ("samples",))


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(device_mesh(), PartitionSpec(*axes))
