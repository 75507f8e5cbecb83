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
from jaxtyping import Array, Float, Int, Key, UInt8
from scipy.cluster.vq import kmeans2

from experiments.app import cli
from experiments.training import datasets, frame, loop
from maskgit_jax import model
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import ModelConfig, TokenizerConfig, read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, to_float, to_uint8
from maskgit_jax.keys import seed_key
from maskgit_jax.knobs import knob
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.training import adversarial, codebook, losses, optimizers

_CODEBOOK_IMAGES = 400
_SHOWN_IMAGES = 8

PARTS = ("all", "decoder")
"""What can be trained of a tokenizer."""

CODEBOOKS = ("average", "gradient")
"""How codes follow their latents."""


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
        3e-3, "Peak, before there is a quantizer; 0.4 of it after. AdamW: half.", low=0.0
    )
    optimizer: str = knob("muon", "AdamW is published.", choices=optimizers.OPTIMIZERS)
    weight_decay: float = knob(1e-4, "Of both optimizers.", low=0.0)
    crop_size: int = knob(
        0,
        "Pixels a side of crops around detail, a multiple of a latent's; 0: whole pictures.",
        low=0,
    )
    part: str = knob("all", "What is trained; with decoder alone ids stay valid.", choices=PARTS)
    codebook: str = knob(
        "average",
        "Codes are running averages, or learnt by a gradient (published).",
        choices=CODEBOOKS,
    )
    commitment_cost: float = knob(0.05, "Published: 0.25.", low=0.0)
    entropy_weight: float = knob(
        0.0, "Published: 0.1, for large batches and a codebook learnt by a gradient."
    )
    edge_weight: float = knob(0.5, "Of the difference of neighbours' errors.", low=0.0)
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
    _check_flags(flags, config.tokenizer)
    shown = flags.crop_size or size
    example, key = np.zeros((1, shown, shown, 3), np.float32), seed_key(flags.seed)
    if start is None:
        params = _initial_weights(jax.jit(tokenizer.init)(key, example)["params"], key)
    else:
        _, params = model.load_tokenizer(start, config)
    weights, discriminator = {}, None
    if flags.adversarial_weight or flags.perceptual_weight:
        discriminator = adversarial.Discriminator(shown, flags.discriminator_filters)
        weights["discriminator"] = jax.jit(discriminator.init)(key, example)["params"]

    folder = cli.output_folder(flags.model_dir, "model_dir")
    data = frame.dataset(flags, size)
    _write_config(folder, frame.with_classes(config, data.class_names))
    num_warmup_steps = flags.num_warmup_steps
    if num_warmup_steps is None:
        num_warmup_steps = 800 if start is None else 0
    terms = {"edge_weight": flags.edge_weight, "dtype": flags.dtype}
    if num_warmup_steps:
        loss = functools.partial(losses.autoencoder_loss, tokenizer, **terms)
        first = dataclasses.replace(flags, num_steps=num_warmup_steps)
        directory = folder / "autoencoder_training"
        params = _train(first, directory, tokenizer, data, {"tokenizer": params}, loss)
        params["quantizer"]["codebook"] = _codebook(flags, tokenizer, params, data)
    # At the full rate the latents run away from the codes that were just put among them.
    second = dataclasses.replace(flags, learning_rate=0.4 * flags.learning_rate)
    terms |= {name: getattr(flags, name) for name in ("commitment_cost", "entropy_weight")}
    names = ("adversarial_start", "adversarial_weight", "perceptual_weight", "r1_weight")
    whole = None
    if discriminator is not None:
        options = terms | {name: getattr(flags, name) for name in names}
        whole = functools.partial(losses.adversarial_loss, tokenizer, discriminator, **options)
    # Exactly: an average of equal numbers may differ in the last digit.
    kept = {name: params[name] for name in params if flags.part == "decoder" and name != "decoder"}
    if _averages(flags):
        averages = codebook.init_averages(params["quantizer"]["codebook"])
        params = {**params, "quantizer": averages}
    _train(
        second,
        folder / "tokenizer_training",
        tokenizer,
        data,
        {"tokenizer": params, **weights},
        functools.partial(losses.tokenizer_loss, tokenizer, **terms),
        whole,
        lambda params: checkpoint.write_checkpoint(
            folder / "tokenizer_checkpoint", codebook.with_codes(params) | kept
        ),
    )
    print(f"model saved in {folder}")


def _averages(flags: Flags) -> bool:
    """Whether the codebook is trained as running averages."""
    return flags.codebook == "average" and flags.part == "all"


def _check_flags(flags: Flags, config: TokenizerConfig) -> None:
    """InputError where flags do not suit each other or the model."""
    side, step = config.image_size, config.image_size // config.latent_size
    if flags.crop_size % step or flags.crop_size > side:
        raise InputError(
            f"--crop_size={flags.crop_size}: expected a multiple of {step}, the pixels that a "
            f"latent stands for, of at most {side}, the side of a picture"
        )
    if flags.part == "decoder" and not flags.init_from:
        raise InputError("--part=decoder needs a tokenizer to begin with: --init_from=FOLDER")
    if flags.part == "decoder" and flags.num_warmup_steps:
        raise InputError(
            f"--num_warmup_steps={flags.num_warmup_steps} with --part=decoder: after them the "
            "codebook is made anew, and ids would be others; leave it out"
        )


def _initial_weights(params: losses.Params, key: Key[Array, ""]) -> losses.Params:
    """New weights through which a picture passes from the first update on.

    A block that changes the width has no way around its convolutions: their centre is orthogonal.
    The others begin near the identity. Worth 1.4 dB after the first 300 updates.
    """

    def convolution(kernel: Array, key: Key[Array, ""]) -> Array:
        centre = jax.nn.initializers.orthogonal(1.5)(key, kernel.shape[2:])
        return (0.3 * kernel).at[1, 1].add(centre)

    def block(convs: losses.Params, key: Key[Array, ""]) -> losses.Params:
        convs = {name: dict(weights) for name, weights in convs.items()}
        if "Conv_2" not in convs:
            convs["Conv_1"]["kernel"] *= 0.25
            return convs
        for name in ("Conv_0", "Conv_1"):
            key, own = jax.random.split(key)
            convs[name]["kernel"] = convolution(convs[name]["kernel"], own)
        return convs

    halves = {}
    for half in ("encoder", "decoder"):
        key, *keys = jax.random.split(key, 1 + len(params[half]))
        halves[half] = {
            name: block(weights, own) if name.startswith("ResBlock") else weights
            for (name, weights), own in zip(sorted(params[half].items()), keys, strict=True)
        }
    return {**params, **halves}


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

    quantize = directory.name == "tokenizer_training"

    def make_optimizer(*given: Any, **options: Any):
        part_of = dict.fromkeys(weights["tokenizer"], "trained")
        if flags.part == "decoder":
            part_of = {name: "trained" if name == "decoder" else "kept" for name in part_of}
        elif quantize and _averages(flags):
            part_of["quantizer"] = "averages"
        labels = {"tokenizer": part_of, "discriminator": "discriminator"}
        # The discriminator's first moment is left out, as published: it follows a moving target.
        by_part = {
            "trained": optimizers.make_optimizer(*given, **options),
            "averages": optimizers.moving_average(codebook.DECAY),
            "kept": optimizers.no_optimizer(),
            "discriminator": optimizers.make_optimizer(*given, **options, betas=(0.0, 0.99)),
        }
        return optimizers.by_part(by_part, {name: labels[name] for name in weights})

    data = loop.Data(
        functools.partial(_batch, flags, pictures), jax.jit(lambda batch: batch[0] / 255)
    )
    held_out = pictures.held_out()
    validate = frame.validation(flags, loss, held_out, data)
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


def _batch(flags: Flags, pictures: datasets.Dataset, step: int) -> datasets.Batch:
    """Whole pictures, or crops of them around detail, and labels."""
    images, labels = pictures.batch(step)
    if flags.crop_size:
        rng = np.random.default_rng([flags.seed, step, 1])
        images = datasets.detail_crops(images, flags.crop_size, rng)
    return images, labels


def _pictures_beside_reconstructions(
    tokenizer: Tokenizer, images: UInt8[np.ndarray, "n H W 3"], quantize: bool
) -> Callable[[dict[str, losses.Params]], UInt8[np.ndarray, "_ _ 3"]]:
    """Shows the pictures in one row and what weights make of them in the next."""
    reconstruct = jax.jit(functools.partial(tokenizer.apply, quantize=quantize))

    def draw(weights: dict[str, losses.Params]) -> UInt8[np.ndarray, "_ _ 3"]:
        params = codebook.with_codes(weights["tokenizer"])
        found = reconstruct({"params": params}, to_float(images))[0]
        return make_grid([*images, *to_uint8(np.asarray(found))], columns=len(images), gap=2)

    return draw


def _codebook(
    flags: Flags, tokenizer: Tokenizer, params: losses.Params, data: datasets.Dataset
) -> Float[np.ndarray, "K d"]:
    """Codes at the k-means centres of the latents of training pictures."""
    encode = jax.jit(functools.partial(tokenizer.apply, method="latents"))
    num_batches = -(-_CODEBOOK_IMAGES // flags.batch_size)
    latents = np.concatenate(
        [
            encode({"params": params}, to_float(_batch(flags, data, i)[0]))
            for i in range(num_batches)
        ]
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
