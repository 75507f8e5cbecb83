import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import tuning
from guidance.strokes import training as stroke_training
from guidance.strokes.energies import code_distance_energy
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import write_config
from maskgit_jax.errors import InputError
from maskgit_jax.model import load_model
from maskgit_jax.training import losses
from tests.commands import ROOT, assert_refused
from tests.conftest import make_model, released
from tests.experiments.training.test_datasets import fill_folder


@pytest.fixture(scope="module")
def stroked():
    """Tokens of six pictures, class first, and strokes' ids on five to ten of the sixteen ids."""
    rng = np.random.default_rng(0)
    ids, stroke_ids = rng.integers(0, 24, (2, 6, 16))
    on_stroke = rng.permuted(np.arange(16) < np.arange(5, 11)[:, None], axis=1)
    stroke_ids = np.where(on_stroke, stroke_ids, -1)
    columns = 24 + np.arange(6)[:, None] % 5, np.full((6, 1), -1)
    tokens = (np.concatenate(pair, axis=1) for pair in zip(columns, (ids, stroke_ids), strict=True))
    return tuple(jnp.asarray(array) for array in tokens)


def cross_entropy(logits, ids):
    """Of each row, in float64."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(ids)[..., None], axis=-1)[..., 0]


def test_energy_loss_is_the_cross_entropy_of_reweighted_logits(stroked):
    """And rows of the energy learn whose codes strokes have."""
    tokens, stroke_ids = stroked
    rng = np.random.default_rng(1)
    logits, energy = rng.normal(0, 3, (6, 17, 24)), rng.normal(0, 2, (24, 24))
    loss = functools.partial(stroke_training.energy_loss, confidence=0.7)
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        {"energy": jnp.asarray(energy, jnp.float32)},
        (jnp.asarray(logits, jnp.float32), tokens, stroke_ids),
    )
    on_stroke = np.asarray(stroke_ids) >= 0
    weights = np.exp(1e-6 * 1e8**0.7 * energy[np.asarray(stroke_ids)[on_stroke]])
    weights /= weights.mean(axis=-1, keepdims=True)
    found, ids = weights * logits[on_stroke], np.asarray(tokens)[on_stroke]
    np.testing.assert_allclose(loss, cross_entropy(found, ids).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (found.argmax(-1) == ids).mean(), rtol=1e-5)
    assert metrics["weight"] == on_stroke.sum()
    used = np.isin(np.arange(24), stroke_ids)
    assert 0 < used.sum() < 24
    np.testing.assert_array_equal(np.abs(gradient["energy"]).max(axis=1) > 0, used)


@pytest.fixture(scope="module")
def apply(tiny):
    """Logits over the codes."""
    params = {"params": released(tiny)}
    return jax.jit(lambda *ids: tiny.transformer.apply(params, ids[0], True, ids[1])[..., :24])


@pytest.fixture(scope="module")
def own_guides(tiny):
    """The tokens shown and their guides, for tokens, a key and a temperature."""
    params = released(tiny)
    return jax.jit(lambda *given: stroke_training.own_guides(tiny.transformer, params, *given))


@pytest.mark.slow
def test_own_guides_are_what_the_model_is_less_sure_of(stroked, apply, own_guides):
    hidden = stroke_training.mask_strokes(*stroked)
    # Without noise in the choice, sure and unsure samples are apart.
    shown, guide_ids = map(np.asarray, own_guides(hidden, jax.random.key(1), 0.0))
    was_hidden, is_hidden = np.asarray(hidden) == -1, shown == -1
    np.testing.assert_array_equal(shown[~was_hidden], hidden[~was_hidden])
    np.testing.assert_array_equal(guide_ids >= 0, is_hidden)
    # Of n hidden ids ⌊n·cos(π/4)⌋ stay hidden.
    left = np.floor(np.sum(was_hidden, axis=1) * np.sqrt(0.5))
    np.testing.assert_array_equal(np.sum(is_hidden, axis=1), left)
    samples = np.where(is_hidden, guide_ids, shown)
    surprise = cross_entropy(apply(hidden, jnp.full_like(hidden, -1)), samples % 24)
    for row, of_row in enumerate(surprise):
        filled_in = was_hidden[row] & ~is_hidden[row]
        assert of_row[filled_in].max() <= of_row[is_hidden[row]].min()


@pytest.mark.slow
def test_iterative_loss_counts_what_is_hidden_and_guided(tiny, stroked, apply, own_guides):
    tokens, stroke_ids = stroked
    key = jax.random.key(3)
    loss_of = jax.jit(
        lambda share: stroke_training.iterative_loss(
            tiny.transformer,
            released(tiny),
            stroked,
            key,
            stroke_share=share,
            label_smoothing=0.0,
            deterministic=True,
        )
    )
    _, mask_key, own_key, _ = jax.random.split(key, 4)
    hidden_ids = losses.mask_at_random(mask_key, tokens[:, 1:])
    hidden = jnp.concatenate([tokens[:, :1], hidden_ids], axis=1)
    strokes = stroke_training.mask_strokes(*stroked), stroke_ids
    for share, shown in ((0.0, own_guides(hidden, own_key, 4.5)), (1.0, strokes)):
        at = np.asarray(shown[0]) == -1
        found, ids = np.asarray(apply(*shown))[at], np.asarray(tokens)[at]
        loss, metrics = loss_of(share)
        np.testing.assert_allclose(loss, cross_entropy(found, ids).mean(), rtol=1e-4)
        assert metrics["weight"] == at.sum()


def test_classes_of_the_data_are_the_models_by_name_or_in_order():
    assert tuning.model_labels(("cat", "ant"), ("ant", "bee", "cat")).tolist() == [2, 0]
    assert tuning.model_labels(("n01", "n02"), ("ant", "bee")).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"2 classes, and the model knows no 'cow'.* 3, in order"):
        tuning.model_labels(("ant", "cow"), ("ant", "bee", "cat"))
    with pytest.raises(InputError, match="the model knows no 'bea'"):
        tuning.model_labels(("ant", "bea"), ("ant", "bee"))


class TwoPictures:
    """A dataset of one batch, the same at every step."""

    class_names = ("c", "a")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)

    def batch(self, step):
        return self.images, np.array([0, 1], np.int32)

    def held_out(self):
        return self.batch(0)


def test_strokes_become_guides_where_they_touch(tiny):
    strokes = tuning.Strokes(TwoPictures(), tiny, seed=0)
    images, painted, touched, labels = strokes.batch(5)
    np.testing.assert_array_equal(labels, [2, 0])
    changed = (images != painted).any(axis=-1).reshape(2, 4, 2, 4, 2).any(axis=(2, 4))
    assert changed.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(changed.reshape(2, 16) & ~touched, False)
    tokens, stroke_ids = tuning.tokenize(tiny)((images, painted, touched, labels))
    ids, painted_ids = (tiny.encode(jnp.asarray(x) / 255) for x in (images, painted))
    np.testing.assert_array_equal(tokens, np.concatenate([[[26], [24]], ids], axis=1))
    expected = np.where(touched, painted_ids, -1)
    np.testing.assert_array_equal(
        stroke_ids, np.pad(expected, ((0, 0), (1, 0)), constant_values=-1)
    )
    again = tuning.Strokes(TwoPictures(), tiny, seed=0)
    np.testing.assert_array_equal(again.batch(5)[1], painted)
    assert any((again.batch(step)[1] != painted).any() for step in range(5))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of three classes and pictures of as many."""
    path = tmp_path_factory.mktemp("tuning")
    model = make_model(num_classes=3)
    (path / "model").mkdir()
    write_config(path / "model" / "config.json", model.config)
    checkpoint.write_checkpoint(path / "model" / "maskgit_checkpoint", released(model))
    checkpoint.write_checkpoint(path / "model" / "tokenizer_checkpoint", model.tokenizer_params)
    fill_folder(path / "pictures")
    (path / "empty").mkdir()
    return path


def start(place: Path, command: str, folder: str) -> subprocess.Popen:
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Most of the time goes into compiling.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", f"experiments.{command}"),
            *(f"--init_from={place / 'model'}", f"--model_dir={place / folder}"),
            *(f"--data={place / 'pictures'}", "--batch_size=4", "--num_steps=60"),
            *("--log_every=1", "--save_every=6", "--validate_every=30", "--learning_rate=0.01"),
        ],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What the command printed, after it ended well."""
    output, error = process.communicate()
    assert process.returncode == 0, error
    return output


def logged_losses(log: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def kill_and_resume(place: Path, name: str) -> Path:
    """kill -9 after the first checkpoint of a run, which then goes on; its folder."""
    process = start(place, f"tune_{name}", f"killed_{name}")
    folder = place / f"killed_{name}"
    while not (folder / f"{name}_training" / "checkpoints" / "6").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    output = finish(start(place, f"tune_{name}", f"killed_{name}"))
    assert "resumed at step" in output
    assert "held-out" in output
    assert output.splitlines()[-1].startswith("model saved in ")
    return folder


@pytest.mark.slow
def test_a_killed_tuning_of_the_energy_resumes_to_the_same_result(place):
    finish(start(place, "tune_energy", "whole_energy"))
    folders = place / "whole_energy", kill_and_resume(place, "energy")
    whole, killed = (
        logged_losses(folder / "energy_training" / "metrics.jsonl") for folder in folders
    )
    assert len(whole) == 60
    assert killed == whole
    found, again = (np.load(folder / "energy.npy") for folder in folders)
    np.testing.assert_array_equal(found, again)
    assert found.dtype == np.float32
    codes = load_model(place / "model").tokenizer_params["quantizer"]["codebook"]
    # Steps of AdamW are at most about the learning rate, 0.01.
    assert 0.01 < np.abs(found - code_distance_energy(codes)).max() < 0.6


@pytest.mark.slow
def test_a_killed_iterative_tuning_resumes_and_ends_as_a_model(place):
    folder = kill_and_resume(place, "iterative")
    assert len(logged_losses(folder / "iterative_training" / "metrics.jsonl")) == 60
    source, tuned = load_model(place / "model"), load_model(folder)
    assert tuned.config == source.config
    jax.tree.map(np.testing.assert_array_equal, tuned.tokenizer_params, source.tokenizer_params)
    changes = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        tuned.transformer_params,
        source.transformer_params,
    )
    assert 0.01 < max(jax.tree.leaves(changes)) < 0.6


@pytest.mark.slow
def test_bad_input_is_refused_with_one_line(place):
    model, pictures = f"--init_from={place / 'model'}", f"--data={place / 'pictures'}"
    common = {
        "model": (["--init_from=nothing"], "no model 'nothing'"),
        "no classes": ([f"--data={place / 'empty'}"], "has no sub-folders"),
        "other classes": ([pictures], "the model knows no 'blue'"),
        "steps": (["--num_steps=0"], "num_steps"),
        "no samples": (["--sample_every=5"], "sample_every"),
    }
    energy = {"confidence": (["--confidence=2"], "confidence")}
    assert_refused("tune_energy", common | energy, cwd=place)
    iterative = {
        "share": (["--stroke_share=-1"], "stroke_share"),
        "model's folder": ([model, pictures, f"--model_dir={place / 'model'}"], "not tuned here"),
    }
    assert_refused("tune_iterative", common | iterative, cwd=place)
