"""Class-conditional pictures: the plan, the folder, and the command as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.app.generate_plan import SAMPLERS, Plan, choose_settings, read_labels
from experiments.app.picture_sets import open_image_set
from experiments.app.run_folder import Finished, RunFolder
from experiments.demo_world import world
from experiments.generate import finish
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.errors import InputError
from maskgit_jax.images import read_image
from maskgit_jax.model import model_config
from maskgit_jax.sampling.halton import Halton
from tests.commands import ROOT, assert_refused, run_each

MODEL = ROOT / "tests" / "golden" / "model"
NAMES = ("tench, Tinca tinca", "cat", "black-and-tan coonhound", "dog", "9-iron")


@pytest.mark.parametrize(
    "text, labels",
    [
        ("all", [0, 1, 2, 3, 4]),
        ("dog", [3]),
        ("1,tench", [1, 0]),
        ("black-and-tan coonhound, 3-4,0", [2, 3, 4, 0]),
        ("9-iron", [4]),
    ],
)
def test_labels_are_names_numbers_and_ranges(text, labels):
    assert read_labels(text, NAMES) == labels


@pytest.mark.parametrize(
    "text, words",
    [
        ("dgo", "did you mean 'dog'"),
        ("0,,1", "empty"),
        ("3-9", "class number 9 is out of range"),
        ("3-1", "the range 3-1 falls"),
        ("1-3,dog", "names a class twice"),
    ],
)
def test_bad_labels_are_named(text, words):
    with pytest.raises(InputError, match=words):
        read_labels(text, NAMES)


def test_classes_take_turns_and_settings_reach_the_sampler():
    plan = Plan("demo", [4, 2], 3, "halton", 8, {"schedule": "linear", "sharpness": 1.2}, 0.0, 0)
    assert [plan.label(index) for index in range(plan.count)] == [4, 2, 4, 2, 4, 2]
    assert plan.make_sampler() == Halton(1.2, "linear")


def test_every_sampler_has_its_defaults():
    for name, sampler in SAMPLERS.items():
        for model in ("demo", "imagenet256", "imagenet512"):
            settings = choose_settings(model_config(model), name, {})
            assert settings.pop("num_steps") >= 8
            published = (name, model) in {("remdm", "imagenet256"), ("remdm", "imagenet512")}
            assert settings.pop("token_temperature") == (0.8 if published else 1)
            sampler(**settings)
            assert name != "remdm" or settings["schedule"] == ("cosine", "linear")[published]


def test_settings_of_another_sampler_are_refused():
    config = model_config("demo")
    for given in (
        {"eta": 1.0, "remask": "cap"},
        {"t_on": 0.5, "token_temperature": 1e-6},
        {"window": "loop", "alpha_on": 0.5, "t_off": 0.55},
        {"remask": "conf", "t_on": 0.0},
    ):
        assert choose_settings(config, "remdm", given).items() >= given.items()
    for given, words in (
        ({"remask": "conf", "eta": 0.1}, "--eta=0.1: --remask=conf has no such setting"),
        ({"alpha_on": 0.5}, "--alpha_on=0.5: --window=switch has no such setting"),
        ({"window": "loop", "t_off": 0.6}, "--t_off=0.6: time falls .* expected --t_on=0.55 or"),
        ({"window": "loop", "alpha_on": 1.0}, "alpha_on=1.0: expected a number from 0 to 0.999"),
        (
            {"token_temperature": 0.0},
            "token_temperature=0.0: expected a number from 1e-06",
        ),
        ({"temperature": 1.0}, "--temperature=1.0: --sampler=remdm has no such setting"),
        ({"eta": 1.5}, "eta=1.5: expected a number from 0 to 1"),
        ({"eta": float("nan")}, "eta=nan"),
    ):
        with pytest.raises(InputError, match=words):
            choose_settings(config, "remdm", given)


PLAN = Plan("demo", [1, 0], 3, "maskgit", 8, {}, 0.0, 0)
PICTURES = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)


def filled_folder(path: Path, form: str) -> RunFolder:
    """All pictures kept, by a run that went on after a stop with batches of another size."""
    record = {"model": "demo", "format": form}
    name = "sample_{:06d}.png" if form == "png" else "parts/{:06d}.npy"
    lines = [
        {"file": name.format(i), "index": i, "label": label, "class_name": f"class {label}"}
        for i, label in enumerate(map(PLAN.label, range(PLAN.count)))
    ]
    made = [Finished(*each) for each in zip(PICTURES, lines, strict=True)]
    folder = RunFolder(path, "generate")
    folder.open(record)
    folder.add(made[:2])
    folder.add(made[4:])
    again = RunFolder(path, "generate")
    again.open(record)
    assert sorted(again.finished()) == [0, 1, 4, 5]
    again.add(made[2:4])
    return again


def test_a_folder_ends_as_npz(tmp_path):
    finish(filled_folder(tmp_path, "npz"), PLAN, "npz")
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], PICTURES)
        np.testing.assert_array_equal(arrays["arr_1"], np.array([1, 0] * 3, np.int64))
        assert arrays["arr_1"].dtype == np.int64
    assert open_image_set(tmp_path / "samples.npz").count == 6


def test_a_folder_ends_as_pictures(tmp_path):
    finish(filled_folder(tmp_path, "png"), PLAN, "png")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["index"], line["label"]) for line in lines] == [
        (i, (1, 0)[i % 2]) for i in range(6)
    ]
    for line, picture in zip(lines, PICTURES, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / line["file"]), picture)
    # Three rows of two: frames of a pixel, gaps of eight; the classes above.
    assert read_image(tmp_path / "grid.png").shape[:2] == (16 + 3 * 106 + 8, 2 * 106 + 8)
    assert open_image_set(tmp_path).count == 6


def test_a_damaged_part_is_named(tmp_path):
    folder = filled_folder(tmp_path, "npz")
    (tmp_path / "parts" / "000002.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"000002\.npy cannot be read"):
        finish(folder, PLAN, "npz")


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_told(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    params = checkpoint.read_checkpoint(MODEL / "maskgit_checkpoint")
    larger = jax.tree.map(lambda array: 2 * array, params)
    checkpoint.write_checkpoint(tmp_path / "larger_checkpoint", larger)
    flags = ["--model=model", "--labels=3", "--num_samples=2", "--num_steps=2", "--output_dir=out"]
    flags.append("--format=npz")
    ended = run_each(
        "generate",
        {"first": flags, "again": flags, "other weights": flags},
        cwd=tmp_path,
        prepare="import os; name == 'other weights' and "
        "(os.replace('larger_checkpoint', 'model/maskgit_checkpoint'), "
        "os.remove('model/checksums.json'))",
    )
    assert "2 pictures" in ended["first"].output, ended
    assert "finished before" in ended["again"].output
    assert ended["other weights"].status == 2
    assert "--output_dir=out holds another run: weights is " in ended["other weights"].errors
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".lock", "grid.png", "plan.json", "samples.npz"]


def start(*args, cwd) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.generate", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_pictures(tmp_path):
    flags = (
        f"--model={MODEL}",
        "--labels=1-3",
        "--num_samples=40",
        "--num_steps=3",
        "--sampler=remdm",
        "--remask=conf",
        "--t_on=0.7",
        "--token_temperature=0.9",
        "--guidance_scale=1.5",
        "--guidance_schedule=rising",
        "--format=npz",
    )
    killed = start(*flags, "--batch_size=1", "--output_dir=killed", cwd=tmp_path)
    parts = tmp_path / "killed" / "parts"
    deadline = time.time() + 300
    while not list(parts.glob("*.npy")) and killed.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = len(list(parts.glob("*.npy")))
    assert 1 <= kept < 120

    refused = start(*flags, "--seed=1", "--output_dir=killed", cwd=tmp_path)
    assert "seed is 0 there, 1 by these flags" in refused.communicate()[1]
    for name in ("killed", "whole"):
        process = start(*flags, "--batch_size=24", f"--output_dir={name}", cwd=tmp_path)
        out, error = process.communicate()
        assert process.returncode == 0, error
        assert "120 pictures" in out
    resumed, whole = (
        dict(np.load(tmp_path / name / "samples.npz")) for name in ("killed", "whole")
    )
    # Pixels of another batch size may round otherwise.
    assert np.abs(resumed["arr_0"].astype(int) - whole["arr_0"]).max() <= 1
    np.testing.assert_array_equal(whole["arr_1"], np.tile([1, 2, 3], 40))
    assert len({picture.tobytes() for picture in whole["arr_0"]}) > 100
    again = start(*flags, "--output_dir=whole", cwd=tmp_path)
    assert "finished before" in again.communicate()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--num_steps=1", "--token_temperature=1e-6"],
        ["--guidance_scale=2", "--guidance_schedule=rising", "--guidance_power=1.5"],
        ["--sampler=remdm", "--remask=cap", "--window=loop", "--alpha_on=0.5", "--eta=0.3"],
    ],
    ids=["temperature", "guidance", "loop"],
)
def test_settings_reach_the_samples_and_the_plan(tmp_path, flags):
    common = f"--model={MODEL}", "--labels=1", "--num_steps=3", "--format=png", "--output_dir=."
    process = start(*common, *flags, cwd=tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.startswith("4 pictures")
    plan = json.loads((tmp_path / "plan.json").read_text())
    for flag in flags:
        name, value = flag.removeprefix("--").split("=")
        if name != "guidance_schedule":
            assert str(plan[name]) == value or plan[name] == float(value)
    # In one step, the likeliest ids are the same for all.
    pictures = {(tmp_path / f"sample_{index:06d}.png").read_bytes() for index in range(4)}
    assert len(pictures) == (1 if "--num_steps=1" in flags else 4)


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    assert_refused(
        "generate",
        {
            "label": (["--labels=hous"], "'house'"),
            "labels": ([f"--labels={len(world.CLASS_NAMES)}"], "out of range"),
            "samples": (["--num_samples=0"], "--num_samples=0"),
            "schedule": (["--schedule=sine"], "cosine"),
            "sampler": (["--sampler=magic"], "halton"),
            "remask": (["--sampler=remdm", "--remask=loop"], "rescale"),
            "loop": (["--sampler=remdm", "--remask=conf", "--window=loop"], "no id would be"),
            "token": (
                ["--token_temperature=0"],
                "--token_temperature=0: expected a number from 1e-06",
            ),
            "power": (["--guidance_power=2"], "only --guidance_schedule=rising has one"),
            "no power": (
                ["--guidance_schedule=rising", "--guidance_power=nan"],
                "--guidance_power=nan: expected a number from 0 to 100",
            ),
            "steps": (["--num_steps=0"], "--num_steps=0"),
            "eta": (["--sampler=remdm", "--eta=1.1"], "--eta=1.1"),
            "other's": (["--eta=0.1"], "--sampler=maskgit has no such setting"),
            "temperature": (["--temperature=-1"], "--temperature=-1"),
            "guidance": (["--guidance_scale=-0.5"], "--guidance_scale=-0.5"),
            "nan": (["--guidance_scale=nan"], "--guidance_scale=nan"),
            "batch": (["--batch_size=0"], "--batch_size=0"),
            "seed": (["--seed=-1"], "--seed=-1"),
            "format": (["--format=gif"], "npz"),
            "model": (["--model=imagenet"], "imagenet256"),
            "output": ([f"--output_dir={tmp_path}/file/out"], "--output_dir"),
            "others' files": ([f"--output_dir={tmp_path}/full"], "holds other files"),
            "argument": (["house"], "house"),
            "inception": (
                ["--inception=x.npz"],
                "--inception with --format=png: give --format=npz",
            ),
            "reference": (["--reference=x.npz"], "--reference without --inception"),
        },
        cwd=tmp_path,
        # All is checked before the model is loaded.
        prepare="generate.load_model = None",
    )
    assert not (tmp_path / "samples").exists()


SCORED = """
import sys
from experiments import generate
from experiments.app import cli
from experiments.metrics import scoring
from experiments.metrics.inception import Inception
import numpy as np

def embed(variables, images):
    colours = np.asarray(images, np.float64).mean(axis=(1, 2))
    return Inception(colours, colours / 8)

generate.load_inception, scoring.embed = lambda source: source, embed
cli.run(generate.main, generate.Flags)
"""


@pytest.mark.slow
def test_one_command_makes_and_scores(tmp_path):
    """Again, it scores what is there."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "photos.npz", rng.integers(256, size=(6, 48, 48, 3), dtype=np.uint8))
    flags = ["--labels=fish", "--num_samples=5", "--num_steps=1", "--format=npz"]
    flags += ["--inception=weights", "--reference=photos.npz"]
    printed = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", SCORED, *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout.splitlines())
    assert printed[0][0].startswith("5 pictures; look at")
    assert printed[1][0].startswith("finished before")
    assert printed[0][1:] == printed[1][1:]
    names = [line.split(":")[0] for line in printed[0][1:5]]
    assert names == ["Inception Score", "FID", "precision", "recall"]
