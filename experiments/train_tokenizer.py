"""Trains a tokenizer on the demo world's pictures.

    python -m experiments.train_tokenizer --model_dir=runs/demo

Writes `config.json` and `tokenizer_checkpoint` into the model folder. Started again, it resumes.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import cli, training_loop
from maskgit_jax import checkpoint, model, training
from maskgit_jax.config import read_config, write_config
from maskgit_jax.tokenizer import Tokenizer

_MODEL_DIR = flags.DEFINE_string("model_dir", "runs/demo", "Folder that becomes the model.")
_CONFIG = flags.DEFINE_string(
    "config", str(model.builtin_folder("demo") / "config.json"), "Hyper-parameters, a config.json."
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Pictures to draw.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 4_000, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)


def main() -> None:
    """Trains as the flags say."""
    cfg = read_config(Path(_CONFIG.value))
    folder = cli.output_folder(_MODEL_DIR)
    write_config(folder / "config.json", cfg)

    tokenizer = Tokenizer(cfg.tokenizer)
    images, _ = training_loop.draw_pictures(_NUM_IMAGES.value, cfg.tokenizer.image_size)

    def batch_at(step: int):
        rows = training_loop.batch_indices(_SEED.value, step, _BATCH_SIZE.value, _NUM_IMAGES.value)
        return images[rows].astype(np.float32) / 255

    key = jax.random.key(_SEED.value)
    first = batch_at(0)
    params = jax.jit(tokenizer.init)(key, first)["params"]
    # Codes start on latents of real pictures; random ones far from them would never be chosen.
    latents = tokenizer.apply({"params": params}, first, method="latents")
    latents = latents.reshape(-1, latents.shape[-1])
    rows = jax.random.choice(key, len(latents), (cfg.tokenizer.codebook_size,))
    params["quantizer"]["codebook"] = latents[rows]

    optimizer = training.make_optimizer(
        _LEARNING_RATE.value, _NUM_STEPS.value, min(200, _NUM_STEPS.value // 2), 1e-4
    )

    def loss(params, batch, key):
        return training.tokenizer_loss(tokenizer, params, batch)

    update = jax.jit(functools.partial(training.update, loss, optimizer), donate_argnums=0)
    training_loop.fit(
        update,
        training.init_state(params, optimizer),
        batch_at,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "tokenizer_training",
        save_every=_SAVE_EVERY.value,
        export=functools.partial(checkpoint.write_checkpoint, folder / "tokenizer_checkpoint"),
    )


if __name__ == "__main__":
    cli.run(main)
