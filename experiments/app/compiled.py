"""Programs that JAX has compiled, kept from one start of a command to the next."""

import contextlib
import glob
import os
import re
import tempfile
import warnings
from pathlib import Path

import jax

from maskgit_jax.checkpoints.download import cache_folder

_MOST_BYTES = 2**30
_MOST_PROGRAMS = 4000
_WARNING = "Error (reading|writing) persistent compilation cache entry"


def keep_programs() -> None:
    """Makes JAX keep what it compiles in `cache_folder() / "compiled"`, of bounded size.

    JAX tells programs apart by what they compute, its version, the compiler's options and the
    device, on a CPU by its instruction sets: what another machine has compiled is not run here.

    Nothing is changed where JAX's own settings say otherwise (JAX_ENABLE_COMPILATION_CACHE,
    JAX_COMPILATION_CACHE_DIR), nor where the folder cannot be written.
    """
    if not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder() / "compiled"
    try:
        # For this user alone: what lies there is run.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            return
        with tempfile.TemporaryFile(dir=folder):
            pass
        # Unless JAX is told to bound it, by JAX_COMPILATION_CACHE_MAX_SIZE.
        if jax.config.jax_compilation_cache_max_size == -1:
            drop_oldest(folder, _MOST_BYTES, _MOST_PROGRAMS)
    except OSError:
        return
    # All programs: a start without compiling is the aim, and the small ones are many.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _replace_damaged(folder)


def _replace_damaged(folder: Path) -> None:
    """Goes without what cannot be read or written, silently, and deletes what cannot be read.

    JAX compiles such a program and warns, but never replaces an entry: one that a kill has cut
    short would be compiled at every start.
    """
    show = warnings.showwarning

    def show_others(message, *more, **options):
        found = re.match(f"{_WARNING} for '(.*?)'", str(message))
        if found is None:
            show(message, *more, **options)
        elif found[1] == "reading":
            for path in folder.glob(f"{glob.escape(found[2])}-*"):
                with contextlib.suppress(OSError):
                    path.unlink()

    warnings.showwarning = show_others
    warnings.filterwarnings("always", _WARNING, UserWarning)


def drop_oldest(folder: Path, most_bytes: int, most_files: int) -> None:
    """Deletes the files that were not read or written for longest, and empty ones.

    JAX can bound the folder too (jax_compilation_cache_max_size), but looks at all entries each
    time that it adds one: 64 ms with a thousand.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another process may delete some meanwhile, here and below.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    status = entry.stat()
                    used = max(status.st_atime, status.st_mtime) if status.st_size else 0.0
                    found.append((used, status.st_size, entry.path))
    found.sort(reverse=True)
    kept_bytes = 0
    for number, (used, size, path) in enumerate(found):
        kept_bytes += size
        if not used or number >= most_files or kept_bytes > most_bytes:
            with contextlib.suppress(OSError):
                os.unlink(path)
