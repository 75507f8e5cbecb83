"""The sweep command, as a user runs it, with a small random model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from maskgit_jax.checkpoints import checkpoint
from tests.commands import ROOT, assert_refused, run_each
from tests.experiments.test_evaluate import write_random_model

SKETCHES = ROOT / "experiments" / "sketches"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    weights = write_random_model(folder / "model") / "maskgit_checkpoint"
    # As they are made, weights are so small that settings hardly matter.
    larger = jax.tree.map(lambda array: 8 * array, checkpoint.read_checkpoint(weights))
    checkpoint.write_checkpoint(weights, larger)
    return folder


def command(folder: Path, *flags: str, devices: int = 1, module="sweep") -> subprocess.Popen:
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        # The same programs are compiled by one process after the other.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", f"--model={folder}/model", *flags],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors[-3000:]
    return output


GRID = (
    f"--sketches={SKETCHES}/[bc]*.png",
    "--lambda_s=0,1",
    "--guidance_scale=0,0.5",
    "--layers=0;all",
    "--num_steps=2,3",
    "--seeds=2",
    "--batch_size=6",
)
NUM_ITEMS = 4 * 2 * 2 * 2 * 2 * 2


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    output = finish(command(folder, *GRID, "--output_dir=whole"))
    assert f"{NUM_ITEMS} items: 4 sketches × 2 seeds" in output
    assert "1 compilation" in output
    return folder / "whole"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def assert_same_sweep(folder: Path, other: Path) -> None:
    """Byte for byte, but for the log, which has times."""
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert names == {path.relative_to(other) for path in other.rglob("*")}
    for name in (
        "results.jsonl",
        "plan.json",
        *(f"pictures/{i:06d}.png" for i in range(NUM_ITEMS)),
    ):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
def test_every_item_is_the_picture_that_sketch_makes(folder, finished):
    found = lines(finished)
    assert [line["item"] for line in found] == list(range(NUM_ITEMS))
    assert len({line["ids_digest"] for line in found}) > NUM_ITEMS / 2
    for line in found[5], found[NUM_ITEMS - 2]:
        flags = [
            f"--{name}={line[name]}"
            for name in (
                "lambda_s",
                "guidance_scale",
                "layers",
                "num_steps",
                "seed",
                "sketch",
                "label",
            )
        ]
        finish(command(folder, *flags, "--num_samples=1", "--output_dir=one", module="sketch"))
        (alone,) = lines(folder / "one")
        distance = line["structure_distance"]
        assert alone["structure_distance"] == pytest.approx(distance, rel=1e-6, abs=2e-6)
        pictures = [
            np.asarray(Image.open(path))
            for path in (finished / line["file"], folder / "one" / alone["file"])
        ]
        np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
def test_sigterm_finishes_the_batch_in_hand(folder, finished):
    process = command(folder, *GRID, "--output_dir=stopped")
    log = folder / "stopped" / "log.jsonl"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    finish(process, status=143)
    batches = [json.loads(line)["items"] for line in log.read_text().splitlines()]
    assert 1 <= len(batches) < NUM_ITEMS / 6
    assert [line["item"] for line in lines(folder / "stopped")] == [
        item for batch in batches for item in batch
    ]
    finish(command(folder, *GRID, "--output_dir=stopped"))
    assert_same_sweep(folder / "stopped", finished)


@pytest.mark.slow
def test_two_hosts_of_four_devices_make_the_same_tokens(folder, finished):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        command(
            folder,
            *GRID,
            "--output_dir=shared",
            "--multihost",
            address,
            "--num_processes=2",
            f"--process_id={host}",
            devices=4,
        )
        for host in (0, 1)
    ]
    output = [finish(host) for host in hosts]
    assert "hosts: 2, devices: 8" in output[0]
    found, expected = lines(folder / "shared"), lines(finished)
    assert [line["ids_digest"] for line in found] == [line["ids_digest"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name, value in other.items():
            close = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert line[name] == close
    hosts_of_batches = [
        json.loads(line)["host"]
        for line in (folder / "shared" / "log.jsonl").read_text().splitlines()
    ]
    assert sorted(set(hosts_of_batches)) == [0, 1]
    assert abs(hosts_of_batches.count(0) - hosts_of_batches.count(1)) <= 1


@pytest.mark.slow
def test_the_best_of_several_candidates_is_kept(folder, finished):
    flags = (
        f"--sketches={SKETCHES}/house.png",
        "--lambda_s=1",
        "--num_steps=2",
        "--keep=best_of_5",
        "--score=structure",
        "--batch_size=3",
    )
    finish(command(folder, *flags, "--output_dir=best"))
    (line,) = lines(folder / "best")
    sketch = f"--sketch={SKETCHES}/house.png"
    own = (sketch, "--label=house", *flags[1:3], "--num_samples=5")
    finish(command(folder, *own, "--output_dir=five", module="sketch"))
    distances = [each["structure_distance"] for each in lines(folder / "five")]
    np.testing.assert_allclose(line["scores"], np.negative(distances), rtol=1e-6, atol=2e-6)
    assert line["candidate"] == np.argmin(distances)
    assert (folder / "best" / "pictures" / "000000.png").read_bytes() == (
        folder / "five" / f"sample_{line['candidate']:03d}.png"
    ).read_bytes()


def bad_flags(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Flags and the words that the error line must have."""
    table = folder / "list.csv"
    table.write_text(f"sketch,label\n{SKETCHES}/house.png,\n")
    twice = folder / "twice.csv"
    twice.write_text("sketch,label\n" + f"{SKETCHES}/house.png,house\n" * 2)
    (folder / "file").write_text("")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis").write_text("")
    return {
        "layer": (["--layers=early;99"], "layer 99"),
        "layer name": (["--layers=middle"], "early or late"),
        "lambda": (["--lambda_s=0.5,1.5"], "--lambda_s=0.5,1.5: expected a number from 0 to 1"),
        "lambda word": (["--lambda_s=0.5,much"], "--lambda_s=0.5,much"),
        "no lambda": (["--lambda_s="], "--lambda_s="),
        "lambda twice": (["--lambda_s=1,1.0"], "twice"),
        "steps": (["--num_steps=4,-1"], "--num_steps=4,-1"),
        "half a step": (["--num_steps=4.5"], "expected a whole number from 1"),
        "rates": (["--max_mask_rate=0.5,1", "--min_mask_rate=0.6"], "mask rates"),
        "glob": ([f"--sketches={folder}/*.jpg"], "no file found"),
        "twice": ([f"--sketches={twice}"], "same drawing"),
        "label": ([f"--sketches={table}"], "line 2: no label"),
        "no csv": ([f"--sketches={folder}/none.csv"], "none.csv"),
        "seeds": (["--seeds=0"], "--seeds=0"),
        "seed": (["--seed=4294967295", "--seeds=2"], "--seeds=2"),
        "keep": (["--keep=best"], "--keep=best"),
        "flagfile": ([f"--flagfile={folder}/none.flags"], "none.flags"),
        "output": ([f"--output_dir={folder}/file/out"], "--output_dir"),
        "other files": ([f"--output_dir={folder}/mine"], "other files"),
        "host": (["--process_id=1"], "--multihost"),
        "other sweep": ([f"--output_dir={folder}/whole"], "holds another run"),
        "sketch": (["--label=castle"], "castle"),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(folder, finished):
    # Networks are not loaded before all is checked.
    prepare = "sweep.load_model = None"
    assert_refused("sweep", bad_flags(folder), cwd=folder, prepare=prepare)


def test_flag_files_are_read(tmp_path):
    counts = {"demo": 10 * 5 * 3 * 2, "quick": 10 * 2 * 2}
    flags = {
        name: [f"--flagfile={ROOT}/experiments/flagfiles/{name}.flags", "--dry_run"]
        for name in counts
    }
    for name, ended in run_each("sweep", flags, cwd=tmp_path).items():
        assert ended.status is None, ended.errors
        assert ended.output.startswith(f"{counts[name]} items: 10 sketches")
    assert not list(tmp_path.iterdir())


def test_temperatures_and_the_rise_of_guidance_are_swept(tmp_path):
    cases = {
        "default": ([], ""),
        "rising": (["--guidance_schedule=rising"], ""),
        "grid": (
            ["--guidance_schedule=rising", "--guidance_power=0,1,4", "--token_temperature=0.8,1"],
            " × 2 token_temperature × 3 guidance_power",
        ),
    }
    flags = {name: [*given, "--dry_run"] for name, (given, _) in cases.items()}
    for name, ended in run_each("sweep", flags, cwd=tmp_path).items():
        count = 60 if name == "grid" else 10
        assert ended.output.startswith(f"{count} items: 10 sketches{cases[name][1]}\n"), ended


@pytest.mark.slow
def test_what_scores_is_loaded_before_the_plan_is_printed_and_the_model_is_loaded(tmp_path):
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{}")
    common = "--keep=best_of_2", "--num_steps=2", "--output_dir=sweep"
    cases = {
        f"{score} {name}": ([*common, f"--score={score}", f"--{score}={name}"], words)
        for score in ("clip", "classifier")
        for name, words in (("empty", "holds no config.json"), ("damaged", "damaged"))
    }
    assert_refused("sweep", cases, cwd=tmp_path, prepare="sweep.load_model = None")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "damaged"}
