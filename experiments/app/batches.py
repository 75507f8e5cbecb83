"""Rows in batches of one size: another size would be compiled anew, so the last is filled up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int


class Batch(NamedTuple):
    """What is run together.

    Attributes:
      rows: numbers of rows, the last one repeated where the batch is filled up.
      count: how many of them are not repeated; the results of the others are dropped.
    """

    rows: Int[np.ndarray, "b"]
    count: int

    @property
    def first(self) -> int:
        """Number of the first row."""
        return int(self.rows[0])


def fill(count: int, size: int) -> Int[np.ndarray, "{size}"]:
    """The numbers 0 .. count - 1, the last one repeated up to a size."""
    return np.minimum(np.arange(size), count - 1)


def make_batches(count: int, size: int, *, exact: bool = False) -> list[Batch]:
    """The rows 0 .. count - 1 in batches of one size, at most `size`; `exact`: of this very one."""
    if not exact:
        size = -(-count // -(-count // size))
    firsts = range(0, count, size)
    return [
        Batch(first + fill(min(size, count - first), size), min(size, count - first))
        for first in firsts
    ]


def map_rows(
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int,
    exact: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """The function's results, trees of arrays, on batches of the arrays' rows, put together.

    `progress` is called with the number of rows of each batch that is done.
    """
    results = []
    for batch in make_batches(len(arrays[0]), batch_size, exact=exact):
        result = function(*(array[batch.rows] for array in arrays))
        results.append(jax.tree.map(lambda x: np.asarray(x)[: batch.count], result))  # noqa: B023
        if progress is not None:
            progress(batch.count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)
