"""A tiny model with random weights, for every test that needs one; a cache folder for all tests."""

import functools
import os
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.checkpoints.checkpoint import parameter_shapes
from maskgit_jax.config import ModelConfig, TokenizerConfig, TransformerConfig
from maskgit_jax.model import Model
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer

# Each operation alone would be compiled anew.
_stack, _unstack = jax.jit(stack_layers), jax.jit(unstack_layers)


def pytest_configure(config):
    """Commands keep what they compile, and serve each other with it, in a folder for this run."""
    if not hasattr(config, "workerinput"):
        config.maskgit_cache = tempfile.mkdtemp(prefix="maskgit_cache_")
        os.environ["MASKGIT_CACHE"] = config.maskgit_cache  # processes of workers inherit it


def pytest_unconfigure(config):
    if hasattr(config, "maskgit_cache"):
        shutil.rmtree(config.maskgit_cache, ignore_errors=True)


def make_model(scale: float = 0.2, **overrides) -> Model:
    """Three layers, 16 ids of 24 codes, 5 classes; `overrides` replace transformer settings.

    `scale` is the weights' standard deviation: at the usual 0.02 all attention is uniform.
    """
    transformer_config = TransformerConfig(
        **{
            "codebook_size": 24,
            "num_classes": 5,
            "hidden_size": 16,
            "num_layers": 3,
            "num_heads": 2,
            "intermediate_size": 32,
            "sequence_length": 17,
            "dropout_rate": 0.0,
        }
        | overrides
    )
    tokenizer_config = TokenizerConfig(
        image_size=8,
        latent_size=4,
        filters=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        embedding_dim=6,
        codebook_size=transformer_config.codebook_size,
        norm_groups=4,
    )
    config = ModelConfig(
        transformer=transformer_config,
        tokenizer=tokenizer_config,
        class_names=tuple("abcde"[: transformer_config.num_classes]),
    )
    transformer, tokenizer = Transformer(transformer_config), Tokenizer(tokenizer_config)
    ids = jax.ShapeDtypeStruct((1, transformer_config.sequence_length), jnp.int32)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    rng = np.random.default_rng(0)

    def fill(path, shape, scale: float):
        """Normal weights, gains of 1, biases of 0, made by NumPy: nothing needs compiling."""
        name = path[-1].key
        if name in ("scale", "bias"):
            return np.full(shape.shape, float(name == "scale"), shape.dtype)
        return rng.normal(0, scale, shape.shape).astype(shape.dtype)

    fill_all = jax.tree_util.tree_map_with_path
    return Model(
        config=config,
        transformer=transformer,
        transformer_params=_stack(
            fill_all(functools.partial(fill, scale=scale), parameter_shapes(transformer, ids))
        ),
        tokenizer=tokenizer,
        tokenizer_params=jax.device_put(
            fill_all(functools.partial(fill, scale=0.2), parameter_shapes(tokenizer, images))
        ),
    )


def released(model: Model) -> dict:
    """The transformer's parameters as files and the module have them."""
    return _unstack(model.transformer_params)


@pytest.fixture(scope="session")
def tiny() -> Model:
    return make_model()


@pytest.fixture(scope="session")
def shallow() -> Model:
    """One layer, quick to compile, where depth does not matter."""
    return make_model(num_layers=1)
