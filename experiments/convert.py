"""Makes a model folder of weights from elsewhere, or says whether two copies are the same.

    python -m experiments.convert --config=imagenet256 --output_dir=models/imagenet256 \\
        --source=maskgit_imagenet256.ckpt,tokenizer_imagenet256.ckpt
    python -m experiments.convert --config=imagenet256 --source=models/imagenet256 \\
        --compare_with=other_copy

Reads PyTorch files (without PyTorch, and without running anything from them), .safetensors and the
released checkpoints, under the released names and those of hmorimitsu/maskgit-torch and
huggingface/open-muse. Which half of the model a file holds is told by its contents. The folder is
what `--model=FOLDER` takes. docs/imagenet.md says where weights come from.

With --compare_with, the status is 1 where two copies differ.
"""

import sys
import time
from pathlib import Path

import jax
from absl import flags

from experiments.app import cli
from maskgit_jax.checkpoints import conversion, download
from maskgit_jax.checkpoints.layouts import KINDS
from maskgit_jax.config import ModelConfig, read_config
from maskgit_jax.errors import InputError
from maskgit_jax.model import model_config

_SOURCE = flags.DEFINE_list("source", None, "Files with the weights, or folders of such files.")
_CONFIG = flags.DEFINE_string(
    "config", None, "imagenet256, imagenet512, or the config.json that belongs to the weights."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "New folder for the model.")
_FORMAT = flags.DEFINE_enum(
    "format",
    "msgpack",
    list(conversion.FORMATS),
    "msgpack: the released checkpoints' files; safetensors: one model.safetensors.",
)
_COMPARE_WITH = flags.DEFINE_list(
    "compare_with", None, "Other files or folders: do they hold the same numbers, bit for bit?"
)


def main() -> None:
    """Compares, then converts."""
    if not _SOURCE.value:
        raise InputError("--source is missing: name the files or the folder with the weights")
    if _CONFIG.value is None:
        raise InputError(
            f"--config is missing: {', '.join(download.MODELS)}, or the path of a config.json"
        )
    if not _OUTPUT_DIR.value and not _COMPARE_WITH.value:
        raise InputError("--output_dir is missing: name a new folder for the model")
    config = _read_config(_CONFIG.value)
    # To compare, the halves that both sides have are enough.
    kinds = KINDS if _OUTPUT_DIR.value else ()
    weights = conversion.find_weights(_SOURCE.value, config, kinds)
    if _COMPARE_WITH.value and not _compare(weights, config):
        sys.exit(1)
    if _OUTPUT_DIR.value:
        _convert(weights, config, Path(_OUTPUT_DIR.value).expanduser())


def _read_config(name: str) -> ModelConfig:
    return model_config(name) if name in download.MODELS else read_config(Path(name).expanduser())


def _compare(weights: dict[str, conversion.Weights], config: ModelConfig) -> bool:
    """Prints how two copies of a model compare; whether all numbers are the same."""
    others = conversion.find_weights(_COMPARE_WITH.value, config, ())
    if not weights.keys() & others.keys():
        raise InputError(
            f"--source has the {' and '.join(weights)}, --compare_with the {' and '.join(others)}: "
            "nothing to compare"
        )
    same = True
    for kind in KINDS:
        if kind not in weights or kind not in others:
            print(f"{kind}: not compared, on one side alone")
            continue
        one = weights[kind]
        result = conversion.compare(one, others[kind], config)
        where = f"{one.path} ({one.layout}) and {others[kind].path} ({others[kind].layout})"
        if result.names:
            same = False
            print(
                f"{kind}: {len(result.names)} of {result.count} arrays differ, by up to "
                f"{result.largest:.3g}, first {result.names[0]}: {where}"
            )
        else:
            print(f"{kind}: all {result.count} arrays are equal, bit for bit: {where}")
    return same


def _convert(weights: dict[str, conversion.Weights], config: ModelConfig, folder: Path) -> None:
    start = time.perf_counter()
    conversion.check_new_folder(folder)  # before anything large is read
    params = {kind: conversion.read_weights(one, config) for kind, one in weights.items()}
    conversion.write_model(folder, config, params, _FORMAT.value)
    numbers = sum(array.size for array in jax.tree.leaves(params))
    seconds = time.perf_counter() - start
    print(f"{numbers / 1e6:.1f} M parameters converted in {seconds:.1f} s")
    print(f"use it with --model={folder}")


if __name__ == "__main__":
    cli.run(main)
