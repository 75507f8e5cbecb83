"""A loaded model: a folder's configuration, modules and weights."""

import contextlib
import dataclasses
import functools
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from maskgit_jax.checkpoints import checkpoint, conversion, download, layouts
from maskgit_jax.config import ModelConfig, read_config
from maskgit_jax.devices import copy_to_devices
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_float, to_uint8
from maskgit_jax.networks.stacked import stack_layers
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer

_BUILTIN = ("demo",)

DTYPES = ("float32", "bfloat16")
"""What the transformer can compute in.

Its dense products run at the backend's default precision, which for float32 is TF32 on GPUs and
bfloat16 on TPUs: ids are drawn at random from its logits, and all that is lost is what bfloat16
weights lose. `JAX_DEFAULT_MATMUL_PRECISION=highest` multiplies in full float32. What chooses ids
without chance, the tokenizer's encoder (see `tokenizer`) and the structure distance's attention
logits, always does.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A frozen generator.

    Attributes:
      config: hyper-parameters and class names.
      transformer: the module over ids.
      transformer_params: its weights, layers stacked (see `inference`).
      tokenizer: the module between pictures and ids.
      tokenizer_params: its weights.
    """

    config: ModelConfig
    transformer: Transformer
    transformer_params: Any
    tokenizer: Tokenizer
    tokenizer_params: Any

    def encode(self, images: Float[Array | np.ndarray, "b H W 3"]) -> Int[Array, "b N"]:
        """Ids, in [0, K), of square pictures in [0, 1]; the same alone and in a batch."""
        ids = self._encode(self.tokenizer_params, images)
        return ids.reshape(len(ids), -1)

    def decode(self, ids: Int[Array | np.ndarray, "b N"]) -> Float[Array, "b H W 3"]:
        """Pictures, about in [0, 1], of image ids; the same alone and in a batch."""
        side = self.config.tokenizer.latent_size
        return self._decode(self.tokenizer_params, ids.reshape(-1, side, side))

    def ids_of(self, images: UInt8[np.ndarray, "b H W 3"]) -> Int[np.ndarray, "b N"]:
        """As `encode`, of pictures as files hold them."""
        return np.asarray(self.encode(to_float(images)))

    def images_of(self, ids: Int[Array | np.ndarray, "b N"]) -> UInt8[np.ndarray, "b H W 3"]:
        """As `decode`, pictures as files hold them."""
        return to_uint8(np.asarray(self.decode(ids)))

    @functools.cached_property
    def params_on_devices(self) -> Any:
        """The transformer's weights, on every local device."""
        return copy_to_devices(self.transformer_params)

    @functools.cached_property
    def _encode(self):
        return self._picture_by_picture("encode")

    @functools.cached_property
    def _decode(self):
        return self._picture_by_picture("decode")

    def _picture_by_picture(self, method: str):
        """A method of the tokenizer; in one batch, rounding could depend on the batch's size."""

        def one(params, x):
            return self.tokenizer.apply({"params": params}, x[None], method=method)[0]

        return jax.jit(lambda params, batch: jax.lax.map(functools.partial(one, params), batch))


def with_class_token(
    config: ModelConfig,
    labels: Int[Array | np.ndarray, "*b"],
    ids: Int[Array | np.ndarray, "*b N"],
) -> Int[Array, "*b S"]:
    """The transformer's input: the class token K + label before the image ids."""
    tokens = labels[..., None] + config.transformer.codebook_size
    return jnp.concatenate([tokens, ids], axis=-1).astype(jnp.int32)


def builtin_folder(name: str) -> Path:
    """Where a model that ships with the package lies."""
    return Path(str(files("maskgit_jax"))) / "models" / name


def model_config(name: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of a model, named as for `load_model`; fetches nothing.

    Raises:
      InputError: no such model, or a faulty config.json.
    """
    if name in download.MODELS:
        return read_config(Path(str(files("maskgit_jax"))) / "data" / f"{name}.json")
    if name in _BUILTIN:
        return read_config(builtin_folder(str(name)) / "config.json")
    try:
        found = Path(name).is_dir()
    except OSError:
        found = False
    if not found:
        known = ", ".join((*_BUILTIN, *download.MODELS))
        raise InputError(
            f"no model {str(name)!r}: expected {known}, or a folder with config.json, "
            "maskgit_checkpoint and tokenizer_checkpoint"
        )
    return read_config(Path(name) / "config.json")


def load_model(name: str | os.PathLike[str], *, dtype: str = "float32") -> Model:
    """Loads a model from a folder, or by name.

    Args:
      name: "demo" (ships with the package), "imagenet256" or "imagenet512" (fetched once to a
        cache folder, see `download`), or the path of a folder with `config.json` and either
        `maskgit_checkpoint` and `tokenizer_checkpoint` in the released format or
        `model.safetensors` (see `conversion`).
      dtype: of the transformer's weights and products, one of `DTYPES`; softmax, normalisation,
        divergence and logits are float32 in either. The tokenizer is always float32.

    Raises:
      InputError: unknown dtype, no such model, a file is missing or damaged, or the parameters
        are not those of the configuration.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    config = model_config(name)
    if name in download.MODELS:
        folder = download.fetch_model(str(name))
    else:
        folder = builtin_folder(str(name)) if name in _BUILTIN else Path(name)
    tokenizer, tokenizer_params = load_tokenizer(folder, config)
    transformer = Transformer(config.transformer)
    released = _load_params(folder, "maskgit", config)
    transformer_params = jax.tree.map(lambda x: x.astype(dtype), stack_layers(released))
    return Model(
        config=config,
        transformer=transformer,
        transformer_params=transformer_params,
        tokenizer=tokenizer,
        tokenizer_params=tokenizer_params,
    )


def load_tokenizer(folder: Path, config: ModelConfig) -> tuple[Tokenizer, Any]:
    """Loads a model folder's tokenizer alone: the module and its weights."""
    return Tokenizer(config.tokenizer), _load_params(folder, "tokenizer", config)


def _load_params(folder: Path, kind: str, config: ModelConfig) -> Any:
    """One half's weights from either form of a model folder."""
    path = folder / f"{kind}_checkpoint"
    both = folder / conversion.SAFETENSORS
    if both.is_file() and not path.exists():
        weights = {weights.kind: weights for weights in conversion.open_weights(both, config)}
        if kind not in weights:
            raise InputError(f"{both} holds no {kind}: convert the model again")
        params = conversion.read_weights(weights[kind], config)
    else:
        # The configuration is what the code would run; the file decides whether that is true.
        _check_counts(path, checkpoint.read_shapes(path), kind, config)
        expected = checkpoint.manifest_of(layouts.model_shapes(kind, config))
        params = checkpoint.read_checkpoint(path, checkpoint.largest_file(expected))
        checkpoint.check_params(params, expected, source=str(path))
    return jax.tree.map(jnp.asarray, params)


def _check_counts(path: Path, shapes: Any, kind: str, config: ModelConfig) -> None:
    """Raises InputError if a file has other numbers of layers, heads or blocks than config.json.

    Of a file that is no such checkpoint at all, the general check says what is missing.
    """
    if kind == "maskgit":
        counts = {"num_layers": sum(name.startswith("TransformerLayer_") for name in shapes)}
        # The paper gives another number of heads than the released files have.
        with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
            attention = shapes["TransformerLayer_0"]["Attention_0"]["self_attention"]
            counts["num_heads"] = attention["query"]["kernel"].shape[1]
    else:
        levels = len(config.tokenizer.channel_multipliers)
        blocks = sum(name.startswith("ResBlock_") for name in shapes.get("encoder", ()))
        counts = {"num_res_blocks": blocks / (levels + 1)}
    part = config.transformer if kind == "maskgit" else config.tokenizer
    for name, found in counts.items():
        if found and found != (said := getattr(part, name)):
            raise InputError(
                f"{path} has {name} {found:g}, config.json says {said}: correct config.json, or "
                "use the checkpoint that belongs to it"
            )
