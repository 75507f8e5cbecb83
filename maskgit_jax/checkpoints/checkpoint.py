"""Reads, writes and checks parameter files in the format of the released ImageNet checkpoints.

A checkpoint is `flax.serialization.to_bytes({'params': tree})`: msgpack with array extensions.
A manifest lists every parameter path of such a file with its shape and dtype.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
from flax import serialization

from maskgit_jax.errors import InputError
from maskgit_jax.keys import seed_key

Manifest = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype name of every parameter, by path: `params/decoder/Conv_0/bias`."""

Params = dict[str, Any]
"""Nested dicts of arrays: what stands under 'params' in a checkpoint."""

CHECKSUMS = "checksums.json"
"""Beside a model's files: the SHA-256 of each when it was written."""

_FETCH_AGAIN = "fetch or copy the file again"
_BLOCK = 1 << 20
_SLACK = 64 << 20
"""Bytes that a checkpoint may have above its numbers: names, headers."""


def read_checkpoint(path: str | os.PathLike[str], most: int | None = None) -> Params:
    """Returns the nested dict of read-only numpy arrays under 'params' in a released-format file.

    Raises `InputError` if the file is missing, a folder, unreadable, larger than `most` bytes,
    empty, cut short, followed by other data, a web page, not msgpack, msgpack of something else
    than `{'params': arrays}`, or not what the folder's checksums say.
    """
    data = _read_bytes(path, most)
    # The hash last: other lines say more about what is wrong.
    params = parse_checkpoint(data, source=str(path))
    check_checksum(Path(path), hashlib.sha256(data).hexdigest())
    return params


def parse_checkpoint(data: bytes, *, source: str) -> Params:
    """`read_checkpoint` of bytes already in memory; `source` names them in the error line."""
    if not data:
        raise InputError(f"{source} is empty; expected a Flax checkpoint; {_FETCH_AGAIN}")
    if data[:256].lstrip().startswith(b"<"):
        raise InputError(
            f"{source} is a web page (HTML or XML), not a Flax checkpoint; check the address it "
            f"came from and {_FETCH_AGAIN}"
        )
    try:
        tree = serialization.msgpack_restore(data)
    except MemoryError:
        raise
    # Foreign bytes make msgpack, NumPy and Flax raise nearly any exception type.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{source} is not a whole Flax checkpoint ({len(data)} bytes; {reason}); it is cut "
            f"short, has data appended or is another kind of file; {_FETCH_AGAIN}"
        ) from None
    if not isinstance(tree, dict) or not isinstance(tree.get("params"), dict):
        found = f"entries {_some(list(tree))}" if isinstance(tree, dict) else type(tree).__name__
        raise InputError(
            f"{source} holds {found}; expected a dict of parameters under 'params'; use a "
            "released-format checkpoint"
        )
    params = tree["params"]
    _check_tree(params, source)
    return params


def write_checkpoint(path: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays in the released format, entries in the order they stand.

    The file appears under its name complete or not at all: it is written beside it, flushed to
    disk and renamed. Its checksum is recorded. Raises `InputError` if the folder cannot be written
    or `params` is no tree of arrays with string keys.
    """
    path = Path(path)
    _check_tree(params, str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            digest = hashlib.sha256()
            with temporary.open("xb") as file:
                for piece in _pack({"params": params}):
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
            # In this order: without a line, whoever reads in between has nothing to compare.
            _note_checksum(path, None)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _note_checksum(path, digest.hexdigest())
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); choose a folder that exists, is "
            "writable and has space"
        ) from error


def _pack(tree: Any) -> Iterator[bytes]:
    """`serialization.to_bytes` piece by piece: in one, it takes three times the memory."""
    if not isinstance(tree, Mapping):
        yield serialization.msgpack_serialize(np.asarray(tree))
        return
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(tree))
    for key, value in tree.items():
        yield packer.pack(key)
        yield from _pack(value)


def record_checksum(path: Path) -> None:
    """Notes a file's SHA-256 in the `CHECKSUMS` of its folder, in place of an earlier one.

    Raises:
      OSError: that cannot be written.
    """
    _note_checksum(path, _sha256(path))


def _note_checksum(path: Path, found: str | None) -> None:
    """Replaces a file's line in the checksums; None removes it."""
    try:
        noted = _checksums(path.parent)
    except InputError:
        noted = {}  # a damaged list says nothing
    if noted.get(path.name) == found:
        return
    noted = {name: value for name, value in noted.items() if name != path.name}
    if found is not None:
        noted[path.name] = found
    temporary = path.with_name(f".{CHECKSUMS}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path.with_name(CHECKSUMS))
    finally:
        temporary.unlink(missing_ok=True)


def check_checksum(path: Path, found: str | None = None) -> None:
    """Compares a file's SHA-256 with the one noted when it was written, if any was.

    Args:
      path: the file.
      found: its SHA-256, where it is known.

    Raises:
      InputError: they differ.
    """
    expected = _checksums(path.parent).get(path.name)
    if expected is None:
        return
    found = found or _sha256(path)
    if expected != found:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, {CHECKSUMS} says "
            f"{str(expected)[:12]}…; {_FETCH_AGAIN}, or remove its line there if you changed it"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict):
        raise InputError(f"{path} is damaged: {_FETCH_AGAIN}, or remove it to go without checksums")
    return noted


def parameter_shapes(module: Any, example: jax.ShapeDtypeStruct) -> Any:
    """Names and shapes of a module's parameters; nothing is computed."""
    return jax.eval_shape(module.init, seed_key(0), example)["params"]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest from JSON: `{"params/a/bias": [[768], "float32"], ...}`.

    Raises `InputError` if the file is missing, unreadable or no such JSON.
    """
    data = _read_bytes(path)
    try:
        entries = json.loads(data)
        manifest = {name: (tuple(shape), dtype) for name, (shape, dtype) in entries.items()}
        valid = all(
            name.startswith("params/")
            and all(type(size) is int for size in shape)
            and isinstance(dtype, str)
            for name, (shape, dtype) in manifest.items()
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise InputError(
            f"{path} is not a manifest; expected JSON of the form "
            '{"params/NAME": [[SIZES], "DTYPE"], ...}; restore or reinstall the file'
        )
    return manifest


def manifest_of(params: Mapping[str, Any]) -> Manifest:
    """Lists the shapes and dtypes of the tree under 'params': arrays or `jax.ShapeDtypeStruct`."""
    return {
        _join(keys): (tuple(leaf.shape), np.dtype(leaf.dtype).name) for keys, leaf in leaves(params)
    }


def check_params(params: Mapping[str, Any], manifest: Manifest, *, source: str) -> None:
    """Checks that parameters have the names, shapes and dtypes of `manifest` and are finite.

    Raises one `InputError` that names `source` and, of each kind of deviation, the first parameter
    and how many there are.
    """
    arrays = {_join(keys): leaf for keys, leaf in leaves(params)}
    found = manifest_of(params)
    both = [name for name in manifest if name in found]
    missing = [name for name in manifest if name not in found]
    unexpected = [name for name in found if name not in manifest]
    shapes = [name for name in both if found[name][0] != manifest[name][0]]
    dtypes = [name for name in both if found[name][1] != manifest[name][1]]
    deviations = []
    if missing:
        deviations.append(f"{len(missing)} of {len(manifest)} missing, first {missing[0]!r}")
    if unexpected:
        deviations.append(f"{len(unexpected)} unexpected, first {unexpected[0]!r}")
    for kind, names, field in (("shape", shapes, 0), ("dtype", dtypes, 1)):
        if names:
            first = names[0]
            deviations.append(
                f"{len(names)} of wrong {kind}, first {first!r}: "
                f"found {found[first][field]}, expected {manifest[first][field]}"
            )
    # Only arrays of the expected dtype are known to be numbers.
    infinite = [
        name
        for name in both
        if found[name][1] == manifest[name][1] and not np.isfinite(arrays[name]).all()
    ]
    if infinite:
        deviations.append(f"{len(infinite)} with NaN or infinite values, first {infinite[0]!r}")
    if deviations:
        raise InputError(
            f"{source} does not fit the model: parameters {'; '.join(deviations)}; use the "
            "checkpoint that belongs to this model, undamaged"
        )


def largest_file(manifest: Manifest) -> int:
    """Bytes that a checkpoint of these parameters has at most."""
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in manifest.values())
    return sum(sizes) + _SLACK


def _read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    path = Path(path)
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            raise InputError(
                f"{path} has {size} bytes; expected at most {most}: it is no checkpoint of this "
                f"model; {_FETCH_AGAIN}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a file; check the path") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder; expected a file; give the path of the file in it"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields key path and value of every entry that is not a dict, in the order they stand.

    A stack instead of recursion: a foreign file may be nested deeper than Python calls may be.
    """
    stack: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while stack:
        keys, node = stack.pop()
        if isinstance(node, Mapping):
            stack.extend(((*keys, key), value) for key, value in reversed(list(node.items())))
        else:
            yield keys, node


def _join(keys: tuple[Any, ...]) -> str:
    return "/".join(("params", *map(str, keys)))


def _check_tree(tree: Mapping[Any, Any], source: str) -> None:
    for keys, leaf in leaves(tree):
        if not all(isinstance(key, str) and key and "/" not in key for key in keys):
            raise InputError(
                f"{source} has the entry {_join(keys)!r}; expected names that are strings without "
                "'/'; use a released-format checkpoint"
            )
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise InputError(
                f"{source} holds a {type(leaf).__name__} at {_join(keys)!r}; expected an array; "
                "use a released-format checkpoint"
            )


def _some(names: list[Any]) -> str:
    shown = ", ".join(repr(name)[:40] for name in names[:3])
    return f"{shown or 'none'}{', ...' if len(names) > 3 else ''}"
