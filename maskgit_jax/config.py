"""Hyper-parameters of a model, as they stand in its `config.json`."""

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgit_jax import files
from maskgit_jax.errors import InputError, notice, printable
from maskgit_jax.knobs import Presets, complete_presets
from maskgit_jax.labels import imagenet_class_names

_LARGEST = {"num_layers": 1000, "num_res_blocks": 100, "codebook_size": 2**20}
_LARGEST |= {"num_classes": 2**20}
_LARGEST_OTHER = 2**17
"""No size of a model is near these, and what they make of a network is described in seconds."""
_MOST_LEVELS = 20
_MOST_BLOCKS = 500  # in encoder and decoder together
_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, line ends

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
        levels = len(self.channel_multipliers)
        if 2 * (levels + 1) * self.num_res_blocks > _MOST_BLOCKS:
            raise InputError(
                f"tokenizer.num_res_blocks {self.num_res_blocks} on {levels} levels are more than "
                f"{_MOST_BLOCKS} blocks"
            )
        factor = 2 ** (levels - 1)
        if self.image_size != self.latent_size * factor:
            raise InputError(
                f"tokenizer.image_size {self.image_size} is not latent_size {self.latent_size} "
                f"times {factor}, the factor of {levels} levels"
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
        _check_names(self.class_names)
        filled = complete_presets(
            self.presets, transformer.num_layers, transformer.hidden_size, tokenizer.image_size
        )
        object.__setattr__(self, "presets", filled)


def read_config(path: Path) -> ModelConfig:
    """Reads a model's `config.json`.

    `class_names` may be a list, the word "imagenet" (the packaged names), or missing (the
    classes are then called by their numbers). `presets` may have some of the methods and knobs.

    A file that its folder's checksums do not know may be a person's work: that is a notice.

    Raises:
      InputError: the file is missing, is not JSON, or a value does not fit.
    """
    try:
        text = files.read_file(path)
    except InputError as error:
        raise InputError(f"{error}; a model folder needs a config.json") from None
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({printable(error)})") from None
    noted = (files.read_checksums(path.parent) or {}).get(path.name)
    if noted not in (None, hashlib.sha256(text).hexdigest()):
        notice(
            f"{path} is not as it was written: if that is your work, remove its line in "
            f"{files.CHECKSUMS}"
        )
    try:
        if not isinstance(data, dict):
            raise InputError("expected an object with 'transformer' and 'tokenizer'")
        unknown = data.keys() - {"transformer", "tokenizer", "class_names", "presets"}
        if unknown:
            raise InputError(f"unknown entry {printable(min(unknown), 60)!r}")
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
    text = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
    files.write_file(path, [text.encode()])


def _unique(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for one that has a name twice: which of them counts?"""
    found = dict(entries)
    if len(found) < len(entries):
        ((twice, _),) = Counter(name for name, _ in entries).most_common(1)
        raise ValueError(f"{printable(twice, 60)!r} stands there twice")
    return found


def _check_names(names: tuple[str, ...]) -> None:
    """Raises InputError for class names that cannot be told apart, shown or asked for."""
    for i, name in enumerate(names):
        if not name.strip() or not _NO_TEXT.isdisjoint(map(unicodedata.category, name)):
            raise InputError(
                f"class_names[{i}] is {printable(ascii(name), 60)}: expected words without "
                "control characters"
            )
    # Two of ImageNet's classes are called crane.
    if len(set(names)) < len(names) and names != imagenet_class_names():
        ((twice, _),) = Counter(names).most_common(1)
        raise InputError(f"class_names has {printable(twice, 60)!r} twice")


def _parse(cls: type, data: Any, name: str):
    """Makes a configuration of a JSON object, every value of the declared kind."""
    if not isinstance(data, Mapping):
        raise InputError(f"no object {name!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in fields:
            raise InputError(f"unknown entry {name}.{printable(key, 60)}")
        kind, most = fields[key].type, _LARGEST.get(key, _LARGEST_OTHER)
        if kind is int:
            expected = f"a whole number from 1 to {most}"
            fits = type(value) is int and (0 < value <= most or key == "mask_token_id")
        elif kind is float:
            expected = "a number from 0 to 1"
            fits = type(value) in (int, float) and 0 <= value < 1
        elif kind is str:
            expected = "a word"
            fits = isinstance(value, str)
        else:
            expected = f"at most {_MOST_LEVELS} whole numbers from 1 to {most}"
            fits = isinstance(value, list) and 0 < len(value) <= _MOST_LEVELS
            fits = fits and all(type(v) is int and 0 < v <= most for v in value)
        if not fits:
            raise InputError(f"{name}.{key} is {printable(repr(value), 60)}: expected {expected}")
    for key, field in fields.items():
        if key not in data and field.default is dataclasses.MISSING:
            raise InputError(f"{name}.{key} is missing")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
