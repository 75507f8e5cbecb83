"""The folder for what is worth keeping from one run to the next."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The environment's MASKGIT_CACHE, else the user's cache folder; it need not exist."""
    folder = os.environ.get("MASKGIT_CACHE") or platformdirs.user_cache_dir("maskgit_jax")
    return Path(os.path.expanduser(folder)).absolute()
