import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check
from maskgit_jax.sampling import loop, schedules
from maskgit_jax.sampling.loop import MASK_ID, DecodeState
from maskgit_jax.sampling.maskgit import maskgit_remask


def uniform_predict(ids, step):
    return jnp.zeros((len(ids), 24))


def run(tokens, first, last, num_steps, seed=0, **kwargs):
    """The states after each step of MaskGIT decoding under uniform logits."""
    tokens = jnp.asarray(tokens, jnp.int32)
    remask = maskgit_remask(jnp.sum(tokens == MASK_ID), num_steps=num_steps, **kwargs)
    step = jax.jit(functools.partial(loop.decode, uniform_predict, remask))
    state, states = DecodeState(tokens, tokens, jax.random.key(seed)), []
    for t in range(first, last):
        state = step(state, t, t + 1)
        states.append(state)
    return states


mask_lowest = jax.jit(loop.mask_lowest)


# Few lengths: each is compiled.
@given(
    st.sampled_from([1, 2, 7, 30]).flatmap(
        lambda size: st.lists(st.integers(0, 5), min_size=size, max_size=size)
    ),
    st.integers(0, 30),
)
@settings(max_examples=30, deadline=None)
def test_hide_lowest_takes_exactly_the_lowest(scores, count):
    count = min(count, len(scores))
    hide = mask_lowest(np.float32(scores), count, jax.random.key(len(scores)))
    hidden, kept = np.asarray(scores)[hide], np.asarray(scores)[~np.asarray(hide)]
    assert len(hidden) == count
    if len(hidden) and len(kept):
        assert hidden.max() <= kept.min()


def test_equal_scores_are_hidden_at_random():
    keys = jax.random.split(jax.random.key(0), 2000)
    hide = jax.vmap(mask_lowest, in_axes=(None, None, 0))(np.zeros(10, np.float32), 3, keys)
    # Standard error of each share: sqrt(.3 * .7 / 2000) = 0.010.
    np.testing.assert_allclose(np.mean(hide, axis=0), 0.3, atol=0.045)


@pytest.mark.parametrize("schedule", schedules.SCHEDULE_NAMES)
def test_hidden_counts_follow_the_schedule(schedule):
    num_steps, n = 7, 64
    states = run([24, *[-1] * n], 0, num_steps, num_steps, schedule=schedule)
    hidden = n
    for t, state in enumerate(states):
        share = float(schedules.mask_ratio(schedule, (t + 1) / num_steps, n))
        hidden = max(1, min(hidden - 1, int(np.floor(np.float32(n) * np.float32(share)))))
        assert int(jnp.sum(state.ids == MASK_ID)) == hidden
        assert not jnp.any(state.sampled == MASK_ID)


def test_given_ids_never_change_and_sampled_ids_stay_once_kept():
    tokens = np.full(33, -1)
    tokens[0], tokens[5:20] = 24, np.arange(15)
    states = run(tokens, 2, 12, 12)
    for before, after in itertools.pairwise(states):
        kept = before.ids != MASK_ID
        np.testing.assert_array_equal(after.sampled[kept], before.ids[kept])
    np.testing.assert_array_equal(states[-1].sampled[5:20], np.arange(15))
    assert states[-1].sampled[0] == 24


def test_confidence_decides_when_temperature_is_zero():
    # Position i prefers code 0 with logit i: the surest positions are kept.
    sharp = jnp.zeros((17, 8)).at[:, 0].set(jnp.arange(17) * 4.0)
    tokens = jnp.array([24, *[-1] * 16])
    remask = maskgit_remask(jnp.int32(16), num_steps=2, temperature=0.0, schedule="linear")
    start = DecodeState(tokens, tokens, jax.random.key(3))
    decode = functools.partial(loop.decode, lambda ids, step: sharp, remask)
    state = jax.jit(decode)(start, 0, 1)
    hidden = np.asarray(state.ids[1:] == MASK_ID)
    probabilities = np.asarray(jax.nn.softmax(sharp))[np.arange(1, 17), state.sampled[1:]]
    assert hidden.sum() == 8
    assert probabilities[hidden].max() <= probabilities[~hidden].min()


@pytest.mark.slow
def test_nothing_changes_where_nothing_is_hidden():
    tokens = [24, *range(16)]
    for seed in range(5):
        for state in run(tokens, 0, 2, 2, seed=seed):
            np.testing.assert_array_equal(state.ids, tokens)


def test_pieces_of_a_run_are_the_run_and_share_its_compilation():
    tokens = jnp.array([24, *[-1] * 16])
    traces = []

    @jax.jit
    def go(first, last, num_steps):
        traces.append(1)
        remask = maskgit_remask(jnp.int32(16), num_steps=num_steps)
        start = DecodeState(tokens, tokens, jax.random.key(0))
        return loop.decode(uniform_predict, remask, start, first, last)

    @jax.jit
    def go_on(state, first, last, num_steps):
        remask = maskgit_remask(jnp.int32(16), num_steps=num_steps)
        return loop.decode(uniform_predict, remask, state, first, last)

    whole, part = go(0, 12, 12), go(0, 5, 12)
    np.testing.assert_array_equal(whole.sampled, go_on(part, 5, 12, 12).sampled)
    go(0, 3, 7)
    assert len(traces) == 1


def test_memory_goes_from_step_to_step():
    tokens = jnp.array([24, *[-1] * 16])

    def remask(step, ids, sampled, logits, key, count, last):
        return ids == MASK_ID, key, count + jnp.sum(ids == MASK_ID), step

    start = DecodeState(tokens, tokens, jax.random.key(0), (jnp.int32(0), jnp.int32(-1)))
    state = loop.decode(uniform_predict, remask, start, 2, 5)
    assert [int(field) for field in state.memory] == [3 * 16, 4]


def test_sample_keys_differ_by_seed_and_index():
    keys = {
        tuple(jax.random.key_data(loop.sample_key(seed, index)).tolist())
        for seed in range(4)
        for index in range(50)
    }
    assert len(keys) == 200


@pytest.mark.parametrize("token_temperature", [0.5, 1.0, 2.0])
def test_ids_are_sampled_at_their_temperature(token_temperature):
    """And confidences are of it: they come from the same logits."""
    logits, count, seen = jnp.array([0.0, 1.0, 2.5]), 40_000, []

    def predict(ids, step):
        return jnp.tile(logits, (len(ids), 1))

    def remask(step, ids, sampled, logits, key):
        seen.append(logits[0])
        return ids == MASK_ID, key

    @jax.jit
    def run(token_temperature, key):
        tokens = jnp.full(count, MASK_ID)
        predict_at = loop.tempered(predict, token_temperature)
        state = loop.decode(predict_at, remask, DecodeState(tokens, tokens, key), 0, 1)
        return state.sampled, loop.tempered(predict, token_temperature)(tokens[:1], 0)[0]

    sampled, tempered = run(token_temperature, jax.random.key(0))
    weights = np.exp(np.array([0.0, 1.0, 2.5]) / token_temperature)
    expected = weights / weights.sum()
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(np.bincount(sampled, minlength=3) / count - expected) < 4 * error)
    np.testing.assert_allclose(tempered, np.log(weights), rtol=1e-6)
    if token_temperature == 1:
        np.testing.assert_array_equal(tempered, logits)


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0, np.inf, np.nan, np.array([1.0, 0.0])])
def test_a_token_temperature_out_of_range_is_named(value):
    check(loop.LoopSettings(token_temperature=np.array([1e-6, 100.0])))
    with pytest.raises(
        InputError, match=r"^token_temperature=.*: expected a number from 1e-06 to 100$"
    ):
        check(loop.LoopSettings(token_temperature=value))
