"""Learns the K×K energy of self-guidance (MaskGIT-Edit, "self-guidance, learned").

    python -m experiments.tune_energy --model_dir=runs/energy

The transformer of `--init_from` is frozen and sees pictures with a stroke's place masked. Of its
logits and the stroke's ids the energy learns to make the picture's own ids; it starts as minus the
mean squared code distance. Writes `energy.npy`, float32 [K, K]. Started again, it resumes.
"""

import dataclasses
import functools
import io
from pathlib import Path

import jax
import numpy as np

from experiments.app import cli
from experiments.training import frame, loop, tuning
from guidance.strokes.energies import code_distance_energy
from guidance.strokes.training import energy_loss, mask_strokes
from maskgit_jax.files import write_file
from maskgit_jax.knobs import knob
from maskgit_jax.model import load_model
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.training import losses

_Defaults = frame.with_defaults(
    frame.TrainingFlags,
    model_dir="runs/energy",
    init_from="demo",
    num_images=4_000,
    num_steps=1_200,
    warmup_steps=20,
    save_every=100,
    log_every=20,
    validate_every=200,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(_Defaults):
    """What is learned, and how."""

    learning_rate: float = knob(5e-3, "Peak, of Adam.", low=0.0)
    confidence: float = knob(
        0.7, "In the strokes: guide with the learned energy at the same.", low=0.0, high=1.0
    )


def main(flags: Flags) -> None:
    """Learns an energy."""
    loop.keep_freed_memory()
    model = load_model(flags.init_from, dtype=flags.dtype)
    pictures = frame.dataset(flags, model.config.tokenizer.image_size)
    strokes = tuning.Strokes(pictures, model, flags.seed)
    folder = cli.output_folder(flags.model_dir, "model_dir")
    tokenize = tuning.tokenize(model)
    logits = jax.jit(functools.partial(code_logits, model.transformer))

    def prepare(batch: losses.Batch) -> losses.Batch:
        tokens, stroke_ids = tokenize(batch)
        masked = mask_strokes(tokens, stroke_ids)
        return logits(model.params_on_devices, masked), tokens, stroke_ids

    loss = functools.partial(energy_loss, confidence=flags.confidence)
    start = {"energy": code_distance_energy(model.tokenizer_params["quantizer"]["codebook"])}
    average = tuning.tune(
        flags,
        folder / "energy_training",
        loss,
        {"": loss},
        start,
        strokes,
        prepare,
        functools.partial(_write, folder / "energy.npy"),
    )
    moved = np.abs(np.asarray(average["energy"] - start["energy"]))
    print(f"the energy moved by {moved.mean():.4f} on average, by {moved.max():.4f} at most")
    print(f"model saved in {folder / 'energy.npy'}")


def _write(path: Path, params: losses.Params) -> None:
    file = io.BytesIO()
    np.save(file, params["energy"])
    write_file(path, [file.getvalue()])


if __name__ == "__main__":
    cli.run(main, Flags)
