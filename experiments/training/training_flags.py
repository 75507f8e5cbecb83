"""Flags that the training and tuning commands share, and what they mean."""

import dataclasses
from pathlib import Path
from typing import Any

import optax
from absl import flags

from experiments.training import datasets
from maskgit_jax import model
from maskgit_jax.checkpoints import download
from maskgit_jax.config import ModelConfig
from maskgit_jax.training import optimizers

MODEL_DIR = flags.DEFINE_string("model_dir", "runs/demo", "Folder for the result.")
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Start from the weights of this model: a folder, or a name such as demo."
)
_DATA = flags.DEFINE_string(
    "data", "world", "'world', or a folder of pictures with one sub-folder per class."
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Of the world, to draw.", lower_bound=1)
_NUM_HELD_OUT = flags.DEFINE_integer(
    "num_held_out", 256, "Pictures for validation, of a folder a tenth at most.", lower_bound=1
)
_MIN_AREA = flags.DEFINE_float(
    "min_area", 0.5, "Least share of a folder's picture in a crop.", 0.01, 1.0
)
_MAX_RATIO = flags.DEFINE_float("max_ratio", 4 / 3, "Longer by shorter side of a crop.", 1.0, 10.0)
_FLIP = flags.DEFINE_bool("flip", True, "Mirror half of a folder's pictures.")
_ACCUMULATE = flags.DEFINE_integer(
    "accumulate", 1, "Parts of a batch, one in memory at a time.", lower_bound=1
)
_DECAY = flags.DEFINE_enum(
    "decay", "cosine", optimizers.SCHEDULES, "Of the learning rate after warm-up."
)
_CLIP_NORM = flags.DEFINE_float("clip_norm", 1.0, "Largest norm of a gradient.", lower_bound=1e-9)
_EMA_DECAY = flags.DEFINE_float(
    "ema_decay", 0.999, "Of the average weights, which are the result; 0: no average.", 0.0, 1.0
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Of the network's sums; weights stay float32."
)
SEED = flags.DEFINE_integer("seed", 0, "Of weights, data order and masks.", lower_bound=0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)
_LOG_EVERY = flags.DEFINE_integer("log_every", 100, "Steps between log lines.", lower_bound=1)
_VALIDATE_EVERY = flags.DEFINE_integer(
    "validate_every", 500, "Steps between validations; 0: none.", lower_bound=0
)


def set_defaults(**values: str | int | float) -> None:
    """Gives flags of this module, by name, other defaults for one command."""
    for name, value in values.items():
        flags.FLAGS.set_default(name, value)


def dataset(size: int, batch_size: int, **encoding: Any) -> datasets.Dataset:
    """The data that the flags name, `size` pixels a side; `encoding` is of `demo_world`."""
    common = {
        "num_held_out": _NUM_HELD_OUT.value,
        "seed": SEED.value,
        "batch_size": batch_size,
    }
    if _DATA.value == "world":
        return datasets.demo_world(size, num_images=_NUM_IMAGES.value, **common, **encoding)
    return datasets.FolderDataset(
        Path(_DATA.value),
        size,
        min_area=_MIN_AREA.value,
        max_ratio=_MAX_RATIO.value,
        flip=_FLIP.value,
        **common,
    )


def init_folder() -> Path | None:
    """The folder of the model to start from; None for a new one."""
    name = INIT_FROM.value
    if name is None:
        return None
    model.model_config(name)  # Says what is wrong with it, if anything is.
    if name in download.MODELS:
        return download.fetch_model(name)
    return model.builtin_folder(name) if name == "demo" else Path(name)


def with_classes(config: ModelConfig, class_names: tuple[str, ...]) -> ModelConfig:
    """The configuration with the data's classes."""
    transformer = dataclasses.replace(config.transformer, num_classes=len(class_names))
    return dataclasses.replace(config, transformer=transformer, class_names=class_names)


def schedule(
    learning_rate: float, num_steps: int, warmup_steps: int, weight_decay: float
) -> tuple[optax.Schedule, dict[str, Any]]:
    """A step's learning rate, and the arguments of `optimizers.make_optimizer` that give it."""
    rates = {
        "learning_rate": learning_rate,
        "num_steps": num_steps,
        "warmup_steps": min(warmup_steps, num_steps // 2),
        "decay": _DECAY.value,
    }
    options = {"weight_decay": weight_decay, "clip_norm": _CLIP_NORM.value}
    return optimizers.learning_rate_schedule(**rates), rates | options


def update_options() -> dict[str, Any]:
    """Arguments of `train_state.update`."""
    return {"accumulate": _ACCUMULATE.value, "ema_decay": _EMA_DECAY.value}


def fit_options() -> dict[str, int]:
    """Arguments of `loop.fit`."""
    return {
        "save_every": _SAVE_EVERY.value,
        "log_every": _LOG_EVERY.value,
        "validate_every": _VALIDATE_EVERY.value,
    }
