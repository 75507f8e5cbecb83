import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.model import with_class_token
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.halton import Halton
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, decode
from maskgit_jax.sampling.maskgit import MaskGit
from maskgit_jax.sampling.remdm import ReMdm
from tests.conftest import released


def blank(model, count):
    return with_class_token(model.config, jnp.arange(count) % 5, jnp.full((count, 16), -1))


def draw(model, tokens, indices, **kwargs):
    defaults = {"num_steps": 6, "seed": 3, "indices": jnp.asarray(indices)}
    return np.asarray(batched.sample(model, tokens, **defaults | kwargs))


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_and_index_alone(tiny):
    tokens = blank(tiny, 8)
    eight = draw(tiny, tokens, range(8))
    np.testing.assert_array_equal(draw(tiny, tokens[5:6], [5]), eight[5:6])
    assert eight.min() >= 0 and eight.max() < 24


def test_editing_keeps_the_given_ids(tiny):
    tokens = blank(tiny, 8).at[:, 4:12].set(jnp.arange(8))
    ids = draw(tiny, tokens, range(8), first_step=2)
    np.testing.assert_array_equal(ids[:, 3:11], np.tile(np.arange(8), (8, 1)))


def test_bad_arguments_are_named(tiny):
    for words, arguments in {
        "first_step is 6 of 6": {"first_step": 6},
        "first_step is 0 of 0": {"num_steps": 0},
        "token_temperature=0.0: expected a number from 1e-06 to 100": {"token_temperature": 0.0},
    }.items():
        with pytest.raises(InputError, match=words):
            draw(tiny, blank(tiny, 1), [0], **arguments)
    with pytest.raises(InputError, match="schedule=sine: expected one of cosine"):
        MaskGit(schedule="sine")


def test_settings_compile_once_per_sampler(tiny):
    tokens = blank(tiny, 8)
    for one, other in (
        ({}, {"num_steps": 9, "first_step": 1, "sampler": MaskGit(1.0)}),
        ({"sampler": Halton()}, {"sampler": Halton(sharpness=1.2), "token_temperature": 0.5}),
        ({"sampler": ReMdm()}, {"sampler": ReMdm(eta=1, t_on=0.7, t_off=0.2), "num_steps": 3}),
        (
            {"sampler": ReMdm(window="loop", t_on=0.6)},
            {"sampler": ReMdm(window="loop", t_on=0.5, alpha_on=0.7)},
        ),
    ):
        draw(tiny, tokens, range(8), **one)
        before = batched._advance._cache_size()
        draw(tiny, tokens, range(8), **other)
        assert batched._advance._cache_size() == before


def test_a_sampler_has_its_schedule():
    tokens = jnp.array([24, *[-1] * 16])

    def count_after_one_step(schedule, key):
        sampler, hidden = MaskGit(2.0, schedule), tokens == MASK_ID
        rules = sampler(lambda ids, step: jnp.zeros((17, 24)), hidden, key, 6)
        return jnp.sum(decode(*rules, DecodeState(tokens, tokens, key), 0, 1).ids == MASK_ID)

    counts = jax.jit(lambda key: [count_after_one_step(s, key) for s in ("linear", "cosine")])
    # Of 16 ids ⌊16·5/6⌋ and ⌊16·cos(π/12)⌋.
    assert counts(jax.random.key(0)) == [13, 15]


def test_a_sampler_has_its_temperature(tiny):
    tokens = blank(tiny, 8)
    hot, cold = (draw(tiny, tokens, range(8), sampler=MaskGit(heat)) for heat in (2.0, 0.0))
    assert np.any(hot != cold)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Halton(), ReMdm(remask="conf", t_on=0.9)], ids=str)
def test_other_samplers_keep_what_is_given_and_batches_do_not_matter(tiny, sampler):
    tokens = blank(tiny, 8).at[:, 4:12].set(jnp.arange(8))
    ids = draw(tiny, tokens, range(8), sampler=sampler)
    np.testing.assert_array_equal(ids[:, 3:11], np.tile(np.arange(8), (8, 1)))
    assert ids.min() >= 0 and ids.max() < 24
    alone = draw(tiny, tokens[5:6], [5], sampler=sampler)
    np.testing.assert_array_equal(alone, ids[5:6])


@pytest.mark.parametrize("sampler", [MaskGit(0.0), Halton(), ReMdm(1.0, "conf")], ids=str)
def test_each_sample_has_its_token_temperature(shallow, sampler):
    """At 1 it changes nothing; near 0 the likeliest ids come, whatever the noise."""
    tokens = with_class_token(shallow.config, jnp.zeros(4, int), jnp.full((4, 16), -1))
    plain = draw(shallow, tokens, range(4), sampler=sampler, num_steps=1)
    temperatures = jnp.array([1.0, 1e-6, 1.0, 1e-6])
    mixed = draw(
        shallow, tokens, range(4), sampler=sampler, num_steps=1, token_temperature=temperatures
    )
    np.testing.assert_array_equal(mixed[::2], plain[::2])
    np.testing.assert_array_equal(mixed[1], mixed[3])
    assert np.any(plain[1] != plain[3])
    logits = shallow.transformer.apply({"params": released(shallow)}, tokens[0])[1:, :24]
    np.testing.assert_array_equal(mixed[1], np.argmax(logits, axis=-1))
