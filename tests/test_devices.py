"""Every command on several devices: virtual ones, which a CPU has as many of as are asked for."""

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest

from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.images import save_png
from tests.commands import ROOT
from tests.experiments.test_evaluate import write_random_model

SKETCHES = ROOT / "experiments" / "sketches"
DEVICES = (2, 8)
# Batches of three, which neither number of devices divides.
SAMPLING = ("--model=model", "--num_steps=2", "--batch_size=3")
CLASSES = (*SAMPLING, "--labels=house,fish,cup", "--num_samples=1")
EDIT = (*SAMPLING, "--image=photo.png", "--label=house", "--num_samples=3")
TRAINING = ("--num_images=8", "--num_held_out=8", "--batch_size=8", "--num_steps=2")
TRAINING += ("--log_every=1", "--save_every=2")
UNSEEN = "--validate_every=0"
COMMANDS = {
    "sketch": ("sketch", *SAMPLING, "--num_samples=3"),
    "maskgit": ("generate", *CLASSES, "--sampler=maskgit"),
    "halton": ("generate", *CLASSES, "--sampler=halton"),
    "remdm": ("generate", *CLASSES, "--sampler=remdm"),
    "edit": ("edit", *EDIT, "--box=4,4,8,8"),
    "stroke": ("stroke", *EDIT, "--auto=inversion"),
    "sweep": ("sweep", *SAMPLING, f"--sketches={SKETCHES}/[bc]*.png", "--lambda_s=0,1"),
    "evaluate": (
        *("evaluate", *SAMPLING, "--num_sketches=5", "--num_reference=5"),
        "--unguided_steps=2",
    ),
    "attention": ("attention", "--model=model", "--num_scenes=10"),
    "reconstruct": ("reconstruct", *SAMPLING, "--num_images=3", "--ratios=0.5"),
    "evaluate_strokes": (
        *("evaluate_strokes", *SAMPLING, "--num_images=3", "--confidences=0.5"),
        "--other_confidences=0.5",
    ),
    "evaluate_editing": ("evaluate_editing", *SAMPLING, "--num_images=3"),
    "steps_study": (
        *("steps_study", *SAMPLING, "--num_sketches=5", "--num_reference=5"),
        "--rows=best,evolution,stop",
    ),
    "train_tokenizer": (
        *("train_tokenizer", *TRAINING, "--init_from=model", "--model_dir=trained"),
        "--sample_every=0",
        UNSEEN,
    ),
    "train_transformer": (
        *("train_transformer", *TRAINING, "--model_dir=trained"),
        "--validate_every=2",
    ),
    "tune_energy": ("tune_energy", *TRAINING, "--init_from=model", "--model_dir=energy", UNSEEN),
    "tune_iterative": (
        "tune_iterative",
        *TRAINING,
        "--init_from=model",
        "--model_dir=iterative",
        UNSEEN,
    ),
    "train_judge": (
        *("train_judge", "--num_images=8", "--num_held_out=8", "--batch_size=8"),
        "--num_steps=1",
    ),
    "score": ("score", "--samples=sweep/pictures", "--export=score.npz"),
}
NO_FOLDER = ("train_tokenizer", "train_transformer", "tune_energy", "tune_iterative", "score")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """For each number of devices, a folder with what all commands have written."""
    base = tmp_path_factory.mktemp("devices")
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 17}
    pictures = {"image_size": 16, "latent_size": 4, "channel_multipliers": [1, 1, 1]}
    model = write_random_model(base / "model", transformer=small, tokenizer=pictures)
    # As they are made, weights are so small that settings hardly matter.
    weights = checkpoint.read_checkpoint(model / "maskgit_checkpoint")
    checkpoint.write_checkpoint(
        model / "maskgit_checkpoint", jax.tree.map(lambda array: 8 * array, weights)
    )
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    commands = []
    for devices in DEVICES:
        shutil.copytree(model, base / f"{devices}" / "model")
        save_png(base / f"{devices}" / "photo.png", photo)
        for name, command in COMMANDS.items():
            output = [] if name in NO_FOLDER else [f"--output_dir={name}"]
            commands.append([f"{base}/{devices}", devices, name, {}, *command, *output])
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_to_compile(),
        "JAX_COMPILATION_CACHE_DIR": str(base / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.fork_commands"],
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stderr
    ended = map(json.loads, run.stdout.splitlines())
    for (folder, devices, name, *_), (status, seconds, _) in zip(commands, ended, strict=True):
        print(f"{name} on {devices} devices: {seconds:.1f} s")
        assert status == 0, (name, devices, Path(folder, f"{name}.err").read_text()[-3000:])
    return {devices: base / f"{devices}" for devices in DEVICES}


@pytest.mark.slow
def test_trainings_end_with_where_their_model_is(folders):
    ends = {
        name: (folders[2] / f"{name}.out").read_text().splitlines()[-1]
        for name in COMMANDS
        if name.startswith(("train_", "tune_"))
    }
    assert ends == {
        "train_tokenizer": "model saved in trained",
        "train_transformer": "model saved in trained",
        "tune_energy": "model saved in energy/energy.npy",
        "tune_iterative": "model saved in iterative",
        "train_judge": "model saved in train_judge",
    }


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@pytest.mark.slow
def test_no_command_writes_numbers_that_json_does_not_have(folders):
    """With three pictures some figures have no error: of the strokes in another colour, say."""
    files = [*folders[2].rglob("*.json"), *folders[2].rglob("*.jsonl")]
    for file in files:
        lines = file.read_text().splitlines()
        for text in lines if file.suffix == ".jsonl" else ["\n".join(lines)]:
            json.loads(text, parse_constant=refuse)
    assert len(files) > 12
    strokes = json.loads((folders[2] / "evaluate_strokes" / "strokes.json").read_text())
    figure = strokes["rows"]["baseline"]["counterfactual_distance"]
    assert figure["value"] > 0 and figure["standard_error"] is None


def quick_to_compile() -> str:
    """Flags for XLA: most of the time goes into compiling. One that it lacks would end it."""
    flags = {"xla_backend_optimization_level": "0"}
    library = next(Path(jaxlib.__file__).parent.glob("libjax_common.*"), None)
    if library is not None:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as x:
            for name, value in {
                "xla_cpu_use_fusion_emitters": "false",
                "xla_cpu_parallel_codegen_split_count": "1",
            }.items():
                if x.find(name.encode()) >= 0:
                    flags[name] = value
    return " ".join(f"--{name}={value}" for name, value in flags.items())


@pytest.mark.slow
def test_every_command_makes_the_same_on_2_and_on_8_devices(folders):
    for devices, folder in folders.items():
        assert f"devices: {devices}" in (folder / "sweep.out").read_text()
    for name in COMMANDS:
        two, eight = (
            {path.name: path.read_bytes() for path in (folders[n] / name).rglob("*.png")}
            for n in DEVICES
        )
        assert two.keys() == eight.keys(), name
        assert [file for file in two if two[file] != eight[file]] == [], name
