import contextlib
import errno
import json
import os
import signal
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from experiments.app import files, run_folder
from experiments.app.run_folder import Finished, RunFolder
from experiments.sweeps.plan import picture_file, sketch_file
from maskgit_jax.errors import InputError
from maskgit_jax.images import read_image

RECORD = {"model": "demo", "seeds": [0], "settings": {"lambda_s": [0.5]}, "sketches": []}
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def sweep_folder(path, host=0, num_hosts=1) -> RunFolder:
    return RunFolder(path, "sweep", key="item", host=host, num_hosts=num_hosts)


def make_folder(path, host=0, num_hosts=1, record=RECORD) -> RunFolder:
    folder = sweep_folder(path, host, num_hosts)
    folder.open(record, {sketch_file(0): PICTURE})
    return folder


def read_results(path) -> list[dict]:
    return run_folder.read_results(epath.Path(path), "item")


def add(folder: RunFolder, *numbers: int) -> None:
    """One batch."""
    lines = [{"item": number, "file": picture_file(number), "lambda_s": 0.5} for number in numbers]
    folder.add([Finished(PICTURE, line) for line in lines], {"items": list(numbers)})


def test_what_is_finished_is_found_again(tmp_path):
    add(make_folder(tmp_path / "sweep"), 0, 1)
    assert sorted(make_folder(tmp_path / "sweep").finished()) == [0, 1]
    np.testing.assert_array_equal(
        read_image(tmp_path / "sweep" / "pictures" / "000001.png"), PICTURE
    )
    np.testing.assert_array_equal(read_image(tmp_path / "sweep" / "sketches" / "000.png"), PICTURE)


def test_names_that_are_no_text_are_kept_in_ascii(tmp_path):
    sketch = os.fsdecode(b"caf\xc3\xa9_\xff.png")
    record = RECORD | {"sketches": [{"path": sketch, "label": 1, "digest": "0"}]}
    folder = make_folder(tmp_path / "sweep", record=record)
    line = {"item": 0, "file": picture_file(0), "sketch": sketch}
    folder.add([Finished(PICTURE, line)])
    folder.merge()
    assert (tmp_path / "sweep" / "plan.json").read_bytes().isascii()
    assert (tmp_path / "sweep" / "results.jsonl").read_bytes().isascii()
    assert read_results(tmp_path / "sweep")[0]["sketch"] == sketch
    make_folder(tmp_path / "sweep", record=record)  # goes on: the record is the same


class Bucket(MemoryFileSystem):
    """Stands in for Google Cloud Storage: other than on a disk, files are written as a whole."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    written: ClassVar[list] = []
    """Name and number of bytes of each object that is written."""

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **options):
        assert mode in ("rb", "wb"), "object stores do not append"
        file = super()._open(path, mode, **options)
        if mode == "wb":
            write = file.write

            def count(data):
                self.written.append((path, len(data)))
                return write(data)

            file.write = count
        return file


@pytest.fixture
def bucket() -> epath.Path:
    """An empty bucket."""
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.written.clear()
    return epath.Path("gs://bucket")


def test_a_bucket_serves_as_a_folder(bucket):
    path = bucket / "sweep"
    folder = make_folder(path, 0, 2)
    add(folder, 0, 1)
    other = make_folder(path, 1, 2)
    add(other, 2, 3)
    add(make_folder(path, 0, 2), 4)
    # An object for each batch and host, in which no other host writes.
    names = sorted(entry.name for entry in path.glob("*.jsonl"))
    assert names == [
        f"{name}.{batch}.jsonl"
        for name in ("log", "results")
        for batch in ("0-of-2.000000", "0-of-2.000004", "1-of-2.000002")
    ]
    assert sorted(other.finished()) == sorted(folder.finished()) == [0, 1, 2, 3, 4]
    # A batch that a kill has cut off before its lines were written is no result, and comes again.
    add(make_folder(path, 0, 2), 4)
    folder.merge()
    folder.merge()
    items = [json.loads(line)["item"] for line in (path / "results.jsonl").read_text().splitlines()]
    assert items == [0, 1, 2, 3, 4]
    log = [json.loads(line)["items"] for line in (path / "log.jsonl").read_text().splitlines()]
    assert log == [[0, 1], [4], [2, 3]]
    assert not list(path.glob("*-of-*"))
    assert sorted(other.finished()) == [0, 1, 2, 3, 4]
    assert (path / "pictures" / "000001.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="holds another run"):
        make_folder(path, record=RECORD | {"model": "other"})


def bytes_of_lines(path: epath.Path, num_items: int, batch_size: int = 8) -> int:
    """Bytes written for the results and the log of a sweep, without its pictures."""
    Bucket.written.clear()
    folder = make_folder(path)
    for first in range(0, num_items, batch_size):
        add(folder, *range(first, first + batch_size))
    folder.merge()
    return sum(size for name, size in Bucket.written if name.endswith(".jsonl"))


def test_what_a_bucket_is_sent_grows_with_the_items_not_with_their_square(bucket):
    few, many = (bytes_of_lines(bucket / str(count), count) for count in (64, 512))
    lines = (bucket / "512" / "results.jsonl").stat().length
    # Once when a batch is finished, once when all are merged; the log is shorter.
    assert 2 * lines < many < 4 * lines
    assert many == pytest.approx(8 * few, rel=0.1)


def test_a_bucket_without_its_package_is_one_line(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(epath.Path("gs://bucket").__class__, "mkdir", missing)
    with pytest.raises(InputError, match=r"install gcsfs .*: pip install 'maskgit_jax\[gcs\]'"):
        make_folder("gs://bucket/sweep")


@pytest.mark.parametrize("kept", [1, 5, 20])
def test_a_torn_line_is_repaired(tmp_path, kept):
    add(make_folder(tmp_path), 0, 1)
    results = tmp_path / "results.jsonl"
    whole = results.read_bytes()
    results.write_bytes(whole + whole[:kept])
    assert [line["item"] for line in read_results(tmp_path)] == [0, 1]
    add(make_folder(tmp_path), 2)
    assert results.read_bytes().startswith(whole)
    assert [line["item"] for line in read_results(tmp_path)] == [0, 1, 2]


def test_hosts_are_merged_in_order(tmp_path):
    first, second = (make_folder(tmp_path, host, 2) for host in (0, 1))
    add(second, 1, 3)
    add(first, 0, 2)
    assert not (tmp_path / "results.jsonl").exists() and not (tmp_path / "log.jsonl").exists()
    # Half a line of the other host is no result yet, and stays its own.
    part = tmp_path / "results.1-of-2.jsonl"
    part.write_bytes(part.read_bytes() + b'{"item"')
    assert sorted(first.finished()) == [0, 1, 2, 3]
    make_folder(tmp_path, 0, 2)
    assert part.read_bytes().endswith(b'{"item"')

    left = tmp_path / "pictures" / f".0123{files.PART}"
    left.write_bytes(b"killed")
    first.merge()
    assert not left.exists()
    merged = (tmp_path / "results.jsonl").read_bytes()
    assert [json.loads(line)["item"] for line in merged.splitlines()] == [0, 1, 2, 3]
    assert not list(tmp_path.glob("*-of-*"))
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["items"] for line in log] == [[0, 2], [1, 3]]
    alone = make_folder(tmp_path / "alone")
    add(alone, 0, 1, 2, 3)
    alone.merge()
    assert (tmp_path / "alone" / "results.jsonl").read_bytes() == merged


def test_other_folders_are_refused(tmp_path):
    add(make_folder(tmp_path / "sweep"), 0)
    other = RECORD | {"settings": {"lambda_s": [0.5, 1.0]}}
    with pytest.raises(InputError, match=r"lambda_s is \[0.5\] there, \[0.5, 1.0\]"):
        make_folder(tmp_path / "sweep", record=other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("all my work")
    with pytest.raises(InputError, match="holds other files"):
        make_folder(tmp_path / "full")
    (tmp_path / "sweep" / "plan.json").write_text("[1")
    with pytest.raises(InputError, match="damaged"):
        make_folder(tmp_path / "sweep")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        make_folder(tmp_path / "file" / "sweep")


def test_a_folder_is_checked_before_all_of_the_plan_is_known(tmp_path):
    sweep_folder(tmp_path / "new").check(RECORD)
    assert not list((tmp_path / "new").iterdir())
    make_folder(tmp_path / "new", record=RECORD | {"weights": "ab"})
    sweep_folder(tmp_path / "new").check(RECORD)
    with pytest.raises(InputError, match="model is demo there, other by these flags"):
        sweep_folder(tmp_path / "new").check(RECORD | {"model": "other"})
    with pytest.raises(InputError, match="weights is ab there, cd by these flags"):
        make_folder(tmp_path / "new", record=RECORD | {"weights": "cd"})


def test_a_damaged_line_is_named(tmp_path):
    folder = make_folder(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"item": 0}\nno line\n')
    with pytest.raises(InputError, match=r"results.jsonl is damaged: b'no line'"):
        folder.finished()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    add(folder, 0)

    def full(path, data):
        with open(path, "ab") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "append", full)
    with pytest.raises(InputError, match="No space left on device"):
        add(folder, 1)
    monkeypatch.undo()
    again = make_folder(tmp_path)
    assert sorted(again.finished()) == [0]
    add(again, 1)
    assert [line["item"] for line in read_results(tmp_path)] == [0, 1]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="broken"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


FILES = {"files": ["results.jsonl", "grid.png", "sample_000.png", "sample_001.png"]}


def sketch_folder(path, seed: int) -> RunFolder:
    folder = RunFolder(path, "sketch")
    folder.open({"seed": seed} | FILES)
    return folder


def test_a_run_of_other_settings_is_replaced_and_nothing_else(tmp_path):
    first = sketch_folder(tmp_path, 0)
    first.add([Finished(PICTURE, {"index": i, "file": f"sample_00{i}.png"}) for i in (0, 1)])
    (tmp_path / "sample_002.png").write_text("mine")
    assert sorted(sketch_folder(tmp_path, 0).finished()) == [0, 1]
    again = sketch_folder(tmp_path, 1)
    assert again.finished() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "sample_002.png"]
    more = FILES | {"files": [*FILES["files"], "sample_002.png"], "seed": 1}
    with pytest.raises(InputError, match=r"sample_002\.png there would be overwritten"):
        again.check(more)
    with pytest.raises(InputError, match=r"holds a run of experiments\.sketch: choose"):
        RunFolder(tmp_path, "edit").check(FILES)
    with pytest.raises(InputError, match=r"holds a run of experiments\.sketch: choose"):
        RunFolder(tmp_path, "generate").check({"seed": 1})
    (tmp_path / "plan.json").write_text('{"seed": 1}')
    with pytest.raises(InputError, match="holds a run of"):  # of nobody knows what
        sketch_folder(tmp_path, 1)
    assert sweep_folder(tmp_path).check({"seed": 1})  # as earlier versions wrote it


def test_a_second_run_is_told_who_has_the_folder(tmp_path):
    with RunFolder(tmp_path / "a", "sketch").claim(FILES):
        with (
            pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing there"),
            RunFolder(tmp_path / "a", "sketch").claim(FILES),
        ):
            pass
        assert (tmp_path / "a").exists()
    # What was never begun leaves nothing; hosts that share a run have no lock.
    assert not (tmp_path / "a").exists()
    with sweep_folder(tmp_path / "b", 0, 2).claim({}), sweep_folder(tmp_path / "b", 1, 2).claim({}):
        pass


def test_missing_batches_are_made_whole_and_a_signal_ends_them(tmp_path, capsys):
    folder, made = sketch_folder(tmp_path, 0), []

    def make(batch, first, progress):
        made.append((batch, first))
        progress(2)
        if batch == [2, 3] and not stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return [Finished(PICTURE, {"index": i, "file": f"{i}.png"}) for i in batch], None

    batches, stopped = [[0, 1], [2, 3], [4]], []
    for status in (143, None):
        with pytest.raises(SystemExit) if status else contextlib.nullcontext() as ended:
            folder.make_missing(batches, make, items=list, num_steps=lambda batch: 2)
        assert status is None or ended.value.code == status
        stopped.append(True)
        (tmp_path / "1.png").unlink()  # what a person has deleted comes again
    assert made == [([0, 1], True), ([2, 3], False), ([0, 1], True), ([4], False)]
    assert sorted(folder.finished()) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == "1 of 3 batches are finished\n"
