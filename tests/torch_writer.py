"""Writes PyTorch files without PyTorch, and a model's weights under other projects' names."""

import struct
import zipfile
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor(key: str, shape, *, strides=None, offset=0, size=None, storage="torch FloatStorage"):
    """The instructions that make a tensor of a storage."""
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]
    size = int(np.prod(shape, dtype=int)) if size is None else size
    numbers = [b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, strides)]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + b"c"
        + storage.replace(" ", "\n").encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + integer(size)
        + b"tQ"
        + integer(offset)
        + b"".join(numbers)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def index_of(entries: dict[str, bytes], *, wrapped: bool = False) -> bytes:
    """A data.pkl with a dict of these instructions, under 'state_dict' when wrapped."""
    body = b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"
    return b"\x80\x02" + (b"}" + text("state_dict") + body + b"s" if wrapped else body) + b"."


def write_archive(path: Path, index: bytes, storages: dict[str, np.ndarray | bytes]) -> Path:
    """The zip archive around a data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index)
        for key, numbers in storages.items():
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as file:
                file.write(memoryview(np.ascontiguousarray(numbers)).cast("B"))
        archive.writestr("archive/version", "3\n")
    return path


def write_torch(path: Path, arrays: dict[str, np.ndarray], *, wrapped: bool = False) -> Path:
    """What `torch.save` makes of a state dict."""
    keys = {name: str(number) for number, name in enumerate(arrays)}
    index = index_of(
        {name: tensor(keys[name], x.shape) for name, x in arrays.items()}, wrapped=wrapped
    )
    return write_archive(path, index, {keys[name]: x for name, x in arrays.items()})


def renamed(kind: str, params, config, copy: str) -> dict[str, np.ndarray]:
    """The released parameters under the names and in the axes of "maskgit-torch" or "open-muse"."""
    flat = flatten_dict(params, sep="/")
    rename = _transformer if kind == "maskgit" else _tokenizer
    found = rename(flat, config, copy)
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def _norm(flat, ours, theirs):
    return {f"{theirs}.weight": flat[f"{ours}/scale"], f"{theirs}.bias": flat[f"{ours}/bias"]}


def _dense(flat, ours, theirs):
    return {f"{theirs}.weight": flat[f"{ours}/kernel"].T, f"{theirs}.bias": flat[f"{ours}/bias"]}


def _transformer(flat, config, copy):
    torch = copy == "maskgit-torch"
    width = config.transformer.hidden_size
    words = flat["Embed_0/word_embeddings/embedding"]
    positions = flat["Embed_0/position_embeddings/embedding"]
    if torch:
        found = {"tok_emb.weight": words, "pos_emb": positions}
        found |= _norm(flat, "Embed_0/embeddings_ln", "emb_ln")
        found |= _dense(flat, "MlmLayer_0/mlm_dense", "Token_Prediction.0")
        found |= _norm(flat, "MlmLayer_0/mlm_ln", "Token_Prediction.2")
        found["bias"] = flat["MlmLayer_0/mlm_bias/bias"]
    else:
        found = {
            "embed.word_embeddings.weight": words,
            "embed.position_embeddings.weight": positions,
            "mlm_layer.to_logits.weight": words,
            "mlm_layer.to_logits.bias": flat["MlmLayer_0/mlm_bias/bias"],
        }
        found |= _norm(flat, "Embed_0/embeddings_ln", "embed.embeddings_ln")
        found |= _dense(flat, "MlmLayer_0/mlm_dense", "mlm_layer.mlm_dense")
        found |= _norm(flat, "MlmLayer_0/mlm_ln", "mlm_layer.mlm_ln")
    for i in range(config.transformer.num_layers):
        ours = f"TransformerLayer_{i}/"
        theirs = f"blocks.{i}." if torch else f"transformer_layers.{i}."
        attention = ours + "Attention_0/self_attention/"
        kernels = [flat[f"{attention}{n}/kernel"].reshape(width, width).T for n in _THREE]
        biases = [flat[f"{attention}{n}/bias"].reshape(width) for n in _THREE]
        out = flat[f"{attention}out/kernel"].reshape(width, width).T
        if torch:
            module = f"{theirs}MultiHeadAttention."
            found |= {f"{module}in_proj_weight": np.concatenate(kernels)}
            found |= {f"{module}in_proj_bias": np.concatenate(biases)}
            out_name, norm, mlp = f"{module}out_proj", "AttentionLN", ("MLP.0", "MLP.2", "MlpLN")
        else:
            for name, kernel, bias in zip(_THREE, kernels, biases, strict=True):
                found |= {f"{theirs}attention.{name}.weight": kernel}
                found |= {f"{theirs}attention.{name}.bias": bias}
            out_name, norm = f"{theirs}attention.out", "attn_layer_norm"
            mlp = "ffn.intermediate_output", "ffn.layer_output", "ffn.layer_norm"
        found |= {f"{out_name}.weight": out, f"{out_name}.bias": flat[f"{attention}out/bias"]}
        found |= _norm(flat, f"{ours}Attention_0/attention_output_ln", theirs + norm)
        found |= _dense(flat, f"{ours}Mlp_0/intermediate_output", theirs + mlp[0])
        found |= _dense(flat, f"{ours}Mlp_0/layer_output", theirs + mlp[1])
        found |= _norm(flat, f"{ours}Mlp_0/layer_output_ln", theirs + mlp[2])
    return found


_THREE = ("query", "key", "value")


def _tokenizer(flat, config, copy):
    torch = copy == "maskgit-torch"
    levels = len(config.tokenizer.channel_multipliers)
    n = config.tokenizer.num_res_blocks
    found = {}

    def place(half, x):
        if torch:
            return f"{half}.res_blocks.{x // n}.{x % n}"
        if half == "encoder":
            on_way = f"encoder.down.{x // n}.block.{x % n}"
            return on_way if x < levels * n else f"encoder.mid.{x - levels * n}"
        return (
            f"decoder.mid.{x}"
            if x < n
            else f"decoder.up.{levels - 1 - (x - n) // n}.block.{(x - n) % n}"
        )

    modules = (
        {"GroupNorm_0": "norm0", "Conv_0": "conv0", "GroupNorm_1": "norm1", "Conv_1": "conv1"}
        if torch
        else {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2"}
    ) | {"Conv_2": "conv_res" if torch else "nin_shortcut"}
    for name, x in flat.items():
        half, *rest = name.split("/")
        if half == "quantizer":
            found["quantizer.codebook.weight" if torch else "quantize.embedding.weight"] = x
            continue
        *module, leaf = rest
        if module[0].startswith("ResBlock"):
            theirs = place(half, int(module[0].split("_")[1])) + f".{modules[module[1]]}"
        elif module[0] == "GroupNorm_0":
            theirs = f"{half}.norm_out"
        else:
            number = int(module[0].split("_")[1])
            last = 1 if half == "encoder" else levels
            up = f"decoder.res_blocks.{number}.{n + 1}"
            if not torch:
                up = f"decoder.up.{levels - number}.upsample_conv"
            theirs = {0: f"{half}.conv_in", last: f"{half}.conv_out"}.get(number, up)
        kernel = x.transpose(3, 2, 0, 1) if leaf == "kernel" else x
        found[f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}"] = kernel
    return found
