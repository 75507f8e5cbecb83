"""Final passes on a loop whose predictions are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.sampling import loop
from maskgit_jax.sampling.final_passes import with_final_passes
from maskgit_jax.sampling.maskgit import MaskGit

LENGTH, CODES = 42, 6


def run(sampler, num_steps, to_fill=None):
    """The states of a sample, the steps that predictions were asked for, and their spans.

    The loop of `loop.decode`, step by step.
    """
    ids = jnp.full(LENGTH, -1).at[0].set(9)
    if to_fill is not None:
        ids = jnp.where(to_fill, ids, 3)
    asked = []

    def logits_at(ids, step):
        asked.append(int(step))
        return jnp.broadcast_to(jnp.arange(CODES) * 1.0, (LENGTH, CODES))

    key = jax.random.key(0)
    predict, remask = sampler(logits_at, ids == -1, key, num_steps)
    states, spans = [], []
    for step in map(jnp.int32, range(num_steps)):
        logits = predict(ids, step)
        spans.append(float(jnp.ptp(logits[1])) / (CODES - 1))
        key, sample_key = jax.random.split(key)
        sampled = jnp.where(ids == -1, loop.draw_each(ids, logits, sample_key), ids)
        mask, key = remask(step, ids, sampled, logits, key)
        ids = jnp.where(mask, -1, sampled)
        states.append(loop.DecodeState(ids, sampled, key))
    return states, asked, spans


def test_none_leaves_the_published_rule_as_it_is():
    """Also beside another temperature: it is not used."""
    (states, asked, spans), (others, _, _) = (
        run(MaskGit(final_temperature=temperature), 6) for temperature in (0.3, 1.0)
    )
    jax.tree.map(np.testing.assert_array_equal, states[-1].sampled, others[-1].sampled)
    assert asked == list(range(6)) and spans == [1.0] * 6
    assert [int(jnp.sum(state.ids == -1)) for state in states[:5]] == [39, 35, 28, 20, 10]


def test_half_of_the_ids_are_drawn_again_at_their_temperature():
    to_fill = jnp.arange(LENGTH) >= 12  # 30 of 41 ids
    states, asked, spans = run(MaskGit(final_passes=3, final_temperature=0.5), 7, to_fill)
    # Filled in 4 steps; what was masked at first, and no other id, is masked again.
    assert asked == list(range(7))
    np.testing.assert_allclose(spans, [1, 1, 1, 1, 2, 2, 2])
    filled, passes = states[:3], states[3:6]
    assert [int(jnp.sum(state.ids == -1)) for state in filled] == [27, 21, 11]
    masks = [np.asarray(state.ids == -1) for state in passes]
    assert all(mask.sum() == 15 and not mask[:12].any() for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 3
    for before, after in itertools.pairwise(states):
        kept = np.asarray(before.ids != -1)
        np.testing.assert_array_equal(before.sampled[kept], after.sampled[kept])
    assert np.all(np.asarray(states[-1].sampled)[:12] == 3)


@pytest.mark.parametrize("memory", [(), (jnp.arange(3),)])
def test_the_rule_s_own_key_and_memory_go_on(memory):
    def remask(step, ids, sampled, logits, key, *memory):
        return jnp.zeros(5, bool), jax.random.fold_in(key, 7), *(m + step for m in memory)

    _, wrapped = with_final_passes(
        lambda ids, step: jnp.zeros((5, 4)),
        remask,
        jnp.ones(5, bool),
        filling=jnp.int32(2),
        num_steps=6,
        temperature=1.0,
    )
    key = jax.random.key(3)
    mask, next_key, *found = wrapped(jnp.int32(4), None, None, None, key, *memory)
    assert int(mask.sum()) == 2
    assert jnp.all(jax.random.key_data(next_key) == jax.random.key_data(jax.random.fold_in(key, 7)))
    jax.tree.map(np.testing.assert_array_equal, found, [m + 1 for m in memory])
