import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.sampling import loop
from maskgit_jax.sampling.loop import MASK_ID, DecodeState
from maskgit_jax.sampling.remdm import STRATEGIES, ReMdm, remask_probability

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
            state = loop.decode(predict, remask, state, t, t + 1)
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


def test_by_confidence_an_id_is_doubted_by_its_probability_when_it_was_sampled():
    states = trajectories(ReMdm(1.0, "confidence"), BLANK)
    ids, (memory,) = np.asarray(states.ids)[:, 0], states.memory
    probability = [np.asarray(jax.nn.softmax(logits_of(step))) for step in range(NUM_STEPS)]
    positions = np.arange(NUM_IDS + 1)
    born = np.zeros(NUM_IDS + 1, int)
    for step in range(NUM_STEPS - 1):
        visible = ids[step] != MASK_ID
        born = np.where(visible & (step == 0 or ids[step - 1] == MASK_ID), step, born)
        expected = -np.stack(probability)[born, positions, np.maximum(ids[step], 0) % NUM_CODES]
        expected = np.where(visible & (positions > 0), expected, -np.inf)
        np.testing.assert_allclose(np.asarray(memory)[step, 0], expected, rtol=1e-5)
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
    unmasked = jnp.array([True, False, True, True])
    doubts = -jnp.array([0.9, jnp.inf, 0.2, 0.4])
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
                remask, 0.6, jnp.float32(now), jnp.float32(after), unmasked, doubts
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="remask=loop: expected one of rescale, cap"):
        ReMdm(remask="loop")
    with pytest.raises(InputError, match="window=on: expected one of switch, loop"):
        ReMdm(window="on")
    with pytest.raises(InputError, match="schedule=sine: expected one of cosine"):
        ReMdm(schedule="sine")


def test_the_released_rule_shares_without_eta_by_odds_against_each_id():
    """Of −log p: an id that is masked again still has its part in the softmax."""

    def sigma(now, after, unmasked, doubts):
        alphas = jnp.float32(now), jnp.float32(after)
        return remask_probability("conf", 0.1, *alphas, jnp.array(unmasked), jnp.array(doubts))

    # −log p of ids of probability 1/2, 1/4 and 1/8, and one that was never unmasked.
    doubts = [*np.log([2.0, 4.0, 8.0]), -np.inf]
    found = sigma(0.8, 0.9, [True, False, True, False], doubts)
    np.testing.assert_allclose(found, 0.1 / 0.8 * np.array([2, 0, 8, 0]) / 14, rtol=1e-5)
    # p = 1e-40 has no reciprocal in float32.
    found = sigma(0.8, 0.9, [True, True, False, False], [92.1, *doubts[1:]])
    np.testing.assert_allclose(found, [0.125, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(sigma(0, 0.1, [False] * 4, [-np.inf] * 4), 0)


def masked_again(sampler):
    """In how many runs and places an id is masked again, by step."""
    hidden = hidden_after(sampler)
    return [0, *(hidden[1:] & ~hidden[:-1]).sum(axis=(1, 2))]


def test_a_window_bounds_when_ids_are_masked_again():
    # Steps begin at t = 1, 5/6, ..., 1/6; the expected number stays on the schedule.
    sampler = ReMdm(0.8, t_on=4 / 6, t_off=2 / 6)
    counts = masked_again(sampler)
    assert [count > 0 for count in counts] == [False, False, True, True, False]
    assert_mean(hidden_after(sampler).sum(axis=-1), NUM_IDS * GAMMA[1:-1])
    assert [count > 0 for count in masked_again(ReMdm(0.8, t_on=0.5))] == [False] * 3 + [True] * 2


def test_the_loop_holds_alpha_between_two_runs_of_the_schedule():
    t_on, t_off, alpha_on, num_steps = 0.55, 0.05, 0.9, 20
    sampler = ReMdm(
        0.02, schedule="linear", window="loop", t_on=t_on, t_off=t_off, alpha_on=alpha_on
    )
    alpha = jax.vmap(sampler.alpha, in_axes=(0, None, None))
    found = alpha(jnp.arange(num_steps + 1), num_steps, jnp.int32(64))
    # As released for text: two lines, and a pause at α_on in between.
    time = 1 - np.arange(num_steps + 1) / num_steps
    early, late = (1 - time) * alpha_on / (1 - t_on), 1 - time * (1 - alpha_on) / t_off
    expected = np.where(time > t_on, early, np.where(time > t_off, alpha_on, late))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found[-1] == 1


def test_in_the_loop_as_many_ids_are_masked_as_unmasked():
    sampler = ReMdm(0.5, "cap", window="loop", t_on=4 / 6, t_off=1 / 6, alpha_on=0.75)
    assert [count > 0 for count in masked_again(sampler)] == [False, False, True, True, True]
    expected = 1 - 0.75 * (1 - np.cos(np.pi / 4)), 0.25, 0.25, 0.25, 0.25
    assert_mean(hidden_after(sampler).sum(axis=-1), NUM_IDS * np.array(expected))


@pytest.mark.parametrize("remask", ["confidence", "conf"])
def test_a_loop_that_would_unmask_nothing_is_refused(remask):
    with pytest.raises(InputError, match=r"no id would be unmasked.*expected 'rescale' or 'cap'"):
        ReMdm(remask=remask, window="loop")
