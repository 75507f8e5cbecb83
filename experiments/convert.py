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

import dataclasses
import sys
import time
from pathlib import Path

import jax

from experiments.app import cli
from maskgit_jax.checkpoints import conversion, download
from maskgit_jax.checkpoints.layouts import KINDS
from maskgit_jax.config import ModelConfig, read_config
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob
from maskgit_jax.model import model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is converted or compared."""

    source: tuple | None = knob(
        None, "Files with the weights, or folders of such files.", kind=tuple
    )
    config: str | None = knob(
        None, "imagenet256, imagenet512, or the config.json that belongs to the weights.", kind=Path
    )
    output_dir: str | None = knob(None, "New folder for the model.", kind=Path)
    format: str = knob(
        "msgpack",
        "msgpack: the released checkpoints' files; safetensors: one model.safetensors.",
        choices=tuple(conversion.FORMATS),
    )
    compare_with: tuple | None = knob(
        None, "Other files or folders: do they hold the same numbers, bit for bit?", kind=tuple
    )


def main(flags: Flags) -> None:
    """Compares, then converts."""
    if not flags.source:
        raise InputError("--source is missing: name the files or the folder with the weights")
    if flags.config is None:
        raise InputError(
            f"--config is missing: {', '.join(download.MODELS)}, or the path of a config.json"
        )
    if not flags.output_dir and not flags.compare_with:
        raise InputError("--output_dir is missing: name a new folder for the model")
    name = flags.config
    config = model_config(name) if name in download.MODELS else read_config(Path(name))
    # To compare, the halves that both sides have are enough.
    kinds = KINDS if flags.output_dir else ()
    weights = conversion.find_weights(flags.source, config, kinds)
    if flags.compare_with and not _compare(weights, flags.compare_with, config):
        sys.exit(1)
    if flags.output_dir:
        _convert(weights, config, Path(flags.output_dir), flags.format)


def _compare(
    weights: dict[str, conversion.Weights], sources: tuple[str, ...], config: ModelConfig
) -> bool:
    """Prints how two copies of a model compare; whether all numbers are the same."""
    others = conversion.find_weights(sources, config, ())
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


def _convert(
    weights: dict[str, conversion.Weights], config: ModelConfig, folder: Path, file_format: str
) -> None:
    start = time.perf_counter()
    conversion.check_new_folder(folder)  # before anything large is read
    params = {kind: conversion.read_weights(one, config) for kind, one in weights.items()}
    conversion.write_model(folder, config, params, file_format)
    numbers = sum(array.size for array in jax.tree.leaves(params))
    seconds = time.perf_counter() - start
    print(f"{numbers / 1e6:.1f} M parameters converted in {seconds:.1f} s")
    print(f"use it with --model={folder}")


if __name__ == "__main__":
    cli.run(main, Flags)
