"""A sweep's folder: what is finished there stays, whatever stops the sweep.

An item is finished when its line stands in `results.jsonl`; its picture is written before. Where
several hosts share a sweep, each appends to files of its own, `results.HOST-of-HOSTS.jsonl` and
`log.HOST-of-HOSTS.jsonl`. Object stores do not append: there, each batch is an object,
`results.HOST-of-HOSTS.ITEM.jsonl`, named after its first item, and so is its entry in the log. At
the end all are merged.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from experiments.app.files import PART, append, is_local, to_json, write_whole
from experiments.sweeps.plan import first_difference
from experiments.sweeps.summary import RESULTS, Line, parts_pattern, read_results
from maskgit_jax.errors import InputError
from maskgit_jax.images import png_bytes

_LOG = "log.jsonl"


class Finished(NamedTuple):
    """An item's picture and its line of `results.jsonl`, which must have `item` and `file`."""

    picture: UInt8[np.ndarray, "H W 3"]
    line: Line


class SweepFolder:
    """The folder of one sweep, as one host sees it."""

    def __init__(self, path: epath.PathLike, host: int = 0, num_hosts: int = 1):
        self.path = epath.Path(path)
        self._host = f"{host}-of-{num_hosts}"
        self._alone = num_hosts == 1
        self._known: dict[str, dict[int, Line]] = {}

    def check(self, record: dict[str, Any]) -> None:
        """Makes the folder, or looks whether it is one to go on with.

        Args:
          record: of the plan, as far as it is known.

        Raises:
          InputError: the folder belongs to another plan, holds other files or cannot be written.
        """
        plan = self.path / "plan.json"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            # In this order: another host may just be writing the plan, and writes it first.
            used = any(not entry.name.startswith(".") for entry in self.path.iterdir())
            if plan.exists():
                self._check_plan(plan, record)
            elif used:
                raise InputError(
                    f"--output_dir={self.path} holds other files: choose an empty folder"
                )

    def open(self, record: dict[str, Any], sketches: Sequence[UInt8[np.ndarray, "H W 3"]]) -> None:
        """Makes the folder of a sweep, or goes on with one.

        Args:
          record: of the plan, all of it.
          sketches: in the plan's order, as the model sees them.

        Raises:
          InputError: as for `check`.
        """
        self.check(record)
        plan = self.path / "plan.json"
        with self._writing():
            if not plan.exists():
                text = to_json(record, indent=1, ensure_ascii=False) + "\n"
                write_whole(plan, text.encode())
            for name in ("pictures", "sketches"):
                (self.path / name).mkdir(exist_ok=True)
            for index, sketch in enumerate(sketches):
                if not (self.path / sketch_file(index)).exists():
                    write_whole(self.path / sketch_file(index), png_bytes(sketch))
            self._drop_torn_line()

    def finished(self) -> dict[int, Line]:
        """The lines of all finished items, of all hosts, by item."""
        return {line["item"]: line for line in read_results(self.path, self._known)}

    def add(self, finished: Sequence[Finished], entry: dict[str, Any]) -> None:
        """Finishes items of a batch, one at least: their pictures, then their lines.

        `entry` is what the log notes of the batch, such as times.
        """
        with self._writing():
            for picture, line in finished:
                write_whole(self.path / line["file"], png_bytes(picture))
            lines = [line for _, line in finished]
            # The log first: with the last line, another host may begin to merge.
            self._write_lines(_LOG, [entry], lines[0]["item"])
            self._write_lines(RESULTS, lines, lines[0]["item"])

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
            logs = sorted(self.path.glob(parts_pattern(_LOG)))
            if logs:
                whole = self.path / _LOG
                texts = [path.read_bytes() for path in (whole, *logs) if path.exists()]
                # Entries may be there twice, if a merge was stopped.
                entries = dict.fromkeys(line for text in texts for line in text.splitlines())
                write_whole(whole, b"".join(entry + b"\n" for entry in entries))
            for part in (
                *self.path.glob(parts_pattern(RESULTS)),
                *logs,
                # What kills left behind.
                *self.path.glob(f".*{PART}"),
                *self.path.glob(f"*/.*{PART}"),
            ):
                part.unlink()

    def _write_lines(self, name: str, lines: Sequence[dict[str, Any]], first: int) -> None:
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

    def _check_plan(self, plan: epath.Path, record: dict[str, Any]) -> None:
        try:
            found = json.loads(plan.read_text())
            known = {name: found[name] for name in found if name in record}
            difference = first_difference(known, json.loads(to_json(record)))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{plan} is damaged: choose another --output_dir") from None
        if difference:
            raise InputError(
                f"--output_dir={self.path} holds another sweep: {difference}; choose another "
                "folder, or the flags of that sweep"
            )

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
                "pip install -e '.[gcs]'"
            ) from None
        except OSError as error:
            raise InputError(
                f"--output_dir={self.path}: cannot write there ({error.strerror or error}); what "
                "is finished is kept: mend that and give the same command again, or choose another "
                "folder"
            ) from None


def sketch_file(index: int) -> str:
    """Where a plan's sketch lies in the folder."""
    return f"sketches/{index:03d}.png"


def picture_file(item: int) -> str:
    """Where an item's picture lies in the folder."""
    return f"pictures/{item:06d}.png"


def _to_bytes(line: dict[str, Any]) -> bytes:
    return to_json(line, ensure_ascii=False).encode() + b"\n"
