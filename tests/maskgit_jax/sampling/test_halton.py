from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.sampling import loop, schedules
from maskgit_jax.sampling.halton import Halton, halton_order
from maskgit_jax.sampling.loop import MASK_ID, DecodeState

NUM_STEPS = 6


def radical_inverse(number: int, base: int) -> Fraction:
    return (
        Fraction(number % base + radical_inverse(number // base, base), base)
        if number
        else Fraction(0)
    )


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (12, 12), (32, 32)])
def test_every_cell_comes_once(height, width):
    np.testing.assert_array_equal(np.sort(halton_order(height, width)), np.arange(height * width))


def test_order_is_that_of_the_sequence_in_exact_fractions():
    visits = [
        int(8 * radical_inverse(i, 2)) * 6 + int(6 * radical_inverse(i, 3)) for i in range(1, 2000)
    ]
    np.testing.assert_array_equal(halton_order(8, 6), list(dict.fromkeys(visits)))


@pytest.mark.parametrize("count", [8, 16, 32, 64])
def test_what_is_revealed_spreads_better_than_any_of_fifty_random_orders(count):
    """By the mean distance of the grid's cells to the nearest one revealed."""
    cells = np.stack(np.divmod(np.arange(256), 16), axis=-1)

    def gap(revealed):
        return np.linalg.norm(cells[:, None] - cells[revealed], axis=-1).min(axis=1).mean()

    order = halton_order(16, 16)
    at_random = [gap(np.random.default_rng(i).permutation(256)[:count]) for i in range(50)]
    assert gap(order[:count]) < 0.97 * min(at_random)
    # Wherever the ring is entered, on average.
    turned = [gap(np.roll(order, -start)[:count]) for start in range(0, 256, 16)]
    assert np.mean(turned) < 0.95 * np.mean(at_random)


@jax.jit
def advance(sampler, to_fill, key, state, step):
    predict, remask = sampler(lambda ids, step: jnp.zeros((len(ids), 9)), to_fill, key, NUM_STEPS)
    return loop.decode(predict, remask, state, step, step + 1)


def run(tokens, seed=0, sampler=Halton()):  # noqa: B008 (frozen)
    """What is hidden after each step, and the result."""
    tokens, key = jnp.asarray(tokens, jnp.int32), jax.random.key(seed)
    state, hidden = DecodeState(tokens, tokens, key), []
    for step in range(NUM_STEPS):
        state = advance(sampler, tokens == MASK_ID, key, state, step)
        hidden.append(np.asarray(state.ids == MASK_ID))
    return hidden, np.asarray(state.sampled)


def test_each_step_reveals_the_schedule_s_count_in_order():
    tokens = np.full(65, -1)
    tokens[0], tokens[20:41] = 9, np.arange(21) % 9
    hidden, result = run(tokens)
    free = tokens == -1
    shares = np.asarray(schedules.mask_ratio("arccos", jnp.arange(1, NUM_STEPS) / NUM_STEPS, 43))
    assert [now.sum() for now in hidden[:-1]] == np.floor(43 * shares).astype(int).tolist()
    # The order entered somewhere, without what was given, gives every step's set.
    order = 1 + halton_order(8, 8)
    fitting = []
    for start in range(64):
        turned = [cell for cell in np.roll(order, -start) if free[cell]]
        fitting.append(
            all(set(turned[-now.sum() :]) == set(np.flatnonzero(now)) for now in hidden[:-1])
        )
    assert any(fitting)
    np.testing.assert_array_equal(result[~free], tokens[~free])
    assert result[free].min() >= 0


def test_samples_enter_the_order_at_places_of_their_own():
    tokens = np.array([9, *[-1] * 64])
    first = {tuple(np.flatnonzero(run(tokens, seed)[0][0])) for seed in range(8)}
    assert len(first) >= 6


def test_logits_sharpen_linearly_over_the_steps():
    to_fill, logits = jnp.ones(17, bool).at[0].set(False), jnp.ones((17, 9))
    sampler = Halton(sharpness=1.5)
    predict, _ = sampler(lambda ids, step: logits, to_fill, jax.random.key(0), 5)
    factors = [float(predict(jnp.zeros(17, jnp.int32), step)[3, 3]) for step in range(5)]
    np.testing.assert_allclose(factors, [1, 1.125, 1.25, 1.375, 1.5], rtol=1e-6)


def test_unknown_schedule_is_named():
    with pytest.raises(InputError, match="schedule=sine: expected one of cosine"):
        Halton(schedule="sine")
