"""The stroke command as a user runs it; its measures; the evaluation's table."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.demo_world import world
from experiments.metrics import strokes
from experiments.metrics.measures import mean_and_error
from experiments.studies.strokes import plot_confidence
from guidance.strokes.energies import read_energy
from guidance.strokes.methods import StrokeSettings, follow_strokes
from maskgit_jax.errors import InputError
from maskgit_jax.images import read_image, save_png
from tests.commands import ROOT, assert_refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture of 60x44 pixels, a stroke on it and its mask."""
    path = tmp_path_factory.mktemp("stroke")
    image = world.draw_scene(77, 0, size=60).image[:44]
    mask = np.zeros((44, 60), bool)
    mask[20:32, 30:48] = True
    painted = image.copy()
    painted[mask] = (200, 30, 40)
    save_png(path / "photo.png", image)
    save_png(path / "painted.png", painted)
    save_png(path / "mask.png", np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
    save_png(path / "black.png", np.zeros((44, 60, 3), np.uint8))
    save_png(path / "small.png", image[:20, :20])
    save_png(path / "small_mask.png", np.eye(20, dtype=np.uint8)[..., None].repeat(3, -1) * 255)
    np.save(path / "energy.npy", np.zeros((4, 4), np.float32))
    (path / "text.npy").write_text("no array")
    return path


def start(module: str, *args: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            # The same programs are compiled by one process after the other.
            "JAX_COMPILATION_CACHE_DIR": str(cwd / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def finish(process: subprocess.Popen) -> str:
    """What the command printed, after it ended well."""
    output, error = process.communicate()
    assert process.returncode == 0, error
    return output


@pytest.mark.slow
def test_a_stroke_becomes_pictures(folder):
    flags = "--image=photo.png", "--stroke=painted.png", "--mask=mask.png", "--label=ball"
    flags += "--num_steps=4", "--num_samples=2"
    finish(start("stroke", *flags, "--confidence=1", "--output_dir=out", cwd=folder))
    text = (folder / "out" / "results.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["index"], line["method"], line["confidence"]) for line in lines] == [
        (0, "tilt", 1.0),
        (1, "tilt", 1.0),
    ]
    photo, painted = read_image(folder / "photo.png"), read_image(folder / "painted.png")
    mask = read_image(folder / "mask.png")[..., 0] > 0
    samples = [read_image(folder / "out" / line["file"]) for line in lines]
    # All confidence: the tokenizer's round trip of the stroke, whatever the seed.
    np.testing.assert_array_equal(*samples)
    inside = np.abs(samples[0][mask].astype(float) - painted[mask]).mean() / 255
    np.testing.assert_allclose(lines[0]["colour_distance"], inside, atol=1e-6)
    assert inside < 0.5 * np.abs(photo[mask].astype(float) - painted[mask]).mean() / 255
    np.testing.assert_array_equal(samples[0][:10], photo[:10])
    np.testing.assert_array_equal(read_image(folder / "out" / "original.png"), photo)
    np.testing.assert_array_equal(read_image(folder / "out" / "stroke.png"), painted)


@pytest.mark.slow
def test_near_temperature_0_the_likeliest_ids_come(shallow):
    squares, painted = np.random.default_rng(0).integers(256, size=(2, 1, 8, 8, 3), dtype=np.uint8)
    samples = follow_strokes(
        shallow,
        squares.repeat(2, axis=0),
        painted.repeat(2, axis=0),
        np.ones((2, 16), bool),
        np.array([1, 1]),
        StrokeSettings(num_steps=1, temperature=4.5, token_temperature=1e-6),
        method="baseline",
        seed=0,
        indices=np.array([3, 8]),
    )
    np.testing.assert_array_equal(*samples.ids)


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(folder):
    good = ["--image=photo.png", "--label=ball"]
    stroke = [*good, "--stroke=painted.png", "--mask=mask.png"]
    auto = [*good, "--auto=inversion"]
    cases = {
        "no image": (["--label=ball", "--auto=inversion"], "no --image"),
        "no label": (["--image=photo.png", "--auto=inversion"], "--label"),
        "label": (["--image=photo.png", "--auto=inversion", "--label=bal"], "'ball'"),
        "missing": (["--image=nowhere.png", "--label=ball", "--auto=inversion"], "nowhere.png"),
        "no stroke": (good, "found none"),
        "no mask": ([*good, "--stroke=painted.png"], "found --stroke"),
        "no paint": ([*good, "--mask=mask.png"], "found --mask"),
        "both": ([*stroke, "--auto=inversion"], "--stroke and --mask and --auto"),
        "stroke size": ([*good, "--stroke=small.png", "--mask=mask.png"], "--stroke=small.png"),
        "mask size": ([*good, "--stroke=painted.png", "--mask=small_mask.png"], "60x44"),
        "empty mask": ([*good, "--stroke=painted.png", "--mask=black.png"], "has no white"),
        "auto": ([*good, "--auto=paint"], "inversion"),
        "method": ([*auto, "--method=paint"], "tilt"),
        "confidence": ([*auto, "--confidence=1.5"], "--confidence=1.5"),
        "nan": ([*auto, "--confidence=nan"], "--confidence=nan"),
        "no knob": ([*auto, "--method=context", "--confidence=0.5"], "--method=context"),
        "no energy": ([*auto, "--method=learned"], "--energy"),
        "energy": ([*auto, "--energy=energy.npy"], "--method=learned"),
        "codes": ([*auto, "--method=learned", "--energy=energy.npy"], "[4, 4]"),
        "no array": ([*auto, "--method=learned", "--energy=text.npy"], "text.npy"),
        "steps": ([*auto, "--num_steps=0"], "--num_steps=0"),
        "samples": ([*auto, "--num_samples=0"], "--num_samples=0"),
        "temperature": ([*auto, "--temperature=-1"], "--temperature=-1"),
        "token": (
            [*auto, "--token_temperature=0"],
            "--token_temperature=0: expected a number from 1e-06 to 100",
        ),
        "seed": ([*auto, "--seed=-1"], "--seed=-1"),
        "model": ([*auto, "--model=imagenet"], "imagenet256"),
    }
    assert_refused("stroke", cases, cwd=folder)


EVALUATION = (
    *("--num_images=4", "--batch_size=4", "--num_steps=2", "--confidences=0,1"),
    "--other_confidences=1",
)


@pytest.fixture(scope="module")
def evaluation(folder):
    """The folder of an evaluation, and what it printed."""
    flags = *EVALUATION, "--output_dir=evaluation"
    return folder / "evaluation", finish(start("evaluate_strokes", *flags, cwd=folder))


@pytest.mark.slow
def test_the_evaluation_writes_its_table(evaluation):
    path, output = evaluation
    rows = json.loads((path / "strokes.json").read_text())["rows"]
    assert rows["stroke as painted"]["colour_distance"]["value"] == 0
    assert rows["tilt 1"]["guide_ids"]["value"] == 1
    assert rows["tilt 0"] == rows["baseline"]
    distance = {name: row["colour_distance"]["value"] for name, row in rows.items()}
    assert distance["tilt 1"] < distance["baseline"]
    assert output.count("\n| ") + 1 == 2 + len(rows)
    for name in ("confidence.png", "grid.png"):
        assert read_image(path / name).std() > 10


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_bytes(folder, evaluation):
    whole, printed = evaluation
    path, flags = folder / "killed", (*EVALUATION, "--output_dir=killed")
    process = start("evaluate_strokes", *flags, cwd=folder)
    while not (path / "strokes.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = (path / "strokes.jsonl").read_bytes()
    assert 0 < len(done) < len((whole / "strokes.jsonl").read_bytes())
    (path / "strokes.jsonl").write_bytes(done + done[:40])  # killed while it wrote
    assert finish(start("evaluate_strokes", *flags, cwd=folder)) == printed.replace(
        "evaluation/", "killed/"
    )
    for name in ("strokes.jsonl", "strokes.json", "confidence.png", "grid.png"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    other = {"seed": ([*flags, "--seed=1"], "made by other flags")}
    assert_refused("evaluate_strokes", other, cwd=folder)


def test_distances_are_means_inside_the_stroke():
    rng = np.random.default_rng(0)
    images, painted = rng.integers(256, size=(2, 3, 8, 9, 3), dtype=np.uint8)
    masks = rng.random((3, 8, 9)) < 0.4
    expected = [
        np.abs(a[m] / 255 - b[m] / 255).mean()
        for a, b, m in zip(images, painted, masks, strict=True)
    ]
    actual = strokes.colour_distance(images, painted, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)

    def grey_lightness(value):  # CIE 1976, of sRGB greys; a and b are 0
        linear = ((value / 255 + 0.055) / 1.055) ** 2.4
        return 116 * linear ** (1 / 3) - 16

    greys = [np.full((3, 8, 9, 3), value, np.uint8) for value in (60, 180)]
    lab = strokes.lab_distance(*greys, masks)
    np.testing.assert_allclose(lab, grey_lightness(180) - grey_lightness(60), rtol=1e-3)


def test_a_part_is_painted():
    for index in range(4):
        scene = world.draw_scene(77, index)
        painted, mask = strokes.part_stroke(scene, "inversion")
        (part,) = np.unique(scene.parts[mask])
        assert part > 0
        np.testing.assert_array_equal(mask, scene.parts == part)
        np.testing.assert_allclose(painted[mask][0], scene.image[mask].mean(axis=0), atol=0.5)


def test_an_energy_is_read_or_refused(tmp_path):
    energy = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    np.save(tmp_path / "good.npy", energy)
    np.testing.assert_array_equal(read_energy(tmp_path / "good.npy", 5), energy)
    np.save(tmp_path / "integers.npy", np.eye(5, dtype=int))
    np.savez(tmp_path / "archive.npz", energy=energy)
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, words in {
        "good.npy": r"\[6, 6\]",
        "integers.npy": "int64",
        "archive.npz": "an archive",
        "empty.npy": "no array",
        "nowhere.npy": "does not exist",
    }.items():
        with pytest.raises(InputError, match=words):
            read_energy(tmp_path / name, 6 if name == "good.npy" else 5)


def test_the_plot_shows_each_method():
    def figures(value):
        return {"colour_distance": (value, 0.01), "class_accuracy": mean_and_error(np.eye(2)[0])}

    curves = {"tilt": {0.0: figures(0.4), 1.0: figures(0.1)}, "learned": {}}
    image = plot_confidence(curves, figures(0.4))
    blue, pink = np.array([0x00, 0x72, 0xB2]), np.array([0xCC, 0x79, 0xA7])
    assert (image == blue).all(axis=-1).sum() > 500
    assert not (image == pink).all(axis=-1).any()
