"""A tiny model with random weights, for every test that needs one."""

import jax
import jax.numpy as jnp
import pytest

from maskgit_jax.config import ModelConfig, TokenizerConfig, TransformerConfig
from maskgit_jax.model import Model
from maskgit_jax.tokenizer import Tokenizer
from maskgit_jax.transformer import Transformer


def make_model(scale: float = 8.0, **overrides) -> Model:
    """Three layers, 16 ids of 24 codes, 5 classes; `overrides` replace transformer settings.

    `scale` multiplies the weight matrices: at their initial scale all attention is uniform.
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
    key = jax.random.key(0)
    ids = jnp.zeros((1, transformer_config.sequence_length), jnp.int32)
    params = jax.jit(transformer.init)(key, ids)["params"]
    return Model(
        config=config,
        transformer=transformer,
        transformer_params=jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params),
        tokenizer=tokenizer,
        tokenizer_params=jax.jit(tokenizer.init)(key, jnp.zeros((1, 8, 8, 3)))["params"],
    )


@pytest.fixture(scope="session")
def tiny() -> Model:
    return make_model()
