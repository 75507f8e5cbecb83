"""Reads a model's weights from any copy of them: the released files and others' conversions.

The released checkpoints went out of reach in 2026. Their numbers live on in PyTorch files under two
sets of names, those of hmorimitsu/maskgit-torch and those of huggingface/open-muse. Both changed
names and axes alone, so converting back gives the released arrays bit for bit.
"""

import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from maskgit_jax import checkpoint
from maskgit_jax.checkpoint import Manifest, Params
from maskgit_jax.config import ModelConfig, write_config
from maskgit_jax.errors import InputError, printable
from maskgit_jax.tokenizer import Tokenizer
from maskgit_jax.torch_files import TorchFile, is_torch_archive
from maskgit_jax.transformer import Transformer

KINDS = ("tokenizer", "maskgit")
"""The two halves of a model, as the released files call them."""

Arrays = Mapping[str, np.ndarray]
"""A file's arrays by its own names; files other than msgpack are read array by array."""


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


class Weights(NamedTuple):
    """One half of a model in a file, not read yet.

    Attributes:
      kind: one of `KINDS`.
      layout: whose names it has, one of `LAYOUTS`.
      arrays: the file's.
      path: the file.
      kinds: of all halves in the file.
    """

    kind: str
    layout: str
    arrays: Arrays
    path: Path
    kinds: tuple[str, ...]


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

FORMATS = ("msgpack", "safetensors")
"""How `write_model` writes weights: as the released files, or as the model hubs have them."""

SAFETENSORS = "model.safetensors"


def model_shapes(kind: str, config: ModelConfig) -> Params:
    """Names and shapes of one half's parameters; see `checkpoint.parameter_shapes`."""
    if kind == "maskgit":
        ids = jax.ShapeDtypeStruct((1, config.transformer.sequence_length), jnp.int32)
        return checkpoint.parameter_shapes(Transformer(config.transformer), ids)
    side = config.tokenizer.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return checkpoint.parameter_shapes(Tokenizer(config.tokenizer), images)


class _SafetensorsFile(Mapping[str, np.ndarray]):
    """The float32 arrays of a .safetensors file; each is read when it is asked for."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
            self._names = dict.fromkeys(self._file.keys())
            types = {name: self._file.get_slice(name).get_dtype() for name in self._names}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a whole .safetensors file ({printable(error)}); it is cut short or "
                "damaged; fetch or copy it again"
            ) from None
        others = [name for name in self._names if types[name] != "F32"]
        if others:
            raise InputError(
                f"{path} holds {printable(others[0], 60)!r} as {types[others[0]]}; expected "
                "float32 (F32) arrays alone; the released weights are float32"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_weights(path: Path, config: ModelConfig) -> list[Weights]:
    """What a file holds of a model; which kind of file and which half is told by its contents.

    Args:
      path: a PyTorch file (`torch_files`), a .safetensors file, or one in the released format.
      config: of the model; larger files than it has are not read.

    Returns:
      One or both halves.

    Raises:
      InputError: it cannot be read, is damaged, or holds neither half under known names.
    """
    arrays = _open_arrays(path, config)
    found = [
        (kind, layout)
        for layout, kinds in LAYOUTS.items()
        for kind, (mark, _) in kinds.items()
        if mark in arrays
    ]
    if not found:
        first = ", ".join(repr(printable(name, 60)) for name in list(arrays)[:3])
        raise InputError(
            f"{path} holds {len(arrays)} arrays, {first or 'none'} first; expected a tokenizer or "
            f"a transformer under the names of {', '.join(LAYOUTS)}"
        )
    kinds = tuple(kind for kind, _ in found)
    return [Weights(kind, layout, arrays, path, kinds) for kind, layout in found]


def _open_arrays(path: Path, config: ModelConfig) -> Arrays:
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); expected a file of weights; check the path"
        ) from None
    if start[:2] == b"PK":
        return TorchFile(path)
    if start[:1] == b"\x80":
        raise InputError(
            f"{path} is a bare pickle, as torch.save wrote before version 1.6, and running it is "
            "the only way to read it; expected PyTorch's zip format; load it with PyTorch in a "
            "place you can spare and save its state dict with today's torch.save"
        )
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < size:
        return _SafetensorsFile(path)
    most = max(
        checkpoint.largest_file(checkpoint.manifest_of(model_shapes(kind, config)))
        for kind in KINDS
    )
    found = checkpoint.leaves(checkpoint.read_checkpoint(path, most))
    arrays: dict[str, np.ndarray] = {}
    for keys, array in found:
        if any("." in key for key in keys):
            raise InputError(
                f"{path} has the entry {printable(keys, 80)}; expected names without '.'; use a "
                "released-format checkpoint"
            )
        arrays[".".join(keys)] = array
    return arrays


def find_weights(
    sources: Sequence[str | os.PathLike[str]],
    config: ModelConfig,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Weights]:
    """The halves of a model among files and folders.

    In a folder, files that are no weights are passed over. Where a half is found more than once,
    its copies must hold the same numbers, bit for bit; the first is taken.

    Args:
      sources: paths.
      config: of the model.
      kinds: those that must be there, of `KINDS`.

    Returns:
      What to read each kind from.

    Raises:
      InputError: a half is missing or there are two different ones, or a file cannot be read.
    """
    found: dict[str, Weights] = {}
    for path in _files(sources):
        for weights in open_weights(path, config):
            first = found.setdefault(weights.kind, weights)
            if first is not weights and compare(first, weights, config).names:
                raise InputError(
                    f"{first.path} and {path} hold two different {_word(weights.kind)}s: give one "
                    "of them"
                )
    for kind in kinds:
        if kind not in found:
            raise InputError(
                f"no {_word(kind)} in {', '.join(map(str, sources))}: expected files with a "
                "tokenizer and a transformer; name the missing one too"
            )
    return found


def _word(kind: str) -> str:
    return "transformer" if kind == "maskgit" else kind


def _files(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for source in (Path(source).expanduser() for source in sources):
        if not source.is_dir():
            files.append(source)
            continue
        inside = sorted(path for path in source.iterdir() if _may_be_weights(path))
        if not inside:
            raise InputError(
                f"{source} holds no files of weights; expected PyTorch files, .safetensors or "
                "released checkpoints; give the folder that they are in"
            )
        files += inside
    return files


def _may_be_weights(path: Path) -> bool:
    """Whether a file starts as one of the kinds that `open_weights` reads."""
    if not path.is_file() or path.name.startswith("."):
        return False
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        return is_torch_archive(path)
    return start[:1] in (b"\x80", b"\x81") or start[8:] == b"{"


def read_weights(weights: Weights, config: ModelConfig) -> Params:
    """One half's parameters under their released names, checked against the configuration.

    Raises:
      InputError: a parameter is missing, of another shape, not finite, or there are others.
    """
    parts = _parts(weights, config)
    expected = checkpoint.manifest_of(model_shapes(weights.kind, config))
    # In order of names, as the released files are: written, they are the same bytes.
    flat = {name: _restored(weights, parts[name], name, expected) for name in sorted(parts)}
    params = unflatten_dict(flat, sep=".")
    checkpoint.check_params(params, expected, source=str(weights.path))
    return params


def _parts(weights: Weights, config: ModelConfig) -> Layout:
    """The half's layout; InputError unless the file holds its names and no others."""
    layouts = {kind: LAYOUTS[weights.layout][kind][1](config) for kind in weights.kinds}
    parts = layouts[weights.kind]
    needed = {name for part in parts.values() for name in (part.name, *part.tied)}
    known = {
        name
        for layout in layouts.values()
        for part in layout.values()
        for name in (part.name, *part.tied)
    }
    missing = [name for name in needed if name not in weights.arrays]
    unexpected = [name for name in weights.arrays if name not in known]
    deviations = [
        f"{len(names)} {word}, first {printable(min(names), 80)!r}"
        for word, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if deviations:
        raise InputError(
            f"{weights.path} does not fit the configuration: of the {len(needed)} arrays of a "
            f"{_word(weights.kind)} {' and '.join(deviations)}; give the config.json that belongs "
            "to these weights"
        )
    return parts


def _restored(weights: Weights, part: Part, name: str, expected: Manifest) -> np.ndarray:
    array = weights.arrays[part.name]
    shape, dtype = expected[f"params/{name.replace('.', '/')}"]
    if array.dtype != dtype:
        raise InputError(f"{weights.path} holds {part.name!r} as {array.dtype}; expected {dtype}")
    try:
        restored = part.restore(array)
    except (ValueError, IndexError):
        restored = None
    if restored is None or restored.shape != shape:
        raise InputError(
            f"{weights.path} does not fit the configuration: {part.name!r} has the shape "
            f"{list(array.shape)}, which cannot be {name} {list(shape)}; give the config.json that "
            "belongs to these weights"
        )
    for tied in part.tied:
        if not np.array_equal(_bits(weights.arrays[tied]), _bits(array)):
            raise InputError(
                f"{weights.path}: {part.name!r} and {tied!r} differ; in this architecture they "
                "are one table; fetch or copy the file again"
            )
    return np.ascontiguousarray(restored)


class Comparison(NamedTuple):
    """How two copies of one half differ.

    Attributes:
      count: arrays compared.
      names: of the arrays that are not the same, bit for bit.
      largest: absolute difference of two numbers; NaN where one is no number.
    """

    count: int
    names: list[str]
    largest: float


def compare(one: Weights, other: Weights, config: ModelConfig) -> Comparison:
    """Compares two copies of one half array by array.

    Raises:
      InputError: either does not fit the configuration.
    """
    parts, others = _parts(one, config), _parts(other, config)
    expected = checkpoint.manifest_of(model_shapes(one.kind, config))
    names, largest = [], 0.0
    for name, part in parts.items():
        a = _restored(one, part, name, expected)
        b = _restored(other, others[name], name, expected)
        if not np.array_equal(_bits(a), _bits(b)):
            names.append(name)
            with np.errstate(all="ignore"):
                largest = float(np.maximum(largest, np.max(np.abs(a.astype(float) - b))))
    return Comparison(len(parts), names, largest)


def _bits(x: np.ndarray) -> np.ndarray:
    """The bits, so that NaN equals itself and 0 is not -0."""
    return np.ascontiguousarray(x).view(np.uint32)


def write_model(
    folder: Path, config: ModelConfig, params: Mapping[str, Params], form: str = "msgpack"
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
      folder: a new or empty folder.
      config: its `config.json`.
      params: of each kind.
      form: one of `FORMATS`.

    Raises:
      InputError: the folder holds something, or cannot be written.
    """
    folder = folder.resolve()  # of ".", the parent is another
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_new_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            temporary = Path(name, "model")
            temporary.mkdir()
            write_config(temporary / "config.json", config)
            if form == "safetensors":
                flat = flatten_dict(dict(params), sep=".")
                safetensors.numpy.save_file(flat, temporary / SAFETENSORS, {"format": "flax"})
                checkpoint.record_checksum(temporary / SAFETENSORS)
            else:
                for kind, tree in params.items():
                    checkpoint.write_checkpoint(temporary / f"{kind}_checkpoint", tree)
            temporary.replace(folder)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or printable(error)
        raise InputError(
            f"{folder} cannot be written ({reason}); choose a folder that can be written and has "
            "space"
        ) from None


def check_new_folder(folder: Path) -> None:
    """Raises InputError unless there is nothing of that name, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose a new folder for the model")
