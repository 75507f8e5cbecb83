"""Damage, hostile input and kills by the hundred, by seed: what is tried, refused, told and silent.

    pytest -n 0 -s -m slow tests/test_campaign.py

prints the table. A row's `told` was loaded with a notice, its `equal` came out as it was written.
"""

import collections
import contextlib
import functools
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from PIL import Image

from guidance.strokes.energies import read_energy
from maskgit_jax import files
from maskgit_jax.checkpoints import checkpoint, conversion, download
from maskgit_jax.checkpoints.torch_files import TorchFile
from maskgit_jax.config import read_config
from maskgit_jax.errors import InputError, Notice
from tests.commands import ROOT, TESTS
from tests.experiments.test_evaluate import write_random_model
from tests.experiments.training import test_loop
from tests.maskgit_jax.checkpoints import test_download as downloads
from tests.test_devices import quick_to_compile
from tests.torch_writer import index_of, tensor, write_archive

pytestmark = pytest.mark.slow

GOLDEN = TESTS / "golden" / "model"
SKETCHES = ROOT / "experiments" / "sketches"
NUM_FLIPS, NUM_CUTS, NUM_KILLS = 200, 60, 10
SLACK = 96 << 20
"""Of memory: what a command takes that is refused later than another."""


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, collections.Counter]]:
    """What became of the inputs, by kind; printed at the end."""
    rows = collections.defaultdict(collections.Counter)
    yield rows
    columns = ("refused", "told", "equal", "silent")
    print(f"\n{'kind':40}{'tried':>8}" + "".join(f"{name:>8}" for name in columns))
    for kind, found in rows.items():
        cells = "".join(f"{found[name]:8}" for name in columns)
        print(f"{kind:40}{sum(found.values()):8}{cells}")


def outcome(read: Callable[[], object], expected: object) -> str:
    """What becomes of an input: one word of the table."""
    files._tell_once.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", Notice)
        try:
            found = read()
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            return "refused"
    if told:
        assert "\n" not in str(told[-1].message)
        return "told"
    return "equal" if same(found, expected) else "silent"


def same(found: object, expected: object) -> bool:
    if not isinstance(expected, dict):
        return found == expected
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], array) for name, array in expected.items()
    )


def read_released(path: Path) -> dict:
    return flatten_dict(checkpoint.read_checkpoint(path))


def read_torch(path: Path) -> dict:
    file = TorchFile(path)
    return {name: file[name] for name in file}


def read_safetensors(path: Path) -> dict:
    weights = conversion.open_weights(path, read_config(GOLDEN / "config.json"))
    return {name: array for half in weights for name, array in half.arrays.items()}


def write_safetensors(path: Path) -> None:
    arrays = {}
    for kind in conversion.KINDS:
        arrays |= flatten_dict(checkpoint.read_checkpoint(GOLDEN / f"{kind}_checkpoint"), sep=".")
    safetensors.numpy.save_file(arrays, path)


def write_energy(path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32))
    path.write_bytes(file.getvalue())


class Kind(NamedTuple):
    """Files that are damaged: one of them, whether checksums vouch for it, how it is read."""

    source: Path | Callable[[Path], None]
    recorded: bool
    read: Callable[[Path], object]


DEMO = ROOT / "maskgit_jax" / "models" / "demo"
SAMPLES = TESTS / "golden_torch"
JUDGE = ROOT / "experiments" / "demo_world" / "weights" / "judge_checkpoint"
KINDS = {
    "maskgit_checkpoint": Kind(GOLDEN / "maskgit_checkpoint", True, read_released),
    "tokenizer_checkpoint": Kind(GOLDEN / "tokenizer_checkpoint", True, read_released),
    "judge_checkpoint": Kind(JUDGE, True, read_released),
    "the demo's maskgit_checkpoint": Kind(DEMO / "maskgit_checkpoint", True, read_released),
    "maskgit_checkpoint without checksums": Kind(
        GOLDEN / "maskgit_checkpoint", False, read_released
    ),
    "model.safetensors": Kind(write_safetensors, True, read_safetensors),
    "model.safetensors without checksums": Kind(write_safetensors, False, read_safetensors),
    "PyTorch, maskgit-torch": Kind(SAMPLES / "maskgit.ckpt", False, read_torch),
    "PyTorch, open-muse": Kind(SAMPLES / "tokenizer_muse.bin", False, read_torch),
    "energy.npy": Kind(write_energy, True, functools.partial(read_energy, codebook_size=32)),
    "config.json": Kind(DEMO / "config.json", True, read_config),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(table, tmp_path, name):
    """One flipped bit or byte, then a cut, at places of the seed."""
    kind = KINDS[name]
    path = tmp_path / "file"
    if callable(kind.source):
        kind.source(path)
    else:
        shutil.copy(kind.source, path)
    if kind.recorded:
        files.note_checksum(path, files.sha256(path))
    whole, rng = path.read_bytes(), np.random.default_rng(16)
    with contextlib.redirect_stderr(io.StringIO()):
        expected = kind.read(path)
    read = functools.partial(kind.read, path)
    for i in range(NUM_FLIPS):
        place = int(rng.integers(len(whole)))
        flip = 1 << int(rng.integers(8)) if i % 2 else int(rng.integers(1, 256))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ flip]))
        table[f"{name}, flipped"][outcome(read, expected)] += 1
        with path.open("r+b") as file:
            file.seek(place)
            file.write(whole[place : place + 1])
    for size in sorted(rng.integers(len(whole), size=NUM_CUTS), reverse=True):
        os.truncate(path, size)
        table[f"{name}, cut short"][outcome(read, expected)] += 1
    flipped, cut = table[f"{name}, flipped"], table[f"{name}, cut short"]
    assert flipped.total() == NUM_FLIPS and flipped["silent"] == 0
    assert cut["refused"] + cut["told"] == NUM_CUTS and cut["told"] <= ("config" in name)
    if kind.recorded and name != "config.json":
        assert flipped["refused"] == NUM_FLIPS


def test_damaged_training_states(table, tmp_path):
    """Of a training that was finished, its weights, average and moments."""

    def read() -> dict:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            state = test_loop.fit(tmp_path / "run", num_steps=4)
        return {i: np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}

    expected, rng = read(), np.random.default_rng(17)
    saved = sorted(path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    saved = [path for path in saved if path.stat().st_size] + [tmp_path / "run" / "digests.json"]
    for i in range(NUM_CUTS):
        path = saved[i % len(saved)]
        whole = path.read_bytes()
        place = int(rng.integers(len(whole)))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << i % 8]) + whole[place + 1 :])
        table["training state, flipped"][outcome(read, expected)] += 1
        path.write_bytes(whole)
    found = table["training state, flipped"]
    assert found.total() == NUM_CUTS and found["silent"] == 0
    assert found["refused"] >= NUM_CUTS * (len(saved) - 1) // len(saved)


class Ended(NamedTuple):
    """How a command ended: exit status, seconds of processor time, most bytes, what it said."""

    status: int
    seconds: float
    peak: int
    errors: str


class Forks:
    """Commands as a user starts them, in a folder, each a fork of one process."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": quick_to_compile(),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_commands", "unchecked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        self._count = 0

    def run(self, *command: str, limit: float = 60, **rules) -> Ended:
        self._count += 1
        name = f"run{self._count}"
        line = [str(self.folder), 1, name, rules | {"limit": limit}, *command]
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._process.stdout.readline())
        errors = (self.folder / f"{name}.err").read_text(errors="replace")
        assert "Traceback" not in errors, (command, errors)
        return Ended(*ended, errors)

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("campaign")
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 17}
    pictures = {"image_size": 16, "latent_size": 4, "channel_multipliers": [1, 1, 1]}
    write_random_model(folder / "model", transformer=small, tokenizer=pictures)
    # As they are made, weights are so small that settings hardly matter.
    weights = folder / "model" / "maskgit_checkpoint"
    larger = jax.tree.map(lambda array: 8 * array, checkpoint.read_checkpoint(weights))
    checkpoint.write_checkpoint(weights, larger)
    forks = Forks(folder)
    yield forks
    forks.close()


def refuse(forks: Forks, table, kind: str, cases: dict[str, list[str]], size: int = 0) -> None:
    """Asserts that a command refuses each input with one line, soon and in little memory."""
    base = forks.run("sketch", "--sketch=nowhere.png", "--label=1").peak
    faults = []
    for name, command in cases.items():
        ended = forks.run(*command, limit=20)
        lines = ended.errors.splitlines()
        table[kind]["refused" if ended.status == 2 else "silent"] += 1
        if ended.status != 2 or not 1 <= len(lines) <= 2 or not lines[-1].isprintable():
            faults.append((name, ended.status, ended.errors[-300:]))
        if ended.seconds > 10 or ended.peak > base + 3 * size + SLACK:
            faults.append((name, f"{ended.seconds} s, {(ended.peak - base) >> 20} MB more"))
    assert not faults, "\n".join(map(str, faults))


def write_sparse(path: Path, start: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


BOMB = 30 << 20


def checkpoint_bombs(folder: Path) -> list[str]:
    """Models whose weights would take many times their size; all files have BOMB bytes at most."""
    params = b"\x81\xa6params"
    array = msgpack.packb(msgpack.ExtType(1, msgpack.packb([[2**40], "float32", b"1234"])))
    bombs = {
        "nils": params + b"\xdd" + struct.pack(">I", BOMB - 12) + b"\xc0" * (BOMB - 12),
        "nested": b"\x91" * BOMB,
        "empty_dicts": params + b"\xdd" + struct.pack(">I", BOMB - 12) + b"\x80" * (BOMB - 12),
        "names": params
        + (b"\xdf" + struct.pack(">I", BOMB // 6))
        + b"".join(b"\xa4%s\x80" % struct.pack(">I", i) for i in range(BOMB // 6)),
        "deep": params + b"\x81\xa1a" * (BOMB // 3 - 3),
        "entries": params + b"\xdf\xff\xff\xff\xff",
        "list": params + b"\xdd\xff\xff\xff\xff",
        "text": params + b"\x81\xdb\xff\xff\xff\xff",
        "claim": params + b"\x81\xa1a" + array,
        "in_array": params
        + b"\x81\xa1a\xc9"
        + (struct.pack(">I", BOMB - 20) + b"\x01\x93\xdd")
        + (struct.pack(">I", BOMB - 32) + b"\x80" * (BOMB - 32)),
    }
    for name, data in bombs.items():
        shutil.copytree(GOLDEN, folder / name)
        (folder / name / "maskgit_checkpoint").write_bytes(data)
    shutil.copytree(GOLDEN, folder / "sparse")
    write_sparse(folder / "sparse" / "tokenizer_checkpoint", params, 40 << 30)
    return [*bombs, "sparse"]


def test_checkpoint_bombs(table, forks):
    models = checkpoint_bombs(forks.folder)
    sketch = ["sketch", f"--sketch={SKETCHES}/fish.png", "--label=1"]
    cases = {name: [*sketch, f"--model={name}"] for name in models}
    refuse(forks, table, "msgpack bombs, sketch", cases, BOMB)
    flags = f"--config={GOLDEN}/config.json", "--output_dir=made"
    cases = {
        name: ["convert", f"--source={name}/maskgit_checkpoint,{GOLDEN}", *flags] for name in models
    }
    cases["sparse"] = ["convert", "--source=sparse", *flags]
    refuse(forks, table, "msgpack bombs, convert", cases, BOMB)


def test_archive_bombs(table, forks):
    flags = f"--config={GOLDEN}/config.json", "--output_dir=made"
    folder = forks.folder
    index = index_of({"a": tensor("0", (250_000,))})
    with zipfile.ZipFile(folder / "deflated.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", index)
        archive.writestr("archive/data/0", bytes(300 << 20))
    number = BOMB // 51
    members = b"".join(
        b"PK\x01\x02" + bytes(24) + struct.pack("<H", 5) + bytes(16) + b"%05x" % i
        for i in range(number)
    )
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, number % 65536, number % 65536, len(members), 0, 0
    )
    (folder / "directory.ckpt").write_bytes(members + end)
    dicts = b"\x80\x02" + b"}" * ((4 << 20) - 10) + b"."
    write_archive(folder / "dicts.ckpt", dicts, {})
    header = json.dumps({f"{i:06}": {} for i in range(BOMB // 14)}).encode()
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b" ")
    header = b'{"a":{"dtype":"F32","shape":[4294967296],"data_offsets":[0,17179869184]}}'
    (folder / "claim.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(99))
    names = "deflated.ckpt", "directory.ckpt", "dicts.ckpt", "header.safetensors"
    cases = {
        name: ["convert", f"--source={name}", *flags] for name in (*names, "claim.safetensors")
    }
    refuse(forks, table, "zip and safetensors bombs", cases, BOMB)


def test_config_bombs(table, forks):
    config = json.loads((GOLDEN / "config.json").read_text())
    changes = [
        ("transformer", {"num_layers": 2000}),
        ("transformer", {"num_layers": 999}),
        ("transformer", {"hidden_size": 2**40}),
        ("transformer", {"num_heads": 10**4000}),
        ("transformer", {"codebook_size": 2**20}),
        ("transformer", {"dropout_rate": 10**4000}),
        ("tokenizer", {"num_res_blocks": 10**6}),
        ("tokenizer", {"num_res_blocks": 60}),
        ("tokenizer", {"channel_multipliers": [1] * 10**5}),
        ("tokenizer", {"filters": 10**9}),
        ("class_names", ["a\x1b[2J", *list("bcdefghij")]),
        ("class_names", ["\ud800", *list("bcdefghij")]),
        ("class_names", ["", *list("bcdefghij")]),
        ("class_names", ["b", *list("bcdefghij")]),
        ("class_names", "x" * (3 << 20)),
        ("presets", {"masksketch": {"num_steps": [[1], [2, 3]]}}),
        ("presets", {"masksketch": {"num_steps": "\x1b]0;title\x07"}}),
        ("presets", {"\x1b[2J" * 1000: {}}),
    ]
    texts = [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 10**6,
        '{"transformer": {}, "transformer": {}}',
        json.dumps(config).replace('"num_heads"', '"num_layers": 4, "num_heads"'),
        "{" + ", ".join(f'"{i}": 0' for i in range(200_000)) + ', "7": 0}',
        " " * BOMB,
        '{"\ud800": 1}'.encode("utf-8", "surrogatepass"),
        b"\xff\xfe",
    ]
    for part, change in changes:
        changed = config.get(part, {}) | change if isinstance(change, dict) else change
        texts.append(json.dumps(config | {part: changed}))
    cases = {}
    for i, text in enumerate(texts):
        shutil.copytree(GOLDEN, forks.folder / f"config{i}")
        (forks.folder / f"config{i}" / "checksums.json").unlink()
        path = forks.folder / f"config{i}" / "config.json"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        sketch = ["sketch", f"--sketch={SKETCHES}/fish.png", "--label=1", f"--model=config{i}"]
        cases[f"{i} {text[:60]!r}"] = sketch
    refuse(forks, table, "config.json, bombs and nonsense", cases, BOMB)


def make_paths(folder: Path) -> list[str]:
    """Names that lead to no file that could be read."""
    os.mkfifo(folder / "fifo")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "empty").touch()
    (folder / "words").write_text("no weights, no picture")
    return ["fifo", "zero", "loop", "empty", "words", "model", "nowhere", "words/below", "n\0l", ""]


def test_paths_of_models(table, forks):
    paths = make_paths(forks.folder)
    flags = f"--config={GOLDEN}/config.json", "--output_dir=made"
    cases = {}
    for i, path in enumerate(name for name in paths if "\0" not in name):
        cases[f"convert {path}"] = ["convert", f"--source={path}", *flags]
        if path != "model":
            cases[f"model {path}"] = ["sketch", f"--sketch={SKETCHES}/fish.png", f"--model={path}"]
        for name in ("config.json", "maskgit_checkpoint", "tokenizer_checkpoint", "checksums.json"):
            if path and os.path.lexists(forks.folder / path):
                folder = forks.folder / f"path{i}{name}"
                shutil.copytree(GOLDEN, folder)
                (folder / name).unlink()
                (folder / name).symlink_to(forks.folder / path)
                sketch = ["sketch", f"--sketch={SKETCHES}/fish.png", "--label=1"]
                cases[f"{name} {path}"] = [*sketch, f"--model={folder.name}"]
    refuse(forks, table, "paths of models", cases)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_pictures(folder: Path) -> list[str]:
    """Files in place of a sketch that are to be refused."""
    (folder / "pictures").mkdir()
    png = (SKETCHES / "fish.png").read_bytes()
    files = {
        "cut.png": png[: len(png) // 2],
        "flipped.png": png[:40] + bytes([png[40] ^ 255]) + png[41:],
        "text.png": b"no picture",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(x) show\n",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    }
    for side in (30_000, 2**31 - 1):
        header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
        data = png_chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        head = png[:8] + png_chunk(b"IHDR", header)
        files[f"{side}.png"] = head + data + png_chunk(b"IEND", b"")
    header = png[:8] + png_chunk(b"IHDR", struct.pack(">2I5B", 64, 64, 8, 0, 0, 0, 0))
    text = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(300 << 20)))
    files["text_bomb.png"] = header + text + png_chunk(b"IEND", b"")
    for name, data in files.items():
        (folder / "pictures" / name).write_bytes(data)
    frames = [Image.new("L", (32, 32), grey) for grey in range(0, 250, 5)]
    frames[0].save(folder / "pictures" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 20_000)).save(folder / "pictures" / "large.png")
    Image.new("RGB", (1, 1)).save(folder / "pictures" / "one.png")
    return [f"pictures/{name}" for name in (*files, "moving.gif", "large.png", "one.png")]


def test_pictures(table, forks):
    pictures = make_pictures(forks.folder)
    paths = [name for name in ("fifo", "zero", "loop", "empty", "words", "model", "nowhere", "")]
    cases = {
        name: ["sketch", "--model=model", "--label=1", f"--sketch={name}"]
        for name in (*pictures, *paths)
    }
    refuse(forks, table, "pictures and their paths", cases, 1 << 20)


def control_characters(handler, data):
    handler.wfile.write(b"HTTP/1.1 403 \x1b[2J\x07gone\x9b\r\nContent-Length: 0\r\n\r\n")


def location(address: str):
    def answer(handler, data):
        handler.start(302, Location=address, Content_Length=0)

    return answer


def declared(size: object):
    def answer(handler, data):
        handler.start(200, Content_Length=size)
        handler.wfile.write(data)

    return answer


def many_headers(handler, data):
    handler.send_response(200)
    for i in range(500):
        handler.send_header(f"X-{i}", "x")
    handler.end_headers()


def long_header(handler, data):
    handler.start(200, X="x" * 100_000)


def chunks(start: bytes):
    def answer(handler, data):
        handler.start(200, Transfer_Encoding="chunked")
        handler.wfile.write(start + data)

    return answer


def no_http(handler, data):
    handler.wfile.write(b"\x1b]0;title\x07" * 1000)


def endless(handler, data):
    handler.start(200)
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 20))


ANSWERS = {
    "no end": endless,
    "control characters": control_characters,
    "no HTTP": no_http,
    "redirect for ever": downloads.redirect_for_ever,
    "redirect to a file": location("file:///etc/passwd"),
    "redirect to FTP": location("ftp://127.0.0.1/x"),
    "redirect to nowhere": location("http://\x1b[2J/"),
    "declared too much": declared(10**9),
    "declared far too much": declared("9" * 5000),
    "declared too little": declared(100),
    "declared no number": declared("\x1b[2J"),
    "many headers": many_headers,
    "a long header": long_header,
    "a chunk without size": chunks(b"zzz\r\n"),
    "a chunk of 2**70": chunks(b"400000000000000000\r\n"),
    "a page": downloads.page(b"<html>\x1b[2J</html>"),
    "msgpack bomb": downloads.page(b"\x81\xa6params\xdf\xff\xff\xff\xff"),
}
WITHOUT_LENGTH = "declared far too much", "declared no number"
"""Told nothing, the client takes what comes, which is good."""


@pytest.mark.parametrize("name", ANSWERS)
def test_servers(table, tmp_path, monkeypatch, name):
    """Each answer is given again and again; then the server is good."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(download, "_TIMEOUT_S", 1.0)
    monkeypatch.setattr(checkpoint, "_SLACK", 1 << 20)
    with downloads.Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            server.answers = [ANSWERS[name]] * 40
            if name in WITHOUT_LENGTH:
                table["servers"]["equal"] += 1
            else:
                assert downloads.error_of(downloads.fetch, server, tmp_path).isprintable()
                left = list((tmp_path / downloads.NAME).iterdir())
                assert all(path.suffix == ".part" for path in left)
                assert sum(path.stat().st_size for path in left) < 2 << 20
                server.answers = []
                table["servers"]["refused"] += 1
            downloads.check_folder(downloads.fetch(server, tmp_path))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("offset", ["9" * 5000, "²", "1000-1002/" + "9" * 5000])
def test_ranges_that_are_no_numbers(tmp_path, monkeypatch, offset):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0))
    folder = tmp_path / downloads.NAME
    folder.mkdir()
    (folder / "tokenizer_checkpoint.part").write_bytes(downloads.FILES["tokenizer"][:1000])
    with downloads.Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            server.answers = [downloads.wrong_span(f"bytes {offset}")]
            downloads.check_folder(downloads.fetch(server, tmp_path))
        finally:
            server.shutdown()
            thread.join()


def killed_runs(
    forks: Forks, table, seed: int, folder: str, most: int, command: list[str], times: int
) -> None:
    """Kills a command again and again, at changes to its folder by the seed; then lets it end."""
    kills, rng = 0, np.random.default_rng(seed)
    while kills < times:
        number = int(rng.integers(1, most))
        seconds = float(rng.choice([0, rng.uniform(0, 0.05)]))
        ended = forks.run(*command, limit=300, kill=[folder, number, seconds])
        if ended.status == 0:
            break
        assert ended.status in (-9, -14), ended
        kills += 1
        table[f"kills of {command[0]}"]["equal"] += 1
    assert kills >= times - 1, kills
    finish(forks, *command)


def finish(forks: Forks, *command: str) -> None:
    ended = forks.run(*command, limit=300)
    assert ended.status == 0, ended


def contents(folder: Path, without: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> dict:
    """The bytes of a folder's files, of JSON lines less the times."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in without:
            found[str(path.relative_to(folder))] = data = path.read_bytes()
            if path.suffix == ".jsonl":
                lines = [json.loads(line) for line in data.splitlines()]
                found[str(path.relative_to(folder))] = [
                    {name: value for name, value in line.items() if name not in drop}
                    for line in lines
                ]
    return found


def test_killed_sketches_come_out_the_same(table, forks):
    flags = "sketch", "--model=model", f"--sketch={SKETCHES}/fish.png", "--label=fish"
    flags += "--num_steps=2", "--batch_size=1", "--num_samples=14"
    finish(forks, *flags, "--output_dir=whole_sketch")
    command = [*flags, "--output_dir=killed_sketch"]
    killed_runs(forks, table, 1, "killed_sketch", 14, command, NUM_KILLS)
    times = "seconds_per_sample", "includes_compilation"
    whole, killed = (
        contents(forks.folder / name, (".lock",), times)
        for name in ("whole_sketch", "killed_sketch")
    )
    assert len(whole) == 17 and killed == whole


def test_killed_sweeps_come_out_the_same(table, forks):
    flags = "sweep", "--model=model", f"--sketches={SKETCHES}/[bc]*.png", "--lambda_s=0,1"
    flags += "--guidance_scale=0,0.5", "--seeds=2", "--num_steps=2", "--batch_size=2"
    finish(forks, *flags, "--output_dir=whole_sweep")
    command = [*flags, "--output_dir=killed_sweep"]
    killed_runs(forks, table, 2, "killed_sweep", 16, command, NUM_KILLS)
    whole, killed = (
        contents(forks.folder / name, (".lock", "log.jsonl"))
        for name in ("whole_sweep", "killed_sweep")
    )
    assert killed.keys() == whole.keys() and len(whole["results.jsonl"]) == 32
    results = ("results.jsonl", "plan.json", *(name for name in whole if "pictures" in name))
    assert len(results) == 34 and all(killed[name] == whole[name] for name in results)
    # Once more: nothing is left to do.
    log = (forks.folder / "killed_sweep" / "log.jsonl").read_bytes()
    finish(forks, *command)
    assert (forks.folder / "killed_sweep" / "log.jsonl").read_bytes() == log


def test_killed_trainings_come_out_the_same(table, forks):
    """First of the tokenizer, then of the transformer."""
    for name in ("whole_training", "killed_training"):
        shutil.copytree(forks.folder / "model", forks.folder / name)
    flags = "--num_images=16", "--num_held_out=8", "--sample_every=0", "--validate_every=0"
    flags += "--save_every=6", "--log_every=1", "--batch_size=4", "--num_steps=48"
    for command, options in (
        ("train_tokenizer", ("--config=model/config.json", "--num_warmup_steps=2")),
        ("train_transformer", ()),
    ):
        finish(forks, command, *flags, *options, "--model_dir=whole_training")
        command = [command, *flags, *options, "--model_dir=killed_training"]
        killed_runs(forks, table, 3, "killed_training", 40, command, NUM_KILLS // 2)
    noted = "checkpoints", "events", "digests.json"
    whole, killed = (
        {
            path: data
            for path, data in contents(forks.folder / name, (), ("images_per_second",)).items()
            if not any(word in path for word in noted)
        }
        for name in ("whole_training", "killed_training")
    )
    assert killed == whole
    for name in ("tokenizer_training", "transformer_training"):
        logged = whole[f"{name}/metrics.jsonl"]
        assert [record["step"] for record in logged] == list(range(1, 49))
