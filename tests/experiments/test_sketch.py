"""The main job, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit_jax.images import read_image
from tests.commands import ROOT, TESTS, assert_refused

GOLDEN = TESTS / "golden" / "model"
SKETCH = ROOT / "experiments" / "sketches" / "fish.png"


def run(*args, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.sketch", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(SKETCH.parent.parent.parent)},
    )


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_sketch_becomes_pictures(tmp_path):
    flags = f"--sketch={SKETCH}", "--label=fish", "--num_steps=8", "--seed=3"
    result = run(*flags, "--num_samples=3", "--batch_size=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert {line["class_name"] for line in lines} == {"fish"}
    assert all(line["structure_distance"] > 0 for line in lines)
    assert {line["num_steps"] for line in lines} == {8}
    pictures = [read_image(tmp_path / "out" / line["file"]) for line in lines]
    assert all(picture.shape == (48, 48, 3) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 3
    grid = read_image(tmp_path / "out" / "grid.png")
    assert min(grid.shape[:2]) >= 2 * 192

    assert {(line["num_proposals"], line["dtype"]) for line in lines} == {(1, "float32")}

    # A sample is the same alone, and an earlier run's pictures do not stay beside the new ones.
    again = run(*flags, "--num_samples=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "sample_000.png"), pictures[0])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".lock", "grid.png", "plan.json", "results.jsonl", "sample_000.png"]


@pytest.mark.slow
def test_the_fast_sampler_and_half_precision(tmp_path):
    flags = f"--sketch={SKETCH}", "--label=fish", "--num_samples=1", "--num_steps=3"
    result = run(*flags, "--sampler=fast", "--dtype=bfloat16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = read_lines(tmp_path / "out" / "results.jsonl")
    assert (line["num_steps"], line["num_proposals"], line["dtype"]) == (3, 4, "bfloat16")


def bad_flags(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Flags and the words that the error line must have."""
    good = [f"--sketch={SKETCH}", "--label=fish"]
    shutil.copy(SKETCH, tmp_path / "grid.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.png").write_text("")
    png = SKETCH.read_bytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    frames = [Image.new("L", (32, 32), grey) for grey in (0, 128, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    shutil.copytree(GOLDEN, tmp_path / "model")
    (tmp_path / "model" / "tokenizer_checkpoint").unlink()
    return {
        "missing": (["--sketch=nowhere.png", "--label=fish"], "nowhere.png"),
        "folder": ([f"--sketch={tmp_path}", "--label=fish"], "irectory"),
        "text": ([f"--sketch={tmp_path}/text.png", "--label=fish"], "text.png"),
        "1x1": ([f"--sketch={tmp_path}/one.png", "--label=fish"], "1x1"),
        "0x0": ([f"--sketch={tmp_path}/empty.png", "--label=fish"], "empty.png"),
        "truncated": ([f"--sketch={tmp_path}/cut.png", "--label=fish"], "cut.png"),
        "frames": ([f"--sketch={tmp_path}/moving.gif", "--label=fish"], "3 frames"),
        "huge": ([f"--sketch={tmp_path}/huge.png", "--label=fish"], "megapixels"),
        "no label": ([f"--sketch={SKETCH}"], "--label"),
        "label": ([f"--sketch={SKETCH}", "--label=fsh"], "'fish'"),
        "number": ([f"--sketch={SKETCH}", "--label=10"], "0 to 9"),
        "lambda": ([*good, "--lambda_s=1.5"], "lambda_s is 1.5"),
        "nan": ([*good, "--guidance_scale=nan"], "guidance_scale is nan"),
        "word": ([*good, "--lambda_s=much"], "lambda_s"),
        "layer": ([*good, "--layers=99"], "layer 99"),
        "layers": ([*good, "--layers=1;2"], "--layers=1;2"),
        "rates": ([*good, "--min_mask_rate=0.9", "--max_mask_rate=0.5"], "mask rates"),
        "samples": ([*good, "--num_samples=0"], "--num_samples=0"),
        "steps": ([*good, "--num_steps=-1"], "--num_steps=-1"),
        "batch": ([*good, "--batch_size=0"], "--batch_size=0"),
        "seed": ([*good, "--seed=-1"], "--seed=-1"),
        "divergence": ([*good, "--divergence=kl"], "jeffreys"),
        "kernel": (
            [*good, "--kernel=fused", "--divergence=cross_entropy"],
            "the kernel fused has no divergence cross_entropy",
        ),
        "proposals": ([*good, "--num_proposals=0"], "--num_proposals=0: expected 1"),
        "sampler": ([*good, "--sampler=faster"], "published|fast"),
        "dtype": ([*good, "--dtype=float16"], "bfloat16"),
        "token": ([*good, "--token_temperature=inf"], "token_temperature is inf"),
        "power": ([*good, "--guidance_power=2"], "only --guidance_schedule=rising has one"),
        "rise": ([*good, "--guidance_schedule=falling"], "constant|rising"),
        "many steps": ([*good, "--num_steps=99999999999"], "--num_steps"),
        "one file": ([good[0], "--label=1", f"--model={tmp_path}/model"], "tokenizer_checkpoint"),
        "onto itself": (
            [*good, f"--sketch={tmp_path}/grid.png", f"--output_dir={tmp_path}"],
            "grid",
        ),
        "model": ([*good, f"--model={tmp_path}"], "config.json"),
        "no model": ([*good, "--model=imagenet"], "imagenet256"),
        "output": ([*good, f"--output_dir={tmp_path}/file/out"], "--output_dir"),
        "argument": ([*good, "fish.png"], "fish.png"),
        "flag": ([*good, "--lamda=1"], "lamda"),
        "fit": ([*good, "--fit=stretch"], "pad"),
    }


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path):
    root = SKETCH.parents[2]
    block = (root / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "num_steps=32" in block
    program = block.replace("num_steps=32", "num_steps=2") + "print(picture.shape)\n"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root
    )
    assert result.stdout == "(48, 48, 3)\n", result.stderr


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tmp_path):
    assert_refused("sketch", bad_flags(tmp_path), cwd=tmp_path)
    assert not (tmp_path / "out").exists()
