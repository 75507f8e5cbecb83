import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app.drawings import Drawing
from experiments.app.run_folder import first_difference
from experiments.sweeps.plan import (
    Plan,
    operations_per_step,
    plan_batches,
    plan_items,
    plan_record,
)
from tests.conftest import released


def make_plan(**changes) -> Plan:
    values = {"num_steps": [4, 2], "layers": ["early", "all"], "lambda_s": [0.0, 0.5, 1.0]}
    drawings = [
        Drawing(f"{label}.png", label, np.full((4, 4, 3), label, np.uint8)) for label in (0, 1)
    ]
    plan = Plan(
        model="demo",
        class_names=("a", "b"),
        options={"divergence": "jeffreys", "num_proposals": 1, "kernel": "jnp"},
        dtype="float32",
        values=values,
        drawings=drawings,
        seeds=[7, 8],
        rejection={"num_candidates": 1},
    )
    return plan._replace(**changes)


def test_every_combination_once_and_whole_grids_first():
    items = plan_items(make_plan())
    assert [item.number for item in items] == list(range(2 * 2 * 3 * 2 * 2))
    found = {(i.drawing, i.seed, *i.setting.values()) for i in items}
    assert found == set(
        itertools.product((0, 1), (7, 8), (4, 2), ("early", "all"), (0.0, 0.5, 1.0))
    )
    assert [item.setting["num_steps"] for item in items] == [4] * 24 + [2] * 24
    assert [item.seed for item in items[:24]] == [7] * 12 + [8] * 12


def test_a_batch_has_one_number_of_steps():
    items = plan_items(make_plan())
    batches = plan_batches(items, 10)
    assert [len(batch) for batch in batches] == [10, 10, 4, 10, 10, 4]
    assert list(itertools.chain(*batches)) == items
    assert all(len({item.setting["num_steps"] for item in batch}) == 1 for batch in batches)


def test_plans_differ_in_words():
    record = plan_record(make_plan())
    assert first_difference(record, plan_record(make_plan())) is None
    values = make_plan().values | {"lambda_s": [0.0, 0.5]}
    other = plan_record(make_plan(values=values))
    assert first_difference(record, other) == (
        "lambda_s is [0.0, 0.5, 1.0] there, [0.0, 0.5] by these flags"
    )
    assert "seeds is [7, 8] there, [7]" in first_difference(
        record, plan_record(make_plan(seeds=[7]))
    )
    drawings = make_plan().drawings
    repainted = [drawings[0], drawings[1]._replace(image=np.zeros((4, 4, 3), np.uint8))]
    assert first_difference(record, plan_record(make_plan(drawings=repainted))).startswith(
        "1.png for class 1 is"
    )
    relabelled = [drawings[0], drawings[1]._replace(label=0)]
    assert "class 0" in first_difference(record, plan_record(make_plan(drawings=relabelled)))


def test_operations_are_about_what_the_compiler_counts(tiny):
    config = tiny.config.transformer
    ids = jnp.zeros((1, config.sequence_length), jnp.int32)
    apply = functools.partial(tiny.transformer.apply, {"params": released(tiny)})
    counted = 3 * jax.jit(apply).lower(ids).cost_analysis()["flops"]
    # The compiler also counts what is no matrix product, much in so small a model.
    assert 0.5 * counted < operations_per_step(config, 1) < 1.05 * counted
