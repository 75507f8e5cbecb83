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
from jaxtyping import Array, Int, UInt8

from experiments.app import cli, digests
from experiments.training import datasets, frame, loop
from maskgit_jax import model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import ModelConfig, read_config, write_config
from maskgit_jax.devices import copy_to_devices
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid
from maskgit_jax.keys import seed_key
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import batched
from maskgit_jax.training import losses

_NUM_SAMPLES = 16
_SAMPLING_STEPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(frame.TransformerFlags, frame.SamplePictureFlags):
    """What is trained, and how."""


def main(flags: Flags) -> None:
    """Trains the transformer of a model folder."""
    loop.keep_freed_memory()
    folder, started = Path(flags.model_dir), None
    if flags.init_from is not None:
        started = model.load_model(flags.init_from)
        if not (folder / "config.json").exists():
            cli.output_folder(folder, "model_dir")
            path = folder / "tokenizer_checkpoint"
            checkpoint.write_checkpoint(path, started.tokenizer_params)
            write_config(folder / "config.json", started.config)
    config = read_config(folder / "config.json")
    tokenizer, tokenizer_params = model.load_tokenizer(folder, config)
    tokenizer_params = copy_to_devices(tokenizer_params)
    apply = jax.jit(functools.partial(tokenizer.apply, method="encode"))

    def encode(images: UInt8[Array | np.ndarray, "b H W 3"]) -> Int[Array, "b N"]:
        ids = apply({"params": tokenizer_params}, jnp.asarray(images) / 255)
        return ids.reshape(len(images), -1)

    pictures = frame.dataset(
        flags,
        config.tokenizer.image_size,
        # Always the same pictures: encoded once.
        encode=lambda images: np.asarray(encode(images)),
        kept=folder / "training_ids.npz",
        encoder=digests.of_tree(tokenizer_params),
    )
    encoded = isinstance(pictures, datasets.ArrayDataset)
    data = loop.Data(
        pictures.batch, lambda batch: batch if encoded else (encode(batch[0]), batch[1])
    )
    config = _with_classes(folder, config, pictures.class_names)
    transformer = Transformer(config.transformer)
    if started is not None:
        _check_same_transformer(flags.init_from, started.config, config)
        params = unstack_layers(started.transformer_params)
    else:
        empty = jnp.zeros((1, config.transformer.sequence_length), jnp.int32)
        params = jax.jit(transformer.init)(seed_key(flags.seed), empty)["params"]
    options = {"label_smoothing": flags.label_smoothing, "dtype": flags.dtype}
    loss = functools.partial(losses.masked_token_loss, transformer, **options)
    held_out = functools.partial(loss, deterministic=True)
    untrained = model.Model(
        config=config,
        transformer=transformer,
        transformer_params=stack_layers(params),
        tokenizer=tokenizer,
        tokenizer_params=tokenizer_params,
    )
    frame.train(
        flags,
        folder / "transformer_training",
        lambda step: loss,
        params,
        data,
        export=functools.partial(checkpoint.write_checkpoint, folder / "maskgit_checkpoint"),
        validate=frame.validation(flags, held_out, pictures.held_out(), data),
        draw=_samples(untrained),
    )
    print(f"model saved in {folder}")


def _with_classes(folder: Path, config: ModelConfig, class_names: tuple[str, ...]) -> ModelConfig:
    """The folder's configuration with the data's classes, also written there.

    Raises:
      InputError: the folder already holds a transformer for others.
    """
    if config.class_names == class_names:
        return config
    if any((folder / name).exists() for name in ("maskgit_checkpoint", "transformer_training")):
        raise InputError(
            f"{folder} holds a transformer for {len(config.class_names)} other classes than the "
            f"{len(class_names)} of --data: copy config.json and tokenizer_checkpoint to a new "
            "folder and train there"
        )
    config = frame.with_classes(config, class_names)
    write_config(folder / "config.json", config)
    return config


def _check_same_transformer(name: str, found: ModelConfig, expected: ModelConfig) -> None:
    """Raises InputError unless weights of one configuration fit the other."""
    for field in dataclasses.fields(found.transformer):
        values = [getattr(config.transformer, field.name) for config in (found, expected)]
        if field.name != "dropout_rate" and values[0] != values[1]:
            raise InputError(
                f"--init_from={name} has {field.name} {values[0]}, --model_dir and --data need "
                f"{values[1]}: leave --init_from out"
            )


def _samples(base: model.Model) -> Callable[[losses.Params], UInt8[np.ndarray, "_ _ 3"]]:
    """Shows samples of the first classes with a transformer's weights."""
    indices = jnp.arange(_NUM_SAMPLES)
    masked = jnp.full((_NUM_SAMPLES, base.config.transformer.sequence_length - 1), -1)
    labels = indices % base.config.transformer.num_classes
    tokens = model.with_class_token(base.config, labels, masked)

    def draw(params: losses.Params) -> UInt8[np.ndarray, "_ _ 3"]:
        # Decoded by `base`: a new model would compile anew.
        trained = dataclasses.replace(base, transformer_params=stack_layers(params))
        ids = batched.sample(trained, tokens, num_steps=_SAMPLING_STEPS, seed=0, indices=indices)
        return make_grid(list(base.images_of(ids)), gap=2)

    return draw


if __name__ == "__main__":
    cli.run(main, Flags)
