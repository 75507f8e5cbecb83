"""The released size, end to end, on random weights."""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import maskgit_jax
from maskgit_jax.checkpoints import layouts
from maskgit_jax.config import read_config
from tests.commands import ROOT
from tests.torch_writer import renamed, write_torch

# VmHWM: `getrusage` would count what the process was before it became another program.
FETCH = """
from maskgit_jax.checkpoints.download import fetch_model
fetch_model("imagenet256")
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9)
"""

API = """
import sys
import guidance
import maskgit_jax
model = maskgit_jax.load("imagenet256")
turtle = guidance.sketch(model, sys.argv[1], "mud turtle", num_samples=1, num_steps=2)
print(turtle.images.shape, round(float(turtle.structure_distance[0]), 6))
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def run(arguments: list[str], **env: str) -> tuple[str, float]:
    """What a command prints, and how many seconds it takes."""
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "*", **env},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, time.perf_counter() - start


@pytest.fixture
def large_folder():
    """A folder of gigabytes, which pytest's own would keep for three runs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_two_guided_steps_of_the_256_model_from_the_copies_files(large_folder, capsys):
    """Random weights in PyTorch's format, served, fetched, converted and sampled from."""
    config = read_config(Path(maskgit_jax.__file__).parent / "data" / "imagenet256.json")
    rng = np.random.default_rng(0)
    served, sizes = large_folder / "served", []

    def fill(path, x):
        # Gains of 1: at 0.02 all attention would be uniform.
        mean = float(path[-1].key == "scale")
        return mean + rng.standard_normal(x.shape, np.float32) / 50

    served.mkdir()
    for kind in layouts.KINDS:
        params = jax.tree_util.tree_map_with_path(fill, layouts.model_shapes(kind, config))
        sizes.append(sum(x.size for x in jax.tree.leaves(params)))
        arrays = renamed(kind, params, config, "maskgit-torch")
        write_torch(served / f"{kind}_imagenet256.ckpt", arrays, wrapped=True)
    del params, arrays
    # Released: 227 M together, of them the tokenizer 54.5 M and the transformer 172.5 M.
    assert [round(size / 1e6, 1) for size in sizes] == [54.5, 172.5]

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=served)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            "MASKGIT_BASE_URL": f"http://127.0.0.1:{server.server_port}",
            "MASKGIT_CACHE": str(large_folder / "cache"),
        }
        peak, fetch_seconds = run(["-c", FETCH], **env)
        server.shutdown()
    assert float(peak) < 2.5

    sketch = "--sketch=" + str(ROOT / "experiments" / "sketches" / "fish.png")
    # Nothing serves any more: all comes from the cache.
    _, sketch_seconds = run(
        [
            *("-m", "experiments.sketch", "--model=imagenet256", sketch, "--label=mud turtle"),
            *("--num_steps=2", "--num_samples=1", f"--output_dir={large_folder / 'out'}"),
        ],
        **env,
    )
    line = json.loads((large_folder / "out" / "results.jsonl").read_text())
    assert line["label"] == 35 and line["layers"] == "1,3,16,20,21,22"
    assert np.isfinite(line["structure_distance"]) and line["structure_distance"] > 0
    with Image.open(large_folder / "out" / line["file"]) as picture:
        assert picture.size == (256, 256)
    api, _ = run(["-c", API, sketch.removeprefix("--sketch=")], **env)
    assert api == f"(1, 256, 256, 3) {line['structure_distance']}\n"
    with capsys.disabled():
        print(
            f"\nfull size, 256 px: fetched and converted in {fetch_seconds:.1f} s with "
            f"{float(peak):.2f} GB at most; sketch with two steps {sketch_seconds:.1f} s"
        )
