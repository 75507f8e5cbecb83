"""Decodes a sweep's batches: settings differ from sample to sample, one compilation serves all."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.app.batches import fill, map_rows
from experiments.app.run_folder import Finished, Line
from experiments.sweeps.best_of import Measure
from experiments.sweeps.plan import Item, Plan, picture_file, sketch_file
from guidance import masksketch
from guidance.best_of import best
from guidance.settings import structure_settings
from guidance.structure import StructureSettings
from maskgit_jax.model import Model, with_class_token


class Decoder(NamedTuple):
    """What decoding a batch needs, the same for all batches.

    Attributes:
      model: the generator.
      plan: the sweep's.
      tokens: class token and ids of each drawing of the plan.
      measure: what is known of a candidate.
      num_candidates: for each item.
      num_weights: to which every setting's layer weights are filled up with zeros.
      num_items: in a full batch.
      batch_size: samples decoded together at most.
    """

    model: Model
    plan: Plan
    tokens: Int[np.ndarray, "n S"]
    measure: Measure
    num_candidates: int
    num_weights: int
    num_items: int
    batch_size: int


def make_decoder(
    model: Model,
    plan: Plan,
    batches: Sequence[Sequence[Item]],
    measure: Measure,
    *,
    num_candidates: int,
    batch_size: int,
) -> Decoder:
    """Encodes the plan's drawings; `batches` are all that will be decoded."""
    ids = model.ids_of(np.stack([drawing.image for drawing in plan.drawings]))
    labels = jnp.array([drawing.label for drawing in plan.drawings])
    num_layers = model.config.transformer.num_layers
    return Decoder(
        model=model,
        plan=plan,
        tokens=np.asarray(with_class_token(model.config, labels, jnp.asarray(ids))),
        measure=measure,
        num_candidates=num_candidates,
        num_weights=max(
            len(structure_settings(item.setting, num_layers).layer_weights)
            for batch in batches
            for item in batch
        ),
        num_items=max(len(batch) for batch in batches),
        batch_size=batch_size,
    )


def decode_batch(
    decoder: Decoder, batch: Sequence[Item], progress: Callable[[int], None]
) -> list[Finished]:
    """Makes a batch's pictures, in its order; calls `progress` with the number of steps done."""
    count = decoder.num_candidates
    filled = [batch[place] for place in fill(len(batch), decoder.num_items)]
    rows = [(item, candidate) for item in filled for candidate in range(count)]
    ids, distances = _sample(decoder, rows, progress)
    pictures = decoder.model.images_of(ids)
    drawings = [decoder.plan.drawings[item.drawing] for item, _ in rows]
    measures = decoder.measure(
        pictures,
        np.stack([drawing.image for drawing in drawings]),
        np.array([drawing.label for drawing in drawings]),
        distances,
    )
    kept = np.zeros(len(filled), int)
    if count > 1:
        kept = best(measures["score"].reshape(-1, count))
    finished = []
    for place, item in enumerate(batch):
        row = place * count + kept[place]
        line = _describe(decoder.plan, item)
        line |= {name: round(float(values[row]), 6) for name, values in measures.items()}
        if count > 1:
            scores = measures["score"][place * count :][:count]
            line["candidate"] = int(kept[place])
            line["scores"] = [round(float(score), 6) for score in scores]
        line["ids_digest"] = hashlib.sha256(ids[row].astype("<i4").tobytes()).hexdigest()[:16]
        finished.append(Finished(pictures[row], line))
    return finished


def _sample(
    decoder: Decoder, rows: Sequence[tuple[Item, int]], progress: Callable[[int], None]
) -> tuple[Int[np.ndarray, "r N"], Float[np.ndarray, "r"]]:
    """Ids and structure distances of samples, as many at a time as the batch size allows."""
    items, candidates = zip(*rows, strict=True)
    arrays, structure = jax.tree.flatten(_stack_settings(decoder, items))
    num_steps, passes = items[0].setting["num_steps"], itertools.count()

    def sample(tokens, seeds, candidates, *settings):
        before = next(passes) * num_steps
        samples = masksketch.sample(
            decoder.model,
            tokens,
            jax.tree.unflatten(structure, settings),
            num_steps=num_steps,
            seed=jnp.asarray(seeds),
            indices=candidates,
            **decoder.plan.options,
            guided=any(scale != 0 for scale in decoder.plan.values["guidance_scale"]),
            progress=lambda step: progress(before + step),
        )
        return samples.ids, samples.structure_distance

    return map_rows(
        sample,
        decoder.tokens[[item.drawing for item in items]],
        np.array([item.seed for item in items], np.uint32),
        np.array(candidates),
        *arrays,
        batch_size=decoder.batch_size,
    )


def _stack_settings(decoder: Decoder, items: Sequence[Item]) -> StructureSettings:
    """Each item's settings along a leading axis."""
    num_layers = decoder.model.config.transformer.num_layers
    settings = [structure_settings(item.setting, num_layers) for item in items]
    padded = [
        dataclasses.replace(
            each,
            layer_weights=np.pad(
                each.layer_weights, (0, decoder.num_weights - len(each.layer_weights))
            ),
        )
        for each in settings
    ]
    return jax.tree.map(lambda *column: np.stack(column), *padded)


def _describe(plan: Plan, item: Item) -> Line:
    drawing = plan.drawings[item.drawing]
    return {
        "item": item.number,
        "file": picture_file(item.number),
        "sketch": drawing.path,
        "sketch_file": sketch_file(item.drawing),
        "label": drawing.label,
        "class_name": plan.class_names[drawing.label],
        **item.setting,
        "seed": item.seed,
    }
