"""`experiments.steps_study`: the rules that it compares, and the command."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import step_rules
from experiments.studies.step_rules import POPULATION, Batch
from guidance.structure import StructureSettings, layer_weights
from maskgit_jax.images import read_image
from maskgit_jax.model import with_class_token
from maskgit_jax.sampling.loop import DecodeState
from tests.commands import ROOT


def batch(tiny, count=4, **overrides) -> Batch:
    ids = jax.random.randint(jax.random.key(42), (count, 16), 0, 24)
    tokens = with_class_token(tiny.config, jnp.arange(count) % 5, ids)
    settings = StructureSettings(layer_weights(None, 3), max_mask_rate=1.0, min_mask_rate=0.05)
    return Batch(tiny, tokens, dataclasses.replace(settings, **overrides), 4, 7, jnp.arange(count))


def test_a_child_takes_each_place_from_the_member_that_is_nearest_around_it():
    """Member 1 is near in the left half, member 2 in the right; hidden ids stay hidden.

    A row more, as devices whose number does not divide the rows are given, stays as it is.
    """
    rows = POPULATION + 1
    members = jnp.broadcast_to(10 * (1 + jnp.arange(rows))[:, None], (rows, 37))
    left = jnp.concatenate([jnp.array([False]), jnp.tile(jnp.arange(6) < 3, 6)])
    distances = jnp.ones((rows, 37))
    distances = distances.at[1].set(jnp.where(left, 0.0, 2.0)).at[2].set(jnp.where(left, 2.0, 0.0))
    ids = members.at[3, 5].set(-1)
    state = step_rules._recombine(DecodeState(ids, members, None, (distances,)))
    child = np.asarray(state.sampled[:POPULATION, 1:]).reshape(POPULATION, 6, 6)
    assert np.all(child[:, :, :2] == 20) and np.all(child[:, :, 4:] == 30)
    np.testing.assert_array_equal(state.sampled[POPULATION], members[POPULATION])
    np.testing.assert_array_equal(state.ids, state.sampled.at[3, 5].set(-1))


@pytest.mark.slow
def test_rules_that_change_nothing_give_the_plain_samples(tiny):
    given = batch(tiny, lambda_s=0.5)
    plain = step_rules.settled()(given)
    np.testing.assert_array_equal(step_rules.schedule_lambda(0.5, 0.5)(given).ids, plain.ids)
    stopped = step_rules.stop_early(given)
    unstopped = stopped.steps == 4
    np.testing.assert_array_equal(stopped.ids[unstopped], plain.ids[unstopped])
    assert np.any(step_rules.best_seen(given).ids != plain.ids)


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(tmp_path):
    flags = ["--num_sketches=6", "--num_reference=20", "--batch_size=6", "--rows=cosine,best"]

    def run(*more):
        command = [sys.executable, "-m", "experiments.steps_study", *flags, *more]
        env = {"cwd": ROOT, "capture_output": True, "text": True}
        return subprocess.run([*command, f"--output_dir={tmp_path}"], **env)

    first = run("--rows=cosine")
    assert first.returncode == 0, first.stderr
    path = tmp_path / "steps.jsonl"
    before = path.read_text()
    # A kill cut the second row's line.
    path.write_text(before + before[:40])
    second = run()
    assert second.returncode == 0, second.stderr
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(line["name"], line["figures"]["passes"]) for line in lines] == [
        ("cosine, 16 steps", 48),
        ("best step, 16 steps", 48),
    ]
    assert lines[0] == json.loads(before)
    table = (tmp_path / "steps.md").read_text().splitlines()
    assert len(table) == 4 and "0." in table[2]
    assert min(read_image(tmp_path / "steps.png").shape[:2]) > 500
    other = run("--seed=1")
    assert other.returncode == 2 and "made by other flags: seed was 0, is 1" in other.stderr
    nothing = run("--rows=none")
    assert nothing.returncode == 2 and "--rows=none" in nothing.stderr
