"""Best-of-N: of several candidates for a picture, the one with the best score is kept.

MaskSketch (arXiv:2302.05496) mentions it as rejection sampling.
"""

import numpy as np
from jaxtyping import Float, Int

from maskgit_jax.errors import InputError


def best(scores: Float[np.ndarray, "items candidates"]) -> Int[np.ndarray, "items"]:
    """Each item's candidate with the highest score, the first of equal ones; NaN never wins.

    Raises:
      InputError: all scores of an item are NaN.
    """
    unknown = np.isnan(scores)
    if unknown.all(axis=1).any():
        raise InputError(
            "every candidate of an item has the score NaN: check the network that scores"
        )
    highest = np.max(scores, axis=1, keepdims=True, where=~unknown, initial=-np.inf)
    return np.argmax(scores == highest, axis=1)
