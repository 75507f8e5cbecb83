"""Compiled programs are kept from one start of a command to the next."""

import os
import subprocess
import sys

import jax
import pytest

from experiments.app.compiled import drop_oldest, keep_programs
from tests.commands import ROOT, run_each

NAMES = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX's settings, put back after the test; nothing is compiled meanwhile."""
    values = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.setenv("MASKGIT_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in values.items():
        jax.config.update(name, value)


def test_all_programs_are_kept_in_the_cache_folder(settings, tmp_path):
    keep_programs()
    folder = tmp_path / "cache" / "compiled"
    assert settings.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert settings.jax_persistent_cache_min_compile_time_secs == 0
    assert settings.jax_persistent_cache_min_entry_size_bytes == -1
    assert not list(folder.iterdir())


def test_jax_s_own_settings_come_first(settings, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    keep_programs()
    assert settings.jax_compilation_cache_dir == "/elsewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert not (tmp_path / "cache").exists()
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    before = settings.jax_persistent_cache_min_compile_time_secs
    keep_programs()
    assert settings.jax_persistent_cache_min_compile_time_secs == before


def test_a_folder_that_cannot_be_written_is_gone_without(settings, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKGIT_CACHE", str(tmp_path / "file" / "cache"))
    keep_programs()
    assert settings.jax_compilation_cache_dir is None

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("MASKGIT_CACHE", str(tmp_path / "read-only"))
    monkeypatch.setattr("experiments.app.compiled.tempfile.TemporaryFile", refuse)
    keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert capfd.readouterr() == ("", "")


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for number in range(6):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - number, 1000 - number))
    os.utime(tmp_path / "5-cache", (2000, 995))  # read again
    (tmp_path / "cut off").write_bytes(b"")
    (tmp_path / "folder").mkdir()

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    drop_oldest(tmp_path, 45, 100)
    assert names() == ["0-cache", "1-cache", "2-cache", "5-cache", "folder"]
    drop_oldest(tmp_path, 45, 2)
    assert names() == ["0-cache", "5-cache", "folder"]
    drop_oldest(tmp_path, 20, 2)
    assert names() == ["0-cache", "5-cache", "folder"]


def test_the_flag_says_no(tmp_path):
    program = (
        "import dataclasses, jax\n"
        "from experiments.app import cli\n"
        "Flags = dataclasses.make_dataclass('Flags', [])\n"
        "cli.run(lambda flags: print(jax.config.jax_compilation_cache_dir), Flags)\n"
    )
    for flags, found in ([], f"{tmp_path}/compiled"), (["--nocompilation_cache"], "None"):
        result = subprocess.run(
            [sys.executable, "-c", program, *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"MASKGIT_CACHE": str(tmp_path)},
        )
        assert (result.stdout, result.stderr) == (f"{found}\n", "")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs")
def test_a_cpu_of_another_instruction_set_has_programs_of_its_own():
    """The device's fingerprint, a part of the key that JAX finds programs by, has the features."""
    program = (
        "import jax\n"
        "from jax._src.lib import xla_client\n"
        "print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())\n"
    )
    own, again, other = (
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env=os.environ | {"XLA_FLAGS": flag},
        ).stdout
        for flag in ("", "", "--xla_cpu_max_isa=SSE4_2")
    )
    assert own == again != other


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKGIT_CACHE", str(tmp_path / "cache"))
    # Quicker to compile.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    sketch = ROOT / "experiments" / "sketches" / "fish.png"
    flags = [f"--model={ROOT}/tests/golden/model", f"--sketch={sketch}", "--label=1"]
    flags += ["--num_samples=3", "--batch_size=2", "--num_steps=2"]

    def start(name: str, *more: str):
        cases = {name: [*flags, *more, f"--output_dir={name}"]}
        return run_each("sketch", cases, cwd=tmp_path)[name]

    first, second = start("first"), start("second")
    assert first.compiled and first.from_cache == 0
    assert second.compiled == first.compiled and second.from_cache == len(second.compiled)
    for path in (tmp_path / "cache" / "compiled").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    damaged, mended = start("damaged"), start("mended")
    assert damaged.status is None and damaged.from_cache == 0
    assert "compilation cache" not in damaged.errors
    assert mended.from_cache == len(mended.compiled)
    for name in ("second", "damaged", "mended"):
        for path in (tmp_path / "first").glob("*.png"):
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()
