"""What the training and tuning commands share: flags, data, optimizer, and the run itself."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Int, Key, UInt8

from experiments.training import datasets, loop
from maskgit_jax import model
from maskgit_jax.checkpoints import download
from maskgit_jax.config import ModelConfig
from maskgit_jax.keys import seed_key
from maskgit_jax.knobs import SEEDS, knob
from maskgit_jax.training import losses, optimizers, train_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What every training has."""

    model_dir: str = knob("runs/demo", "Folder for the result.", kind=Path)
    init_from: str | None = knob(
        None, "Start from the weights of this model: a folder, or a name such as demo.", kind=Path
    )
    data: str = knob(
        "world", "'world', or a folder of pictures with one sub-folder per class.", kind=Path
    )
    num_images: int = knob(20_000, "Of the world, to train on.", low=1)
    num_held_out: int = knob(256, "Pictures for validation, of a folder a tenth at most.", low=1)
    min_area: float = knob(0.5, "Least share of a folder's picture in a crop.", low=0.01, high=1.0)
    max_ratio: float = knob(4 / 3, "Longer by shorter side of a crop.", low=1.0, high=10.0)
    flip: bool = knob(True, "Mirror half of a folder's pictures.")
    num_steps: int = knob(5_200, "Updates.", low=1)
    batch_size: int = knob(24, "Pictures per update.", low=1)
    accumulate: int = knob(1, "Parts of a batch, one in memory at a time.", low=1)
    learning_rate: float = knob(3e-3, "Peak; AdamW: a third.", low=0.0)
    warmup_steps: int = knob(300, "In which the learning rate rises, at most half of all.", low=0)
    decay: str = knob("cosine", "Of the learning rate after warm-up.", choices=optimizers.SCHEDULES)
    clip_norm: float = knob(1.0, "Largest norm of a gradient.", low=1e-9)
    ema_decay: float = knob(
        0.999,
        "Of the average weights, which are the result; 0: no average.",
        low=0.0,
        high=1.0,
    )
    dtype: str = knob(
        "float32", "Of the network's sums; weights stay float32.", choices=model.DTYPES
    )
    seed: int = knob(0, "Random seed of weights, data order and masks.", **SEEDS)
    save_every: int = knob(500, "Steps between checkpoints.", low=1)
    log_every: int = knob(100, "Steps between log lines.", low=1)
    validate_every: int = knob(500, "Steps between validations; 0: none.", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerFlags(TrainingFlags):
    """What the trainings of a transformer have."""

    optimizer: str = knob("muon", "AdamW is published.", choices=optimizers.OPTIMIZERS)
    weight_decay: float = knob(0.01, "Published: 0.045.", low=0.0)
    label_smoothing: float = knob(
        0.0, "Share spread over all codes; published: 0.1.", low=0.0, high=1.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplePictureFlags:
    """What trainings have that show what their model can do."""

    sample_every: int = knob(1000, "Steps between sample pictures; 0: none.", low=0)


def with_defaults(cls: type, **defaults: Any) -> type:
    """A class of flags with other defaults for some."""
    fields = [
        (f.name, f.type, dataclasses.field(default=defaults[f.name], metadata=f.metadata))
        for f in dataclasses.fields(cls)
        if f.name in defaults
    ]
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)


def dataset(flags: TrainingFlags, size: int, **encoding: Any) -> datasets.Dataset:
    """The data that is trained on, `size` pixels a side; `encoding` is of `demo_world`."""
    names = ["num_held_out", "seed", "batch_size"]
    if flags.data == "world":
        options = {name: getattr(flags, name) for name in (*names, "num_images")}
        return datasets.demo_world(size, **options, **encoding)
    names += ["min_area", "max_ratio", "flip"]
    options = {name: getattr(flags, name) for name in names}
    return datasets.FolderDataset(Path(flags.data), size, **options)


def init_folder(name: str) -> Path:
    """The folder of the model to start from."""
    model.model_config(name)  # Says what is wrong with it, if anything is.
    if name in download.MODELS:
        return download.fetch_model(name)
    return model.builtin_folder(name) if name == "demo" else Path(name)


def with_classes(config: ModelConfig, class_names: tuple[str, ...]) -> ModelConfig:
    """The configuration with the data's classes."""
    transformer = dataclasses.replace(config.transformer, num_classes=len(class_names))
    return dataclasses.replace(config, transformer=transformer, class_names=class_names)


def validation(
    flags: TrainingFlags,
    loss: losses.LossFn,
    held_out: tuple[np.ndarray, ...],
    data: loop.Data,
) -> Callable[[losses.Params], dict[str, float]]:
    """Mean metrics of weights on the held-out data."""
    batches = datasets.batches_of(held_out, flags.batch_size)
    return loop.validation(loss, batches, seed_key(flags.seed), data.prepare)


def train(
    flags: TrainingFlags,
    directory: Path,
    loss_at: Callable[[Int[Array, ""]], losses.LossFn],
    params: losses.Params,
    data: loop.Data,
    *,
    export: Callable[[losses.Params], None],
    validate: Callable[[losses.Params], dict[str, float]],
    draw: Callable[[losses.Params], UInt8[np.ndarray, "H W 3"]] | None = None,
    make_optimizer: Callable[..., optax.GradientTransformation] = optimizers.make_optimizer,
) -> losses.Params:
    """Trains weights in a folder (see `loop.train`); returns their average.

    `loss_at` gives the loss of a step; `make_optimizer` takes the arguments of the default.
    """
    warmup_steps = min(flags.warmup_steps, flags.num_steps // 2)
    learning_rate = optimizers.learning_rate_schedule(
        flags.learning_rate, flags.num_steps, warmup_steps, flags.decay
    )
    optimizer = make_optimizer(
        learning_rate,
        getattr(flags, "weight_decay", 0.0),
        name=getattr(flags, "optimizer", "adamw"),
        clip_norm=flags.clip_norm,
    )
    options = {"accumulate": flags.accumulate, "ema_decay": flags.ema_decay}

    def update(state: train_state.TrainState, batch: losses.Batch, key: Key[Array, ""]):
        return train_state.update(loss_at(state.step), optimizer, state, batch, key, **options)

    hooks = [(flags.validate_every, functools.partial(loop.validate, measure=validate))]
    if draw is not None:
        hooks.append((flags.sample_every, functools.partial(loop.draw, picture_of=draw)))
    return loop.train(
        directory,
        update,
        train_state.init_state(params, optimizer),
        data,
        num_steps=flags.num_steps,
        key=seed_key(flags.seed),
        save_every=flags.save_every,
        log_every=flags.log_every,
        export=export,
        learning_rate=learning_rate,
        hooks=hooks,
    ).average
