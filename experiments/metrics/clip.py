"""CLIP: how alike a picture is to a sketch or to a line of text.

Radford et al. 2021, arXiv:2103.00020.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from experiments.metrics.pretrained import (
    check_connection,
    check_network,
    in_pieces,
    load_network,
    to_pixels,
    transformers_library,
)
from maskgit_jax.errors import InputError

DEFAULT = "openai/clip-vit-base-patch32"
"""The smallest CLIP that was released, 0.6 GB: fetched once into the cache of Hugging Face."""

_ADVICE = "connect once, or give a Flax CLIP's folder, --clip=folder"


class Clip(NamedTuple):
    """A loaded CLIP; every embedding has length 1.

    Attributes:
      embed_pictures: of pictures [n, H, W, 3] in [0, 255], uint8; compiled once for each n.
      embed_text: of a line of text; repeated texts are looked up.
    """

    embed_pictures: Callable[[UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n d"]]
    embed_text: Callable[[str], Float[np.ndarray, "d"]]


def check_source(source: str) -> None:
    """Raises InputError where `load_clip` would lack its package, or the folder that is named."""
    check_network(source, _ADVICE)
    if not Path(source).is_dir() and (Path(source).is_absolute() or source.startswith(".")):
        raise InputError(f"--clip={source}: no such folder; {_ADVICE}")


def load_clip(source: str = DEFAULT) -> Clip:
    """A CLIP from a folder in the format of `transformers`, or from the hub by its name.

    Pictures are resized, cropped and normalised as its `preprocessor_config.json` says.

    Raises:
      InputError: the package is missing, or the network cannot be had or read.
    """
    with transformers_library(source, _ADVICE) as library:

        def load(**where):
            return (
                load_network(library.FlaxCLIPModel, source, **where),
                library.CLIPImageProcessor.from_pretrained(source, **where),
                library.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where),
            )

        try:
            network, prepare, tokenizer = load(local_files_only=True)
        except OSError:
            if Path(source).is_dir():
                raise
            check_connection()
            network, prepare, tokenizer = load()
    length = network.config.text_config.max_position_embeddings

    # "highest": accelerators round the operands of a product by default, and candidates are close.
    @jax.jit
    def picture_features(params, pixels):
        with jax.default_matmul_precision("highest"):
            return _unit(network.get_image_features(pixels, params=params))

    @jax.jit
    def text_features(params, ids, mask):
        with jax.default_matmul_precision("highest"):
            return _unit(network.get_text_features(ids, mask, params=params))

    def embed_piece(pictures):
        return picture_features(network.params, to_pixels(prepare, pictures))

    @functools.cache
    def embed_text(text):
        # Filled up: every text runs what the first one compiled.
        filled = {"padding": "max_length", "truncation": True, "max_length": length}
        tokens = tokenizer([text], **filled, return_tensors="np")
        mask = tokens["attention_mask"]
        return np.asarray(text_features(network.params, tokens["input_ids"], mask))[0]

    return Clip(lambda pictures: in_pieces(embed_piece, pictures), embed_text)


def similarities(
    clip: Clip,
    pictures: UInt8[np.ndarray, "n H W 3"],
    sketches: UInt8[np.ndarray, "n h w 3"],
    texts: Sequence[str],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Cosines in [-1, 1] of each picture with its sketch, and with its text."""
    embedded = clip.embed_pictures(pictures)
    to_sketch = np.sum(embedded * clip.embed_pictures(sketches), axis=-1)
    to_text = np.sum(embedded * np.stack([clip.embed_text(text) for text in texts]), axis=-1)
    return to_sketch, to_text


def _unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
