"""Fetches the released ImageNet models once into a cache folder on this machine.

The authors' address answers "AccessDenied" since 2026, so a copy of the same numbers in another
format stands behind it, and is converted (see `conversion`).
"""

import contextlib
import http.client
import os
import re
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import platformdirs
from filelock import FileLock, Timeout
from tqdm import tqdm

from maskgit_jax import files
from maskgit_jax.checkpoints import conversion
from maskgit_jax.checkpoints.checkpoint import (
    Manifest,
    check_file,
    check_params,
    largest_file,
    read_manifest,
    write_checkpoint,
)
from maskgit_jax.checkpoints.layouts import KINDS
from maskgit_jax.config import ModelConfig, read_config, write_config
from maskgit_jax.errors import InputError, printable


class Source(NamedTuple):
    """Where the files of the released models lie.

    Attributes:
      base_url: the folder's address.
      suffix: what follows `maskgit_imagenet256` in a file's name; "_checkpoint" is the released
        format, every other is converted.
    """

    base_url: str
    suffix: str

    def url(self, kind: str, name: str) -> str:
        """The address of one file."""
        return f"{self.base_url.rstrip('/')}/{kind}_{name}{self.suffix}"


RELEASED = "_checkpoint"
PYTORCH = ".ckpt"

SOURCES = (
    Source("https://storage.googleapis.com/maskgit-public/checkpoints/", RELEASED),
    Source("https://github.com/hmorimitsu/maskgit-torch/releases/download/weights/", PYTORCH),
)
"""The address that the authors published, then a copy of the same weights; tried in this order."""

MODELS = ("imagenet256", "imagenet512")

_PACKAGE = Path(str(resources.files("maskgit_jax")))
_TIMEOUT_S = 10.0
_PAUSES_S = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each attempt to receive a file."""
_BLOCK = 1 << 20


class _SourceError(Exception):
    """This source does not have the file; another may."""


class _CutError(Exception):
    """The connection ended before the file did, or the partial file, now deleted, was no use."""


class _UnreachableError(Exception):
    """No answer at all: no such host, refused, timed out."""


def cache_folder() -> Path:
    """The environment's MASKGIT_CACHE, else the user's cache folder; it need not exist.

    It is for what is worth keeping from one run to the next.
    """
    folder = os.environ.get("MASKGIT_CACHE") or platformdirs.user_cache_dir("maskgit_jax")
    return Path(os.path.expanduser(folder)).absolute()


def fetch_model(
    name: str, *, base_url: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Returns the folder with `config.json` and the two checkpoints of a released model.

    `name` is one of `MODELS`. What the folder `<cache_dir>/<name>` lacks is downloaded, converted
    where it is a copy in another format, checked against the package's manifests and only then
    given its name, and its checksum is recorded. Files already there are taken as they are. The
    files are looked for at `SOURCES`; with `base_url`, or the environment's MASKGIT_BASE_URL,
    there alone, in either format. The cache folder is the environment's MASKGIT_CACHE, else the
    user's.

    Raises `InputError` for an unknown name, an address that cannot be used, no source that has the
    file, a download that is cut off (a later call resumes it), and a folder that cannot be written.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r} cannot be fetched; expected one of {', '.join(MODELS)}")
    base_url = base_url or os.environ.get("MASKGIT_BASE_URL")
    return fetch_files(
        name,
        sources=own_sources(base_url) if base_url else SOURCES,
        cache_dir=cache_dir or cache_folder(),
        manifests={
            kind: read_manifest(
                _PACKAGE / "checkpoints" / "manifests" / f"{kind}_{name}_manifest.json"
            )
            for kind in KINDS
        },
        config=read_config(_PACKAGE / "data" / f"{name}.json"),
    )


def own_sources(base_url: str) -> tuple[Source, ...]:
    """An address that the user gave, which may have the files in either format."""
    return Source(base_url, RELEASED), Source(base_url, PYTORCH)


def fetch_files(
    name: str,
    *,
    sources: Sequence[Source],
    cache_dir: str | os.PathLike[str],
    manifests: Mapping[str, Manifest],
    config: ModelConfig,
) -> Path:
    """`fetch_model` with all it needs given: a manifest for each kind of checkpoint, the config.

    A lock per model lets one process download while others wait for its result.
    """
    for source in sources:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", source.base_url):
            raise InputError(
                f"base URL {source.base_url!r} is no http(s) address; expected one like "
                f"{SOURCES[0].base_url}; correct it or MASKGIT_BASE_URL"
            )
    folder = Path(os.path.expanduser(cache_dir)).absolute() / name
    if _is_complete(folder, manifests, config):
        return folder
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{name}.lock"), name):
            for kind, manifest in manifests.items():
                _fetch_file(kind, name, folder, sources, manifest, config)
            # Last and always: a config of an older package version must not outlive it.
            write_config(folder / "config.json", config)
    return folder


def _is_complete(folder: Path, manifests: Mapping[str, Manifest], config: ModelConfig) -> bool:
    """Needs no lock, as files appear whole: a cache that only others can write is usable."""
    try:
        return (
            all((folder / f"{kind}_checkpoint").is_file() for kind in manifests)
            and read_config(folder / "config.json") == config
        )
    except (OSError, InputError):
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


def _fetch_file(
    kind: str,
    name: str,
    folder: Path,
    sources: Sequence[Source],
    manifest: Manifest,
    config: ModelConfig,
) -> None:
    """Puts one checkpoint into the folder, from the first source that has it."""
    target = folder / f"{kind}_checkpoint"
    if target.is_file():
        return
    tried: list[str] = []
    for source in sources:
        url = source.url(kind, name)
        part = folder / f"{kind}{source.suffix}.part"
        try:
            _download(url, part, most=largest_file(manifest))
            _install(part, target, url, kind, source, manifest, config)
            return
        except _SourceError as error:
            tried.append(f"{url} ({error})")
    raise InputError(
        f"{kind}_{name}{RELEASED} cannot be fetched; tried {', '.join(tried)}; check the network "
        "and MASKGIT_BASE_URL, or bring the files by hand: python -m experiments.convert "
        f"--config={name} --source=FILES --output_dir=FOLDER makes a folder for --model=FOLDER"
    )


def _install(
    part: Path,
    target: Path,
    url: str,
    kind: str,
    source: Source,
    manifest: Manifest,
    config: ModelConfig,
) -> None:
    """Gives a download its name if it is the model; else deletes it."""
    try:
        _check_published(part, f"{kind}_{target.parent.name}{source.suffix}")
        if source.suffix == RELEASED:
            digest = check_file(part, manifest, source=url)
        else:
            params = _convert(part, kind, config)
            check_params(params, manifest, source=url)
    except InputError as error:
        part.unlink()
        raise _SourceError(f"{error}; the download was deleted") from None
    if source.suffix == RELEASED:
        part.replace(target)
        files.note_checksum(target, digest)
    else:
        write_checkpoint(target, params)
        part.unlink()


def _check_published(part: Path, name: str) -> None:
    """Compares a download with the published file's SHA-256, where the package knows it."""
    expected = (files.read_checksums(_PACKAGE / "checkpoints" / "manifests") or {}).get(name)
    if expected is not None and files.sha256(part) != expected:
        raise InputError(f"{name} is not the published file: its SHA-256 is not {expected[:12]}…")


def _convert(part: Path, kind: str, config: ModelConfig) -> conversion.Params:
    for weights in conversion.open_weights(part, config):
        if weights.kind == kind:
            return conversion.read_weights(weights, config)
    raise InputError(f"no {kind} in it")


def _download(url: str, part: Path, most: int) -> None:
    """Completes `part`, going on where it ends; a cut connection is tried again a few times.

    Raises:
      _SourceError: the file is not to be had there.
      InputError: the connection was cut again and again; what came is kept.
    """
    reason = ""
    for attempt, pause in enumerate(_PAUSES_S):
        time.sleep(pause)
        try:
            return _receive(url, part, most)
        except _SourceError as error:
            raise _SourceError(f"{error}{_kept(part)}") from None
        except _UnreachableError as error:
            reason = str(error)
            # Once something was received, the network is worth waiting for.
            if attempt == 0:
                raise _SourceError(f"cannot be reached: {reason}{_kept(part)}") from None
        except _CutError as error:
            reason = str(error)
    raise InputError(
        f"{url} was cut off in {len(_PAUSES_S)} attempts ({reason}); check the network and run "
        f"again{_kept(part)}"
    )


def _receive(url: str, part: Path, most: int) -> None:
    """Adds the answer to one request to `part`, or to an empty one where the server starts anew."""
    offset = _size(part)
    with _open(url, part, offset) as response:
        if response.status == 206:
            header = response.headers.get("Content-Range", "")
            span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", header, re.ASCII)
            if span is None or int(span[1]) != offset:
                part.unlink()
                raise _CutError("the server sent another part of the file than asked for")
            total = int(span[2])
        else:
            offset, total = 0, response.length
        if total is not None and total > most:
            raise _SourceError(
                f"answered {total} bytes, more than the {most} that the file can have"
            )
        if not offset:
            part.unlink(missing_ok=True)
        with (
            open(part, "ab", opener=_opened) as file,
            tqdm(
                desc=part.stem, initial=offset, total=total, unit="B", unit_scale=True
            ) as progress,
        ):
            received = offset
            while block := _read(response):
                received += len(block)
                if received > (most if total is None else total):
                    part.unlink()
                    if total is not None:
                        raise _CutError(f"{received} bytes received of a file of {total}")
                    raise _SourceError(
                        f"answered more than {most} bytes, which the file cannot have"
                    )
                file.write(block)
                progress.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    size = _size(part)
    if total is not None and size < total:
        raise _CutError(f"{size} of {total} bytes received")


def _opened(path: str, flags: int) -> int:
    """Opens a partial file, but not what a link of that name leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, as release downloads have them, but not out of encryption or HTTP."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        allowed = ("https:",) if request.full_url.startswith("https:") else ("https:", "http:")
        if not new_url.lower().startswith(allowed):
            reason = f"redirect out of {request.type}"
            raise urllib.error.HTTPError(new_url, code, reason, headers, file)
        return super().redirect_request(request, file, code, message, headers, new_url)


def _open(url: str, part: Path, offset: int) -> http.client.HTTPResponse:
    try:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            part.unlink()
            raise _CutError("the server has no bytes after the partial file") from None
        raise _SourceError(f"answered HTTP {error.code} {printable(error.reason)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnreachableError(printable(getattr(error, "reason", error))) from None
    if response.status not in ((200, 206) if offset else (200,)):
        response.close()
        raise _SourceError(f"answered HTTP {response.status} {printable(response.reason)}")
    return response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # Unlike read(), read1() gives what came before a cut.
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(printable(error)) from None


def _size(path: Path) -> int:
    """Bytes of a partial file. What is none of ours is removed: a link, a pipe, a second name."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return found.st_size
    path.unlink()
    return 0


def _kept(part: Path) -> str:
    size = _size(part)
    return f"; {size} bytes are kept in {part}, a rerun resumes there" if size else ""
