"""A wheel of the project, installed elsewhere, runs every command from a folder of the user's.

The environment that it is installed into is new, but has the packages of the one that runs the
tests, so that nothing is downloaded: a `.pth` file adds their folder to its path. Python does not
follow the `.pth` files in that folder, by which an editable installation of the project would be
found: the project's modules are the wheel's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.commands import ROOT

PACKAGES = ("maskgit_jax", "guidance", "experiments")
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)

# One process imports the large packages once; each command is a child of it.
PROGRAM = """
import contextlib, io, json, os, runpy, sys, warnings
import flax.linen, jax, matplotlib.figure, scipy.stats
import maskgit_jax.model

warnings.simplefilter("ignore", RuntimeWarning)  # JAX has threads; none is in use yet
failed = {}
for name, (module, args) in json.load(sys.stdin).items():
    with open(f"{name}.txt", "w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
            status = 1
            try:
                sys.argv = [module, *args]
                runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as stop:
                status = stop.code or 0
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        if status != 0:
            failed[name] = status, output.read()[-3000:]
print(json.dumps([failed, maskgit_jax.__file__, jax.__file__]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves files in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    # Without isolation nothing is downloaded; older versions of setuptools make no wheels.
    major, minor = metadata.version("setuptools").split(".")[:2]
    isolation = [] if (int(major), int(minor)) < (70, 1) else ["--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation]
    subprocess.run([*pip, "-w", folder, folder / "source"], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    install = ["install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", interpreter, *install], check=True)
    (site_packages,) = folder.glob("lib/*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "packages_of_the_tests.pth").write_text("\n".join(sorted(others)) + "\n")
    return interpreter


@pytest.mark.slow
def test_a_wheel_holds_every_file(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name for name in files if ".ipynb_checkpoints" not in name}


@pytest.mark.slow
def test_every_command_runs_from_another_folder(python, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`maskgit (\w+)", readme)) <= set(COMMANDS)
    cases = {f"help of {name}": (name, ["--help"]) for name in COMMANDS}
    (sketches,) = python.parents[1].glob("lib/*/site-packages/experiments/sketches")
    house = f"--image={sketches}/house.png", "--label=house"
    two_steps = "--num_samples=2", "--num_steps=2"
    cases |= {
        "sketch": ("sketch", two_steps),
        "generate": ("generate", ["--labels=house,fish", "--num_samples=1", "--num_steps=2"]),
        "edit": ("edit", [*house, "--box=10,10,24,24", *two_steps, "--output_dir=edit"]),
        "stroke": ("stroke", [*house, "--auto=inversion", *two_steps, "--output_dir=stroke"]),
        "flags": ("sweep", ["--flagfile=experiments/flagfiles/quick.flags", "--dry_run"]),
        "preset": ("sweep", ["--preset=quick", "--dry_run"]),
        # The sample sketches, the judge's weights, the report's template.
        "sweep": ("sweep", ["--num_steps=1", "--score=classifier", "--keep=best_of_2"]),
        "report": ("report", ["--sweep_dir=sweep"]),
        "score": ("score", ["--samples=sweep/pictures", "--export=samples.npz"]),
    }
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "MASKGIT_CACHE": str(tmp_path / "cache"),
        # Most of the time goes into compiling.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [python, "-c", PROGRAM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    failed, package, jax = json.loads(result.stdout)
    assert failed == {}
    assert Path(package).is_relative_to(python.parents[1])
    assert not Path(jax).is_relative_to(python.parents[1])
    for name in ("flags", "preset"):
        assert (tmp_path / f"{name}.txt").read_text().startswith("40 items: 10 sketches")
    for name in ("out/sample_001.png", "samples/grid.png", "edit/sample_001.png"):
        assert (tmp_path / name).is_file()
    assert len(list((tmp_path / "sweep" / "pictures").glob("*.png"))) == 10
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert (
        "--compilation_cache\n      Keep compiled" in (tmp_path / "help of report.txt").read_text()
    )
