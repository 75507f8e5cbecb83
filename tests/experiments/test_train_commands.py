"""The training commands as a user runs them, on tiny models."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from maskgit_jax import config, model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from tests.commands import ROOT
from tests.experiments.training.test_datasets import CORRUPT, fill_folder

TOKENIZER, TRANSFORMER = "experiments.train_tokenizer", "experiments.train_transformer"
TINY = {
    "transformer": {
        "codebook_size": 32,
        "num_classes": 10,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "sequence_length": 65,
    },
    "tokenizer": {
        "image_size": 16,
        "latent_size": 8,
        "filters": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "embedding_dim": 8,
        "codebook_size": 32,
        "norm_groups": 4,
    },
}
WORLD = ("--num_images=40", "--num_held_out=8", "--sample_every=0", "--validate_every=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny config.json."""
    path = tmp_path_factory.mktemp("commands")
    (path / "tiny.json").write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command; all share what JAX compiles."""
    cache = str(tmp_path_factory.mktemp("cache"))
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Most of the time goes into compiling.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }

    def call(command: str, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", command, *flags],
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def finish(process: subprocess.Popen) -> str:
    """What the command wrote to stderr, after it ended well."""
    error = process.communicate()[1]
    assert process.returncode == 0, error
    return error


def read_log(folder: Path) -> list[dict]:
    """The records of `measures.jsonl`, less the speed."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["images_per_second"]
    return records


@pytest.mark.slow
def test_a_folder_of_pictures_becomes_a_model(place, start):
    """With what is off for the demo: discriminator, accumulation, bfloat16."""
    fill_folder(place / "pictures")
    common = (
        f"--model_dir={place / 'mine'}",
        f"--data={place / 'pictures'}",
        "--batch_size=8",
        "--num_steps=5",
        "--log_every=2",
    )
    error = finish(
        start(
            TOKENIZER,
            *common,
            f"--config={place / 'tiny.json'}",
            "--num_warmup_steps=0",
            "--adversarial_weight=0.1",
            "--perceptual_weight=0.1",
            "--adversarial_start=2",
            "--discriminator_filters=4",
            "--sample_every=0",
        )
    )
    skipped = [line for line in error.replace("\r", "\n").splitlines() if "skipped: " in line]
    assert skipped
    assert all(sum(name in line for line in skipped) <= 1 for name in CORRUPT)
    records = read_log(place / "mine" / "tokenizer_training")
    assert [record["step"] for record in records] == [2, 4, 5]
    assert {"loss", "discriminator", "r1", "perceptual", "learning_rate"} <= set(records[0])
    assert records[-1]["validation_psnr"] > 0
    finish(start(TRANSFORMER, *common, "--accumulate=2", "--dtype=bfloat16", "--validate_every=0"))
    records = read_log(place / "mine" / "transformer_training")
    assert abs(records[-1]["loss"] - np.log(32)) < 0.5
    assert (place / "mine" / "transformer_training" / "samples" / "0000005.png").exists()

    loaded = model.load_model(place / "mine")
    assert loaded.config.class_names == ("blue", "green", "red")
    assert loaded.transformer.config.num_classes == 3


@pytest.mark.slow
def test_runs_start_from_the_weights_of_a_model(place, start):
    """With a learning rate of 0 they stay what they were, and what is not trained does anyhow."""
    source = place / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(TINY))
    cfg = config.read_config(source / "config.json")
    rng = np.random.default_rng(0)
    for name, module, example in (
        ("maskgit", Transformer(cfg.transformer), jax.ShapeDtypeStruct((1, 65), "int32")),
        ("tokenizer", Tokenizer(cfg.tokenizer), jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")),
    ):
        params = jax.tree.map(
            lambda shape: rng.normal(0, 0.1, shape.shape).astype(np.float32),
            checkpoint.parameter_shapes(module, example),
        )
        checkpoint.write_checkpoint(source / f"{name}_checkpoint", params)
    common = (f"--init_from={source}", "--num_steps=2", *WORLD)
    fixed = (*common, "--learning_rate=0")
    processes = [
        start(TOKENIZER, f"--model_dir={place / TOKENIZER}", *fixed, "--codebook=gradient"),
        start(TRANSFORMER, f"--model_dir={place / TRANSFORMER}", *fixed),
        start(
            TOKENIZER,
            f"--model_dir={place / 'decoder'}",
            *common,
            "--part=decoder",
            "--crop_size=8",
        ),
    ]
    for process in processes:
        finish(process)
    for command, name in (
        (TOKENIZER, "tokenizer_checkpoint"),
        (TRANSFORMER, "tokenizer_checkpoint"),
        (TRANSFORMER, "maskgit_checkpoint"),
    ):
        trees = [checkpoint.read_checkpoint(folder / name) for folder in (source, place / command)]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *trees)
    before, after = (
        checkpoint.read_checkpoint(folder / "tokenizer_checkpoint")
        for folder in (source, place / "decoder")
    )
    for part in ("encoder", "quantizer"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    kernels = (params["decoder"]["Conv_0"]["kernel"] for params in (before, after))
    assert 1e-5 < np.abs(np.subtract(*kernels)).max() < 0.1


@pytest.mark.slow
def test_bad_input_ends_with_one_line_and_status_2(place, start):
    existing = place / "existing"
    existing.mkdir()
    (existing / "config.json").write_text(json.dumps(TINY))
    folder = f"--model_dir={place / 'new'}"
    cases = {
        "--ema_decay=2: expected a number from 0 to 1": (TOKENIZER, folder, "--ema_decay=2"),
        "--crop_size=5: expected a multiple of 2": (
            *(TOKENIZER, folder, f"--config={place / 'tiny.json'}"),
            "--crop_size=5",
        ),
        "--part=decoder needs a tokenizer": (TOKENIZER, folder, "--part=decoder"),
        "--num_warmup_steps=3 with --part=decoder": (
            *(TOKENIZER, folder, "--init_from=demo", "--part=decoder"),
            "--num_warmup_steps=3",
        ),
        "has no sub-folders": (TOKENIZER, folder, f"--data={existing}"),
        "no model 'nothing'": (TRANSFORMER, folder, "--init_from=nothing"),
        "a model folder needs a config.json": (TRANSFORMER, folder),
        "tokenizer_checkpoint does not exist": (TRANSFORMER, f"--model_dir={existing}"),
        "batch of 9 cannot be accumulated": (
            *(TOKENIZER, folder, f"--config={place / 'tiny.json'}", *WORLD),
            *("--batch_size=9", "--accumulate=2"),
        ),
    }
    processes = {words: start(*command) for words, command in cases.items()}
    for words, process in processes.items():
        error = process.communicate()[1]
        assert process.returncode == 2, error
        assert words in error.splitlines()[-1], error
        assert "Traceback" not in error
