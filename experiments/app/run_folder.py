"""The folder of a run: what is finished there stays, whatever stops the run.

    folder = RunFolder("out", "sketch")
    with folder.claim(record):  # before anything large is loaded
        folder.open(record | {"weights": ...})
        folder.make_missing(batches, make, ...)
        folder.merge()

`plan.json` is the record of the run that owns the folder. An item is finished when its line stands
in `results.jsonl`; its picture is written before. Where several hosts share a run, each appends to
files of its own, `results.HOST-of-HOSTS.jsonl` and `log.HOST-of-HOSTS.jsonl`. Object stores do not
append: there, each batch is an object, `results.HOST-of-HOSTS.ITEM.jsonl`, named after its first
item, and so is its entry in the log. At the end all are merged.
"""

import contextlib
import io
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from tqdm import tqdm

from experiments.app import cli
from experiments.app.files import PART, append, is_local, to_json, write_whole
from maskgit_jax.errors import InputError
from maskgit_jax.files import os_error
from maskgit_jax.images import png_bytes, read_image

RESULTS = "results.jsonl"
_LOG = "log.jsonl"
_PLAN = "plan.json"
_LOCK, _HOLDER = ".lock", ".holder"

Picture = UInt8[np.ndarray, "_ _ 3"]
Line = dict[str, Any]
"""What is known of a finished item: its number, its picture's `file`."""


class Finished(NamedTuple):
    """An item's picture and its line of `results.jsonl`, which must have `file`."""

    picture: Picture
    line: Line


Progress = Callable[[int], None]
"""To be called with the number of steps done."""
Make = Callable[[Any, bool, Progress], tuple[Sequence[Finished], Line | None]]
"""`make(batch, first, progress)`: the items of a batch, and what the log notes of it, if anything.

`first` is true of the batch that compiles."""


class RunFolder:
    """The folder of one run of a command, as one host sees it.

    `key` is the name of an item's number in its line.
    """

    def __init__(
        self,
        path: epath.PathLike,
        command: str,
        *,
        key: str = "index",
        host: int = 0,
        num_hosts: int = 1,
    ):
        self.path = epath.Path(path)
        self._command = command
        self._key = key
        self._host = f"{host}-of-{num_hosts}"
        self._alone = num_hosts == 1
        self._known: dict[str, dict[int, Line]] = {}

    @contextlib.contextmanager
    def claim(self, record: dict[str, Any]) -> Iterator[None]:
        """Checks the folder, and keeps other processes out of it; InputError if one is in.

        Hosts that share a run, and those on object stores, have files of their own instead. A
        folder in which nothing was begun is removed again.
        """
        self.check(record)
        if not (self._alone and is_local(self.path)):
            yield
            return
        path, holder = self.path / _LOCK, self.path / _HOLDER
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = holder.read_text() if holder.exists() else "another process"
            raise InputError(
                f"--output_dir={self.path}: {name} is writing there; wait until it ends, or choose "
                "another folder"
            ) from None
        except (OSError, NotImplementedError):
            pass  # a file system without locks; one that cannot be written is told below
        try:
            with self._writing():
                write_whole(holder, f"process {os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            holder.unlink(missing_ok=True)
            if not (self.path / _PLAN).exists():  # refused, or never begun
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            lock.release()

    def check(self, record: dict[str, Any]) -> bool:
        """Makes the folder, or looks whether the run may write there: is it this run's already?

        The record is what decides the results, as far as it is known. One with `files`, the names
        of all that the run will write but `plan.json`, is of a run that replaces an earlier one of
        the same command; others go on with their own folder alone.

        Raises:
          InputError: the folder belongs to another run, holds other files or cannot be written.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            # In this order: another host may just be writing the plan, and writes it first.
            there = {entry.name for entry in self.path.iterdir()}
            found = self._read_record()
        if found is not None:
            # Records of earlier versions do not name the command.
            command = found.get("command", self._command if "files" not in record else "?")
            if command != self._command:
                raise InputError(
                    f"--output_dir={self.path} holds a run of experiments.{command}: choose "
                    "another folder"
                )
            difference = first_difference(
                {name: found[name] for name in found if name in record},
                json.loads(to_json(record)),
            )
            if difference is None:
                return True
            if "files" not in record:
                raise InputError(
                    f"--output_dir={self.path} holds another run: {difference}; choose another "
                    "folder, or the flags of that run"
                )
        if "files" in record:
            own = {_PLAN, *(found or {}).get("files", ())}
            for name in record["files"]:
                if name in there - own:
                    raise InputError(
                        f"--output_dir={self.path}: {name} there would be overwritten, and is no "
                        "result of an earlier run; choose another folder, or move it away"
                    )
        elif any(not name.startswith(".") for name in there):
            raise InputError(f"--output_dir={self.path} holds other files: choose an empty folder")
        return False

    def open(self, record: dict[str, Any], shown: Mapping[str, Picture] | None = None) -> None:
        """Makes the folder of a run, or goes on with one; errors as for `check`.

        The record is all of it; `shown` are pictures to be written beside the results, by file.
        """
        record = {"command": self._command} | record
        goes_on = self.check(record)
        with self._writing():
            if not goes_on:
                # Of an earlier run, the lines come first: without its pictures, none is finished.
                for name in (self._read_record() or {}).get("files", ()):
                    (self.path / os.path.basename(name)).unlink(missing_ok=True)
                text = to_json(record, indent=1) + "\n"
                write_whole(self.path / _PLAN, text.encode())
            self._drop_torn_line()
        for name, picture in (shown or {}).items():
            if not (self.path / name).exists():
                self.write(name, encode_picture(name, picture))

    def finished(self) -> dict[int, Line]:
        """The lines of all finished items, of all hosts, by item."""
        return {line[self._key]: line for line in read_results(self.path, self._key, self._known)}

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of the run, all or nothing."""
        with self._writing():
            (self.path / name).parent.mkdir(exist_ok=True)
            write_whole(self.path / name, data)

    def add(self, finished: Sequence[Finished], entry: Line | None = None) -> None:
        """Finishes items of a batch, one at least: their pictures, then their lines.

        `entry` is what the log notes of the batch, such as times.
        """
        lines = [line for _, line in finished]
        with self._writing():
            for folder in {(self.path / line["file"]).parent for line in lines}:
                folder.mkdir(exist_ok=True)
            for picture, line in finished:
                write_whole(self.path / line["file"], encode_picture(line["file"], picture))
            # The log first: with the last line, another host may begin to merge.
            if entry is not None:
                self._write_lines(_LOG, [entry], lines[0][self._key])
            self._write_lines(RESULTS, lines, lines[0][self._key])

    def make_missing(
        self,
        batches: Sequence[Any],
        make: Make,
        *,
        items: Callable[[Any], Iterable[int]],
        num_steps: Callable[[Any], int],
    ) -> None:
        """Makes those of the run's batches whose items are not all finished, whole, as at first.

        Ctrl-C and SIGTERM end the process after the batch in hand, with status 130 and 143.
        `items` gives the numbers of a batch's items.
        """
        finished = {
            item
            for item, line in self.finished().items()
            if not is_local(self.path) or (self.path / line["file"]).exists()
        }
        missing = [batch for batch in batches if not finished >= set(items(batch))]
        if len(missing) < len(batches):
            print(f"{len(batches) - len(missing)} of {len(batches)} batches are finished")
        if not missing:
            return
        total, done = sum(map(num_steps, missing)), 0
        with (
            cli.signals_noticed() as signals,
            tqdm(total=total, unit="step", desc="compiling") as bar,
        ):

            def progress(step: int) -> None:
                if done + step > bar.n:
                    bar.set_description("sampling", refresh=False)
                    bar.update(done + step - bar.n)

            for batch in missing:
                made, entry = make(batch, batch is missing[0], progress)
                self.add([each for each in made if each.line[self._key] not in finished], entry)
                done += num_steps(batch)
                progress(0)
                if signals:
                    bar.close()
                    print("stopped; the same command goes on from here", file=sys.stderr)
                    sys.exit(128 + signals[0])

    def merge(self) -> None:
        """Puts together what all hosts have written: `results.jsonl`, by items, and `log.jsonl`.

        For when all hosts have finished: unfinished files are deleted.
        """
        lines = self.finished()
        data = b"".join(_to_bytes(lines[number]) for number in sorted(lines))
        with self._writing():
            merged = self.path / RESULTS
            if not merged.exists() or merged.read_bytes() != data:
                write_whole(merged, data)
            logs = sorted(self.path.glob(_parts_pattern(_LOG)))
            if logs:
                whole = self.path / _LOG
                texts = [path.read_bytes() for path in (whole, *logs) if path.exists()]
                # Entries may be there twice, if a merge was stopped.
                entries = dict.fromkeys(line for text in texts for line in text.splitlines())
                write_whole(whole, b"".join(entry + b"\n" for entry in entries))
            for part in (
                *self.path.glob(_parts_pattern(RESULTS)),
                *logs,
                # What kills left behind.
                *self.path.glob(f".*{PART}"),
                *self.path.glob(f"*/.*{PART}"),
            ):
                part.unlink()

    def _write_lines(self, name: str, lines: Sequence[Line], first: int) -> None:
        """Adds lines to this host's own part of `results.jsonl` or `log.jsonl`."""
        data = b"".join(map(_to_bytes, lines))
        if is_local(self.path):
            append(self._own(name), data)
        else:
            stem = name.removesuffix(".jsonl")
            write_whole(self.path / f"{stem}.{self._host}.{first:06d}.jsonl", data)

    def _own(self, name: str) -> epath.Path:
        """What this host appends to, on a local disk."""
        stem = name.removesuffix(".jsonl")
        return self.path / (name if self._alone else f"{stem}.{self._host}.jsonl")

    def _read_record(self) -> dict[str, Any] | None:
        plan = self.path / _PLAN
        if not plan.exists():
            return None
        with contextlib.suppress(ValueError):
            record = json.loads(plan.read_bytes())
            if isinstance(record, dict):
                return record
        raise InputError(f"{plan} is damaged: choose another --output_dir")

    def _drop_torn_line(self) -> None:
        for own in (self._own(RESULTS), self._own(_LOG)):
            if is_local(own) and own.exists():
                data = own.read_bytes()
                whole = data[: data.rfind(b"\n") + 1]
                if whole != data:
                    write_whole(own, whole)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what goes wrong while writing into `InputError`."""
        try:
            yield
        # etils raises ImportError for addresses whose file system is not installed.
        except ImportError as error:
            raise InputError(
                f"--output_dir={self.path}: cannot write there ({error}); for gs:// addresses: "
                "pip install 'maskgit_jax[gcs]'"
            ) from None
        except OSError as error:
            what = f"--output_dir={self.path}: cannot write there (what is finished is kept)"
            raise os_error(error, what, "choose another folder") from None


def read_results(
    folder: epath.Path, key: str = "index", known: dict[str, dict[int, Line]] | None = None
) -> list[Line]:
    """The lines of a run's finished items in their order, of all hosts; without a torn last line.

    Null is read as NaN. `known` is what earlier calls have read of the parts that never change,
    those on object stores; added to.

    Raises:
      InputError: a damaged line.
    """
    known = {} if known is None else known
    lines = {}
    for file in (folder / RESULTS, *folder.glob(_parts_pattern(RESULTS))):
        if file.name in known:
            lines |= known[file.name]
            continue
        try:
            found = _read_lines(file, key)
        except FileNotFoundError:
            continue  # not there yet, or just merged
        if not is_local(file) and file.name != RESULTS:
            known[file.name] = found
        lines |= found
    return [lines[item] for item in sorted(lines)]


def first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Words for the first entry in which two records differ; None if they agree."""
    flat_found, flat_expected = _flatten(found), _flatten(expected)
    for name in (*flat_expected, *flat_found):
        there, here = flat_found.get(name), flat_expected.get(name)
        if there != here:
            return f"{name} is {_short(there)} there, {_short(here)} by these flags"
    return None


def read_picture(path: epath.Path) -> Picture:
    """A picture as `RunFolder.add` wrote it; InputError if it cannot be read."""
    if path.suffix != ".npy":
        return read_image(path)
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete it and give the same command again"
        ) from None


def encode_picture(name: str, picture: Picture) -> bytes:
    """A picture as a file of this name holds it: `.npy` where it will be put together, else PNG."""
    if not name.endswith(".npy"):
        return png_bytes(picture)
    file = io.BytesIO()
    np.save(file, picture)
    return file.getvalue()


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    """Entries of records within the record, by their own names; sketches by their paths."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name == "sketches":
            flat["the list of sketches"] = [entry["path"] for entry in value]
            for entry in value:
                flat[f"{entry['path']} for class {entry['label']}"] = entry["digest"]
        elif isinstance(value, dict):
            flat |= value
        else:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parts_pattern(name: str) -> str:
    """What the parts of `results.jsonl` or `log.jsonl` are called until they are merged."""
    return f"{name.removesuffix('.jsonl')}.*-of-*.jsonl"


def _read_lines(file: epath.Path, key: str) -> dict[int, Line]:
    data, lines = file.read_bytes(), {}
    for text in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            line = json.loads(text)
            # Null stands for a number that was not finite.
            lines[line[key]] = {k: math.nan if v is None else v for k, v in line.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                f"{file} is damaged: {text[:40]!r}… is no line of a run; delete that line"
            ) from None
    return lines


def _to_bytes(line: Line) -> bytes:
    return to_json(line).encode() + b"\n"
