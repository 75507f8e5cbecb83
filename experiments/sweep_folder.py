"""A sweep's folder: what is finished there stays, whatever stops the sweep.

An item is finished when its line stands in `results.jsonl`; its picture is written before. Where
several hosts share a sweep, each appends to a file of its own, `results.HOST-of-HOSTS.jsonl`, and
the files are merged at the end.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from experiments.files import PART, append, to_json, write_whole
from experiments.summary import RESULTS, Line, read_results
from experiments.sweep_plan import first_difference
from maskgit_jax.errors import InputError
from maskgit_jax.images import png_bytes

_LOG = "log.jsonl"


class SweepFolder:
    """The folder of one sweep, as one host sees it."""

    def __init__(self, path: epath.PathLike, host: int = 0, num_hosts: int = 1):
        self.path = epath.Path(path)
        self._own = self.path / (
            RESULTS if num_hosts == 1 else f"results.{host}-of-{num_hosts}.jsonl"
        )

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
        return {line["item"]: line for line in read_results(self.path)}

    def add(self, picture: UInt8[np.ndarray, "H W 3"], line: Line) -> None:
        """Finishes an item: its picture, then its line, which must have `item` and `file`."""
        with self._writing():
            write_whole(self.path / line["file"], png_bytes(picture))
            append(self._own, _to_bytes(line))

    def log(self, entry: dict[str, Any]) -> None:
        """Notes what is no result, such as times."""
        with self._writing():
            append(self.path / _LOG, _to_bytes(entry))

    def merge(self) -> None:
        """Puts the lines of all hosts into `results.jsonl`, in the order of the items.

        For when all hosts have finished: unfinished files are deleted.
        """
        lines = self.finished()
        data = b"".join(_to_bytes(lines[number]) for number in sorted(lines))
        with self._writing():
            merged = self.path / RESULTS
            if not merged.exists() or merged.read_bytes() != data:
                write_whole(merged, data)
            for part in (
                *self.path.glob("results.*-of-*.jsonl"),
                # What kills left behind.
                *self.path.glob(f".*{PART}"),
                *self.path.glob(f"*/.*{PART}"),
            ):
                part.unlink()

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
        if self._own.exists():
            data = self._own.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                write_whole(self._own, whole)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what goes wrong while writing into `InputError`."""
        try:
            yield
        # etils raises ImportError for addresses whose file system is not installed.
        except (OSError, ImportError) as error:
            raise InputError(
                f"--output_dir={self.path}: cannot write there "
                f"({getattr(error, 'strerror', None) or error}); what is finished is kept: mend "
                "that and give the same command again, or choose another folder"
            ) from None


def sketch_file(index: int) -> str:
    """Where a plan's sketch lies in the folder."""
    return f"sketches/{index:03d}.png"


def picture_file(item: int) -> str:
    """Where an item's picture lies in the folder."""
    return f"pictures/{item:06d}.png"


def _to_bytes(line: dict[str, Any]) -> bytes:
    return to_json(line, ensure_ascii=False).encode() + b"\n"
