"""Fetches the released ImageNet models once into a cache folder on this machine."""

import contextlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from maskgit_jax.cache import cache_folder
from maskgit_jax.checkpoint import Manifest, check_params, parse_checkpoint, read_manifest
from maskgit_jax.errors import InputError

BASE_URL = "https://storage.googleapis.com/maskgit-public/checkpoints/"
"""Where the authors of MaskGIT publish `{tokenizer,maskgit}_imagenet{256,512}_checkpoint`."""

MODELS = ("imagenet256", "imagenet512")
KINDS = ("tokenizer", "maskgit")

_PACKAGE = Path(__file__).parent
_TIMEOUT_S = 30.0
_PAUSES_S = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each attempt to receive a file."""
_BLOCK = 1 << 20


class _CutError(Exception):
    """The connection ended before the file did; what was received is kept."""


class _RestartError(Exception):
    """The server cannot go on where the partial file ends."""


class _StatusError(Exception):
    """The server answered, but not with the file."""


class _UnreachableError(Exception):
    """No answer at all: no such host, refused, timed out."""


def fetch_model(
    name: str, *, base_url: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Returns the folder with `config.json` and the two checkpoints of a released model.

    `name` is one of `MODELS`. What the folder `<cache_dir>/<name>` lacks is downloaded from
    `base_url`, checked against the package's manifests and only then given its name; files already
    there are taken as they are. The defaults are the environment's MASKGIT_BASE_URL and
    MASKGIT_CACHE, then the published address and the user's cache folder.

    Raises `InputError` for an unknown name, an address that cannot be used or reached, a download
    that is cut off (a later call resumes it) or is not the model, and a folder that cannot be
    written.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r} cannot be fetched; expected one of {', '.join(MODELS)}")
    return fetch_files(
        name,
        base_url=base_url or os.environ.get("MASKGIT_BASE_URL") or BASE_URL,
        cache_dir=cache_dir or cache_folder(),
        manifests={
            kind: read_manifest(_PACKAGE / "manifests" / f"{kind}_{name}_manifest.json")
            for kind in KINDS
        },
        config=(_PACKAGE / "data" / f"{name}.json").read_bytes(),
    )


def fetch_files(
    name: str,
    *,
    base_url: str,
    cache_dir: str | os.PathLike[str],
    manifests: Mapping[str, Manifest],
    config: bytes,
) -> Path:
    """`fetch_model` with all it needs given: a manifest for each kind of checkpoint, the config.

    A lock per model lets one process download while others wait for its result.
    """
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", base_url):
        raise InputError(
            f"base URL {base_url!r} is no http(s) address; expected one like {BASE_URL}; "
            "correct it or MASKGIT_BASE_URL"
        )
    folder = Path(os.path.expanduser(cache_dir)).absolute() / name
    if _is_complete(folder, manifests, config):
        return folder
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{name}.lock"), name):
            for kind, manifest in manifests.items():
                url = f"{base_url.rstrip('/')}/{kind}_{name}_checkpoint"
                _fetch_file(url, folder / f"{kind}_checkpoint", manifest)
            # Last and always: a config of an older package version must not outlive it.
            temporary = folder / "config.json.part"
            temporary.write_bytes(config)
            temporary.replace(folder / "config.json")
    return folder


def _is_complete(folder: Path, manifests: Mapping[str, Manifest], config: bytes) -> bool:
    """Needs no lock, as files appear whole: a cache that only others can write is usable."""
    try:
        return (
            all((folder / f"{kind}_checkpoint").is_file() for kind in manifests)
            and (folder / "config.json").read_bytes() == config
        )
    except OSError:
        return False


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the model cache {folder} cannot be used ({error.strerror or error}); expected a "
            "folder that can be written and has space; set MASKGIT_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that fetches {name} ({path})", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_file(url: str, target: Path, manifest: Manifest) -> None:
    if target.is_file():
        return
    part = target.with_name(f"{target.name}.part")
    _download(url, part, target)
    try:
        params = parse_checkpoint(part.read_bytes(), source=url)
        check_params(params, manifest, source=url)
    except InputError as error:
        part.unlink()
        raise InputError(f"{error}; the download was deleted") from None
    part.replace(target)


def _download(url: str, part: Path, target: Path) -> None:
    """Completes `part`, going on where it ends; a cut connection is tried again a few times."""
    by_hand = f"put the file at {target} by hand"
    reason = ""
    for attempt, pause in enumerate(_PAUSES_S):
        time.sleep(pause)
        try:
            return _receive(url, part)
        except _RestartError as error:
            reason = str(error)
            part.unlink()
        except _StatusError as error:
            raise InputError(
                f"{url} answered {error}; expected the file; check the address "
                f"(MASKGIT_BASE_URL) or {by_hand}{_kept(part)}"
            ) from None
        except _UnreachableError as error:
            reason = str(error)
            # Once something was received, the network is worth waiting for.
            if attempt == 0:
                raise InputError(
                    f"{url} cannot be reached ({reason}); check the network and the address "
                    f"(MASKGIT_BASE_URL) or {by_hand}{_kept(part)}"
                ) from None
        except _CutError as error:
            reason = str(error)
    raise InputError(
        f"{url} was cut off in {len(_PAUSES_S)} attempts ({reason}); check the network and run "
        f"again, or {by_hand}{_kept(part)}"
    )


def _receive(url: str, part: Path) -> None:
    """Adds the answer to one request to `part`, or to an empty one where the server starts anew."""
    offset = _size(part)
    with _open(url, offset) as response:
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != offset:
                raise _RestartError("the server sent another part of the file than asked for")
            total = int(span[2])
        else:
            offset, total = 0, response.length
        with (
            part.open("ab" if offset else "wb") as file,
            tqdm(
                desc=part.stem, initial=offset, total=total, unit="B", unit_scale=True
            ) as progress,
        ):
            while block := _read(response):
                file.write(block)
                progress.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    size = _size(part)
    if total is not None and size < total:
        raise _CutError(f"{size} of {total} bytes received")
    if total is not None and size > total:
        raise _RestartError(f"{size} bytes received of a file of {total}")


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    try:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            raise _RestartError("the server has no bytes after the partial file") from None
        raise _StatusError(f"HTTP {error.code} {_one_line(error.reason)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnreachableError(_one_line(getattr(error, "reason", error))) from None
    if response.status not in ((200, 206) if offset else (200,)):
        response.close()
        raise _StatusError(f"HTTP {response.status} {_one_line(response.reason)}")
    return response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # Unlike read(), read1() gives what came before a cut.
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(_one_line(error)) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(part: Path) -> str:
    size = _size(part)
    return f"; {size} bytes are kept in {part}, a rerun resumes there" if size else ""


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
