import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax import decoding
from maskgit_jax.decoding import MASK_ID, DecodeState
from maskgit_jax.errors import InputError
from maskgit_jax.remdm import STRATEGIES, ReMdm, remask_probability

NUM_STEPS, NUM_IDS, NUM_CODES, NUM_RUNS = 6, 64, 8, 3000
GAMMA = np.cos(np.pi / 2 * np.arange(NUM_STEPS + 1) / NUM_STEPS)
SHARP = np.arange(NUM_IDS + 1) % 2 == 0
"""Positions where the dummy model is sure of code 3; elsewhere it knows nothing."""


def logits_of(step):
    """Sure with a probability that falls from step to step."""
    return jnp.where(SHARP[:, None], (8.0 - step) * (jnp.arange(NUM_CODES) == 3), 0.0)


@jax.jit
def trajectories(sampler, tokens):
    """The states after each step of many runs from the same tokens: leaves [steps, runs, ...]."""

    def one(key):
        memory = tuple(field[0] for field in sampler.memory(tokens[None]))
        predict, remask = sampler(
            lambda ids, step: logits_of(step), tokens == MASK_ID, key, NUM_STEPS
        )

        def step(state, t):
            state = decoding.decode(predict, remask, state, t, t + 1)
            return state, state

        start = DecodeState(tokens, tokens, key, memory)
        return jax.lax.scan(step, start, jnp.arange(NUM_STEPS))[1]

    return jax.vmap(one, out_axes=1)(jax.random.split(jax.random.key(0), NUM_RUNS))


BLANK = jnp.array([NUM_CODES, *[-1] * NUM_IDS])


def hidden_after(sampler):
    """Which image ids are hidden after each step but the last: [steps - 1, runs, N]."""
    return np.asarray(trajectories(sampler, BLANK).ids == MASK_ID)[:-1, :, 1:]


def assert_mean(values, expected):
    """Within four standard errors."""
    error = np.std(values, axis=-1) / np.sqrt(values.shape[-1])
    np.testing.assert_array_less(np.abs(np.mean(values, axis=-1) - expected), 4 * error)


@pytest.mark.parametrize(
    "sampler", [ReMdm(0.0), ReMdm(0.3), ReMdm(1.0), ReMdm(0.2, "cap")], ids=str
)
def test_the_expected_number_hidden_is_the_schedule_s(sampler):
    counts = hidden_after(sampler).sum(axis=-1)
    assert_mean(counts, NUM_IDS * GAMMA[1:-1])


def test_by_confidence_up_to_one_id_a_step_is_hidden_beyond_the_schedule():
    eta = 0.8
    counts = hidden_after(ReMdm(eta, "confidence")).sum(axis=-1)
    # A step hides η σ_max ids and reveals as many as if none had been.
    expected, now = [], NUM_IDS
    for before, after in itertools.pairwise(GAMMA[:-1]):
        seen = np.mean(counts[len(expected) - 1] < NUM_IDS) if expected else 0
        now = now * after / before + eta * min(1, after / max(1 - before, 1e-6)) * seen
        expected.append(now)
    assert_mean(counts, expected)


def test_without_remasking_it_is_the_ancestral_sampler():
    hidden = hidden_after(ReMdm(0.0))
    assert not np.any(hidden[1:] & ~hidden[:-1])
    # Ids are revealed independently: the number hidden is binomial.
    variance = NUM_IDS * GAMMA[1:-1] * (1 - GAMMA[1:-1])
    found = np.var(hidden.sum(axis=-1), axis=-1)
    np.testing.assert_allclose(found, variance, rtol=4 * np.sqrt(2 / NUM_RUNS))
    # And each is as likely as any other to be.
    share = hidden.mean(axis=1)
    error = np.sqrt(GAMMA * (1 - GAMMA) / NUM_RUNS)[1:-1, None]
    assert np.all(np.abs(share - GAMMA[1:-1, None]) < 4.5 * error)


def test_sure_ids_are_hidden_again_less_often():
    hidden = hidden_after(ReMdm(1.0, "confidence"))
    again = (hidden[1:] & ~hidden[:-1]).sum(axis=(0, 1)) / (~hidden[:-1]).sum(axis=(0, 1))
    sharp, others = again[SHARP[1:]].mean(), again[~SHARP[1:]].mean()
    # ψ is near 1 where the model is sure, 1/8 elsewhere.
    assert 0.35 < sharp / others < 0.5


def test_the_confidence_remembered_is_that_of_the_step_that_sampled_the_id():
    states = trajectories(ReMdm(1.0, "confidence"), BLANK)
    ids, (memory,) = np.asarray(states.ids)[:, 0], states.memory
    probability = [np.asarray(jax.nn.softmax(logits_of(step))) for step in range(NUM_STEPS)]
    positions = np.arange(NUM_IDS + 1)
    born = np.zeros(NUM_IDS + 1, int)
    for step in range(NUM_STEPS - 1):
        visible = ids[step] != MASK_ID
        born = np.where(visible & (step == 0 or ids[step - 1] == MASK_ID), step, born)
        expected = np.stack(probability)[born, positions, np.maximum(ids[step], 0) % NUM_CODES]
        seen = visible & (positions > 0)
        np.testing.assert_allclose(np.asarray(memory)[step, 0][seen], expected[seen], rtol=1e-5)
    assert len(set(born)) > 2


@pytest.mark.parametrize("remask", STRATEGIES)
def test_given_ids_stay_and_all_are_filled(remask):
    tokens = BLANK.at[10:40].set(jnp.arange(30) % NUM_CODES)
    states = trajectories(ReMdm(1.0, remask), tokens)
    result = np.asarray(states.sampled)[-1]
    np.testing.assert_array_equal(result[:, 10:40], np.tile(np.arange(30) % 8, (NUM_RUNS, 1)))
    assert not np.any(np.asarray(states.ids)[:, :, 10:40] == MASK_ID)
    assert result.min() >= 0


def test_probabilities_are_the_paper_s():
    visible = jnp.array([True, False, True, True])
    confidence = jnp.array([0.9, 0.5, 0.2, 0.4])
    for now, after in ((0.0, 0.1), (0.2, 0.4), (0.8, 0.9)):
        highest = min(1, (1 - after) / now) if now else 1
        weights = np.exp(-np.array([0.9, 0.2, 0.4]))
        shared = 0.6 * highest * weights / weights.sum()
        for remask, expected in {
            "rescale": [0.6 * highest] * 4,
            "cap": [min(0.6, highest)] * 4,
            "confidence": [shared[0], 0, *shared[1:]],
        }.items():
            found = remask_probability(
                remask, 0.6, jnp.float32(now), jnp.float32(after), visible, confidence
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown strategy 'loop': expected one of rescale, cap"):
        ReMdm(remask="loop")
    with pytest.raises(InputError, match="unknown schedule 'sine'"):
        ReMdm(schedule="sine")
