"""Learns the K×K energy of self-guidance (MaskGIT-Edit, "self-guidance, learned").

    python -m experiments.tune_energy --model_dir=runs/energy

The transformer of `--init_from` is frozen and sees pictures with a stroke's place hidden. Of its
logits and the stroke's ids the energy learns to make the picture's own ids; it starts as minus the
mean squared code distance. Writes `energy.npy`, float32 [K, K]. Started again, it resumes.
"""

import functools
import io
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.app import cli
from experiments.app.files import write_whole
from experiments.training import datasets, loop, training_flags, tuning
from guidance.stroke_methods import code_distance_energy
from guidance.stroke_training import energy_loss, hide_strokes
from maskgit_jax.keys import seed_key
from maskgit_jax.model import load_model
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.training import losses, optimizers, train_state

_NUM_STEPS = flags.DEFINE_integer("num_steps", 1_200, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 24, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-3, "Peak, of Adam.", 0.0)
_WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 20, "In which the learning rate rises, at most half of all.", lower_bound=0
)
_CONFIDENCE = flags.DEFINE_float(
    "confidence", 0.7, "In the strokes: guide with the learned energy at the same.", 0.0, 1.0
)
training_flags.set_defaults(
    model_dir="runs/energy",
    init_from="demo",
    num_images=4_000,
    save_every=100,
    log_every=20,
    validate_every=200,
)


def main() -> None:
    """Learns as the flags say."""
    loop.keep_freed_memory()
    model = load_model(training_flags.INIT_FROM.value, dtype=training_flags.DTYPE.value)
    data = training_flags.dataset(model.config.tokenizer.image_size, _BATCH_SIZE.value)
    strokes = tuning.Strokes(data, model, training_flags.SEED.value)
    folder = cli.output_folder(training_flags.MODEL_DIR)
    tokenize = tuning.tokenize(model)
    logits = jax.jit(functools.partial(code_logits, model.transformer))

    def prepare(batch: losses.Batch) -> losses.Batch:
        tokens, stroke_ids = tokenize(batch)
        hidden = hide_strokes(tokens, stroke_ids)
        return logits(model.params_on_devices, hidden), tokens, stroke_ids

    schedule, arguments = training_flags.schedule(
        _LEARNING_RATE.value, _NUM_STEPS.value, _WARMUP_STEPS.value, weight_decay=0.0
    )
    optimizer = optimizers.make_optimizer(**arguments)
    loss = functools.partial(energy_loss, confidence=_CONFIDENCE.value)
    key = seed_key(training_flags.SEED.value)
    batches = datasets.batches_of(strokes.held_out(), _BATCH_SIZE.value)
    validate = loop.validation(loss, batches, key, prepare)
    start = {"energy": code_distance_energy(model.tokenizer_params["quantizer"]["codebook"])}
    state = loop.fit(
        functools.partial(train_state.update, loss, optimizer, **training_flags.update_options()),
        train_state.init_state(start, optimizer),
        strokes.batch,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "energy_training",
        export=functools.partial(_write, folder / "energy.npy"),
        prepare=prepare,
        learning_rate=schedule,
        validate=validate,
        **training_flags.fit_options(),
    )
    tuning.report(validate(start), validate(state.average))
    moved = np.abs(np.asarray(state.average["energy"] - start["energy"]))
    print(f"the energy moved by {moved.mean():.4f} on average, by {moved.max():.4f} at most")


def _write(path: Path, params: losses.Params) -> None:
    file = io.BytesIO()
    np.save(file, params["energy"])
    write_whole(path, file.getvalue())


if __name__ == "__main__":
    cli.run(main)
