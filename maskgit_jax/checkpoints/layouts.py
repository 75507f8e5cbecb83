"""Whose names the weights of a model have, and in which order of axes, copy by copy.

The released checkpoints and the PyTorch files of hmorimitsu/maskgit-torch and huggingface/open-muse
hold the same numbers: the copies changed names and axes alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.checkpoints.checkpoint import Params
from maskgit_jax.config import ModelConfig
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer

KINDS = ("tokenizer", "maskgit")
"""The two halves of a model, as the released files call them."""


class Part(NamedTuple):
    """Where one released parameter comes from.

    Attributes:
      name: of the array in the file.
      restore: gives it the released layout.
      tied: names of further arrays that must hold the same numbers.
    """

    name: str
    restore: Callable[[np.ndarray], np.ndarray]
    tied: tuple[str, ...] = ()


Layout = dict[str, Part]
"""For each released parameter, `Embed_0.word_embeddings.embedding`, where it comes from."""


def model_shapes(kind: str, config: ModelConfig) -> Params:
    """Names and shapes of one half's parameters; see `checkpoint.parameter_shapes`."""
    if kind == "maskgit":
        ids = jax.ShapeDtypeStruct((1, config.transformer.sequence_length), jnp.int32)
        # Layers are alike, and each takes ten milliseconds.
        one = dataclasses.replace(config.transformer, num_layers=1)
        shapes = checkpoint.parameter_shapes(Transformer(one), ids)
        layer = shapes.pop("TransformerLayer_0")
        layers = range(config.transformer.num_layers)
        return shapes | {f"TransformerLayer_{i}": layer for i in layers}
    side = config.tokenizer.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return checkpoint.parameter_shapes(Tokenizer(config.tokenizer), images)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _convolution(x: np.ndarray) -> np.ndarray:
    """Kernel [out, in, h, w] → [h, w, in, out]."""
    return x.transpose(2, 3, 1, 0)


def _dense(x: np.ndarray) -> np.ndarray:
    """Kernel [out, in] → [in, out]."""
    return x.T


def _without_batch(x: np.ndarray) -> np.ndarray:
    """Positions [1, S, D] → [S, D]."""
    return x[0] if x.ndim == 3 and len(x) == 1 else x


def _transformer_parts(
    config: ModelConfig,
    *,
    embed: Layout,
    attention: Callable[[int, str, int], tuple[str, Callable[[np.ndarray], np.ndarray]]],
    layer: Mapping[str, str],
    head: Layout,
) -> Layout:
    """The transformer's layout.

    Args:
      config: sizes.
      embed: of `Embed_0`.
      attention: of (layer, "weight" or "bias", 0 query, 1 key or 2 value): the array's name and
        what takes the flat [out, in] or [out] from it.
      layer: of a layer's other modules by released name: theirs, `{i}` for the layer's number.
      head: of `MlmLayer_0`.
    """
    transformer = config.transformer
    heads = transformer.num_heads, transformer.hidden_size // transformer.num_heads
    width = transformer.hidden_size
    parts = {f"Embed_0.{name}": part for name, part in embed.items()}
    parts |= {f"MlmLayer_0.{name}": part for name, part in head.items()}
    for i in range(transformer.num_layers):
        mine = f"TransformerLayer_{i}."
        ours = mine + "Attention_0.self_attention."
        for index, name in enumerate(("query", "key", "value")):
            theirs, take = attention(i, "weight", index)
            parts[f"{ours}{name}.kernel"] = Part(
                theirs, lambda x, take=take: take(x).T.reshape(width, *heads)
            )
            theirs, take = attention(i, "bias", index)
            parts[f"{ours}{name}.bias"] = Part(theirs, lambda x, take=take: take(x).reshape(heads))
        out = layer["out"].format(i=i)
        parts[f"{ours}out.kernel"] = Part(
            f"{out}.weight", lambda x: x.T.reshape(*heads, x.shape[0])
        )
        parts[f"{ours}out.bias"] = Part(f"{out}.bias", _same)
        for name, module in (
            ("Attention_0.attention_output_ln", "attention_norm"),
            ("Mlp_0.layer_output_ln", "mlp_norm"),
        ):
            parts |= _norm(mine + name, layer[module].format(i=i))
        for name in ("intermediate_output", "layer_output"):
            parts |= _linear(f"{mine}Mlp_0.{name}", layer[name].format(i=i), _dense)
    return parts


def _norm(ours: str, theirs: str) -> Layout:
    return {
        f"{ours}.scale": Part(f"{theirs}.weight", _same),
        f"{ours}.bias": Part(f"{theirs}.bias", _same),
    }


def _linear(
    ours: str, theirs: str, restore: Callable[[np.ndarray], np.ndarray], *, bias: bool = True
) -> Layout:
    parts = {f"{ours}.kernel": Part(f"{theirs}.weight", restore)}
    return parts | ({f"{ours}.bias": Part(f"{theirs}.bias", _same)} if bias else {})


def _maskgit_torch_transformer(config: ModelConfig) -> Layout:
    def attention(i: int, kind: str, index: int):
        # Query, key and value lie one below the other.
        name = f"blocks.{i}.MultiHeadAttention.in_proj_{kind}"
        return name, lambda x: np.split(x, 3)[index]

    return _transformer_parts(
        config,
        embed={
            "word_embeddings.embedding": Part("tok_emb.weight", _same),
            "position_embeddings.embedding": Part("pos_emb", _without_batch),
            **_norm("embeddings_ln", "emb_ln"),
        },
        attention=attention,
        layer={
            "out": "blocks.{i}.MultiHeadAttention.out_proj",
            "attention_norm": "blocks.{i}.AttentionLN",
            "mlp_norm": "blocks.{i}.MlpLN",
            "intermediate_output": "blocks.{i}.MLP.0",
            "layer_output": "blocks.{i}.MLP.2",
        },
        head={
            **_linear("mlm_dense", "Token_Prediction.0", _dense),
            **_norm("mlm_ln", "Token_Prediction.2"),
            "mlm_bias.bias": Part("bias", _same),
        },
    )


def _open_muse_transformer(config: ModelConfig) -> Layout:
    def attention(i: int, kind: str, index: int):
        name = ("query", "key", "value")[index]
        return f"transformer_layers.{i}.attention.{name}.{kind}", _same

    words = Part("embed.word_embeddings.weight", _same, ("mlm_layer.to_logits.weight",))
    return _transformer_parts(
        config,
        embed={
            "word_embeddings.embedding": words,
            "position_embeddings.embedding": Part("embed.position_embeddings.weight", _same),
            **_norm("embeddings_ln", "embed.embeddings_ln"),
        },
        attention=attention,
        layer={
            "out": "transformer_layers.{i}.attention.out",
            "attention_norm": "transformer_layers.{i}.attn_layer_norm",
            "mlp_norm": "transformer_layers.{i}.ffn.layer_norm",
            "intermediate_output": "transformer_layers.{i}.ffn.intermediate_output",
            "layer_output": "transformer_layers.{i}.ffn.layer_output",
        },
        head={
            **_linear("mlm_dense", "mlm_layer.mlm_dense", _dense),
            **_norm("mlm_ln", "mlm_layer.mlm_ln"),
            "mlm_bias.bias": Part("mlm_layer.to_logits.bias", _same),
        },
    )


class _BlockNames(NamedTuple):
    """What a copy calls the modules of a residual block, and where the blocks are."""

    norms: tuple[str, str]
    convolutions: tuple[str, str]
    shortcut: str
    codebook: str
    block: Callable[[str, int, int, int], str]
    """Of (encoder or decoder, number, levels, blocks per level)."""
    upsampling: Callable[[int, int, int], str]
    """Of the convolution after the number-th upsampling: (number, levels, blocks per level)."""


def _tokenizer_parts(config: ModelConfig, names: _BlockNames) -> Layout:
    tokenizer = config.tokenizer
    levels, per_level = len(tokenizer.channel_multipliers), tokenizer.num_res_blocks
    widths = [tokenizer.filters * multiplier for multiplier in tokenizer.channel_multipliers]
    parts = {"quantizer.codebook": Part(names.codebook, _same)}
    # What each residual block is given and gives: see `tokenizer.Encoder` and `Decoder`.
    encoder = [tokenizer.filters, *np.repeat([*widths, widths[-1]], per_level)]
    decoder = [widths[-1], *np.repeat([widths[-1], *widths[::-1]], per_level)]
    for half, blocks in (("encoder", encoder), ("decoder", decoder)):
        for x, (before, after) in enumerate(itertools.pairwise(blocks)):
            ours, theirs = f"{half}.ResBlock_{x}", names.block(half, x, levels, per_level)
            for i in range(2):
                parts |= _norm(f"{ours}.GroupNorm_{i}", f"{theirs}.{names.norms[i]}")
                convolution = f"{theirs}.{names.convolutions[i]}"
                parts |= _linear(f"{ours}.Conv_{i}", convolution, _convolution, bias=False)
            if before != after:
                shortcut = f"{theirs}.{names.shortcut}"
                parts |= _linear(f"{ours}.Conv_2", shortcut, _convolution, bias=False)
        parts |= _norm(f"{half}.GroupNorm_0", f"{half}.norm_out")
    parts |= _linear("encoder.Conv_0", "encoder.conv_in", _convolution, bias=False)
    parts |= _linear("encoder.Conv_1", "encoder.conv_out", _convolution)
    parts |= _linear("decoder.Conv_0", "decoder.conv_in", _convolution)
    for x in range(1, levels):
        theirs = names.upsampling(x, levels, per_level)
        parts |= _linear(f"decoder.Conv_{x}", theirs, _convolution)
    return parts | _linear(f"decoder.Conv_{levels}", "decoder.conv_out", _convolution)


def _open_muse_block(half: str, x: int, levels: int, per_level: int) -> str:
    level, block = divmod(x, per_level)
    if half == "encoder":
        return f"encoder.mid.{block}" if level == levels else f"encoder.down.{level}.block.{block}"
    return f"decoder.mid.{block}" if level == 0 else f"decoder.up.{levels - level}.block.{block}"


def _maskgit_torch_tokenizer(config: ModelConfig) -> Layout:
    names = _BlockNames(
        norms=("norm0", "norm1"),
        convolutions=("conv0", "conv1"),
        shortcut="conv_res",
        codebook="quantizer.codebook.weight",
        block=lambda half, x, levels, n: f"{half}.res_blocks.{x // n}.{x % n}",
        upsampling=lambda x, levels, n: f"decoder.res_blocks.{x}.{n + 1}",
    )
    return _tokenizer_parts(config, names)


def _open_muse_tokenizer(config: ModelConfig) -> Layout:
    names = _BlockNames(
        norms=("norm1", "norm2"),
        convolutions=("conv1", "conv2"),
        shortcut="nin_shortcut",
        codebook="quantize.embedding.weight",
        block=_open_muse_block,
        upsampling=lambda x, levels, n: f"decoder.up.{levels - x}.upsample_conv",
    )
    return _tokenizer_parts(config, names)


def _released(kind: str, config: ModelConfig, prefix: str = "") -> Layout:
    names = flatten_dict(model_shapes(kind, config), sep=".")
    return {name: Part(prefix + name, _same) for name in names}


LAYOUTS: dict[str, dict[str, tuple[str, Callable[[ModelConfig], Layout]]]] = {
    "released": {
        "tokenizer": ("quantizer.codebook", functools.partial(_released, "tokenizer")),
        "maskgit": (
            "Embed_0.word_embeddings.embedding",
            functools.partial(_released, "maskgit"),
        ),
    },
    "model.safetensors": {
        kind: (f"{kind}.{name}", functools.partial(_released, kind, prefix=f"{kind}."))
        for kind, name in (
            ("tokenizer", "quantizer.codebook"),
            ("maskgit", "Embed_0.word_embeddings.embedding"),
        )
    },
    "maskgit-torch": {
        "tokenizer": ("quantizer.codebook.weight", _maskgit_torch_tokenizer),
        "maskgit": ("tok_emb.weight", _maskgit_torch_transformer),
    },
    "open-muse": {
        "tokenizer": ("quantize.embedding.weight", _open_muse_tokenizer),
        "maskgit": ("embed.word_embeddings.weight", _open_muse_transformer),
    },
}
"""By whose names: for each kind, a name that tells it, and its layout."""
