"""Trains a tokenizer on the demo world's pictures or on a folder of pictures.

    python -m experiments.train_tokenizer --model_dir=runs/demo
    python -m experiments.train_tokenizer --model_dir=runs/mine --data=pictures --config=mine.json

Writes `config.json` and `tokenizer_checkpoint` into the model folder. Started again, it resumes.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from scipy.cluster.vq import kmeans2

from experiments.app import cli
from experiments.training import datasets, frame, loop
from maskgit_jax import model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import ModelConfig, read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, to_float, to_uint8
from maskgit_jax.keys import seed_key
from maskgit_jax.knobs import knob
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.training import adversarial, losses, optimizers

_CODEBOOK_IMAGES = 400
_SHOWN_IMAGES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(
    frame.with_defaults(frame.TrainingFlags, batch_size=8, warmup_steps=200),
    frame.SamplePictureFlags,
):
    """What is trained, and how."""

    config: str | None = knob(
        None, "Hyper-parameters, a config.json; default: of --init_from, or of the demo.", kind=Path
    )
    num_warmup_steps: int | None = knob(
        None,
        "Updates before there is a quantizer; default: 3500, with --init_from 0.",
        low=0,
        kind=int,
    )
    num_steps: int = knob(4_000, "Updates with the quantizer.", low=1)
    learning_rate: float = knob(
        1.5e-3, "Peak, before there is a quantizer; 0.4 of it after.", low=0.0
    )
    weight_decay: float = knob(1e-4, "Of AdamW.", low=0.0)
    entropy_weight: float = knob(0.005, "Published: 0.1, for large batches.")
    perceptual_weight: float = knob(0.0, "Published: 0.1.", low=0.0)
    adversarial_weight: float = knob(0.0, "Published: 0.1; 0 trains no discriminator.", low=0.0)
    adversarial_start: int = knob(0, "Updates with the quantizer before it counts.", low=0)
    r1_weight: float = knob(10.0, "Of the discriminator's penalty.", low=0.0)
    discriminator_filters: int = knob(32, "Channels of its first level.", low=1)


def main(flags: Flags) -> None:
    """Trains a tokenizer in one or two stages."""
    loop.keep_freed_memory()
    start = frame.init_folder(flags.init_from) if flags.init_from else None
    path = flags.config or (start or model.builtin_folder("demo")) / "config.json"
    config = read_config(Path(path))
    tokenizer, size = Tokenizer(config.tokenizer), config.tokenizer.image_size
    example, key = np.zeros((1, size, size, 3), np.float32), seed_key(flags.seed)
    if start is None:
        params = jax.jit(tokenizer.init)(key, example)["params"]
    else:
        _, params = model.load_tokenizer(start, config)
    weights, discriminator = {}, None
    if flags.adversarial_weight or flags.perceptual_weight:
        discriminator = adversarial.Discriminator(size, flags.discriminator_filters)
        weights["discriminator"] = jax.jit(discriminator.init)(key, example)["params"]

    folder = cli.output_folder(flags.model_dir, "model_dir")
    data = frame.dataset(flags, size)
    _write_config(folder, frame.with_classes(config, data.class_names))
    num_warmup_steps = flags.num_warmup_steps
    if num_warmup_steps is None:
        num_warmup_steps = 3_500 if start is None else 0
    if num_warmup_steps:
        loss = functools.partial(losses.autoencoder_loss, tokenizer, dtype=flags.dtype)
        first = dataclasses.replace(flags, num_steps=num_warmup_steps)
        directory = folder / "autoencoder_training"
        params = _train(first, directory, tokenizer, data, {"tokenizer": params}, loss)
        params["quantizer"]["codebook"] = _codebook(flags, tokenizer, params, data)
    # At the full rate the latents run away from the codes that were just put among them.
    second = dataclasses.replace(flags, learning_rate=0.4 * flags.learning_rate)
    terms = {"entropy_weight": flags.entropy_weight, "dtype": flags.dtype}
    names = ("adversarial_start", "adversarial_weight", "perceptual_weight", "r1_weight")
    whole = None
    if discriminator is not None:
        options = terms | {name: getattr(flags, name) for name in names}
        whole = functools.partial(losses.adversarial_loss, tokenizer, discriminator, **options)
    _train(
        second,
        folder / "tokenizer_training",
        tokenizer,
        data,
        {"tokenizer": params, **weights},
        functools.partial(losses.tokenizer_loss, tokenizer, **terms),
        whole,
        functools.partial(checkpoint.write_checkpoint, folder / "tokenizer_checkpoint"),
    )
    print(f"model saved in {folder}")


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
    flags: Flags,
    directory: Path,
    tokenizer: Tokenizer,
    pictures: datasets.Dataset,
    weights: dict[str, losses.Params],
    loss: losses.LossFn,
    whole_loss: Callable[..., tuple] | None = None,
    export: Callable[[losses.Params], None] = lambda params: None,
) -> losses.Params:
    """One stage; returns the tokenizer's average weights.

    `loss`, of the tokenizer's weights, is validated, and trained on unless there is a `whole_loss`
    of all `weights`, a discriminator's among them.
    """

    def loss_at(step: Int[Array, ""]) -> losses.LossFn:
        if whole_loss is not None:
            return functools.partial(whole_loss, step=step)
        return lambda weights, batch, key: loss(weights["tokenizer"], batch, key)

    def make_optimizer(*given: Any, **options: Any):
        # The discriminator's first moment is left out, as published: it follows a moving target.
        betas = {"discriminator": {"betas": (0.0, 0.99)}}
        return optimizers.by_part(
            {
                part: optimizers.make_optimizer(*given, **options, **betas.get(part, {}))
                for part in weights
            }
        )

    data = loop.Data(pictures.batch, jax.jit(lambda batch: batch[0] / 255))
    held_out = pictures.held_out()
    validate = frame.validation(flags, loss, held_out, data)
    quantize = directory.name == "tokenizer_training"
    average = frame.train(
        flags,
        directory,
        loss_at,
        weights,
        data,
        export=lambda weights: export(weights["tokenizer"]),
        validate=lambda weights: validate(weights["tokenizer"]),
        draw=_pictures_beside_reconstructions(tokenizer, held_out[0][:_SHOWN_IMAGES], quantize),
        make_optimizer=make_optimizer,
    )
    return jax.device_get(average["tokenizer"])


def _pictures_beside_reconstructions(
    tokenizer: Tokenizer, images: UInt8[np.ndarray, "n H W 3"], quantize: bool
) -> Callable[[dict[str, losses.Params]], UInt8[np.ndarray, "_ _ 3"]]:
    """Shows the pictures in one row and what weights make of them in the next."""
    reconstruct = jax.jit(functools.partial(tokenizer.apply, quantize=quantize))

    def draw(weights: dict[str, losses.Params]) -> UInt8[np.ndarray, "_ _ 3"]:
        found = reconstruct({"params": weights["tokenizer"]}, to_float(images))[0]
        return make_grid([*images, *to_uint8(np.asarray(found))], columns=len(images), gap=2)

    return draw


def _codebook(
    flags: Flags, tokenizer: Tokenizer, params: losses.Params, data: datasets.Dataset
) -> Float[np.ndarray, "K d"]:
    """Codes at the k-means centres of the latents of training pictures."""
    encode = jax.jit(functools.partial(tokenizer.apply, method="latents"))
    num_batches = -(-_CODEBOOK_IMAGES // flags.batch_size)
    latents = np.concatenate(
        [encode({"params": params}, to_float(data.batch(i)[0])) for i in range(num_batches)]
    ).reshape(-1, tokenizer.config.embedding_dim)
    centres, _ = kmeans2(
        latents,
        tokenizer.config.codebook_size,
        iter=12,
        minit="points",
        seed=flags.seed,
    )
    return centres.astype(np.float32)


if __name__ == "__main__":
    cli.run(main, Flags)
