import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.training import adversarial, losses, optimizers, train_state
from tests.conftest import released


def test_masks_follow_the_cosine_of_a_uniform_draw():
    ids = jnp.zeros((4000, 100), jnp.int32)
    ids = np.asarray(jax.jit(losses.mask_at_random)(jax.random.key(0), ids))
    hidden = np.sum(ids == -1, axis=1)
    assert hidden.min() >= 1
    # E cos(πr/2) = 2/π; its standard deviation 0.31 / √4000 = 0.005.
    np.testing.assert_allclose(hidden.mean() / 100, 2 / np.pi, atol=0.02)
    # P(share > 0.5) = P(r < 2/3).
    np.testing.assert_allclose(np.mean(hidden > 50), 2 / 3, atol=0.04)


def test_masked_loss_is_the_smoothed_cross_entropy_of_hidden_ids(shallow):
    ids = jax.random.randint(jax.random.key(1), (6, 16), 0, 24)
    labels = jnp.arange(6) % 5
    key = jax.random.key(2)

    @jax.jit  # all at once: the network is compiled once
    def run(params):
        loss = losses.masked_token_loss(
            shallow.transformer, params, (ids, labels), key, deterministic=True
        )
        hidden_ids = losses.mask_at_random(jax.random.split(key)[0], ids)
        tokens = jnp.concatenate([24 + labels[:, None], hidden_ids], axis=1)
        return loss, hidden_ids, shallow.transformer.apply({"params": params}, tokens)

    (loss, metrics), hidden_ids, logits = run(released(shallow))
    logits = np.asarray(logits)[:, 1:, :24].astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.asarray(ids)[..., None], axis=-1)[..., 0]
    each = -(0.9 * picked + 0.1 * log_p.mean(axis=-1))
    hidden = np.asarray(hidden_ids) == -1
    np.testing.assert_allclose(loss, each[hidden].mean(), rtol=1e-4)
    accuracy = (logits.argmax(-1) == ids)[hidden].mean()
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)


@pytest.mark.slow
def test_tokenizer_loss_terms(tiny):
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    params = tiny.tokenizer_params
    apply = functools.partial(tiny.tokenizer.apply, {"params": params})
    latents = np.asarray(apply(images, method="latents"), np.float64)
    ids = apply(images, method="encode")
    error = np.asarray(apply(ids, method="decode") - images, np.float64)
    codes = np.asarray(apply(ids, method="codes"), np.float64)
    quantization = np.mean((latents - codes) ** 2)
    loss, metrics = losses.tokenizer_loss(tiny.tokenizer, params, images, entropy_weight=0.0)
    expected = np.abs(error).mean() + (error**2).mean() + 1.25 * quantization
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["quantization_error"], quantization, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], -10 * np.log10((error**2).mean()), rtol=1e-4)


def test_entropy_term_prefers_sure_latents_and_all_codes(tiny):
    """With its weight, the loss falls by weight · (log 24 − 0) at best and never more."""
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

    @jax.jit  # all at once: the network is compiled once
    def run(params):
        return [
            losses.tokenizer_loss(tiny.tokenizer, params, images, entropy_weight=weight)
            for weight in (0.0, 0.1)
        ]

    (without, _), (with_it, metrics) = run(tiny.tokenizer_params)
    assert 0 < without - with_it <= 0.1 * np.log(24) + 1e-6
    assert 1 <= metrics["codes_used"] <= 24


@pytest.mark.slow
def test_updates_learn(tiny):
    ids = jnp.tile(jnp.arange(16)[None], (8, 1))
    labels = jnp.zeros(8, jnp.int32)
    rates = optimizers.learning_rate_schedule(3e-3, 60, 5)
    optimizer = optimizers.make_optimizer(rates, 0.0)

    loss = functools.partial(losses.masked_token_loss, tiny.transformer)
    step = jax.jit(functools.partial(train_state.update, loss, optimizer))
    state, history = train_state.init_state(released(tiny), optimizer), []
    for _ in range(60):
        state, metrics = step(state, (ids, labels), jax.random.key(0))
        history.append(float(metrics["loss"]))
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5])
    assert int(state.step) == 60


@pytest.fixture(scope="module")
def pictures():
    return jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))


@pytest.fixture(scope="module")
def autoencoder_update(tiny):
    """One update of the autoencoder's loss with plain gradient descent."""
    loss = functools.partial(losses.autoencoder_loss, tiny.tokenizer)
    optimizer = optax.sgd(0.1)

    def run(images, **options):
        step = jax.jit(functools.partial(train_state.update, loss, optimizer, **options))
        state = train_state.init_state(tiny.tokenizer_params, optimizer)
        return step(state, images, jax.random.key(0))

    return run


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(autoencoder_update, pictures):
    whole, whole_metrics = autoencoder_update(pictures)
    parts, metrics = autoencoder_update(pictures, accumulate=4)
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        parts.params,
        whole.params,
    )
    with pytest.raises(InputError, match=r"batch of 16 .* 3 equal parts"):
        autoencoder_update(pictures, accumulate=3)


def test_accumulation_weighs_parts_by_what_their_loss_was_divided_by():
    """Mean over positive rows: 1 in the first part (rows 0, 2), 2 in the second (1, 3)."""

    def loss(params, rows, key):
        positive = rows > 0
        value = jnp.mean((params - rows) ** 2, where=positive)
        return value, {"loss": value, "weight": jnp.sum(positive).astype(jnp.float32)}

    rows = jnp.array([1.0, 2.0, -1.0, 6.0])
    optimizer = optax.sgd(1.0)
    state = train_state.init_state(jnp.zeros(()), optimizer)
    state, metrics = train_state.update(
        loss, optimizer, state, rows, jax.random.key(0), accumulate=2
    )
    np.testing.assert_allclose(metrics["loss"], (1 + 4 + 36) / 3, rtol=1e-6)
    np.testing.assert_allclose(state.params, 2 * (1 + 2 + 6) / 3, rtol=1e-6)
    assert set(metrics) == {"loss"}


def test_average_weights_follow_the_formula():
    def loss(params, batch, key):
        return jnp.sum(params * batch), {}

    optimizer = optax.sgd(1.0)
    state = train_state.init_state(jnp.array([3.0, -1.0]), optimizer)
    step = jax.jit(functools.partial(train_state.update, loss, optimizer, ema_decay=0.3))
    params = average = np.array([3.0, -1.0])
    for t in range(6):
        gradient = np.array([[t, 1.0]])
        state, _ = step(state, gradient, jax.random.key(0))
        params = params - gradient[0]
        decay = min(0.3, (1 + t) / (10 + t))  # 0.1, 0.18, 0.25, 0.3, ...
        average = decay * average + (1 - decay) * params
        np.testing.assert_allclose(state.params, params, rtol=1e-6)
        np.testing.assert_allclose(state.average, average, rtol=1e-5)


def test_without_decay_the_average_is_the_weights():
    def loss(params, batch, key):
        return jnp.sum(params * batch), {}

    optimizer = optax.sgd(1.0)
    state = train_state.init_state(jnp.array([3.0, -1.0]), optimizer)
    step = jax.jit(functools.partial(train_state.update, loss, optimizer))
    for _ in range(2):
        state, _ = step(state, np.array([[0.3, 1.0]]), jax.random.key(0))
    np.testing.assert_allclose(state.params, [2.4, -3.0], rtol=1e-6)
    np.testing.assert_array_equal(state.average, state.params)


def test_learning_rates():
    cosine = optimizers.learning_rate_schedule(2.0, 110, 10)
    rates = [float(cosine(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)
    constant = optimizers.learning_rate_schedule(2.0, 110, 10, "constant")
    np.testing.assert_allclose([float(constant(step)) for step in (5, 10, 500)], [1, 2, 2])
    for decay in optimizers.SCHEDULES:  # no warm-up
        assert float(optimizers.learning_rate_schedule(2.0, 110, 0, decay)(0)) == 2
    with pytest.raises(InputError, match="unknown decay 'linear'"):
        optimizers.learning_rate_schedule(2.0, 110, 10, "linear")


def test_muon_makes_the_steps_of_matrices_orthogonal(tiny):
    rates = optimizers.learning_rate_schedule(0.5, 10, 0, "constant")
    optimizer = optimizers.make_optimizer(rates, 0.0, name="muon", clip_norm=1e9)
    params = {"kernel": jnp.zeros((8, 2, 6)), "bias": jnp.zeros(5)}
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: np.float32(rng.normal(size=x.shape) * 1.5 ** np.arange(x.shape[-1])), params
    )
    steps, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    # Inputs 8, outputs 2·6: rms 0.2 times the rate, so each of the 8 singular values is 0.2·√12.
    values = np.linalg.svd(steps["kernel"].reshape(8, 12), compute_uv=False)
    np.testing.assert_allclose(values / (0.5 * 0.2 * 12**0.5), 1, atol=0.4)
    # Adam's first step (with Nesterov's momentum 0.9) is the same for all but the sign.
    nesterov = 0.9 * 0.1 / (1 - 0.9**2) + 1
    expected = -0.5 * nesterov * np.sign(gradients["bias"])
    np.testing.assert_allclose(steps["bias"], expected, rtol=1e-4)
    with pytest.raises(InputError, match="unknown optimizer 'sgd'"):
        optimizers.make_optimizer(rates, 0.0, name="sgd")

    axes = optimizers.matrices(released(tiny))
    layer = axes["TransformerLayer_0"]["Attention_0"]["self_attention"]
    assert layer["query"]["kernel"] == ((0,), (1, 2)) and layer["out"]["kernel"] == ((0, 1), (2,))
    assert layer["query"]["bias"] is None
    assert axes["Embed_0"]["word_embeddings"]["embedding"] is None


def test_gradients_are_clipped():
    """Adam forgets the gradients' scale, except through what is clipped before it."""
    params, rates = jnp.array([0.0, 0.0]), optimizers.learning_rate_schedule(1.0, 10, 1)
    for clip_norm, expected in ((1.0, [0.6, 0.8]), (100.0, [3.0, 4.0])):
        optimizer = optimizers.make_optimizer(rates, 0.0, clip_norm=clip_norm)
        update = jax.jit(optimizer.update)
        _, state = update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
        moments = optax.tree_utils.tree_get(state, "mu")
        np.testing.assert_allclose(moments, 0.1 * np.array(expected), rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_and_leaves_weights_and_metrics_in_float32(tiny, pictures):
    ids = jax.random.randint(jax.random.key(1), (16, 16), 0, 24)
    labels = jnp.zeros(16, jnp.int32)
    for loss, params, batch in (
        (
            functools.partial(losses.masked_token_loss, tiny.transformer),
            released(tiny),
            (ids, labels),
        ),
        (
            functools.partial(losses.autoencoder_loss, tiny.tokenizer),
            tiny.tokenizer_params,
            pictures,
        ),
    ):
        results = []
        for dtype in ("float32", "bfloat16"):
            gradients = jax.jit(
                jax.value_and_grad(functools.partial(loss, dtype=dtype), has_aux=True)
            )
            (value, metrics), grads = gradients(params, batch, jax.random.key(2))
            dtypes = {x.dtype.name for x in jax.tree.leaves((value, metrics, grads))}
            assert dtypes == {"float32"}
            flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])
            assert np.all(np.isfinite(flat))
            results.append((float(value), flat))
        (value, flat), (half_value, half_flat) = results
        np.testing.assert_allclose(half_value, value, rtol=0.03)
        assert half_value != value
        assert np.linalg.norm(half_flat - flat) < 0.1 * np.linalg.norm(flat)


@pytest.fixture(scope="module")
def adversarial_gradients(tiny, pictures):
    """Value, metrics and gradients of the adversarial loss at a step."""
    discriminator = adversarial.Discriminator(8, 8)
    weights = {
        "tokenizer": tiny.tokenizer_params,
        "discriminator": discriminator.init(jax.random.key(3), pictures)["params"],
    }

    @jax.jit
    def gradients(weights, step, generator_weight):
        loss = functools.partial(
            losses.adversarial_loss,
            tiny.tokenizer,
            discriminator,
            step=step,
            adversarial_start=10,
            adversarial_weight=generator_weight,
            perceptual_weight=0.5,
            r1_weight=2.0,
        )
        return jax.value_and_grad(loss, has_aux=True)(weights, pictures)

    return functools.partial(gradients, weights), weights, discriminator


@pytest.mark.slow
def test_adversarial_terms_count_from_their_start(adversarial_gradients, tiny, pictures):
    gradients, _, _ = adversarial_gradients
    (loss, metrics), grads = gradients(9, 0.3)
    plain, _ = losses.tokenizer_loss(tiny.tokenizer, tiny.tokenizer_params, pictures)
    np.testing.assert_allclose(loss, plain + 0.5 * metrics["perceptual"], rtol=1e-4)
    assert metrics["perceptual"] > 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(grads["discriminator"]))

    (later, later_metrics), later_grads = gradients(10, 0.3)
    added = 0.3 * metrics["generator"] + metrics["discriminator"] + 2.0 * metrics["r1"]
    np.testing.assert_allclose(later, loss + added, rtol=1e-4)
    np.testing.assert_allclose(
        later_metrics["loss"], metrics["loss"] + 0.3 * metrics["generator"], rtol=1e-4
    )
    assert all(np.any(x != 0) for x in jax.tree.leaves(later_grads["discriminator"])[:1])


@pytest.mark.slow
def test_tokenizer_and_discriminator_get_their_own_gradients(adversarial_gradients, tiny, pictures):
    """The discriminator's is its own loss's; the tokenizer's does not know of that loss."""
    gradients, weights, discriminator = adversarial_gradients
    _, grads = gradients(10, 0.3)
    _, without = gradients(10, 0.0)
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(equal, grads["discriminator"], without["discriminator"])

    _, before = gradients(9, 0.0)
    jax.tree.map(equal, without["tokenizer"], before["tokenizer"])

    fake, _, _ = tiny.tokenizer.apply({"params": weights["tokenizer"]}, pictures)

    @jax.jit
    @jax.grad
    def expected(params):
        real_logits, fake_logits = (
            discriminator.apply({"params": params}, x) for x in (pictures, fake)
        )
        penalty = adversarial.r1_penalty(discriminator, params, pictures)
        logistic = jnp.log1p(jnp.exp(-real_logits)) + jnp.log1p(jnp.exp(fake_logits))
        return jnp.mean(logistic) + 2.0 * penalty

    jax.tree.map(equal, grads["discriminator"], expected(weights["discriminator"]))
