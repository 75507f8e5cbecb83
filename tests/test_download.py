import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from filelock import FileLock
from flax import serialization

from maskgit_jax import download
from maskgit_jax.checkpoint import manifest_of
from maskgit_jax.download import BASE_URL, KINDS, MODELS, fetch_files, fetch_model
from maskgit_jax.errors import InputError

NAME = "imagenet256"
CONFIG = b'{"transformer": {}}'
ROOT = Path(__file__).parents[1]


def make_params(kind="tokenizer"):
    rng = np.random.default_rng(len(kind))
    layer = {
        "kernel": rng.standard_normal((200, 100)).astype(np.float32),
        "bias": np.zeros(100, np.float32),
    }
    return {f"{kind}_0": layer}


FILES = {kind: serialization.to_bytes({"params": make_params(kind)}) for kind in KINDS}
MANIFESTS = {kind: manifest_of(make_params(kind)) for kind in KINDS}
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
        return [header for path, header in self.requests if "tokenizer" in path]


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
    params = make_params()
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
        NAME, base_url=server.base_url, cache_dir=cache, manifests=MANIFESTS, config=CONFIG
    )


def check_folder(folder):
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "maskgit_checkpoint",
        "tokenizer_checkpoint",
    ]
    assert (folder / "config.json").read_bytes() == CONFIG
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
    check_folder(fetch(server, cache))
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
        f"{TOTAL} bytes received); check the network and run again, or put the file at "
        f"{part.with_suffix('')} by hand; {size} bytes are kept in {part}, a rerun resumes there"
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
    assert "is a web page" in message and message.endswith("; the download was deleted")
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
    assert message == (
        f"{server.base_url}/tokenizer_{NAME}_checkpoint answered HTTP {text}; expected the file; "
        "check the address (MASKGIT_BASE_URL) or put the file at "
        f"{cache / NAME / 'tokenizer_checkpoint'} by hand"
    )
    assert len(server.requests) == 3


def test_status_while_resuming_keeps_the_part(server, cache, part):
    message = failing(server, cache, [status(503)])
    assert "HTTP 503 Service Unavailable; expected the file" in message
    assert message.endswith(f"1000 bytes are kept in {part}, a rerun resumes there")
    assert server.ranges() == ["bytes=1000-", "bytes=1000-"]


def test_redirects_without_end(server, cache):
    message = failing(server, cache, [redirect_for_ever] * 20)
    assert "answered HTTP 302" in message and "infinite loop" in message


def test_second_file_fails(server, cache):
    server.answers = [serve, status(404)]
    assert f"/maskgit_{NAME}_checkpoint answered HTTP 404" in error_of(fetch, server, cache)
    assert os.listdir(cache / NAME) == ["tokenizer_checkpoint"]
    check_folder(fetch(server, cache))
    assert len(server.ranges()) == 1


def drop(params):
    del params["tokenizer_0"]["bias"]


def add(params):
    params["extra"] = {"bias": np.zeros(3, np.float32)}


def transpose(params):
    params["tokenizer_0"]["kernel"] = params["tokenizer_0"]["kernel"].T


def spoil(params):
    params["tokenizer_0"]["kernel"][3, 2] = np.nan


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            page(b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"),
            "is a web page (HTML or XML)",
        ),
        (page(b"\n"), "holds int; expected a dict"),
        (page(b""), "is empty"),
        (page(FILES["tokenizer"][:-1]), f"is not a whole Flax checkpoint ({TOTAL - 1} bytes"),
        (page(FILES["tokenizer"] + b"0"), "unpack(b) received extra data"),
        (page(FILES["maskgit"]), "2 of 2 missing, first 'params/tokenizer_0/"),
        (changed(drop), "1 of 2 missing, first 'params/tokenizer_0/bias'"),
        (changed(add), "1 unexpected, first 'params/extra/bias'"),
        (changed(transpose), "'params/tokenizer_0/kernel': found (100, 200), expected (200, 100)"),
        (changed(spoil), "1 with NaN or infinite values, first 'params/tokenizer_0/kernel'"),
    ],
)
def test_bad_content_is_deleted(server, cache, answer, found):
    message = failing(server, cache, [answer])
    assert message.startswith(f"{server.base_url}/tokenizer_{NAME}_checkpoint ")
    assert found in message and message.endswith("; the download was deleted")
    assert server.ranges() == [None, None]


def test_refused_connection(cache, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        good, server.base_url = server.base_url, f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        message = error_of(fetch, server, cache)
    assert f"{server.base_url}/tokenizer_{NAME}_checkpoint cannot be reached" in message
    assert "Connection refused" in message and "check the network" in message
    assert f"put the file at {cache / NAME / 'tokenizer_checkpoint'} by hand" in message
    server.base_url = good
    check_folder(fetch(server, cache))


def test_unknown_host(cache, server, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = error_of(fetch, server, cache)
    assert "cannot be reached ([Errno -2] Name or service not known)" in message


def test_no_answer(cache, server, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    server.answers = [silent]
    assert "cannot be reached (timed out)" in error_of(fetch, server, cache)


@pytest.mark.parametrize(
    "url", ["", "example.org/x", "file:///etc", "ftp://x/", "http://", "http://x/a b", "http://x\n"]
)
def test_base_url_that_is_no_address(cache, server, url):
    server.base_url = url
    message = error_of(fetch, server, cache)
    assert message == (
        f"base URL {url!r} is no http(s) address; expected one like {BASE_URL}; "
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
def test_full_disk(server, cache):
    part = cache / NAME / "tokenizer_checkpoint.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    message = error_of(fetch, server, cache)
    assert f"cache {cache / NAME} cannot be used (No space left on device)" in message
    part.unlink()
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
import json, sys
from maskgit_jax.download import fetch_files
from maskgit_jax.checkpoint import read_manifest
url, cache, name, config, *manifests = sys.argv[1:]
manifests = {path.split("/")[-1]: read_manifest(path) for path in manifests}
fetch_files(name, base_url=url, cache_dir=cache, manifests=manifests, config=config.encode())
"""


@pytest.fixture
def other_process(server, cache, tmp_path):
    for kind, manifest in MANIFESTS.items():
        (tmp_path / kind).write_text(json.dumps(manifest))
    arguments = [server.base_url, str(cache), NAME, CONFIG.decode()]
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
    check_folder(folder)
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
    assert sources["base_url"] == BASE_URL
    assert "transformer" in json.loads(sources["config"])
    positions = {"imagenet256": 257, "imagenet512": 1025}[name]
    embedding = "params/Embed_0/position_embeddings/embedding"
    assert sources["manifests"]["maskgit"][embedding] == ((positions, 768), "float32")
    assert len(sources["manifests"]["tokenizer"]) == 168


def test_arguments_come_before_the_environment(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKGIT_CACHE", "/from/environment")
    monkeypatch.setenv("MASKGIT_BASE_URL", "http://environment/")
    assert fetch_model(NAME) == Path("/from/environment", NAME)
    assert sources["base_url"] == "http://environment/"
    assert fetch_model(NAME, base_url="http://argument/", cache_dir=tmp_path) == tmp_path / NAME
    assert sources["base_url"] == "http://argument/"


def test_public_fetch_through_the_environment(server, cache, monkeypatch):
    monkeypatch.setenv("MASKGIT_CACHE", str(cache))
    monkeypatch.setenv("MASKGIT_BASE_URL", server.base_url)
    message = error_of(fetch_model, NAME)
    assert "168 of 168 missing" in message and "2 unexpected" in message
    assert os.listdir(cache / NAME) == []
