"""Trains a tokenizer on the demo world's pictures or on a folder of pictures.

    python -m experiments.train_tokenizer --model_dir=runs/demo
    python -m experiments.train_tokenizer --model_dir=runs/mine --data=pictures --config=mine.json

Writes `config.json` and `tokenizer_checkpoint` into the model folder. Started again, it resumes.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jaxtyping import Array, Float, Int, Key, UInt8
from scipy.cluster.vq import kmeans2

from experiments.app import cli
from experiments.training import datasets, loop, training_flags
from maskgit_jax import model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import ModelConfig, read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, to_float, to_uint8
from maskgit_jax.keys import seed_key
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.training import adversarial, losses, optimizers, train_state

_CONFIG = flags.DEFINE_string(
    "config", None, "Hyper-parameters, a config.json; default: of --init_from, or of the demo."
)
_NUM_WARMUP_STEPS = flags.DEFINE_integer(
    "num_warmup_steps",
    None,
    "Updates before there is a quantizer; default: 3500, with --init_from 0.",
    lower_bound=0,
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 4_000, "Updates with the quantizer.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1.5e-3, "Peak, before there is a quantizer; 0.4 of it after.", 0.0
)
_WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 200, "In which the learning rate rises, at most half of all.", lower_bound=0
)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 1e-4, "Of AdamW.", lower_bound=0.0)
_ENTROPY_WEIGHT = flags.DEFINE_float("entropy_weight", 0.005, "Published: 0.1, for large batches.")
_PERCEPTUAL_WEIGHT = flags.DEFINE_float("perceptual_weight", 0.0, "Published: 0.1.", 0.0)
_ADVERSARIAL_WEIGHT = flags.DEFINE_float(
    "adversarial_weight", 0.0, "Published: 0.1; 0 trains no discriminator.", 0.0
)
_ADVERSARIAL_START = flags.DEFINE_integer(
    "adversarial_start", 0, "Updates with the quantizer before it counts.", lower_bound=0
)
_R1_WEIGHT = flags.DEFINE_float("r1_weight", 10.0, "Of the discriminator's penalty.", 0.0)
_DISCRIMINATOR_FILTERS = flags.DEFINE_integer(
    "discriminator_filters", 32, "Channels of its first level.", lower_bound=1
)
_SAMPLE_EVERY = flags.DEFINE_integer(
    "sample_every", 1000, "Steps between sample pictures; 0: none.", lower_bound=0
)

_CODEBOOK_IMAGES = 400
_SHOWN_IMAGES = 8


def main() -> None:
    """Trains as the flags say."""
    loop.keep_freed_memory()
    start = training_flags.init_folder()
    config_folder = start or model.builtin_folder("demo")
    cfg = read_config(Path(_CONFIG.value or config_folder / "config.json"))
    tokenizer = Tokenizer(cfg.tokenizer)
    size = cfg.tokenizer.image_size
    example = np.zeros((1, size, size, 3), np.float32)
    key = seed_key(training_flags.SEED.value)
    if start is None:
        params = jax.jit(tokenizer.init)(key, example)["params"]
    else:
        _, params = model.load_tokenizer(start, cfg)
    opponent = None
    if _ADVERSARIAL_WEIGHT.value or _PERCEPTUAL_WEIGHT.value:
        discriminator = adversarial.Discriminator(size, _DISCRIMINATOR_FILTERS.value)
        opponent = discriminator, jax.jit(discriminator.init)(key, example)["params"]

    folder = cli.output_folder(training_flags.MODEL_DIR)
    data = training_flags.dataset(size, _BATCH_SIZE.value)
    _write_config(folder, training_flags.with_classes(cfg, data.class_names))
    stage = functools.partial(_train, folder, tokenizer, data, key)

    dtype, rate = training_flags.DTYPE.value, _LEARNING_RATE.value
    num_warmup_steps = _NUM_WARMUP_STEPS.value
    if num_warmup_steps is None:
        num_warmup_steps = 3_500 if start is None else 0
    if num_warmup_steps:
        loss = functools.partial(losses.autoencoder_loss, tokenizer, dtype=dtype)
        params = stage("autoencoder", loss, params, num_warmup_steps, rate)
        params["quantizer"]["codebook"] = _codebook(tokenizer, params, data)
    terms = {"entropy_weight": _ENTROPY_WEIGHT.value, "dtype": dtype}
    loss = functools.partial(losses.tokenizer_loss, tokenizer, **terms)
    export = functools.partial(checkpoint.write_checkpoint, folder / "tokenizer_checkpoint")
    # At the full rate the latents run away from the codes that were just put among them.
    stage("tokenizer", loss, params, _NUM_STEPS.value, 0.4 * rate, opponent, terms, export)


def _write_config(folder: Path, cfg: ModelConfig) -> None:
    """Writes config.json; InputError if a training with another one has begun."""
    path = folder / "config.json"
    begun = any((folder / f"{name}_training").exists() for name in ("autoencoder", "tokenizer"))
    if begun and path.exists() and read_config(path) != cfg:
        raise InputError(
            f"{path} is not the configuration asked for: train in another folder, or give the "
            "--config, --init_from and --data that this training was started with"
        )
    write_config(path, cfg)


def _train(
    folder: Path,
    tokenizer: Tokenizer,
    data: datasets.Dataset,
    key: Key[Array, ""],
    name: str,
    loss: losses.LossFn,
    params: losses.Params,
    num_steps: int,
    rate: float,
    opponent: tuple[adversarial.Discriminator, losses.Params] | None = None,
    terms: dict[str, Any] | None = None,
    export: Callable[[losses.Params], None] | None = None,
) -> losses.Params:
    """One stage; returns the tokenizer's average weights.

    `loss`, of the tokenizer's weights, is validated, and trained on unless there is an `opponent`:
    a discriminator and its weights. `terms` are the options of `loss`.
    """
    weights = {"tokenizer": params}
    if opponent is not None:
        discriminator, weights["discriminator"] = opponent

    def loss_at(step: Int[Array, ""]) -> losses.LossFn:
        if opponent is None:
            return lambda weights, batch, key: loss(weights["tokenizer"], batch, key)
        return functools.partial(
            losses.adversarial_loss,
            tokenizer,
            discriminator,
            step=step,
            adversarial_start=_ADVERSARIAL_START.value,
            adversarial_weight=_ADVERSARIAL_WEIGHT.value,
            perceptual_weight=_PERCEPTUAL_WEIGHT.value,
            r1_weight=_R1_WEIGHT.value,
            **(terms or {}),
        )

    schedule, arguments = training_flags.schedule(
        rate, num_steps, _WARMUP_STEPS.value, _WEIGHT_DECAY.value
    )
    # The discriminator's first moment is left out, as published: it follows a moving target.
    by_part = {
        "tokenizer": optimizers.make_optimizer(**arguments),
        "discriminator": optimizers.make_optimizer(**arguments, betas=(0.0, 0.99)),
    }
    optimizer = optax.multi_transform(by_part, {part: part for part in weights})

    def update(state: train_state.TrainState, batch: losses.Batch, key: Key[Array, ""]):
        options = training_flags.update_options()
        return train_state.update(loss_at(state.step), optimizer, state, batch, key, **options)

    prepare = jax.jit(lambda batch: batch[0] / 255)
    held_out = data.held_out()
    batches = datasets.batches_of(held_out, _BATCH_SIZE.value)
    validate = loop.validation(loss, batches, key, prepare)
    state = loop.fit(
        update,
        train_state.init_state(weights, optimizer),
        data.batch,
        key=key,
        num_steps=num_steps,
        directory=folder / f"{name}_training",
        export=export and (lambda weights: export(weights["tokenizer"])),
        prepare=prepare,
        learning_rate=schedule,
        validate=lambda weights: validate(weights["tokenizer"]),
        draw=_pictures_beside_reconstructions(
            tokenizer, held_out[0][:_SHOWN_IMAGES], quantize=name == "tokenizer"
        ),
        sample_every=_SAMPLE_EVERY.value,
        **training_flags.fit_options(),
    )
    return jax.device_get(state.average["tokenizer"])


def _pictures_beside_reconstructions(
    tokenizer: Tokenizer, images: UInt8[np.ndarray, "n H W 3"], quantize: bool
) -> Callable[[dict[str, losses.Params]], UInt8[np.ndarray, "_ _ 3"]]:
    """Draws the pictures in one row and what weights make of them in the next."""
    reconstruct = jax.jit(functools.partial(tokenizer.apply, quantize=quantize))

    def draw(weights: dict[str, losses.Params]) -> UInt8[np.ndarray, "_ _ 3"]:
        found = reconstruct({"params": weights["tokenizer"]}, to_float(images))[0]
        return make_grid([*images, *to_uint8(np.asarray(found))], columns=len(images), gap=2)

    return draw


def _codebook(
    tokenizer: Tokenizer, params: losses.Params, data: datasets.Dataset
) -> Float[np.ndarray, "K d"]:
    """Codes at the k-means centres of the latents of training pictures."""
    encode = jax.jit(functools.partial(tokenizer.apply, method="latents"))
    num_batches = -(-_CODEBOOK_IMAGES // _BATCH_SIZE.value)
    latents = np.concatenate(
        [encode({"params": params}, to_float(data.batch(i)[0])) for i in range(num_batches)]
    ).reshape(-1, tokenizer.config.embedding_dim)
    centres, _ = kmeans2(
        latents,
        tokenizer.config.codebook_size,
        iter=12,
        minit="points",
        seed=training_flags.SEED.value,
    )
    return centres.astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
