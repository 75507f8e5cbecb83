"""What a sweep will do: its items, in order, and the batches they are decoded in."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.app.drawings import Drawing
from experiments.app.flag_groups import Setting, combinations
from experiments.benchmarks.cost import head_operations, layer_operations
from maskgit_jax.config import TransformerConfig


class Plan(NamedTuple):
    """What decides a sweep's results.

    Attributes:
      model: its name.
      class_names: of the model.
      options: what is compiled for besides the settings.
      dtype: what the transformer computes in.
      values: each setting's values, by flag.
      drawings: the sketches and the classes wanted of them.
      seeds: of the samples.
      rejection: what chooses among candidates, see `best_of.BestOf.record`.
    """

    model: str
    class_names: tuple[str, ...]
    options: dict[str, Any]
    dtype: str
    values: dict[str, list[Any]]
    drawings: list[Drawing]
    seeds: list[int]
    rejection: dict[str, Any]


class Item(NamedTuple):
    """One picture to be made.

    Attributes:
      number: place in the plan.
      drawing: index of its sketch.
      seed: of its samples.
      setting: value of each setting.
    """

    number: int
    drawing: int
    seed: int
    setting: Setting


def plan_items(plan: Plan) -> list[Item]:
    """All items. A stopped sweep holds the whole grid for the first seeds.

    The number of steps changes slowest, since a batch shares it; then the seed.
    """
    settings = combinations(plan.values)
    works = itertools.product(plan.values["num_steps"], plan.seeds, range(len(plan.drawings)))
    items = (
        (drawing, seed, setting)
        for num_steps, seed, drawing in works
        for setting in settings
        if setting["num_steps"] == num_steps
    )
    return [Item(number, *item) for number, item in enumerate(items)]


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Items in batches of one number of steps each.

    What is in a batch follows from the plan alone, so that a resumed sweep repeats its sums.
    """
    groups = itertools.groupby(items, key=lambda item: item.setting["num_steps"])
    return [
        group[first : first + batch_size]
        for group in (list(members) for _, members in groups)
        for first in range(0, len(group), batch_size)
    ]


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as `plan.json` holds it."""
    return {
        "model": plan.model,
        **plan.options,
        "dtype": plan.dtype,
        "settings": plan.values,
        "sketches": [drawing.record(plan.class_names) for drawing in plan.drawings],
        "seeds": plan.seeds,
        "rejection": plan.rejection,
        "num_items": len(plan_items(plan)),
    }


def sketch_file(index: int) -> str:
    """Where a plan's sketch lies in the folder."""
    return f"sketches/{index:03d}.png"


def picture_file(item: int) -> str:
    """Where an item's picture lies in the folder."""
    return f"pictures/{item:06d}.png"


def operations_per_step(config: TransformerConfig, num_proposals: int) -> float:
    """About how many floating-point operations a decoding step of a sample takes.

    Two passes for the logits, one for the structure and, of several proposals, one for each.
    """
    passes = 3 if num_proposals == 1 else 3 + num_proposals
    layers = config.num_layers * layer_operations(config)
    return float(passes * (layers + head_operations(config, config.codebook_size)))
