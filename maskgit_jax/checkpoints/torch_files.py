"""Reads the arrays of PyTorch checkpoints without PyTorch, and without running anything from them.

`torch.save` writes a zip archive: `NAME/data.pkl` says, in the language of Python's serialization,
which tensors there are, and `NAME/data/KEY` holds the numbers of each storage. That language can
name any function and have it called, so no general interpreter of it is used here: `_interpret`
knows the few instructions that a state dict is written with, and of functions the three names in
`_CONSTRUCTORS`, whose effects it has itself. Everything else is refused by name.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskgit_jax import files
from maskgit_jax.errors import InputError, printable

_CONSTRUCTORS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch.FloatStorage",
)
_LARGEST_INDEX = 4 << 20  # bytes of data.pkl; a tensor takes about a hundred
_MOST_INSTRUCTIONS = 1_000_000  # about twenty for a tensor
_MOST_AXES = 8
_MOST_READ = 4  # times the file's size: parts of a storage are read with all of it
_BYTES = np.dtype(np.float32).itemsize


class _RefusedError(Exception):
    """What the file holds is not what a state dict is made of."""


class _Name(NamedTuple):
    """A function or class that the file names; never looked up."""

    name: str


class _Storage(NamedTuple):
    """One member of the archive and how many float32 it holds."""

    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage: element [i, …] lies at offset + i · strides[0] + …"""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile(Mapping[str, np.ndarray]):
    """The float32 arrays of a PyTorch file by name; each is read when it is asked for.

    Takes a state dict, alone or under 'state_dict', as `torch.save` has written it since
    version 1.6. Sizes are checked against the archive before anything is allocated, and contents
    against its checksums.

    Attributes:
      shapes: of the arrays.
    """

    def __init__(self, path: Path):
        """Opens the file and reads its index.

        Raises:
          InputError: it is damaged, or holds anything but a state dict of float32 tensors.
        """
        self._path = path
        with self._reading():
            self._zip = _open_zip(path)
            self._members = _members(self._zip, path.stat().st_size)
            indices = [name for name in self._members if name.endswith("/data.pkl")]
            if len(indices) != 1:
                raise _RefusedError(
                    "a zip archive without a data.pkl; unpack it and give the files in it"
                )
            self._prefix = indices[0].removesuffix("data.pkl")
            order = self._members.get(f"{self._prefix}byteorder")
            if order is not None and self._bytes(order, 16).strip() != b"little":
                raise _RefusedError("numbers that are not little-endian")
            index = self._bytes(self._members[indices[0]], _LARGEST_INDEX)
            self._tensors = _state_dict(_interpret(index))
            for name, tensor in self._tensors.items():
                self._check(name, tensor)
            # Else small parts of one large storage would be read with all of it, again and again.
            total = sum(tensor.storage.size for tensor in self._tensors.values()) * _BYTES
            if total > _MOST_READ * path.stat().st_size:
                raise _RefusedError("tensors that are small parts of large storages")
        self._newest: tuple[_Storage, np.ndarray] | None = None
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        numbers = self._numbers(name, tensor.storage)
        strides = [_BYTES * stride for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :], tensor.shape, strides, writeable=False
        )
        # A copy of a part: a view would keep all of the storage.
        return view if view.size == numbers.size else view.copy()

    def _numbers(self, name: str, storage: _Storage) -> np.ndarray:
        """A storage, whole: so its checksum is compared. The newest is kept for its next part."""
        if self._newest is not None and self._newest[0] == storage:
            return self._newest[1]
        with self._reading():
            numbers = np.empty(storage.size, "<f4")
            with self._zip.open(self._member(storage)) as file:
                # Read to the end: there the archive's checksum is compared.
                view, filled = memoryview(numbers).cast("B"), 0
                while count := file.readinto(view[filled:]):
                    filled += count
                if filled < numbers.nbytes or file.read(1):
                    raise _RefusedError(f"a storage of another size than its entry for {name!r}")
        numbers = numbers.astype(np.float32, copy=False)
        self._newest = storage, numbers
        return numbers

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check(self, name: str, tensor: _Tensor) -> None:
        """Raises _RefusedError unless the tensor lies within its storage, and that in its file."""
        member = self._member(tensor.storage)
        if member.file_size != tensor.storage.size * _BYTES:
            raise _RefusedError(
                f"{name!r} with a storage of {tensor.storage.size} numbers in a member of "
                f"{member.file_size} bytes"
            )
        extent = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        size = math.prod(tensor.shape)
        # No larger than its storage: strides of 0 could make terabytes of one number.
        if not 0 < size <= tensor.storage.size or tensor.offset + extent >= tensor.storage.size:
            raise _RefusedError(
                f"{name!r} of shape {list(tensor.shape)}, which does not lie within its storage of "
                f"{tensor.storage.size} numbers"
            )

    def _member(self, storage: _Storage) -> zipfile.ZipInfo:
        try:
            return self._members[f"{self._prefix}data/{storage.key}"]
        except KeyError:
            raise _RefusedError(f"no member data/{storage.key}") from None

    def _bytes(self, member: zipfile.ZipInfo, most: int) -> bytes:
        if member.file_size > most:
            raise _RefusedError(f"{member.filename} of {member.file_size} bytes; at most {most}")
        return self._zip.read(member)

    def _reading(self) -> "_Reading":
        return _Reading(self._path)


def is_torch_archive(path: Path) -> bool:
    """Whether a zip archive has a PyTorch file's index; true of one too damaged to say."""
    try:
        with _open_zip(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    # Foreign bytes make zipfile raise several types.
    except Exception:
        return True


class _ArchiveFile(io.FileIO):
    """A file of which `zipfile`, opening it, reads no directory of millions of members."""

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_INDEX:
            raise _RefusedError(f"a directory of {size} bytes; at most {_LARGEST_INDEX}")
        return super().read(size)


def _open_zip(path: Path) -> zipfile.ZipFile:
    files.open_file(path).close()  # no pipe
    with _ArchiveFile(path) as file, zipfile.ZipFile(file):
        return zipfile.ZipFile(path)


class _Reading:
    """Turns whatever a foreign file makes the parsers raise into an InputError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or isinstance(error, MemoryError) or not isinstance(error, Exception):
            return
        if isinstance(error, _RefusedError):
            raise InputError(
                f"{self._path} holds {printable(error)}; expected a state dict of float32 tensors "
                "as torch.save writes it; nothing of it was run"
            ) from None
        raise InputError(
            f"{self._path} is not a whole PyTorch file ({printable(error) or kind.__name__}); it "
            "is cut short or damaged; fetch or copy it again"
        ) from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by name, none compressed, none twice, all together within its size."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _RefusedError(f"the compressed or encrypted member {member.filename!r}")
        if member.filename in members:
            raise _RefusedError(f"the member {member.filename!r} twice")
        members[member.filename] = member
        total += member.file_size
    if total > size:
        raise _RefusedError(f"members of {total} bytes in a file of {size}")
    return members


def _state_dict(found: Any) -> dict[str, _Tensor]:
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise _RefusedError("no dict of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _RefusedError(f"an entry {str(name)[:60]!r} that is no named tensor")
    return found


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def _interpret(index: bytes) -> Any:
    """What a data.pkl describes: dicts, lists, tuples, literals and tensors.

    A stack machine of the instructions of protocol 2, which `torch.save` writes. Python's own
    parser (`pickletools`) splits them; it runs nothing.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_marked() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for number, (opcode, argument, _) in enumerate(pickletools.genops(index)):
        if number == _MOST_INSTRUCTIONS:
            raise _RefusedError(f"more than {number} instructions")
        match opcode.name:
            case "PROTO":
                if argument != 2:
                    raise _RefusedError(f"serialization protocol {argument}; only 2 is read")
            case "MARK":
                marks.append(len(stack))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "TUPLE":
                stack.append(tuple(pop_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = pop_marked()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = pop_marked()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".")))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                # Attributes of a dict: torch notes its modules' versions there.
                stack.pop()
                _dict(stack[-1])
            case "STOP":
                return stack.pop()
            case name:
                raise _RefusedError(f"the instruction {name}, which no state dict needs")
    raise _RefusedError("no end")


def _named(name: str) -> _Name:
    if name not in _CONSTRUCTORS:
        raise _RefusedError(f"{name[:80]!r}, which is none of {', '.join(_CONSTRUCTORS)}")
    return _Name(name)


def _call(function: Any, arguments: Any) -> Any:
    """What one of the constructors makes; all have their effect here, none is run."""
    match function, arguments:
        case (_Name("collections.OrderedDict"), ()):
            return {}
        case (
            _Name("torch._utils._rebuild_tensor_v2"),
            (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
        ):
            numbers = (offset, *shape, *strides)
            if not all(type(n) is int and 0 <= n <= storage.size for n in numbers):
                raise _RefusedError("a tensor with an offset, size or stride out of its storage")
            if len(shape) != len(strides) or len(shape) > _MOST_AXES:
                raise _RefusedError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
            return _Tensor(storage, offset, shape, strides)
    raise _RefusedError("a call that no state dict needs")


def _storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Name("torch.FloatStorage"), str(key), str(), int(size)) if size >= 0:
            return _Storage(key, size)
    raise _RefusedError("a reference that is no float32 storage")


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _RefusedError("items added to what is no list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise _RefusedError("entries added to what is no dict")
    return value


def _set(target: Any, items: list[Any]) -> None:
    # No other keys: hashing a deeply nested tuple recurses without a limit, and large numbers can
    # be chosen to collide.
    if len(items) % 2 or not all(_is_key(key) for key in items[::2]):
        raise _RefusedError("a dict whose keys are no strings")
    _dict(target).update(zip(items[::2], items[1::2], strict=True))


def _is_key(key: Any) -> bool:
    return type(key) is str or (type(key) is int and 0 <= key < 2**31)
