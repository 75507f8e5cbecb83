import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import structure
from guidance.structure import StructureSettings
from maskgit_jax.errors import InputError
from maskgit_jax.networks.stacked import AttentionInputs, attention_inputs
from maskgit_jax.sampling.loop import MASK_ID, draw_each


def softmax64(logits):
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def random_inputs(key, layers=3, scale=1.0) -> AttentionInputs:
    queries, keys = scale * jax.random.normal(key, (2, layers, 17, 2, 8))
    return AttentionInputs(queries, keys)


def test_structure_distance_averages_heads_and_weighs_layers():
    target, sampled = (random_inputs(jax.random.key(i)) for i in range(2))
    weights = jnp.array([1.0, 0.0, 3.0])
    expected = np.zeros(17)
    for layer, weight in ((0, 0.25), (2, 0.75)):
        for head in range(2):
            p, q = (
                softmax64(x.queries[layer, :, head] @ x.keys[layer, :, head].T)
                for x in (target, sampled)
            )
            expected += weight / 2 * np.sum((p - q) * (np.log(p) - np.log(q)), axis=-1)
    distances = structure.layer_distances(target, sampled)
    np.testing.assert_allclose(weights @ distances / 4, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_structure_distance_weighs_the_layers_of_one_pass(tiny):
    modules = tiny.transformer, tiny.transformer_params
    ids = jnp.array([24, *range(8, 24)])
    target, sampled = (attention_inputs(*modules, x, 3) for x in (SKETCH, ids))
    layers = structure.layer_distances(target, sampled)
    for weights, used in (([1.0, 0.0, 3.0], [True, False, True]), ([2.0, 2.0, 2.0], [True] * 3)):
        expected = np.average(layers, axis=0, weights=weights)
        distance = structure.structure_distance(
            *modules, ids, structure.Target(target, jnp.array(weights)), jnp.array(used)
        )
        np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-6)


def test_layers_that_no_sample_weighs_are_not_compared(tiny):
    """A weight on such a layer changes nothing: its distance is taken to be 0."""
    modules = tiny.transformer, tiny.transformer_params
    ids = jnp.array([24, *range(8, 24)])
    target = attention_inputs(*modules, SKETCH, 3)
    used = jnp.array([True, False, False])
    distance = structure.structure_distance(
        *modules, ids, structure.Target(target, jnp.array([1.0, 7.0, 0.0])), used
    )
    alone = structure.layer_distances(target, attention_inputs(*modules, ids, 3))[0]
    np.testing.assert_allclose(distance, alone / 8, rtol=1e-4, atol=1e-7)


SKETCH = jnp.array([24, *range(16)])
LOGITS = 3 * jax.random.normal(jax.random.key(5), (17, 24))


@pytest.fixture(scope="module")
def remask_once(tiny):
    """Calls the remask rule once: which positions it hides, the distances, the confidences."""
    modules = tiny.transformer, tiny.transformer_params

    @jax.jit
    def hide_and_distance(settings, step, num_steps, sampled, region, token_weights, key):
        target = structure.Target(
            attention_inputs(*modules, SKETCH, 3), settings.knobs.layer_weights
        )
        distance = functools.partial(
            structure.structure_distance, *modules, target=target, used_layers=jnp.ones(3, bool)
        )
        remask = structure.structure_remask(
            distance, jnp.int32(16), region, token_weights, settings, num_steps=num_steps
        )
        hide, _, distances = remask(step, sampled, sampled, LOGITS, key, None)
        return hide, distances

    def call(*, step=0, sampled=None, region=None, token_weights=None, key=0, **overrides):
        sampled = jnp.array([24, *range(8, 24)]) if sampled is None else sampled
        region = jnp.ones(17, bool) if region is None else region
        token_weights = jnp.ones(17) if token_weights is None else token_weights
        knobs = dataclasses.replace(StructureSettings(layer_weights=jnp.ones(3)), **overrides)
        hide, distance = hide_and_distance(
            structure.traced(knobs), step, 10, sampled, region, token_weights, jax.random.key(key)
        )
        confidence = softmax64(LOGITS)[np.arange(1, 17), sampled[1:]]
        return np.asarray(hide), np.asarray(distance), confidence

    return call


def test_all_structure_hides_the_largest_distances(remask_once):
    hide, distance, _ = remask_once(lambda_s=1.0, max_mask_rate=0.5, min_mask_rate=0.5)
    ranked = np.argsort(-distance)[:8]
    assert set(np.flatnonzero(hide)) == set(ranked) - {0}


def test_nothing_is_hidden_outside_the_region(remask_once):
    region = jnp.arange(17) % 2 == 0
    rates = {"max_mask_rate": 0.375, "min_mask_rate": 0.375}
    hide, distance, _ = remask_once(lambda_s=1.0, region=region, **rates)
    inside = np.flatnonzero(region)
    assert set(np.flatnonzero(hide)) == set(inside[np.argsort(-distance[inside])[:6]]) - {0}
    hide, _, confidence = remask_once(lambda_s=0.0, region=region, **rates)
    inside = inside[1:]
    assert set(np.flatnonzero(hide)) == set(inside[np.argsort(confidence[inside - 1])[:6]])


def test_all_realism_hides_the_lowest_confidences(remask_once):
    hide, _, confidence = remask_once(lambda_s=0.0, max_mask_rate=0.5, min_mask_rate=0.5)
    assert set(np.flatnonzero(hide)) == set(1 + np.argsort(confidence)[:8])


def test_token_weights_scale_the_distances(remask_once):
    weights = np.where(np.arange(17) % 2, 1.0, 0.3).astype(np.float32)
    hide, distance, _ = remask_once(
        lambda_s=1.0, max_mask_rate=0.5, min_mask_rate=0.5, token_weights=jnp.asarray(weights)
    )
    assert set(np.flatnonzero(hide)) == set(np.argsort(-weights * distance)[:8]) - {0}


@pytest.mark.parametrize("step", range(10))
def test_counts_fall_linearly_and_split_by_lambda(remask_once, step):
    rate = 0.35 + (1 - (step + 1) / 10) * (0.95 - 0.35)
    n = int(16 * np.float32(rate))
    hide, _, _ = remask_once(step=step, lambda_s=0.75)
    by_structure, by_confidence = int(n * 0.75), int(n * 0.25)
    assert max(by_structure, by_confidence) - 1 <= hide.sum() <= by_structure + by_confidence
    assert not hide[0]


def test_equal_scores_hide_the_asked_number_at_random(remask_once):
    rates = {"max_mask_rate": 0.5, "min_mask_rate": 0.5}
    hides = [
        remask_once(key=k, lambda_s=1.0, token_weights=jnp.zeros(17), **rates)[0] for k in range(8)
    ]
    assert all(7 <= h.sum() <= 8 for h in hides)
    assert len({tuple(h) for h in hides}) > 1


def test_temperatures_have_noise_of_their_own(remask_once):
    plain = remask_once(lambda_s=0.5)[0]
    noisy = {
        name: {tuple(remask_once(lambda_s=0.5, key=k, **{name: 2.0})[0]) for k in range(6)}
        for name in ("structure_temperature", "confidence_temperature")
    }
    for name, hides in noisy.items():
        assert len(hides) > 1, name
    assert all(tuple(remask_once(lambda_s=0.5, key=k)[0]) == tuple(plain) for k in range(3))


def test_the_two_masks_do_not_share_their_noise(remask_once):
    """Of 16, 4 by each, all noise: 7 expected together, 4 if both came from the same draw."""
    knobs = {"lambda_s": 0.5, "max_mask_rate": 0.5, "min_mask_rate": 0.5}
    noise = {"structure_temperature": 1e4, "confidence_temperature": 1e4}
    sizes = [remask_once(key=k, **knobs, **noise)[0].sum() for k in range(20)]
    assert 6 < np.mean(sizes) < 8


@pytest.mark.parametrize(
    ("rate", "count"), [(1.0, 16), (0.95, 16), (0.5, 8), (0.75, 12), (0.01, 1)]
)
def test_start_hides_the_asked_share(rate, count):
    draws = np.random.default_rng(0).random(17).astype(np.float32)
    start = structure.mask_start(SKETCH, jnp.ones(17, bool), rate, jnp.asarray(draws))
    hidden = 1 + np.argsort(draws[1:])[:count]
    expected = np.array(SKETCH)
    expected[hidden] = MASK_ID
    np.testing.assert_array_equal(start, expected)


def test_start_hides_a_share_of_the_region():
    draws = jnp.linspace(1, 0, 17)
    start = structure.mask_start(SKETCH, jnp.arange(17) < 9, 0.5, draws)
    np.testing.assert_array_equal(np.flatnonzero(start == MASK_ID), [5, 6, 7, 8])
    np.testing.assert_array_equal(start[9:], SKETCH[9:])


def test_each_position_takes_the_nearest_of_several_draws():
    """With the distance |id − 12| and even odds: the drawn id nearest to 12 at each position."""
    ids = jnp.array([24, *[-1] * 12, 3, 5, 7, 9])

    def distance(sampled):
        return jnp.abs(sampled - 12.0)

    key, even = jax.random.key(0), jnp.zeros((17, 24))
    draws = [draw_each(ids, even, each) for each in jax.random.split(key, 6)]
    drawn = structure.least_distance_draw(distance, 6)(ids, even, key)
    nearest = np.min(np.abs(np.array(draws)[:, 1:13] - 12), axis=0)
    np.testing.assert_array_equal(np.abs(drawn[1:13] - 12), nearest)
    np.testing.assert_array_equal(drawn[13:], ids[13:])
    assert structure.least_distance_draw(distance, 1) is draw_each


def test_shares_are_those_of_float64():
    """What the published code multiplies counts with, for every λ_s of two decimals."""
    lambdas = np.arange(101) / 100
    settings = structure.traced(StructureSettings(np.ones((101, 2)), lambda_s=lambdas))
    counts = np.arange(1, 1025, dtype=np.float32)[:, None]
    for ours, exact in ((settings.knobs.lambda_s, lambdas), (settings.realism_share, 1 - lambdas)):
        ours = jax.jit(lambda share: jnp.floor(counts * share))(ours)
        np.testing.assert_array_equal(ours, np.floor(counts * np.float32(exact)))


def test_layer_weights():
    np.testing.assert_array_equal(structure.layer_weights([1, 3], 6), [0, 1, 0, 1])
    np.testing.assert_array_equal(structure.layer_weights(None, 3), [1, 1, 1])
    for layers, words in (
        ([99], "layer 99"),
        ([-1], "layer -1"),
        ([], "no layers"),
        ([1, 1], "twice"),
    ):
        with pytest.raises(InputError, match=words):
            structure.layer_weights(layers, 24)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lambda_s", 1.5),
        ("lambda_s", -0.1),
        ("lambda_s", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", -1.0),
        ("max_mask_rate", 0.0),
        ("min_mask_rate", 0.99),
        ("structure_temperature", float("nan")),
        ("lambda_s", np.array([0.5, 1.5])),
        ("guidance_scale", 1e39),
        ("token_temperature", 0.0),
        ("token_temperature", np.array([1.0, np.nan])),
        ("guidance_power", -1.0),
        ("layer_weights", np.zeros(3)),
        ("layer_weights", np.array([1.0, -1.0])),
    ],
)
def test_bad_settings_are_named(name, value):
    good = StructureSettings(layer_weights=np.ones(3, np.float32))
    structure.check_settings(good)
    with pytest.raises(InputError, match=name) as error:
        structure.check_settings(dataclasses.replace(good, **{name: value}))
    assert "\n" not in str(error.value)
