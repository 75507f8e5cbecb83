"""Reads, writes and checks parameter files in the format of the released ImageNet checkpoints.

A checkpoint is `flax.serialization.to_bytes({'params': tree})`: msgpack with array extensions.
A manifest lists every parameter path of such a file with its shape and dtype.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import msgpack
import numpy as np
from flax import serialization
from flax.traverse_util import unflatten_dict

from maskgit_jax import files
from maskgit_jax.errors import InputError, printable
from maskgit_jax.keys import seed_key

Manifest = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype name of every parameter, by path: `params/decoder/Conv_0/bias`."""

Params = dict[str, Any]
"""Nested dicts of arrays: what stands under 'params' in a checkpoint."""

_SLACK = 64 << 20
"""Bytes that a checkpoint may have above its numbers: names, headers."""
_MOST_ENTRIES = 100_000  # names; the largest released file has 510
_MOST_AXES = 32
_DEEPEST = 32
_LONGEST_NAME = 1000
_LARGEST_WEIGHT = 1e4  # trained weights are below 100: more is damage that no checksum told
_CHUNKED = "__msgpack_chunked_array__"


def read_checkpoint(path: str | os.PathLike[str], most: int | None = None) -> Params:
    """Returns the nested dict of read-only numpy arrays under 'params' in a released-format file.

    Raises `InputError` if the file is missing, no regular file, unreadable, larger than `most`
    bytes, empty, cut short, followed by other data, a web page, not msgpack, msgpack of something
    else than `{'params': arrays}`, or not what the folder's checksums say.
    """
    with _opened(path, most) as reader:
        params = unflatten_dict(dict(reader.leaves()))
    # The hash last: other lines say more about what is wrong.
    files.check_checksum(Path(path), reader.digest.hexdigest())
    return params


def read_shapes(path: str | os.PathLike[str]) -> Params:
    """`read_checkpoint` without the numbers: `jax.ShapeDtypeStruct` in place of arrays."""
    with _opened(path, shapes_only=True) as reader:
        return unflatten_dict(dict(reader.leaves()))


def check_file(path: Path, manifest: Manifest, *, source: str) -> str:
    """Checks a file as `read_checkpoint` and `check_params` do, array by array.

    Returns:
      Its SHA-256, which is not compared.

    Raises:
      InputError: as theirs; `source` names the file.
    """
    with _opened(path, source=source) as reader:
        _check_leaves(reader.leaves(), manifest, source)
    return reader.digest.hexdigest()


@contextlib.contextmanager
def _opened(
    path: str | os.PathLike[str],
    most: int | None = None,
    *,
    source: str | None = None,
    shapes_only: bool = False,
) -> Iterator["_Reader"]:
    """A reader of a file; what it refuses is told as an InputError that names `source`."""
    source = str(source or path)
    with files.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise InputError(
                f"{source} has {size} bytes; expected at most {most}: it is no checkpoint of this "
                f"model; {files.FETCH_AGAIN}"
            )
        start = file.read(256)
        file.seek(0)
        if not size:
            raise InputError(f"{source} is empty; expected a Flax checkpoint; {files.FETCH_AGAIN}")
        if start.lstrip().startswith(b"<"):
            raise InputError(
                f"{source} is a web page (HTML or XML), not a Flax checkpoint; check the address "
                f"it came from and {files.FETCH_AGAIN}"
            )
        try:
            yield _Reader(file, size, shapes_only)
        except _RefusedError as error:
            raise InputError(
                f"{source} is not a whole Flax checkpoint ({size} bytes; {printable(error)}); it "
                f"is cut short, has data appended or is another kind of file; {files.FETCH_AGAIN}"
            ) from None


class _RefusedError(Exception):
    """What the file holds is not what a checkpoint is made of."""


_HEADERS = {
    **{0xC4 + i: ("bin", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xCC + i: ("int", 1 << i) for i in range(4)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("dict", 2 << i) for i in range(2)},
}
"""Of msgpack's first bytes: what follows, and how many bytes say its size (an int: its value)."""

_WORDS = {kind: f"a {kind}" for kind in ("bin", "text", "list", "dict", "value")}
_WORDS |= {kind: f"an {kind}" for kind in ("extension", "int")}


class _Reader:
    """Takes a checkpoint apart: dicts of names, and arrays as Flax packs them; no other msgpack.

    Every size is compared with what is left of the file before anything of that size is made: five
    bytes can announce 2³¹ entries, and a general parser makes 60 bytes of each byte.

    Attributes:
      digest: of all that was read.
    """

    def __init__(self, file: BinaryIO, size: int, shapes_only: bool):
        self.digest = hashlib.sha256()
        self._file, self._left, self._shapes_only = file, size, shapes_only
        self._names = 0

    def leaves(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yields the names below 'params' that lead to each array, and the array (or shape)."""
        if self._header() != ("dict", 1) or self._text() != "params":
            raise _RefusedError("no dict with the one entry 'params'")
        yield from self._below(())
        if self._left:
            raise _RefusedError(f"{self._left} bytes after its end")

    def _below(self, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        kind, size = self._header()
        if kind == "extension" and path:
            yield path, self._array(size)
            return
        if kind != "dict":
            raise _RefusedError(f"{_WORDS[kind]} at {_join(path)!r} instead of an array")
        self._names += size
        if 2 * size > self._left or self._names > _MOST_ENTRIES or len(path) > _DEEPEST:
            raise _RefusedError(f"more entries at {_join(path)[:100]!r} than a model has")
        names: set[str] = set()
        for _ in range(size):
            name = self._text()
            if name == _CHUNKED and not names:
                yield path, self._joined()
                return
            if not name or "/" in name or name in names:
                raise _RefusedError(f"the entry {_join((*path, name))!r} twice or without a name")
            names.add(name)
            yield from self._below((*path, name))

    def _array(self, size: int) -> Any:
        (code,) = self._take(1)
        end = self._left - size
        if code != 1 or end < 0 or self._header() != ("list", 3):
            raise _RefusedError("an extension that is no array of its size")
        kind, axes = self._header()
        if kind != "list" or axes > _MOST_AXES:
            raise _RefusedError("an array without a shape")
        shape = tuple(self._size("int") for _ in range(axes))
        name, count = self._text(), self._size("bin")
        try:
            dtype = np.dtype(name) if len(name) < 20 else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.name != name or dtype.kind not in "biufcV" or dtype.hasobject:
            raise _RefusedError(f"numbers of the type {name[:20]!r}")
        if count != math.prod(shape) * dtype.itemsize or self._left - count != end:
            raise _RefusedError(f"{count} bytes for an array {list(shape)} of {name}")
        if self._shapes_only:
            self._left = end
            self._file.seek(count, os.SEEK_CUR)
            return jax.ShapeDtypeStruct(shape, dtype)
        try:
            return np.frombuffer(self._take(count), dtype).reshape(shape)
        except ValueError:  # sizes that no array has, such as 0 times 2**63
            raise _RefusedError(f"an array {list(shape)}") from None

    def _joined(self) -> Any:
        """An array that Flax has split, being too large for one msgpack extension."""
        if self._take(1) != b"\xc3" or self._text() != "shape":
            raise _RefusedError("chunks without a shape")
        shape = tuple(self._numbered(lambda: self._size("int")))
        if self._text() != "chunks":
            raise _RefusedError("a shape without chunks")
        chunks = self._numbered(lambda: self._array(self._size("extension")))
        try:
            if self._shapes_only:
                return jax.ShapeDtypeStruct(shape, chunks[0].dtype)
            return np.concatenate(chunks).reshape(shape)
        except (ValueError, IndexError):
            raise _RefusedError("chunks that do not fit their shape") from None

    def _numbered(self, read: Callable[[], Any]) -> list[Any]:
        """The values of a dict whose names are the numbers from 0."""
        size = self._size("dict")
        if 2 * size > self._left:
            raise _RefusedError("cut short")
        found = []
        for i in range(size):
            if self._text() != str(i):
                raise _RefusedError("chunks out of order")
            found.append(read())
        return found

    def _text(self) -> str:
        size = self._size("text")
        if size > _LONGEST_NAME:
            raise _RefusedError(f"a name of {size} bytes")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError:
            raise _RefusedError("a name that is no UTF-8") from None

    def _size(self, expected: str) -> int:
        kind, size = self._header()
        if kind != expected:
            raise _RefusedError(f"{_WORDS[kind]} instead of {_WORDS[expected]}")
        return size

    def _header(self) -> tuple[str, int]:
        """What comes next, and its size; of an int, its value."""
        (byte,) = self._take(1)
        if byte < 0x80:
            return "int", byte
        if byte < 0xC0:
            kind = "dict" if byte < 0x90 else "list" if byte < 0xA0 else "text"
            return kind, byte & (0x1F if kind == "text" else 0xF)
        if 0xD4 <= byte <= 0xD8:
            return "extension", 1 << (byte - 0xD4)
        if byte not in _HEADERS:
            return "value", 0
        kind, width = _HEADERS[byte]
        return kind, int.from_bytes(self._take(width), "big")

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise _RefusedError("cut short")
        data = self._file.read(count)
        if len(data) < count:
            raise _RefusedError("cut short while it was read")
        self._left -= count
        self.digest.update(data)
        return data


def write_checkpoint(path: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays in the released format, entries in the order they stand.

    The file appears complete or not at all, and its checksum is recorded. Raises `InputError` if
    the folder cannot be written or `params` is no tree of arrays with string keys.
    """
    path = Path(path)
    _check_tree(params, str(path))
    try:
        files.write_file(path, _pack({"params": params}))
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


def parameter_shapes(module: Any, example: jax.ShapeDtypeStruct) -> Any:
    """Names and shapes of a module's parameters; nothing is computed."""
    return jax.eval_shape(module.init, seed_key(0), example)["params"]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest from JSON: `{"params/a/bias": [[768], "float32"], ...}`.

    Raises `InputError` if the file is missing, unreadable or no such JSON.
    """
    data = files.read_file(path)
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
    """Checks that parameters have the names, shapes and dtypes of `manifest` and could be weights.

    Raises one `InputError` that names `source` and, of each kind of deviation, the first parameter
    and how many there are.
    """
    _check_leaves(leaves(params), manifest, source)


def _check_leaves(
    arrays: Iterable[tuple[tuple[Any, ...], Any]], manifest: Manifest, source: str
) -> None:
    found: Manifest = {}
    infinite, large = [], []
    for keys, array in arrays:
        name = _join(keys)
        found[name] = tuple(array.shape), np.dtype(array.dtype).name
        # Only arrays of the expected dtype are known to be numbers.
        if found[name] == manifest.get(name) and array.size:
            low, high = float(array.min()), float(array.max())  # NaN if any is
            if not (math.isfinite(low) and math.isfinite(high)):
                infinite.append(name)
            elif max(-low, high) > _LARGEST_WEIGHT:
                large.append(name)
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
    for kind, names in (
        ("NaN or infinite values", infinite),
        (f"values beyond ±{_LARGEST_WEIGHT:.0f}", large),
    ):
        if names:
            deviations.append(f"{len(names)} with {kind}, first {names[0]!r}")
    if deviations:
        raise InputError(
            f"{source} does not fit the model: parameters {'; '.join(deviations)}; use the "
            "checkpoint that belongs to this model, undamaged"
        )


def largest_file(manifest: Manifest) -> int:
    """Bytes that a checkpoint of these parameters has at most."""
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in manifest.values())
    return sum(sizes) + _SLACK


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
