"""The main job, as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskgit_jax.images import read_image
from tests.commands import ROOT, TESTS, assert_refused, run_each

GOLDEN = TESTS / "golden" / "model"
SKETCH = ROOT / "experiments" / "sketches" / "fish.png"


def start(*args, cwd) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sketch", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(SKETCH.parent.parent.parent)},
    )


def run(*args, cwd) -> subprocess.CompletedProcess:
    process = start(*args, cwd=cwd)
    output = process.communicate()
    return subprocess.CompletedProcess(args, process.returncode, *output)


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
    assert all(picture.shape == (96, 96, 3) for picture in pictures)
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
def test_several_proposals_and_half_precision(tmp_path):
    flags = f"--sketch={SKETCH}", "--label=fish", "--num_samples=1", "--num_steps=3"
    result = run(*flags, "--sampler=proposals", "--dtype=bfloat16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = read_lines(tmp_path / "out" / "results.jsonl")
    assert (line["num_steps"], line["num_proposals"], line["dtype"]) == (3, 4, "bfloat16")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    flags = f"--model={GOLDEN}", f"--sketch={SKETCH}", "--label=1", "--num_steps=300"
    flags += "--num_samples=12", "--batch_size=1"
    whole = run(*flags, "--output_dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    results, lengths = tmp_path / "stopped" / "results.jsonl", [0]
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = start(*flags, "--output_dir=stopped", cwd=tmp_path)
        while not results.exists() or len(results.read_bytes()) <= lengths[-1]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        errors = process.communicate()[1]
        assert process.returncode == status, errors
        assert "stopped; the same command goes on" in errors or status != 130
        lengths.append(len(results.read_bytes()))
    kept = {path.name: path.stat().st_mtime_ns for path in results.parent.glob("*.png")}
    assert 2 <= len(kept) < 12
    results.write_bytes(results.read_bytes()[:-5])  # killed while it wrote
    last = run(*flags, "--output_dir=stopped", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert last.stdout.splitlines()[-2:] == [
        line.replace("whole", "stopped") for line in whole.stdout.splitlines()
    ]
    for path in (tmp_path / "whole").glob("*.png"):
        assert (results.parent / path.name).read_bytes() == path.read_bytes(), path.name
    for name in sorted(kept)[:-1]:
        assert (results.parent / name).stat().st_mtime_ns == kept[name]  # not made again
    lines, others = (read_lines(tmp_path / name / "results.jsonl") for name in ("whole", "stopped"))
    for line in lines + others:
        del line["seconds_per_sample"], line["includes_compilation"]
    assert lines == others


@pytest.mark.slow
def test_only_what_the_record_names_is_replaced(tmp_path):
    flags = [f"--model={GOLDEN}", f"--sketch={SKETCH}", "--label=1", "--num_steps=1"]
    one, two = ([*flags, f"--num_samples={number}"] for number in (1, 2))
    (tmp_path / "own").mkdir()
    own = tmp_path / "own" / "sample_1234.png"
    own.write_text("mine")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "sample_001.png").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text('{"command": "generate"}')
    ended = run_each(
        "sketch",
        {
            "two": [*two, "--output_dir=own"],
            "one": [*one, "--output_dir=own"],
            "busy": [*two, "--output_dir=busy"],
            "not busy": [*one, "--output_dir=busy"],
            "other": [*one, "--output_dir=other"],
        },
        cwd=tmp_path,
    )
    assert [each.status for each in ended.values()] == [None, None, 2, None, 2]
    assert own.read_text() == (tmp_path / "busy" / "sample_001.png").read_text() == "mine"
    assert sorted(path.name for path in own.parent.glob("sample*")) == [
        "sample_000.png",
        "sample_1234.png",
    ]
    assert "busy: sample_001.png there would be overwritten" in ended["busy"].errors
    assert "--output_dir=other holds a run of experiments.generate" in ended["other"].errors


@pytest.mark.slow
def test_a_folder_of_sketches_gives_what_each_gives_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("fish.png", "ball.png"):
        shutil.copy(SKETCH.parent / name, tmp_path / "mine" / name)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/mine/cup_\xff.png")
    white = Image.new("RGBA", (192, 192), (255, 255, 255, 0))
    white.putalpha(ImageOps.invert(Image.open(SKETCH.parent / "cup.png").convert("L")))
    white.save(tmp_path / "cup.png")
    os.rename(tmp_path / "cup.png", odd)
    flags = [f"--model={GOLDEN}", "--num_steps=2", "--num_samples=2", "--batch_size=4"]
    alone = {
        name: [*flags, f"--sketch=mine/{name}.png", f"--label={label}", f"--output_dir={name}"]
        for name, label in (("ball", 1), ("fish", 1))
    }
    folder = [*flags, "--sketch=mine", "--output_dir=mine/out", "--label=1"]
    ended = run_each("sketch", {**alone, "mine": folder, "again": folder}, cwd=tmp_path)
    for name, each in ended.items():
        assert each.status is None, (name, each)
    assert "6 pictures" in ended["mine"].output and "light on dark: inv" in ended["mine"].errors
    lines = read_lines(tmp_path / "mine" / "out" / "results.jsonl")
    assert [line["index"] for line in lines] == list(range(6))
    assert [os.path.basename(line["sketch"])[:3] for line in lines] == [
        name for name in ("bal", "cup", "fis") for _ in range(2)
    ]
    assert [line.get("changes") for line in lines] == [None, None, ["inverted"], ["inverted"]] + [
        None
    ] * 2
    for index in range(2):
        picture = (tmp_path / "fish" / f"sample_{index:03d}.png").read_bytes()
        assert (tmp_path / f"mine/out/sample_{4 + index:03d}.png").read_bytes() == picture
    assert ended["again"].output.splitlines()[-2:] == ended["mine"].output.splitlines()[-2:]


def bad_flags(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Flags and the words that the error line must have."""
    good = [f"--sketch={SKETCH}", "--label=fish"]
    shutil.copy(SKETCH, tmp_path / "grid.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("L", (32, 32)).save(tmp_path / "blank.png")
    os.mkfifo(tmp_path / "pipe.png")
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
        "folder": ([f"--sketch={tmp_path}/none", "--label=fish"], "no file found; expected a f"),
        "blank": ([f"--sketch={tmp_path}/blank.png", "--label=fish"], "blank.png' is blank"),
        "pipe": ([f"--sketch={tmp_path}/pipe.png", "--label=fish"], "is a pipe"),
        "long": ([*good, f"--output_dir={'x' * 300}"], "File name too long"),
        "read-only": ([*good, "--output_dir=/proc/x"], "/proc/x: cannot write there"),
        "invert": ([*good, "--invert=maybe"], "auto, yes, no"),
        "text": ([f"--sketch={tmp_path}/text.png", "--label=fish"], "text.png"),
        "1x1": ([f"--sketch={tmp_path}/one.png", "--label=fish"], "1x1"),
        "0x0": ([f"--sketch={tmp_path}/empty.png", "--label=fish"], "empty.png"),
        "truncated": ([f"--sketch={tmp_path}/cut.png", "--label=fish"], "cut.png"),
        "frames": ([f"--sketch={tmp_path}/moving.gif", "--label=fish"], "3 frames"),
        "huge": ([f"--sketch={tmp_path}/huge.png", "--label=fish"], "megapixels"),
        "no label": ([f"--sketch={SKETCH}"], "--label"),
        "label": ([f"--sketch={SKETCH}", "--label=fsh"], "'fish'"),
        "number": ([f"--sketch={SKETCH}", "--label=10"], "0 to 9"),
        "lambda": ([*good, "--lambda_s=1.5"], "--lambda_s=1.5: expected a number from 0 to 1"),
        "nan": ([*good, "--guidance_scale=nan"], "--guidance_scale=nan"),
        "word": ([*good, "--lambda_s=much"], "lambda_s"),
        "layer": ([*good, "--layers=99"], "layer 99"),
        "layers": ([*good, "--layers=1;2"], "layers=1;2"),
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
        "proposals": (
            [*good, "--num_proposals=0"],
            "--num_proposals=0: expected a whole",
        ),
        "empty label": (["--label="], "the label is empty: give a class number"),
        "sampler": ([*good, "--sampler=faster"], "published, proposals, fast"),
        "dtype": ([*good, "--dtype=float16"], "bfloat16"),
        "token": ([*good, "--token_temperature=inf"], "--token_temperature=inf"),
        "power": ([*good, "--guidance_power=2"], "only guidance_schedule=rising has one"),
        "rise": ([*good, "--guidance_schedule=falling"], "constant, rising"),
        "many steps": ([*good, "--num_steps=99999999999"], "--num_steps"),
        "one file": ([good[0], "--label=1", f"--model={tmp_path}/model"], "tokenizer_checkpoint"),
        "onto itself": (
            [*good, f"--sketch={tmp_path}/grid.png", f"--output_dir={tmp_path}"],
            "grid",
        ),
        "model": ([*good, f"--model={tmp_path}"], "config.json"),
        "no model": ([*good, "--model=imagenet"], "imagenet256"),
        "output": ([*good, f"--output_dir={tmp_path}/file/out"], "--output_dir"),
        "empty": ([*good, "--output_dir="], "--output_dir=: expected a path"),
        "argument": ([*good, "fish.png"], "fish.png"),
        "flag": ([*good, "--lamda=1"], "lamda"),
        "fit": ([*good, "--fit=stretch"], "pad"),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tmp_path):
    assert_refused("sketch", bad_flags(tmp_path), cwd=tmp_path)
    assert not (tmp_path / "out").exists()
