"""Decodes a sweep's batches: settings differ from sample to sample, one compilation serves all."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app.batches import fill, map_rows
from experiments.app.run_folder import Finished, Line, Progress
from experiments.sweeps.best_of import Measure, best
from experiments.sweeps.plan import Item, Plan, picture_file, sketch_file
from guidance import masksketch
from guidance.settings import structure_settings
from guidance.structure import StructureSettings
from maskgit_jax.model import Model, with_class_token

DecodeBatch = Callable[[Sequence[Item], Progress], list[Finished]]
"""Makes the pictures of a batch of one number of steps, in its order."""


def make_decoder(
    model: Model,
    plan: Plan,
    batches: Sequence[Sequence[Item]],
    measure: Measure,
    *,
    num_candidates: int,
    batch_size: int,
) -> DecodeBatch:
    """Encodes the plan's drawings; `batches` are all that will be decoded.

    Of each item's candidates the best is kept; `batch_size` samples are decoded together at most.
    """
    num_layers = model.config.transformer.num_layers
    settings = {
        item.number: structure_settings(item.setting, num_layers)
        for batch in batches
        for item in batch
    }
    # Filled up with zeros to one number.
    num_weights = max(len(each.layer_weights) for each in settings.values())
    num_items = max(map(len, batches))
    images = np.stack([drawing.image for drawing in plan.drawings])
    labels = np.array([drawing.label for drawing in plan.drawings])
    tokens = np.asarray(with_class_token(model.config, jnp.array(labels), model.ids_of(images)))
    guided = any(scale != 0 for scale in plan.values["guidance_scale"])

    def padded(each: StructureSettings) -> StructureSettings:
        weights = np.pad(each.layer_weights, (0, num_weights - len(each.layer_weights)))
        return dataclasses.replace(each, layer_weights=weights)

    def decode_batch(batch: Sequence[Item], progress: Progress) -> list[Finished]:
        items = [batch[place] for place in np.repeat(fill(len(batch), num_items), num_candidates)]
        of_rows = [padded(settings[item.number]) for item in items]
        arrays, structure = jax.tree.flatten(jax.tree.map(lambda *x: np.stack(x), *of_rows))
        num_steps, passes = batch[0].setting["num_steps"], itertools.count()

        def sample(tokens, seeds, candidates, *arrays):
            before = next(passes) * num_steps
            samples = masksketch.sample(
                model,
                tokens,
                jax.tree.unflatten(structure, arrays),
                num_steps=num_steps,
                seed=jnp.asarray(seeds),
                indices=candidates,
                **plan.options,
                guided=guided,
                progress=lambda step: progress(before + step),
            )
            return samples.ids, samples.structure_distance

        drawings = np.array([item.drawing for item in items])
        ids, distances = map_rows(
            sample,
            tokens[drawings],
            np.array([item.seed for item in items], np.uint32),
            np.tile(np.arange(num_candidates), num_items),
            *arrays,
            batch_size=batch_size,
        )
        pictures = model.images_of(ids)
        measures = measure(pictures, images[drawings], labels[drawings], distances)
        kept = np.zeros(num_items, int)
        if num_candidates > 1:
            kept = best(measures["score"].reshape(-1, num_candidates))
        finished = []
        for place, item in enumerate(batch):
            first = place * num_candidates
            row = first + kept[place]
            line = _describe(plan, item)
            line |= {name: round(float(values[row]), 6) for name, values in measures.items()}
            if num_candidates > 1:
                scores = measures["score"][first : first + num_candidates]
                line["candidate"] = int(kept[place])
                line["scores"] = [round(float(score), 6) for score in scores]
            line["ids_digest"] = hashlib.sha256(ids[row].astype("<i4").tobytes()).hexdigest()[:16]
            finished.append(Finished(pictures[row], line))
        return finished

    return decode_batch


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
