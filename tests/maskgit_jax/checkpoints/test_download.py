import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import platformdirs
import pytest
from filelock import FileLock
from flax import serialization

from maskgit_jax import files
from maskgit_jax.checkpoints import checkpoint, download
from maskgit_jax.checkpoints.checkpoint import manifest_of
from maskgit_jax.checkpoints.download import (
    KINDS,
    MODELS,
    PYTORCH,
    SOURCES,
    fetch_files,
    fetch_model,
)
from maskgit_jax.config import read_config, write_config
from maskgit_jax.errors import InputError
from tests.commands import ROOT
from tests.maskgit_jax.checkpoints.test_conversion import make_config, random_params
from tests.torch_writer import renamed, write_torch

NAME = "imagenet256"
CONFIG = make_config(multipliers=(2, 2), filters=8, hidden=24)


PARAMS = random_params(CONFIG)
FILES = {kind: serialization.to_bytes({"params": params}) for kind, params in PARAMS.items()}
MANIFESTS = {kind: manifest_of(params) for kind, params in PARAMS.items()}
TOTAL = len(FILES["tokenizer"])


class Server(ThreadingHTTPServer):
    """Serves FILES well, except that each of `answers` is given once, to the next request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{kind}_{NAME}_checkpoint": data for kind, data in FILES.items()}
        self.answers = []
        self.requests = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self.base_url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that are killed are part of the tests."""

    def ranges(self):
        """The Range headers of the requests for the first file."""
        return [
            header for path, header in self.requests if "tokenizer" in path and ".ckpt" not in path
        ]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Range"]))
        self.server.asked.set()
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        (self.server.answers.pop(0) if self.server.answers else serve)(self, data)

    def log_message(self, *args):
        pass

    def start(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def begin(handler, data) -> bytes:
    """Sends the head of a good answer; returns its body."""
    asked = handler.headers["Range"]
    offset = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if asked and offset >= len(data):
        handler.start(416, Content_Range=f"bytes */{len(data)}")
        return b""
    span = {"Content_Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if asked else {}
    handler.start(206 if asked else 200, Content_Length=len(data) - offset, **span)
    return data[offset:]


def serve(handler, data):
    handler.wfile.write(begin(handler, data))


def cut(handler, data):
    """Half of what is still missing, then the end of the connection."""
    body = begin(handler, data)
    handler.wfile.write(body[: len(body) // 2])


def cut_chunked(handler, data):
    """An answer without a length, which ends within a chunk."""
    handler.start(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%s\r\n%x\r\n" % (1000, data[:1000], 500) + data[1000:1100])


def without_length(handler, data):
    handler.start(200)
    handler.wfile.write(data)


def stall(handler, data):
    """Half of the file, then nothing for as long as the test takes."""
    body = begin(handler, data)
    handler.wfile.write(body[: len(body) // 2])
    handler.server.release.wait(20)


def silent(handler, data):
    handler.server.release.wait(20)


def wait_then_serve(handler, data):
    handler.server.release.wait(20)
    serve(handler, data)


def ignore_range(handler, data):
    handler.start(200, Content_Length=len(data))
    handler.wfile.write(data)


def status(code):
    def answer(handler, data):
        handler.send_error(code)

    return answer


def wrong_span(span):
    def answer(handler, data):
        handler.start(206, Content_Length=3, **({"Content_Range": span} if span else {}))
        handler.wfile.write(b"abc")

    return answer


def redirect_for_ever(handler, data):
    handler.start(302, Location=handler.path, Content_Length=0)


def page(content):
    def answer(handler, data):
        ignore_range(handler, content)

    return answer


def changed(change):
    """Another checkpoint instead, whole and with the right Content-Length."""
    params = jax.tree.map(np.copy, PARAMS["tokenizer"])
    change(params)
    return page(serialization.to_bytes({"params": params}))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0, 0.0))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def part(cache):
    """A download that was interrupted after 1000 bytes."""
    folder = cache / NAME
    folder.mkdir(parents=True)
    part = folder / "tokenizer_checkpoint.part"
    part.write_bytes(FILES["tokenizer"][:1000])
    return part


def fetch(server, cache):
    return fetch_files(
        NAME,
        sources=download.own_sources(server.base_url),
        cache_dir=cache,
        manifests=MANIFESTS,
        config=CONFIG,
    )


def check_folder(folder, checksums=True):
    found = sorted(os.listdir(folder))
    assert found[: -3 if checksums else 0] == ["checksums.json"][:checksums]
    assert found[-3:] == [
        "config.json",
        "maskgit_checkpoint",
        "tokenizer_checkpoint",
    ]
    assert read_config(folder / "config.json") == CONFIG
    for kind, data in FILES.items():
        assert (folder / f"{kind}_checkpoint").read_bytes() == data


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 900
    return message


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def failing(server, cache, answers) -> str:
    """The error line of a fetch that must leave no file, after which a good fetch succeeds."""
    server.answers = answers
    message = error_of(fetch, server, cache)
    server.answers = []
    folder = cache / NAME
    assert all(name.endswith(".part") for name in os.listdir(folder))
    check_folder(fetch(server, cache))
    return message


def test_fetches_once(server, cache, capfd):
    folder = fetch(server, cache)
    assert folder == cache / NAME
    check_folder(folder)
    assert server.requests == [(path, None) for path in server.files]
    out, err = capfd.readouterr()
    assert out == "" and "tokenizer_checkpoint" in err and "100%" in err and "waiting" not in err
    assert fetch(server, cache) == folder
    assert len(server.requests) == 2


def test_only_what_is_missing_is_fetched_and_the_config_is_renewed(server, cache):
    folder = fetch(server, cache)
    (folder / "maskgit_checkpoint").unlink()
    (folder / "config.json").write_text("{}")
    fetch(server, cache)
    check_folder(folder)
    assert [path for path, _ in server.requests[2:]] == [f"/maskgit_{NAME}_checkpoint"]


def test_files_put_by_hand_need_no_server(server, cache):
    folder = cache / NAME
    folder.mkdir(parents=True)
    for kind, data in FILES.items():
        (folder / f"{kind}_checkpoint").write_bytes(data)
    check_folder(fetch(server, cache), checksums=False)
    assert server.requests == []


def test_answer_without_length(server, cache):
    server.answers = [without_length]
    check_folder(fetch(server, cache))


@pytest.mark.parametrize("slash", ["", "/"])
def test_cut_half_way_is_resumed(server, cache, slash):
    server.answers = [cut, cut]
    server.base_url += slash
    check_folder(fetch(server, cache))
    first = TOTAL // 2
    second = first + (TOTAL - first) // 2
    assert server.ranges() == [None, f"bytes={first}-", f"bytes={second}-"]


def test_cut_chunk_is_resumed(server, cache):
    server.answers = [cut_chunked]
    check_folder(fetch(server, cache))
    assert server.ranges() in ([None, "bytes=1000-"], [None, "bytes=1100-"])


def test_stalled_download_is_resumed(server, cache, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.3)
    server.answers = [stall]
    check_folder(fetch(server, cache))
    assert server.ranges() == [None, f"bytes={TOTAL // 2}-"]


def test_cut_off_always_keeps_the_part_and_a_rerun_resumes(server, cache):
    message = failing(server, cache, [cut, cut, cut])
    size = 0
    for _ in range(3):
        size += (TOTAL - size) // 2
    part = cache / NAME / "tokenizer_checkpoint.part"
    assert message == (
        f"{server.base_url}/tokenizer_{NAME}_checkpoint was cut off in 3 attempts ({size} of "
        f"{TOTAL} bytes received); check the network and run again; "
        f"{size} bytes are kept in {part}, a rerun resumes there"
    )
    assert server.ranges()[3] == f"bytes={size}-"


def test_server_that_goes_away_after_a_cut(server, cache, monkeypatch):
    def cut_and_close(handler, data):
        server.socket.close()
        cut(handler, data)

    server.answers = [cut_and_close]
    message = error_of(fetch, server, cache)
    assert "was cut off in 3 attempts ([Errno 111] Connection refused)" in message
    assert f"{TOTAL // 2} bytes are kept" in message


def test_interrupted_download_is_resumed(server, cache, part):
    check_folder(fetch(server, cache))
    assert server.ranges() == ["bytes=1000-"]


def test_ignored_range_starts_again(server, cache, part):
    server.answers = [ignore_range]
    check_folder(fetch(server, cache))
    assert server.ranges() == ["bytes=1000-"]


@pytest.mark.parametrize("size", [TOTAL, TOTAL + 5])
def test_part_with_nothing_to_add_starts_again(server, cache, part, size):
    part.write_bytes(b"x" * size)
    check_folder(fetch(server, cache))
    assert server.ranges() == [f"bytes={size}-", None]


@pytest.mark.parametrize(
    "span", [None, "bytes 999-2000/3000", "bytes 1000-1002/*", "junk", "bytes 1000-1002/1001"]
)
def test_content_range_that_does_not_fit_starts_again(server, cache, part, span):
    server.answers = [wrong_span(span)]
    check_folder(fetch(server, cache))
    assert server.ranges() == ["bytes=1000-", None]


def test_part_of_another_file_is_found_out(server, cache, part):
    part.write_bytes(b"<html>" + b"x" * 994)
    message = failing(server, cache, [])
    assert "is a web page" in message and "; the download was deleted)," in message
    assert server.ranges() == ["bytes=1000-", None]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (404, "404 Not Found"),
        (403, "403 Forbidden"),
        (500, "500 Internal Server Error"),
        (503, "503 Service Unavailable"),
        (416, f"416 {HTTPStatus(416).phrase}"),
        (204, "204 No Content"),
    ],
)
def test_status(server, cache, code, text):
    message = failing(server, cache, [status(code)])
    url = f"{server.base_url}/tokenizer_{NAME}"
    assert message == (
        f"tokenizer_{NAME}_checkpoint cannot be fetched; tried {url}_checkpoint (answered HTTP "
        f"{text}), {url}.ckpt (answered HTTP 404 Not Found); check the network and "
        "MASKGIT_BASE_URL, or bring the files by hand: python -m experiments.convert "
        f"--config={NAME} --source=FILES --output_dir=FOLDER makes a folder for --model=FOLDER"
    )
    assert len(server.requests) == 4


def test_status_while_resuming_keeps_the_part(server, cache, part):
    message = failing(server, cache, [status(503)])
    assert f"HTTP 503 Service Unavailable; 1000 bytes are kept in {part}, a rerun" in message
    assert server.ranges() == ["bytes=1000-", "bytes=1000-"]


def test_redirects_without_end(server, cache):
    message = failing(server, cache, [redirect_for_ever] * 20)
    assert "answered HTTP 302" in message and "infinite loop" in message


def test_second_file_fails(server, cache):
    server.answers = [serve, status(404)]
    assert f"/maskgit_{NAME}_checkpoint (answered HTTP 404" in error_of(fetch, server, cache)
    assert sorted(os.listdir(cache / NAME)) == ["checksums.json", "tokenizer_checkpoint"]
    check_folder(fetch(server, cache))
    assert len(server.ranges()) == 1


def drop(params):
    del params["quantizer"]["codebook"]


def add(params):
    params["extra"] = {"bias": np.zeros(3, np.float32)}


def transpose(params):
    params["quantizer"]["codebook"] = params["quantizer"]["codebook"].T


def spoil(params):
    params["quantizer"]["codebook"][3, 2] = np.nan


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            page(b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"),
            "is a web page (HTML or XML)",
        ),
        (page(b"\n"), "no dict with the one entry 'params'"),
        (page(b""), "is empty"),
        (page(FILES["tokenizer"][:-1]), f"is not a whole Flax checkpoint ({TOTAL - 1} bytes"),
        (page(FILES["tokenizer"] + b"0"), "1 bytes after its end"),
        (page(FILES["maskgit"]), "first 'params/decoder/Conv_0/bias'"),
        (changed(drop), "missing, first 'params/quantizer/codebook'"),
        (changed(add), "1 unexpected, first 'params/extra/bias'"),
        (changed(transpose), "'params/quantizer/codebook': found (5, 7), expected (7, 5)"),
        (changed(spoil), "1 with NaN or infinite values, first 'params/quantizer/codebook'"),
    ],
)
def test_bad_content_is_deleted(server, cache, answer, found):
    message = failing(server, cache, [answer])
    url = f"{server.base_url}/tokenizer_{NAME}_checkpoint"
    assert message.startswith(f"tokenizer_{NAME}_checkpoint cannot be fetched; tried {url} ({url} ")
    assert found in message and "; the download was deleted)," in message
    assert server.ranges() == [None, None]


def test_refused_connection(cache, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        good, server.base_url = server.base_url, f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        message = error_of(fetch, server, cache)
    assert f"{server.base_url}/tokenizer_{NAME}_checkpoint (cannot be reached: [" in message
    assert "Connection refused" in message and "check the network" in message
    assert "python -m experiments.convert" in message
    server.base_url = good
    check_folder(fetch(server, cache))


def test_unknown_host(cache, server, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = error_of(fetch, server, cache)
    assert "cannot be reached: [Errno -2] Name or service not known" in message


def test_no_answer(cache, server, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    server.answers = [silent]
    assert "cannot be reached: timed out" in error_of(fetch, server, cache)


@pytest.mark.parametrize(
    "url", ["", "example.org/x", "file:///etc", "ftp://x/", "http://", "http://x/a b", "http://x\n"]
)
def test_base_url_that_is_no_address(cache, server, url):
    server.base_url = url
    message = error_of(fetch, server, cache)
    assert message == (
        f"base URL {url!r} is no http(s) address; expected one like {SOURCES[0].base_url}; "
        "correct it or MASKGIT_BASE_URL"
    )
    assert not cache.exists()


@pytest.mark.parametrize("url", ["http://[::1/", "http://x:port/", "http://127.0.0.1/ä"])
def test_base_url_that_cannot_be_asked(cache, server, url):
    server.base_url = url
    assert f"{url.rstrip('/')}/tokenizer" in error_of(fetch, server, cache)


def test_cache_that_is_no_folder(server, cache):
    cache.write_bytes(b"")
    message = error_of(fetch, server, cache)
    assert message == (
        f"the model cache {cache / NAME} cannot be used (Not a directory); expected a folder that "
        "can be written and has space; set MASKGIT_CACHE to another folder"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_full_disk(server, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "_opened", lambda path, flags: os.open("/dev/full", flags))
        message = error_of(fetch, server, cache)
    assert f"cache {cache / NAME} cannot be used (No space left on device)" in message
    check_folder(fetch(server, cache))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_place_of_the_part_is_not_followed(server, cache, tmp_path, part, link):
    own = tmp_path / "own"
    own.write_bytes(FILES["tokenizer"][:1000])
    part.unlink()
    link(own, part)
    check_folder(fetch(server, cache))
    assert server.ranges() == [None] and own.read_bytes() == FILES["tokenizer"][:1000]


def test_the_published_sha256_counts(server, cache, tmp_path, monkeypatch):
    name, good = f"tokenizer_{NAME}_checkpoint", hashlib.sha256(FILES["tokenizer"]).hexdigest()
    folder = tmp_path / "checkpoints" / "manifests"
    folder.mkdir(parents=True)
    monkeypatch.setattr(download, "_PACKAGE", tmp_path)
    (folder / "checksums.json").write_text(json.dumps({name: "0" * 64}))
    assert f"{name} is not the published file" in error_of(fetch, server, cache)
    (folder / "checksums.json").write_text(json.dumps({name: good}))
    check_folder(fetch(server, cache))


def test_threads_fetch_once(server, cache, capfd):
    server.answers = [wait_then_serve]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, server, cache)
        assert server.asked.wait(10)
        second = pool.submit(fetch, server, cache)
        err = ""

        def waits():
            nonlocal err
            err += capfd.readouterr().err
            return "waiting" in err

        until(waits)
        server.release.set()
        assert first.result() == second.result()
    check_folder(cache / NAME)
    assert len(server.requests) == 2
    err += capfd.readouterr().err
    lock = cache / f"{NAME}.lock"
    assert err.count(f"waiting for another process that fetches {NAME} ({lock})") == 1


PROGRAM = """
import sys
from pathlib import Path
from maskgit_jax.checkpoints.checkpoint import read_manifest
from maskgit_jax.config import read_config, write_config
from maskgit_jax.checkpoints.download import fetch_files, own_sources
url, cache, name, config, *manifests = sys.argv[1:]
fetch_files(
    name,
    sources=own_sources(url),
    cache_dir=cache,
    manifests={path.split("/")[-1]: read_manifest(path) for path in manifests},
    config=read_config(Path(config)),
)
"""


@pytest.fixture
def other_process(server, cache, tmp_path):
    for kind, manifest in MANIFESTS.items():
        (tmp_path / kind).write_text(json.dumps(manifest))
    write_config(tmp_path / "config.json", CONFIG)
    arguments = [server.base_url, str(cache), NAME, str(tmp_path / "config.json")]
    command = [sys.executable, "-c", PROGRAM, *arguments, *(str(tmp_path / kind) for kind in KINDS)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_second_process_waits_and_downloads_nothing(server, cache, other_process):
    server.answers = [wait_then_serve]
    cache.mkdir()
    with FileLock(cache / f"{NAME}.lock"):
        assert other_process.stderr.readline().startswith("waiting for another process")
        # What another process would do while it holds the lock.
        folder = cache / NAME
        for kind, data in FILES.items():
            (folder / f"{kind}_checkpoint").write_bytes(data)
    assert other_process.stderr.read() == ""
    assert other_process.wait(10) == 0
    check_folder(folder, checksums=False)
    assert server.requests == []


def test_killed_process_is_resumed(server, cache, other_process):
    server.answers = [stall]
    part = cache / NAME / "tokenizer_checkpoint.part"
    until(lambda: part.exists() and part.stat().st_size)
    other_process.kill()
    other_process.wait()
    size = part.stat().st_size
    check_folder(fetch(server, cache))
    assert server.ranges() == [None, f"bytes={size}-"]


@pytest.mark.parametrize("name", ["demo", "imagenet128", "", "../imagenet256"])
def test_unknown_model(name):
    message = error_of(fetch_model, name)
    assert message == f"model {name!r} cannot be fetched; expected one of imagenet256, imagenet512"


@pytest.fixture
def sources(monkeypatch):
    """What `fetch_model` hands to `fetch_files`."""
    handed = {}

    def note(name, **given):
        handed.update(given, name=name)
        return Path(given["cache_dir"], name)

    monkeypatch.setattr(download, "fetch_files", note)
    for variable in ("MASKGIT_CACHE", "MASKGIT_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    return handed


@pytest.mark.parametrize("name", MODELS)
def test_model_comes_with_the_package_s_manifests_and_config(sources, name):
    folder = fetch_model(name)
    assert folder == Path(platformdirs.user_cache_dir("maskgit_jax"), name)
    assert sources["sources"] == SOURCES
    assert sources["config"].class_names[35] == "mud turtle"
    positions = {"imagenet256": 257, "imagenet512": 1025}[name]
    embedding = "params/Embed_0/position_embeddings/embedding"
    assert sources["manifests"]["maskgit"][embedding] == ((positions, 768), "float32")
    assert len(sources["manifests"]["tokenizer"]) == 168


def test_arguments_come_before_the_environment(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKGIT_CACHE", "/from/environment")
    monkeypatch.setenv("MASKGIT_BASE_URL", "http://environment/")
    assert fetch_model(NAME) == Path("/from/environment", NAME)
    assert {source.base_url for source in sources["sources"]} == {"http://environment/"}
    assert fetch_model(NAME, base_url="http://argument/", cache_dir=tmp_path) == tmp_path / NAME
    assert {source.base_url for source in sources["sources"]} == {"http://argument/"}


def test_public_fetch_through_the_environment(server, cache, monkeypatch):
    monkeypatch.setenv("MASKGIT_CACHE", str(cache))
    monkeypatch.setenv("MASKGIT_BASE_URL", server.base_url)
    message = error_of(fetch_model, NAME)
    assert "of 168 missing" in message and "of wrong shape" in message
    assert os.listdir(cache / NAME) == []


@pytest.fixture
def copies(tmp_path):
    """The other project's files, by path."""
    files = {}
    for kind, params in PARAMS.items():
        arrays = renamed(kind, params, CONFIG, "maskgit-torch")
        path = write_torch(tmp_path / f"{kind}.ckpt", arrays, wrapped=True)
        files[f"/{kind}_{NAME}.ckpt"] = path.read_bytes()
    return files


@pytest.mark.parametrize("code", [403, 404, 500])
def test_the_copy_stands_in_for_the_published_files(server, cache, copies, code, capfd):
    """Both formats at one address: the released ones answer with an error."""
    server.files |= copies
    server.answers = [status(code), serve, status(code), serve]
    check_folder(fetch(server, cache))
    assert [path for path, _ in server.requests] == [
        f"/{kind}_{NAME}{suffix}" for kind in KINDS for suffix in ("_checkpoint", ".ckpt")
    ]
    assert fetch(server, cache) == cache / NAME
    assert len(server.requests) == 4
    noted = json.loads((cache / NAME / "checksums.json").read_text())
    assert noted == {
        f"{kind}_checkpoint": hashlib.sha256(data).hexdigest() for kind, data in FILES.items()
    } | {"config.json": files.sha256(cache / NAME / "config.json")}


def test_published_first_then_the_copy_elsewhere(server, cache, copies):
    """Two servers, as today: one that denies, one whose release downloads redirect to a third."""

    def redirect(handler, data):
        handler.start(302, Location=f"{third.base_url}{handler.path}?token=1", Content_Length=0)

    with Server() as published, Server() as third:
        for one in (published, third):
            threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        published.answers = [status(403)] * 2
        server.files |= copies
        server.answers = [redirect] * 3
        third.files |= {f"{path}?token=1": data for path, data in copies.items()}
        third.answers = [cut]
        folder = fetch_files(
            NAME,
            sources=(
                download.Source(published.base_url, download.RELEASED),
                download.Source(server.base_url, PYTORCH),
            ),
            cache_dir=cache,
            manifests=MANIFESTS,
            config=CONFIG,
        )
        check_folder(folder)
        assert [path for path, _ in published.requests] == list(published.files)[:2]
        size = len(copies[f"/tokenizer_{NAME}.ckpt"]) // 2
        # A cut within the redirected download resumes, through the redirect again.
        assert [span for _, span in third.requests] == [None, f"bytes={size}-", None]
        for one in (published, third):
            one.shutdown()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda copy: copy[: len(copy) // 2], "is not a whole PyTorch file"),
        (lambda copy: b"<html>Sign in</html>", "is a web page"),
        (lambda copy: copy.replace(b"FloatStorage", b"LongyStorage"), "Bad CRC-32"),
    ],
)
def test_a_bad_copy_is_deleted(server, cache, copies, content, found):
    path = f"/tokenizer_{NAME}.ckpt"
    good = copies[path]
    server.files |= {path: content(good)}
    server.answers = [status(404)]
    message = error_of(fetch, server, cache)
    assert found in message and "; the download was deleted)" in message
    assert os.listdir(cache / NAME) == []
    server.files[path] = good
    server.answers = [status(404)]
    check_folder(fetch(server, cache))


def test_a_download_without_end_is_stopped(server, cache, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SLACK", 1000)
    sent = []

    def endless(handler, data):
        handler.start(200)
        for _ in range(10_000):
            handler.wfile.write(bytes(1 << 20))
            sent.append(1)

    server.answers = [endless]
    message = error_of(fetch, server, cache)
    most = sum(x.nbytes for x in jax.tree.leaves(PARAMS["tokenizer"])) + 1000
    assert f"answered more than {most} bytes, which the file cannot have" in message
    assert len(sent) < 100 and os.listdir(cache / NAME) == []


def test_a_redirect_out_of_https_is_not_followed():
    request = urllib.request.Request("https://example.org/file")
    redirects = download._Redirects()
    with pytest.raises(urllib.error.HTTPError, match="redirect out of https"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://example.org/file")
    followed = redirects.redirect_request(request, None, 302, "Found", {}, "https://other.org/x")
    assert followed.full_url == "https://other.org/x"
