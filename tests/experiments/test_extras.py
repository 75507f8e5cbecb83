"""Commands where the packages of an extra are not installed."""

import json
import os
import subprocess
import sys

from experiments.app.entry_point import commands
from tests.commands import ROOT

# Starts commands as `python -m` does, in one process, each where some packages are not found.
PROGRAM = """
import contextlib, io, json, runpy, sys
ended = []
for name, flags, missing in json.load(sys.stdin):
    output, errors, status = io.StringIO(), io.StringIO(), 0
    sys.argv = [name, *flags]
    there = {package: sys.modules.pop(package, None) for package in missing}
    sys.modules.update(dict.fromkeys(missing))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
    ended.append((status, output.getvalue(), errors.getvalue()))
    for package, module in there.items():
        del sys.modules[package]
        if module is not None:
            sys.modules[package] = module
print(json.dumps(ended))
"""
PACKAGES = {
    "train": ["optax", "orbax.checkpoint", "grain", "tensorboardX", "skimage"],
    "evaluate": ["matplotlib"],
    "sweep": ["jinja2", "matplotlib"],
    "edit": ["skimage"],
    "clip": ["transformers"],
    "onnx": ["onnxruntime"],
}
TRAININGS = [name for name in commands() if name.startswith(("train_", "tune_"))]
NEEDING = [
    *(("train", name, []) for name in TRAININGS),
    ("evaluate", "attention", []),
    ("evaluate", "evaluate", ["--lambda_s_curve=0,1", "--output_dir=out"]),
    ("evaluate", "evaluate_strokes", ["--output_dir=out"]),
    ("evaluate", "reconstruct", ["--output_dir=out"]),
    ("evaluate", "steps_study", ["--output_dir=out"]),
    ("sweep", "sweep", ["--dry_run"]),
    ("sweep", "report", ["--sweep_dir=out"]),
    ("edit", "stroke", ["--image=house.png", "--label=house", "--auto=inversion"]),
    ("clip", "sweep", ["--clip=openai/clip-vit-base-patch32", "--dry_run"]),
    ("onnx", "sweep", ["--classifier=network.onnx", "--dry_run"]),
]


def test_without_an_extra_a_command_says_how_to_install_it(tmp_path):
    (tmp_path / "network.onnx").touch()
    photo = (ROOT / "experiments/sketches/house.png").read_bytes()
    (tmp_path / "house.png").write_bytes(photo)
    everything = sorted({package for packages in PACKAGES.values() for package in packages})
    starts = [(name, flags, PACKAGES[extra]) for extra, name, flags in NEEDING]
    # All other commands show their help without any extra.
    others = [(name, ["--help"], everything) for name in commands() if name not in TRAININGS]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([*starts, *others]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    ended = json.loads(process.stdout)
    for (extra, name, _), (status, output, errors) in zip(NEEDING, ended, strict=False):
        assert (status, output, errors.count("\n")) == (2, "", 1), (name, errors)
        assert errors.startswith(f"{name}: "), errors
        assert errors.endswith(f": pip install 'maskgit_jax[{extra}]'\n"), errors
    for (name, *_), (status, output, errors) in zip(others, ended[len(starts) :], strict=True):
        assert (status, errors) == (0, ""), (name, errors)
        assert "\nFlags:\n" in output, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["house.png", "network.onnx"]
