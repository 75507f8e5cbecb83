"""Hyper-parameters of a model, as they stand in its `config.json`."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgit_jax.errors import InputError
from maskgit_jax.knobs import Presets, complete_presets
from maskgit_jax.labels import imagenet_class_names

_LARGEST = 2**20  # no size of a model is near it, and products of sizes stay computable

IMAGENET = "imagenet"
"""In place of a list of class names: the 1000 names that come with the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The bidirectional transformer over image ids (MaskGIT, section 3).

    Attributes:
      codebook_size: K, the number of image codes.
      num_classes: number of class tokens, the ids K .. K + num_classes - 1.
      hidden_size: width of the residual stream.
      num_layers: number of layers.
      num_heads: attention heads; divides `hidden_size`.
      intermediate_size: width of the hidden layer of each MLP.
      sequence_length: S, the class token and the N image tokens.
      mask_token_id: always -1, the last row of the embedding table.
      dropout_rate: used in training only.
    """

    codebook_size: int
    num_classes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    sequence_length: int
    mask_token_id: int = -1
    dropout_rate: float = 0.1

    @property
    def vocabulary_size(self) -> int:
        """Image codes, classes and the mask."""
        return self.codebook_size + self.num_classes + 1

    def __post_init__(self):
        if self.mask_token_id != -1:
            raise InputError(f"transformer.mask_token_id is {self.mask_token_id}: only -1 is known")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"transformer.hidden_size {self.hidden_size} is not divisible by "
                f"num_heads {self.num_heads}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The VQGAN between pictures and image ids.

    Attributes:
      image_size: side of the pictures, in pixels.
      latent_size: side of the grid of ids.
      filters: channels of the first level.
      channel_multipliers: channels of each level, in multiples of `filters`; between two levels
        the side halves.
      num_res_blocks: residual blocks per level.
      embedding_dim: width of a code.
      codebook_size: K, the number of codes.
      activation: always "swish".
      norm: always "group_norm".
      norm_groups: number of groups of each group norm.
    """

    image_size: int
    latent_size: int
    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    embedding_dim: int
    codebook_size: int
    activation: str = "swish"
    norm: str = "group_norm"
    norm_groups: int = 32

    def __post_init__(self):
        if (self.activation, self.norm) != ("swish", "group_norm"):
            raise InputError(
                f"tokenizer.activation {self.activation!r} and norm {self.norm!r}: "
                "only 'swish' and 'group_norm' are known"
            )
        for multiplier in self.channel_multipliers:
            if self.filters * multiplier % self.norm_groups:
                raise InputError(
                    f"tokenizer.norm_groups {self.norm_groups} does not divide "
                    f"{self.filters * multiplier} channels"
                )
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if self.image_size != self.latent_size * factor:
            raise InputError(
                f"tokenizer.image_size {self.image_size} is not latent_size {self.latent_size} "
                f"times {factor}, the factor of {len(self.channel_multipliers)} levels"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A transformer and the tokenizer that it was trained with.

    Attributes:
      transformer: its sizes.
      tokenizer: its sizes.
      class_names: one name for each class.
      presets: the settings of each method that suit the model, see `knobs`; what is not given
        is filled in. Never changed.
    """

    transformer: TransformerConfig
    tokenizer: TokenizerConfig
    class_names: tuple[str, ...]
    presets: Presets = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        transformer, tokenizer = self.transformer, self.tokenizer
        if transformer.codebook_size != tokenizer.codebook_size:
            raise InputError(
                f"transformer.codebook_size {transformer.codebook_size} differs from "
                f"tokenizer.codebook_size {tokenizer.codebook_size}"
            )
        if transformer.sequence_length != tokenizer.latent_size**2 + 1:
            raise InputError(
                f"transformer.sequence_length {transformer.sequence_length} is not "
                f"latent_size² + 1 = {tokenizer.latent_size**2 + 1}"
            )
        if len(self.class_names) != transformer.num_classes:
            raise InputError(
                f"{len(self.class_names)} class names for {transformer.num_classes} classes"
            )
        filled = complete_presets(
            self.presets, transformer.num_layers, transformer.hidden_size, tokenizer.image_size
        )
        object.__setattr__(self, "presets", filled)


def read_config(path: Path) -> ModelConfig:
    """Reads a model's `config.json`.

    `class_names` may be a list, the word "imagenet" (the packaged names), or missing (the
    classes are then called by their numbers). `presets` may have some of the methods and knobs.

    Raises:
      InputError: the file is missing, is not JSON, or a value does not fit.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a model folder needs a config.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    try:
        if not isinstance(data, dict):
            raise InputError("expected an object with 'transformer' and 'tokenizer'")
        unknown = data.keys() - {"transformer", "tokenizer", "class_names", "presets"}
        if unknown:
            raise InputError(f"unknown entry {min(unknown)!r}")
        transformer = _parse(TransformerConfig, data.get("transformer"), "transformer")
        names = data.get("class_names", [str(i) for i in range(transformer.num_classes)])
        if names == IMAGENET:
            names = imagenet_class_names()
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise InputError(f"class_names is neither a list of names nor {IMAGENET!r}")
        given = data.get("presets", {})
        if not isinstance(given, dict) or not all(isinstance(x, dict) for x in given.values()):
            raise InputError("presets is no object of methods, each an object of knobs")
        return ModelConfig(
            transformer=transformer,
            tokenizer=_parse(TokenizerConfig, data.get("tokenizer"), "tokenizer"),
            class_names=tuple(names),
            presets=given,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_config(path: Path, config: ModelConfig) -> None:
    """Writes `config.json` so that `read_config` gives the same configuration."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n", encoding="utf-8")


def _parse(cls: type, data: Any, name: str):
    """Makes a configuration of a JSON object, every value of the declared kind."""
    if not isinstance(data, Mapping):
        raise InputError(f"no object {name!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in fields:
            raise InputError(f"unknown entry {name}.{key}")
        kind = fields[key].type
        if kind is int:
            fits = type(value) is int and (0 < value < _LARGEST or key == "mask_token_id")
        elif kind is float:
            fits = type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1
        elif kind is str:
            fits = isinstance(value, str)
        else:
            fits = isinstance(value, list) and len(value) > 0
            fits = fits and all(type(v) is int and 0 < v < _LARGEST for v in value)
        if not fits:
            raise InputError(f"{name}.{key} is {value!r}, which is no {kind}")
    for key, field in fields.items():
        if key not in data and field.default is dataclasses.MISSING:
            raise InputError(f"{name}.{key} is missing")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
