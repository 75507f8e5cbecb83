"""Pretrained networks of the package `transformers`, in Flax: no PyTorch is needed."""

import contextlib
import functools
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from experiments.app.batches import map_rows
from maskgit_jax.errors import InputError, need

_AT_ONCE = 64


def check_network(source: str, advice: str) -> None:
    """Raises InputError where a folder holds no network, or what reads it is not installed."""
    need(source, "clip", "transformers")
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:
        raise InputError(
            f"{source} needs transformers below 5, found {transformers.__version__}: "
            "pip install 'maskgit_jax[clip]'"
        )
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise InputError(f"{source} holds no config.json; {advice}")


@contextlib.contextmanager
def transformers_library(source: str, advice: str) -> Iterator[ModuleType]:
    """The package `transformers`, to load `source` with; what fails inside becomes one line.

    Its warnings are hidden: that its Flax networks end with version 5 is why the project asks for
    an earlier one, and that weights are missing `load_network` finds out.

    Raises:
      InputError: the package is missing or another version, or what is inside failed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        check_network(source, advice)
        import transformers

        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            yield transformers
        except InputError:
            raise
        # Missing files, no connection, damaged JSON and arrays: each raises types of its own.
        except Exception as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" …")
            raise InputError(f"{source} cannot be loaded ({reason}); {advice}") from None
        finally:
            transformers.logging.set_verbosity(verbosity)


def load_network(network_class: type, source: str, **where: bool) -> Any:
    """A Flax network of `transformers` with the weights of a folder or of the hub.

    `where` may be `local_files_only=True`: nothing is fetched then.

    Raises:
      InputError: weights are missing or not finite.
    """

    class Blank(network_class):
        # Weights that the file lacks are left as they were made, with no more than a warning:
        # NaN shows them. Random ones would also take long to compile.
        def init_weights(self, rng, input_shape, params=None):
            init = functools.partial(super().init_weights, input_shape=input_shape)
            return jax.tree.map(
                lambda shape: jnp.full(shape.shape, jnp.nan, shape.dtype), jax.eval_shape(init, rng)
            )

    network = Blank.from_pretrained(source, **where)
    leaves = jax.tree_util.tree_leaves_with_path(network.params)
    missing = [path for path, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of {len(leaves)} arrays are missing or not finite, first "
            f"{jax.tree_util.keystr(missing[0], simple=True, separator='/')}; expected all weights "
            f"of a {network_class.__name__}"
        )
    return network


def to_pixels(prepare: Any, pictures: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n 3 h w"]:
    """Pictures in [0, 255] as an image processor of `transformers` prepares them for a network."""
    prepared = prepare(list(pictures), input_data_format="channels_last", return_tensors="np")
    return prepared["pixel_values"]


def in_pieces(
    function: Callable[[np.ndarray], Any], pictures: np.ndarray, size: int | None = None
) -> np.ndarray:
    """What a function gives for pictures, `size` (or at most 64) at a time."""
    return map_rows(function, pictures, batch_size=size or _AT_ONCE, exact=size is not None)


def check_connection() -> None:
    """OSError if the hub does not answer: its own client would try long, once for every file."""
    from huggingface_hub import constants, utils

    try:
        utils.get_session().head(constants.ENDPOINT, timeout=10)
    except OSError:
        raise OSError(
            f"neither a folder, nor in the cache, and {constants.ENDPOINT} does not answer"
        ) from None
