import functools
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax import checkpoint, training


def test_masks_follow_the_cosine_of_a_uniform_draw():
    ids = jnp.zeros((4000, 100), jnp.int32)
    hidden = np.sum(np.asarray(training.hide_at_random(jax.random.key(0), ids)) == -1, axis=1)
    assert hidden.min() >= 1
    # E cos(πr/2) = 2/π; its standard deviation 0.31 / √4000 = 0.005.
    np.testing.assert_allclose(hidden.mean() / 100, 2 / np.pi, atol=0.02)
    # P(share > 0.5) = P(r < 2/3).
    np.testing.assert_allclose(np.mean(hidden > 50), 2 / 3, atol=0.04)


def test_masked_loss_is_the_smoothed_cross_entropy_of_hidden_ids(tiny):
    ids = jax.random.randint(jax.random.key(1), (6, 16), 0, 24)
    labels = jnp.arange(6) % 5
    key = jax.random.key(2)
    loss, metrics = training.masked_token_loss(
        tiny.transformer, tiny.transformer_params, (ids, labels), key, deterministic=True
    )
    hidden_ids = training.hide_at_random(jax.random.split(key)[0], ids)
    tokens = jnp.concatenate([24 + labels[:, None], hidden_ids], axis=1)
    logits = np.asarray(tiny.transformer.apply({"params": tiny.transformer_params}, tokens))
    logits = logits[:, 1:, :24].astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.asarray(ids)[..., None], axis=-1)[..., 0]
    each = -(0.9 * picked + 0.1 * log_p.mean(axis=-1))
    hidden = np.asarray(hidden_ids) == -1
    np.testing.assert_allclose(loss, each[hidden].mean(), rtol=1e-4)
    accuracy = (logits.argmax(-1) == ids)[hidden].mean()
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)


def test_tokenizer_loss_terms(tiny):
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    params = tiny.tokenizer_params
    apply = functools.partial(tiny.tokenizer.apply, {"params": params})
    latents = np.asarray(apply(images, method="latents"), np.float64)
    ids = apply(images, method="encode")
    error = np.asarray(apply(ids, method="decode") - images, np.float64)
    codes = np.asarray(apply(ids, method="codes"), np.float64)
    quantization = np.mean((latents - codes) ** 2)
    loss, metrics = training.tokenizer_loss(tiny.tokenizer, params, images, entropy_weight=0.0)
    expected = np.abs(error).mean() + (error**2).mean() + 1.25 * quantization
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["quantization_error"], quantization, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], -10 * np.log10((error**2).mean()), rtol=1e-4)


def test_entropy_term_prefers_sure_latents_and_all_codes(tiny):
    """With its weight, the loss falls by weight · (log 24 − 0) at best and never more."""
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    params = tiny.tokenizer_params
    without, _ = training.tokenizer_loss(tiny.tokenizer, params, images, entropy_weight=0.0)
    with_it, metrics = training.tokenizer_loss(tiny.tokenizer, params, images, entropy_weight=0.1)
    assert 0 < without - with_it <= 0.1 * np.log(24) + 1e-6
    assert 1 <= metrics["codes_used"] <= 24


@pytest.mark.slow
def test_updates_learn(tiny):
    ids = jnp.tile(jnp.arange(16)[None], (8, 1))
    labels = jnp.zeros(8, jnp.int32)
    optimizer = training.make_optimizer(3e-3, 60, 5, 0.0)

    loss = functools.partial(training.masked_token_loss, tiny.transformer)
    step = jax.jit(functools.partial(training.update, loss, optimizer))
    state, losses = training.init_state(tiny.transformer_params, optimizer), []
    for _ in range(60):
        state, metrics = step(state, (ids, labels), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert int(state.step) == 60


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """kill -9 after the first checkpoint, start again, compare with a run left alone."""

    def command(folder):
        return [
            *(sys.executable, "-m", "experiments.train_tokenizer", f"--model_dir={folder}"),
            *(
                "--num_images=64",
                "--num_warmup_steps=6",
                "--num_steps=60",
                "--batch_size=4",
                "--save_every=4",
            ),
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    run(command(whole))
    with subprocess.Popen(command(killed), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (killed / "tokenizer_training" / "8").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
    resumed = re.findall(r"resumed at step (\d+)", run(command(killed)).stdout)
    assert len(resumed) == 2 and int(resumed[0]) == 6 and 8 <= int(resumed[1]) < 60
    a, b = (checkpoint.read_checkpoint(f / "tokenizer_checkpoint") for f in (whole, killed))
    jax.tree.map(np.testing.assert_array_equal, a, b)
