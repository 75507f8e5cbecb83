"""Reads a model's weights from any copy of them: the released files and others' conversions.

The released checkpoints went out of reach in 2026. Their numbers live on in the files of others,
under other names (see `layouts`); converting back gives the released arrays bit for bit.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from maskgit_jax import files
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.checkpoints.checkpoint import Manifest, Params
from maskgit_jax.checkpoints.layouts import KINDS, LAYOUTS, Layout, Part, model_shapes
from maskgit_jax.checkpoints.torch_files import TorchFile, is_torch_archive
from maskgit_jax.config import ModelConfig, write_config
from maskgit_jax.errors import InputError, printable

Arrays = Mapping[str, np.ndarray]
"""A file's arrays by its own names; files other than msgpack are read array by array."""


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


FORMATS = ("msgpack", "safetensors")
"""How `write_model` writes weights: as the released files, or as the model hubs have them."""

SAFETENSORS = "model.safetensors"


_LARGEST_INDEX = 4 << 20


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
    with files.open_file(path) as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
    if start[:2] == b"PK":
        return TorchFile(path)
    if start[:1] == b"\x80":
        raise InputError(
            f"{path} is a bare pickle, as torch.save wrote before version 1.6, and running it is "
            "the only way to read it; expected PyTorch's zip format; load it with PyTorch in a "
            "place you can spare and save its state dict with today's torch.save"
        )
    if start[8:] == b"{" and (index := int.from_bytes(start[:8], "little")) < size:
        if index > _LARGEST_INDEX:
            raise InputError(
                f"{path} has an index of {index} bytes; expected at most {_LARGEST_INDEX}; "
                f"{files.FETCH_AGAIN}"
            )
        arrays = _SafetensorsFile(path)
        files.check_checksum(path)
        return arrays
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
    paths: list[Path] = []
    for source in (Path(source).expanduser() for source in sources):
        if not source.is_dir():
            paths.append(source)
            continue
        inside = sorted(path for path in source.iterdir() if _may_be_weights(path))
        if not inside:
            raise InputError(
                f"{source} holds no files of weights; expected PyTorch files, .safetensors or "
                "released checkpoints; give the folder that they are in"
            )
        paths += inside
    return paths


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
                record = files.sha256(temporary / SAFETENSORS)
                files.note_checksum(temporary / SAFETENSORS, record)
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
