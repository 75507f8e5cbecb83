"""Tunes a transformer to take guides on hidden ids (MaskGIT-Edit, "iterative generation").

    python -m experiments.tune_iterative --model_dir=runs/iterative

It learns on its own samples that it was unsure of, and on strokes. The folder becomes a model:
`config.json` and `tokenizer_checkpoint` of `--init_from`, the tuned `maskgit_checkpoint`. Started
again, it resumes.
"""

import functools
from pathlib import Path

from absl import flags

from experiments.app import cli
from experiments.training import datasets, loop, training_flags, tuning
from guidance.stroke_training import iterative_loss
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.keys import seed_key
from maskgit_jax.model import Model, load_model
from maskgit_jax.networks.stacked import unstack_layers
from maskgit_jax.training import losses, optimizers, train_state

_NUM_STEPS = flags.DEFINE_integer("num_steps", 400, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 24, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-4, "Peak; published: 1e-5.", 0.0)
_WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 20, "In which the learning rate rises, at most half of all.", lower_bound=0
)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adamw", optimizers.OPTIMIZERS, "AdamW is published.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.01, "Published: 0.045.", lower_bound=0.0)
_LABEL_SMOOTHING = flags.DEFINE_float(
    "label_smoothing", 0.0, "Share spread over all codes; published: 0.1.", 0.0, 1.0
)
_STROKE_SHARE = flags.DEFINE_float(
    "stroke_share", 0.5, "Of the rows, guided by a stroke; published: 0.", 0.0, 1.0
)
training_flags.set_defaults(
    model_dir="runs/iterative",
    init_from="demo",
    num_images=4_000,
    save_every=50,
    log_every=20,
    validate_every=100,
)

_TRAINING = "iterative_training"


def main() -> None:
    """Tunes as the flags say."""
    loop.keep_freed_memory()
    model = load_model(training_flags.INIT_FROM.value)
    data = training_flags.dataset(model.config.tokenizer.image_size, _BATCH_SIZE.value)
    strokes = tuning.Strokes(data, model, training_flags.SEED.value)
    folder = cli.output_folder(training_flags.MODEL_DIR)
    _begin(folder, model)

    schedule, arguments = training_flags.schedule(
        _LEARNING_RATE.value, _NUM_STEPS.value, _WARMUP_STEPS.value, _WEIGHT_DECAY.value
    )
    optimizer = optimizers.make_optimizer(**arguments, name=_OPTIMIZER.value)
    loss = functools.partial(
        iterative_loss,
        model.transformer,
        label_smoothing=_LABEL_SMOOTHING.value,
        dtype=training_flags.DTYPE.value,
    )
    prepare = tuning.tokenize(model)
    key = seed_key(training_flags.SEED.value)
    batches = datasets.batches_of(strokes.held_out(), _BATCH_SIZE.value)
    validations = {
        name: loop.validation(
            functools.partial(loss, stroke_share=share, deterministic=True), batches, key, prepare
        )
        for name, share in (("own", 0.0), ("stroke", 1.0))
    }

    def validate(params: losses.Params) -> dict[str, float]:
        return {
            f"{kind}_{name}": value
            for kind, measure in validations.items()
            for name, value in measure(params).items()
        }

    start = unstack_layers(model.transformer_params)
    state = loop.fit(
        functools.partial(
            train_state.update,
            functools.partial(loss, stroke_share=_STROKE_SHARE.value),
            optimizer,
            **training_flags.update_options(),
        ),
        train_state.init_state(start, optimizer),
        strokes.batch,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / _TRAINING,
        export=functools.partial(checkpoint.write_checkpoint, folder / "maskgit_checkpoint"),
        prepare=prepare,
        learning_rate=schedule,
        validate=validate,
        **training_flags.fit_options(),
    )
    tuning.report(validate(start), validate(state.average))


def _begin(folder: Path, model: Model) -> None:
    """Puts what is not tuned into the folder.

    Raises:
      InputError: there is another model.
    """
    config = folder / "config.json"
    if config.exists() and not (folder / _TRAINING).exists():
        raise InputError(f"{folder} holds a model that was not tuned here: choose another folder")
    if config.exists() and read_config(config) != model.config:
        raise InputError(
            f"{folder} holds another model than --init_from={training_flags.INIT_FROM.value}: "
            "choose another folder, or give the --init_from that this tuning was started with"
        )
    (folder / _TRAINING).mkdir(exist_ok=True)
    checkpoint.write_checkpoint(folder / "tokenizer_checkpoint", model.tokenizer_params)
    write_config(config, model.config)


if __name__ == "__main__":
    cli.run(main)
