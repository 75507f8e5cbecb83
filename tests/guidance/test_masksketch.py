"""Structure-guided sampling as a whole, on a tiny model."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import masksketch
from guidance.structure import StructureSettings, layer_weights, structure_distance, traced
from maskgit_jax.errors import InputError
from maskgit_jax.model import with_class_token
from maskgit_jax.sampling import batched
from tests.commands import ROOT

NUM_STEPS = 6


def sketches(model, count):
    """Class tokens and sketch ids of samples 0 .. count - 1."""
    key = jax.random.key(42)
    ids = jax.random.randint(key, (8, 16), 0, 24)
    return with_class_token(model.config, jnp.arange(8) % 5, ids)[:count]


def draw(model, count=8, rows=slice(None), seed=7, choices=None, **overrides):
    settings = dataclasses.replace(
        StructureSettings(layer_weights=layer_weights(None, 3)), **overrides
    )
    indices = jnp.arange(count)[rows]
    return masksketch.sample(
        model,
        sketches(model, count)[rows],
        settings,
        num_steps=NUM_STEPS,
        seed=seed,
        indices=indices,
        steps_per_call=4,
        **choices or {},
    )


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_and_index_alone(tiny):
    eight = draw(tiny).ids
    for i in (0, 5):
        np.testing.assert_array_equal(draw(tiny, rows=slice(i, i + 1)).ids, eight[i : i + 1])
    assert np.all(np.any(draw(tiny, seed=8).ids != eight, axis=1))


@pytest.mark.slow
def test_equal_sketches_with_other_indices_give_other_samples(tiny):
    tokens = jnp.tile(sketches(tiny, 1), (8, 1))
    settings = StructureSettings(layer_weights=layer_weights(None, 3))
    ids = masksketch.sample(
        tiny, tokens, settings, num_steps=NUM_STEPS, seed=0, indices=jnp.arange(8)
    ).ids
    assert len({tuple(row.tolist()) for row in ids}) == 8


@pytest.mark.slow
def test_one_compilation_serves_all_settings(tiny):
    draw(tiny)
    functions = masksketch._start, batched._advance
    before = [f._cache_size() for f in functions]
    results = [
        draw(tiny, lambda_s=0.0),
        draw(tiny, lambda_s=0.5, guidance_scale=3.0),
        draw(tiny, layer_weights=np.float32([0, 0, 1])),
        draw(tiny, max_mask_rate=0.8, min_mask_rate=0.1),
        draw(tiny, structure_temperature=0.3, confidence_temperature=0.3),
    ]
    assert [f._cache_size() for f in functions] == before
    assert len({tuple(r.ids.ravel().tolist()) for r in results}) == 5


@pytest.mark.slow
def test_without_guidance_the_other_class_is_not_computed(tiny):
    """The same tokens as with a scale of 0 beside one that is not."""
    scales = np.float32([0.0, 2.0] * 4)
    mixed, free = draw(tiny, guidance_scale=scales), draw(tiny, guidance_scale=0.0)
    np.testing.assert_array_equal(mixed.ids[::2], free.ids[::2])
    assert np.any(mixed.ids[1::2] != free.ids[1::2])


def test_outside_the_region_ids_stay(tiny):
    region = jnp.zeros((8, 16), bool).at[:, 3:9].set(True)
    samples = masksketch.sample(
        tiny,
        sketches(tiny, 8),
        StructureSettings(layer_weights(None, 3), max_mask_rate=1.0, lambda_s=0.5),
        num_steps=NUM_STEPS,
        seed=7,
        indices=jnp.arange(8),
        region=region,
    )
    given = sketches(tiny, 8)[:, 1:]
    np.testing.assert_array_equal(samples.ids[~region], given[~region])
    assert np.mean(samples.ids[region] != given[region]) > 0.5


def test_settings_may_differ_between_samples(tiny):
    lambdas = np.linspace(0, 1, 8, dtype=np.float32)
    mixed = draw(tiny, lambda_s=lambdas)
    for i in (0, 7):
        equal = draw(tiny, lambda_s=lambdas[i])
        np.testing.assert_array_equal(mixed.ids[i], equal.ids[i])


def test_structure_guidance_lowers_the_distance(tiny):
    """All structure against none, same seeds: lower by 0.04, several standard errors."""

    def distances(lambda_s):
        samples = [draw(tiny, seed=k, lambda_s=lambda_s, min_mask_rate=0.05) for k in range(8)]
        return np.concatenate([each.structure_distance for each in samples])

    gain = distances(0.0) - distances(1.0)
    assert np.mean(gain) > 0.02
    assert np.mean(gain) > 4 * np.std(gain) / np.sqrt(64)


@pytest.mark.slow
def test_proposals_lower_the_distance_in_as_many_steps(tiny):
    one, four = draw(tiny), draw(tiny, choices={"num_proposals": 4})
    assert jnp.mean(four.structure_distance) < 0.9 * jnp.mean(one.structure_distance)
    alone = draw(tiny, rows=slice(5, 6), choices={"num_proposals": 4})
    np.testing.assert_array_equal(alone.ids, four.ids[5:6])


def test_the_sketch_itself_has_distance_zero(tiny):
    tokens = sketches(tiny, 1)[0]
    settings = traced(StructureSettings(layer_weights=jnp.ones(3), paper_weight=0.25))
    modules = tiny.transformer, tiny.transformer_params
    paper_ids = tokens[1:].at[::2].add(1)
    everywhere = jnp.ones(17, bool)
    guide, state = masksketch.start(
        *modules, paper_ids, tokens, everywhere, settings, jax.random.key(0)
    )
    used_layers = jnp.ones(3, bool)
    distance = structure_distance(*modules, tokens, guide.target, used_layers)
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    assert int(guide.num_masked) == int(jnp.sum(state.ids == -1)) == 16
    np.testing.assert_array_equal(guide.token_weights, [1, *[1, 0.25] * 8])


def test_bad_arguments_are_named(tiny):
    settings = StructureSettings(layer_weights=layer_weights(None, 3))
    arguments = {"num_steps": 4, "seed": 0, "indices": jnp.arange(1)}
    for words, changes, knobs in (
        ("num_steps=0: expected", {"num_steps": 0}, {}),
        ("divergence=kl: expected", {"divergence": "kl"}, {}),
        ("schedule=sine: expected one of cosine", {"schedule": "sine"}, {}),
        ("num_proposals=0: expected", {"num_proposals": 0}, {}),
        ("4 layer weights: the model has 3 layers", {}, {"layer_weights": np.ones(4)}),
        ("lambda_s=2.0: expected", {}, {"lambda_s": 2.0}),
    ):
        with pytest.raises(InputError, match=words):
            masksketch.sample(
                tiny,
                sketches(tiny, 1),
                dataclasses.replace(settings, **knobs),
                **arguments | changes,
            )


def test_progress_counts_the_steps(tiny):
    seen = []
    masksketch.sample(
        tiny,
        sketches(tiny, 8),
        StructureSettings(layer_weights=layer_weights(None, 3)),
        num_steps=NUM_STEPS,
        seed=0,
        indices=jnp.arange(8),
        progress=seen.append,
        steps_per_call=4,
    )
    assert seen == [0, 4, 6]


def compiled_loop(model) -> str:
    """The decode loop of eight samples as it is compiled for all devices."""
    tokens, settings = sketches(model, 8), StructureSettings(layer_weights(None, 3))
    begun = masksketch.begin(model, tokens, settings, seed=0, indices=jnp.arange(8))
    given = model.transformer, model.params_on_devices, *begun
    loop = batched._advance.lower(masksketch.MaskSketch(), *given, 0, 4, 4)
    return loop.compile().as_text()


@pytest.mark.slow
def test_batches_and_devices_give_equal_tokens(tiny):
    """Batches of 8 and 3 on one device here, on eight in a process of their own.

    Devices work alone: no operation of the loop waits for another device.
    """
    program = (
        "import jax, json, numpy as np\n"
        "from tests.conftest import make_model\n"
        "from tests.guidance.test_masksketch import compiled_loop, draw\n"
        "model = make_model()\n"
        "ids = [draw(model).ids, draw(model, 3).ids]\n"
        "ids = np.concatenate(ids).tolist()\n"
        "print(json.dumps([jax.device_count(), ids, compiled_loop(model)]))\n"
    )
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    count, ids, loop = json.loads(result.stdout)
    assert count == 8
    # Rows of a device's share: the loop was indeed split.
    assert "s32[1,17]" in loop and "s32[8,17]" not in loop
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective|send|recv"
    assert not re.findall(rf" (?:{names})[\w-]*\(", loop)
    here = np.concatenate([draw(tiny).ids, draw(tiny, 3).ids])
    np.testing.assert_array_equal(here[8:], here[:3])
    np.testing.assert_array_equal(ids, here)


def test_each_sample_has_its_temperature_and_rise_of_guidance(tiny):
    """Those of 1 and of 0 are as without."""
    few = {"count": 4, "guidance_scale": 5.0}
    plain = draw(tiny, **few).ids
    before = batched._advance._cache_size()
    ones = np.float32([1, 1, 1e-6, 1])
    mixed = draw(tiny, **few, token_temperature=ones, guidance_power=np.float32([0, 3, 0, 0])).ids
    assert batched._advance._cache_size() == before
    differs = np.any(np.asarray(mixed != plain), axis=1)
    np.testing.assert_array_equal(differs, [False, True, True, False])
