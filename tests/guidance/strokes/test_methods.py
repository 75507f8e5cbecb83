"""Each rule against a formula of its own in NumPy; `sample` by what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance.strokes import energies as rules
from guidance.strokes import methods
from guidance.strokes.base import StrokeInputs
from guidance.strokes.context import ContextGuidance
from guidance.strokes.methods import METHODS, StrokeSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knobs_of
from maskgit_jax.model import with_class_token
from maskgit_jax.networks.transformer import Embed
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import MASK_ID, decode
from tests.conftest import released

CODES, IDS = 24, 16
KNOBS = knobs_of(StrokeSettings)

tilt = jax.jit(rules.tilt)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def codebook(shallow):
    return shallow.tokenizer_params["quantizer"]["codebook"]


@pytest.fixture(scope="module")
def energy(codebook):
    """Minus the code distance."""
    return jax.jit(rules.code_distance_energy)(codebook)


@pytest.fixture(scope="module")
def scene():
    """Tokens with ids 5..12 hidden, and guide ids; ids 11 and 12 have none."""
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[CODES + 2], rng.integers(CODES, size=IDS)]).astype(np.int32)
    tokens[5:13] = MASK_ID
    guide_ids = rng.integers(CODES, size=IDS + 1).astype(np.int32)
    guide_ids[0] = guide_ids[11:13] = MASK_ID
    return tokens, guide_ids


def inputs_of(scene, confidence=0.6):
    return StrokeInputs(
        jnp.asarray(scene[1]), jnp.int32(8), jnp.float32(4.5), jnp.float32(confidence)
    )


def logits_of(shallow, tokens, guide_ids=None):
    """From the module itself, not as sampling runs it."""
    params = {"params": released(shallow)}
    logits = jax.jit(shallow.transformer.apply)(params, tokens, guide_ids=guide_ids)
    return np.array(logits[:, :CODES])


def predicted(shallow, scene, name, energy=(), **kwargs):
    predict, _ = METHODS[name](
        shallow.transformer, shallow.transformer_params, energy, inputs_of(scene, **kwargs), 8
    )
    return np.asarray(jax.jit(predict)(jnp.asarray(scene[0]), jnp.int32(3)))


def test_energies(codebook, energy):
    codes = np.asarray(codebook, np.float64)
    expected = -((codes[:, None] - codes) ** 2).mean(axis=-1)
    np.testing.assert_allclose(energy, expected, atol=1e-6)
    np.testing.assert_array_equal(np.diag(energy), 0)
    np.testing.assert_array_equal(rules.identity_energy(codebook), np.eye(CODES))


def test_self_guidance_multiplies_the_logits(shallow, scene, energy):
    tokens, guide_ids = scene
    sharpness = np.exp(np.log(1e-6) + 0.6 * (np.log(100) - np.log(1e-6)))
    weights = softmax(sharpness * np.asarray(energy)[guide_ids[5:11]])
    expected = logits_of(shallow, tokens)
    expected[5:11] *= weights * CODES
    found = predicted(shallow, scene, "code_distance", energy)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def test_zero_shot_shows_guide_ids_in_place_of_masks(shallow, scene):
    tokens, guide_ids = scene
    shown = tokens.copy()
    shown[5:11] = guide_ids[5:11]
    expected = logits_of(shallow, shown)
    np.testing.assert_allclose(
        predicted(shallow, scene, "zero_shot"), expected, rtol=2e-4, atol=2e-4
    )


def test_iterative_adds_the_guides_embedding(shallow, scene):
    tokens, guide_ids = scene
    table = shallow.transformer_params["Embed_0"]
    words = np.asarray(table["word_embeddings"]["embedding"], np.float64)
    positions = np.asarray(table["position_embeddings"]["embedding"], np.float64)

    def embed(ids):
        x = words[ids] + positions
        return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)

    expected = embed(tokens)
    expected[5:11] += embed(guide_ids)[5:11]
    module = Embed(shallow.config.transformer)
    x, _ = jax.jit(lambda *ids: module.apply({"params": table}, ids[0], True, ids[1]))(*scene)
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        predicted(shallow, scene, "iterative"),
        logits_of(shallow, tokens, guide_ids),
        rtol=2e-4,
        atol=2e-4,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.floats(0.1, 8))
def test_tilt_scales_the_mean_distance(seed, confidence, spread):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (3, CODES))
    energies = -(rng.uniform(0.1, 5, (3, CODES)) ** 2)
    energies[:, 4] = 0
    tilted = np.asarray(tilt(logits, energies, confidence))
    mean = (softmax(tilted.astype(np.float64)) * energies).sum(axis=1)
    unguided = (softmax(logits) * energies).sum(axis=1)
    np.testing.assert_allclose(mean, (1 - confidence) * unguided, rtol=0.01, atol=1e-4)
    # An exponential tilt: what is added is one multiple of the energies.
    added = (tilted - logits)[:, :4] / energies[:, :4]
    np.testing.assert_allclose(added, added[:, :1] * np.ones((1, 4)), rtol=1e-3, atol=1e-3)


def test_tilt_does_not_see_an_offset_of_the_logits_but_self_guidance_does(energy):
    logits = np.random.default_rng(0).normal(size=CODES).astype(np.float32)
    energies = np.asarray(energy)[3]
    ours = [softmax(np.asarray(tilt(logits + x, energies, 0.5))) for x in np.float32([0, 30])]
    np.testing.assert_allclose(*ours, rtol=1e-3, atol=1e-6)
    weights = np.asarray(jax.jit(rules.reweighting)(energies, 0.9))
    theirs = [softmax((logits + x) * weights) for x in (0, 30)]
    assert np.abs(theirs[0] - theirs[1]).max() > 0.1


@pytest.mark.slow
def test_one_step_of_context_guidance(shallow, scene):
    tokens, guide_ids = scene
    num_steps, step, key = 6, 2, jax.random.PRNGKey(5)
    inputs = inputs_of(scene)
    rule = ContextGuidance()
    modules = shallow.transformer, shallow.transformer_params
    predict, remask = rule(*modules, (), inputs, num_steps)
    start = rule.start(jnp.asarray(tokens), inputs, step, num_steps, key)
    state = jax.jit(lambda state: decode(predict, remask, state, step, step + 1))(start)

    def choose(hidden, confidence, step, choice_key):
        ratio = step / num_steps
        count = int(np.floor(8 * np.cos(np.pi / 2 * ratio)))
        count = max(1, min(count, hidden.sum() - 1))
        noise = np.asarray(jax.random.gumbel(choice_key, (IDS + 1,)))
        score = np.where(hidden, confidence + 4.5 * (1 - ratio) * noise, np.inf)
        chosen = np.zeros(IDS + 1, bool)
        chosen[np.argsort(score)[:count]] = True
        return chosen

    key, sample_key = jax.random.split(key)
    key, choice_key = jax.random.split(key)
    hidden = tokens == MASK_ID
    chosen = choose(hidden, np.zeros(IDS + 1), step, choice_key)
    shown = np.where(chosen & (guide_ids != MASK_ID), guide_ids, tokens)
    logits = logits_of(shallow, shown)
    noise = np.asarray(jax.random.gumbel(sample_key, logits.shape))
    drawn = np.where(hidden, np.argmax(logits + noise, axis=1), tokens)
    np.testing.assert_array_equal(state.sampled[: IDS + 1], drawn)
    np.testing.assert_array_equal(state.ids[: IDS + 1], np.where(chosen, MASK_ID, drawn))
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(key))
    # What the next step is to show as the stroke's.
    log_p = np.log(softmax(logits.astype(np.float64)))
    confidence = np.array([log_p[i, min(drawn[i], CODES - 1)] for i in range(IDS + 1)])
    _, next_choice = jax.random.split(jax.random.split(key)[0])
    marks = np.asarray(state.ids[IDS + 1 :]) == MASK_ID
    np.testing.assert_array_equal(marks, choose(chosen, confidence, step + 1, next_choice))


def draw(model, tokens, guide_ids, method, **kwargs):
    knobs = {name: kwargs.pop(name) for name in list(kwargs) if name in KNOBS}
    made = methods.sample(
        model,
        jnp.asarray(tokens),
        jnp.asarray(guide_ids),
        StrokeSettings(**{"num_steps": 4, "confidence": 1.0} | knobs),
        method=method,
        **{"seed": 3, "indices": jnp.arange(len(tokens))} | kwargs,
    )
    return np.asarray(made)


@pytest.fixture(scope="module")
def batch(shallow):
    """Tokens of three samples, the lower half hidden, and guide ids."""
    rng = np.random.default_rng(1)
    ids = rng.integers(CODES, size=(3, IDS)).astype(np.int32)
    ids[:, IDS // 2 :] = MASK_ID
    tokens = with_class_token(shallow.config, jnp.arange(3), jnp.asarray(ids))
    return tokens, rng.integers(CODES, size=(3, IDS)).astype(np.int32)


@pytest.mark.slow
def test_the_knob_goes_from_unguided_ids_to_the_guides(shallow, batch):
    tokens, guide_ids = batch
    plain = batched.sample(shallow, tokens, num_steps=4, seed=3, indices=jnp.arange(3))
    np.testing.assert_array_equal(draw(shallow, *batch, "baseline"), plain)
    np.testing.assert_array_equal(draw(shallow, *batch, "tilt", confidence=0.0), plain)
    full = draw(shallow, *batch, "tilt", confidence=1.0)
    np.testing.assert_array_equal(full[:, IDS // 2 :], guide_ids[:, IDS // 2 :])
    np.testing.assert_array_equal(full[:, : IDS // 2], tokens[:, 1 : IDS // 2 + 1])


def test_another_confidence_compiles_nothing(shallow, batch):
    draw(shallow, *batch, "tilt", confidence=0.2)
    before = batched._advance._cache_size()
    mixed = draw(shallow, *batch, "tilt", confidence=jnp.array([0.2, 0.5, 0.8]), num_steps=5)
    assert batched._advance._cache_size() == before
    alone = draw(shallow, *batch, "tilt", confidence=0.5, num_steps=5)
    np.testing.assert_array_equal(mixed[1], alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["context", "learned"])
def test_a_sample_depends_on_its_seed_and_index_alone(shallow, batch, method):
    tokens, guide_ids = batch
    kwargs = {"energy": np.eye(CODES, dtype=np.float32)} if method == "learned" else {}
    three = draw(shallow, *batch, method, **kwargs)
    one = draw(shallow, tokens[1:2], guide_ids[1:2], method, indices=jnp.array([1]), **kwargs)
    np.testing.assert_array_equal(one, three[1:2])
    np.testing.assert_array_equal(three[:, : IDS // 2], tokens[:, 1 : IDS // 2 + 1])
    assert three.min() >= 0 and three.max() < CODES
    if method == "learned":
        np.testing.assert_array_equal(three, draw(shallow, *batch, "identity"))


@pytest.mark.parametrize("method", ["baseline", "context"])
def test_a_stroke_has_its_token_temperature(shallow, batch, method):
    kwargs = {"num_steps": 1, "indices": jnp.arange(3)}
    tokens, guide_ids = (x[jnp.zeros(3, int)] for x in batch)
    plain = draw(shallow, tokens, guide_ids, method, **kwargs)
    before = batched._advance._cache_size()
    warm, cold = (
        draw(shallow, tokens, guide_ids, method, token_temperature=value, **kwargs)
        for value in (1.0, 1e-6)
    )
    assert batched._advance._cache_size() == before
    np.testing.assert_array_equal(warm, plain)
    assert np.all(np.any(cold != plain, axis=1))
    if method == "baseline":  # noise does not matter; what context shows first is random
        np.testing.assert_array_equal(cold, cold[[1, 2, 0]])


@pytest.mark.parametrize(
    "words, method, kwargs",
    [
        ("unknown method 'paint'", "paint", {}),
        ("confidence=1.5: expected", "tilt", {"confidence": 1.5}),
        ("confidence=nan: expected", "tilt", {"confidence": float("nan")}),
        ("first_step is 4 of 4", "tilt", {"first_step": 4}),
        ("token_temperature=0.0: expected", "tilt", {"token_temperature": 0.0}),
        ("goes with the method 'learned'", "learned", {}),
        ("goes with the method 'learned'", "tilt", {"energy": np.eye(CODES)}),
        ("2x3: the model has 24 codes", "learned", {"energy": np.zeros((2, 3))}),
        ("not finite", "learned", {"energy": np.full((CODES, CODES), np.nan)}),
    ],
)
def test_bad_arguments_are_named(shallow, batch, words, method, kwargs):
    with pytest.raises(InputError, match=words):
        draw(shallow, *batch, method, **kwargs)
