"""Trains a transformer on the ids of a tokenizer's pictures (MVTM, MaskGIT section 3.1).

    python -m experiments.train_transformer --model_dir=runs/demo
    python -m experiments.train_transformer --model_dir=runs/mine --data=pictures

The folder must hold `config.json` and `tokenizer_checkpoint` (see `train_tokenizer`); with
`--init_from` a new one gets those of that model. Writes `maskgit_checkpoint` beside them, and keeps
the ids of the demo world's pictures in `training_ids.npz`. Started again, it resumes.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Int, UInt8

from experiments.app import cli, digests
from experiments.training import datasets, loop, training_flags
from maskgit_jax import model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import ModelConfig, read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, to_uint8
from maskgit_jax.keys import seed_key
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import batched
from maskgit_jax.training import losses, optimizers, train_state

_NUM_STEPS = flags.DEFINE_integer("num_steps", 5_200, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 24, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak; AdamW: a third.", 0.0)
_WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 300, "In which the learning rate rises, at most half of all.", lower_bound=0
)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "muon", optimizers.OPTIMIZERS, "AdamW is published.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.01, "Published: 0.045.", lower_bound=0.0)
_LABEL_SMOOTHING = flags.DEFINE_float(
    "label_smoothing", 0.0, "Share spread over all codes; published: 0.1.", 0.0, 1.0
)
_SAMPLE_EVERY = flags.DEFINE_integer(
    "sample_every", 1000, "Steps between sample pictures; 0: none.", lower_bound=0
)

_NUM_SAMPLES = 16
_SAMPLING_STEPS = 8


def main() -> None:
    """Trains as the flags say."""
    loop.keep_freed_memory()
    folder = Path(training_flags.MODEL_DIR.value)
    start = training_flags.init_folder()
    start_params = None
    if start is not None:
        started = model.load_model(start)
        start_params = unstack_layers(started.transformer_params)
        if not (folder / "config.json").exists():
            cli.output_folder(training_flags.MODEL_DIR)
            path = folder / "tokenizer_checkpoint"
            checkpoint.write_checkpoint(path, started.tokenizer_params)
            write_config(folder / "config.json", started.config)
    cfg = read_config(folder / "config.json")
    tokenizer, tokenizer_params = model.load_tokenizer(folder, cfg)
    tokenizer_params = loop.replicate(tokenizer_params)
    apply = jax.jit(functools.partial(tokenizer.apply, method="encode"))

    def encode(images: UInt8[Array | np.ndarray, "b H W 3"]) -> Int[Array, "b N"]:
        return apply({"params": tokenizer_params}, jnp.asarray(images) / 255).reshape(
            len(images), -1
        )

    data = training_flags.dataset(
        cfg.tokenizer.image_size,
        _BATCH_SIZE.value,
        # Always the same pictures: encoded once.
        encode=lambda images: np.asarray(encode(images)),
        kept=folder / "training_ids.npz",
        encoder=digests.of_tree(tokenizer_params),
    )
    cfg = _with_classes(folder, cfg, data.class_names)
    if start is not None:
        _check_same_transformer(started.config, cfg)

    def prepare(batch: losses.Batch) -> losses.Batch:
        encoded = isinstance(data, datasets.ArrayDataset)
        return batch if encoded else (encode(batch[0]), batch[1])

    transformer = Transformer(cfg.transformer)
    key = seed_key(training_flags.SEED.value)
    if start_params is None:
        empty = jnp.zeros((1, cfg.transformer.sequence_length), jnp.int32)
        start_params = jax.jit(transformer.init)(key, empty)["params"]
    schedule, arguments = training_flags.schedule(
        _LEARNING_RATE.value, _NUM_STEPS.value, _WARMUP_STEPS.value, _WEIGHT_DECAY.value
    )
    optimizer = optimizers.make_optimizer(**arguments, name=_OPTIMIZER.value)
    loss = functools.partial(
        losses.masked_token_loss,
        transformer,
        label_smoothing=_LABEL_SMOOTHING.value,
        dtype=training_flags.DTYPE.value,
    )
    loop.fit(
        functools.partial(train_state.update, loss, optimizer, **training_flags.update_options()),
        train_state.init_state(start_params, optimizer),
        data.batch,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "transformer_training",
        export=functools.partial(checkpoint.write_checkpoint, folder / "maskgit_checkpoint"),
        prepare=prepare,
        learning_rate=schedule,
        validate=loop.validation(
            functools.partial(loss, deterministic=True),
            datasets.batches_of(data.held_out(), _BATCH_SIZE.value),
            key,
            prepare,
        ),
        draw=_samples(
            model.Model(
                config=cfg,
                transformer=transformer,
                transformer_params=stack_layers(start_params),
                tokenizer=tokenizer,
                tokenizer_params=tokenizer_params,
            )
        ),
        sample_every=_SAMPLE_EVERY.value,
        **training_flags.fit_options(),
    )


def _with_classes(folder: Path, cfg: ModelConfig, class_names: tuple[str, ...]) -> ModelConfig:
    """The folder's configuration with the data's classes, also written there.

    Raises:
      InputError: the folder already holds a transformer for others.
    """
    if cfg.class_names == class_names:
        return cfg
    if any((folder / name).exists() for name in ("maskgit_checkpoint", "transformer_training")):
        raise InputError(
            f"{folder} holds a transformer for {len(cfg.class_names)} other classes than the "
            f"{len(class_names)} of --data: copy config.json and tokenizer_checkpoint to a new "
            "folder and train there"
        )
    cfg = training_flags.with_classes(cfg, class_names)
    write_config(folder / "config.json", cfg)
    return cfg


def _check_same_transformer(found: ModelConfig, expected: ModelConfig) -> None:
    """Raises InputError unless weights of one configuration fit the other."""
    for field in dataclasses.fields(found.transformer):
        values = [getattr(cfg.transformer, field.name) for cfg in (found, expected)]
        if field.name != "dropout_rate" and values[0] != values[1]:
            raise InputError(
                f"--init_from={training_flags.INIT_FROM.value} has {field.name} {values[0]}, "
                f"--model_dir and --data need {values[1]}: leave --init_from out"
            )


def _samples(base: model.Model) -> Callable[[losses.Params], UInt8[np.ndarray, "_ _ 3"]]:
    """Draws samples of the first classes with a transformer's weights."""
    indices = jnp.arange(_NUM_SAMPLES)
    hidden = jnp.full((_NUM_SAMPLES, base.config.transformer.sequence_length - 1), -1)
    labels = indices % base.config.transformer.num_classes
    tokens = model.with_class_token(base.config, labels, hidden)

    def draw(params: losses.Params) -> UInt8[np.ndarray, "_ _ 3"]:
        # Decoded by `base`: a new model would compile anew.
        trained = dataclasses.replace(base, transformer_params=stack_layers(params))
        ids = batched.sample(trained, tokens, num_steps=_SAMPLING_STEPS, seed=0, indices=indices)
        return make_grid(list(to_uint8(np.asarray(base.decode(ids)))), gap=2)

    return draw


if __name__ == "__main__":
    cli.run(main)
