"""Tunes a transformer to take guides on masked ids (MaskGIT-Edit, "iterative generation").

    python -m experiments.tune_iterative --model_dir=runs/iterative

It learns on its own samples that it was unsure of, and on strokes. The folder becomes a model:
`config.json` and `tokenizer_checkpoint` of `--init_from`, the tuned `maskgit_checkpoint`. Started
again, it resumes.
"""

import dataclasses
import functools
from pathlib import Path

from experiments.app import cli
from experiments.training import frame, loop, tuning
from guidance.strokes.training import iterative_loss
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob
from maskgit_jax.model import Model, load_model
from maskgit_jax.networks.stacked import unstack_layers

_Defaults = frame.with_defaults(
    frame.TransformerFlags,
    model_dir="runs/iterative",
    init_from="demo",
    num_images=4_000,
    num_steps=400,
    warmup_steps=20,
    optimizer="adamw",
    save_every=50,
    log_every=20,
    validate_every=100,
)
_TRAINING = "iterative_training"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(_Defaults):
    """What is tuned, and how."""

    learning_rate: float = knob(3e-4, "Peak; published: 1e-5.", low=0.0)
    stroke_share: float = knob(
        0.5, "Of the rows, guided by a stroke; published: 0.", low=0.0, high=1.0
    )


def main(flags: Flags) -> None:
    """Tunes a transformer."""
    loop.keep_freed_memory()
    model = load_model(flags.init_from)
    pictures = frame.dataset(flags, model.config.tokenizer.image_size)
    strokes = tuning.Strokes(pictures, model, flags.seed)
    folder = cli.output_folder(flags.model_dir, "model_dir")
    _begin(folder, model, flags.init_from)
    options = {"label_smoothing": flags.label_smoothing, "dtype": flags.dtype}
    loss = functools.partial(iterative_loss, model.transformer, **options)
    tuning.tune(
        flags,
        folder / _TRAINING,
        functools.partial(loss, stroke_share=flags.stroke_share),
        {
            kind: functools.partial(loss, stroke_share=share, deterministic=True)
            for kind, share in (("own_", 0.0), ("stroke_", 1.0))
        },
        unstack_layers(model.transformer_params),
        strokes,
        tuning.tokenize(model),
        functools.partial(checkpoint.write_checkpoint, folder / "maskgit_checkpoint"),
    )
    print(f"model saved in {folder}")


def _begin(folder: Path, model: Model, init_from: str) -> None:
    """Puts what is not tuned into the folder.

    Raises:
      InputError: there is another model.
    """
    config = folder / "config.json"
    if config.exists() and not (folder / _TRAINING).exists():
        raise InputError(f"{folder} holds a model that was not tuned here: choose another folder")
    if config.exists() and read_config(config) != model.config:
        raise InputError(
            f"{folder} holds another model than --init_from={init_from}: "
            "choose another folder, or give the --init_from that this tuning was started with"
        )
    (folder / _TRAINING).mkdir(exist_ok=True)
    checkpoint.write_checkpoint(folder / "tokenizer_checkpoint", model.tokenizer_params)
    write_config(config, model.config)


if __name__ == "__main__":
    cli.run(main, Flags)
