"""Trains a tokenizer on the demo world's pictures.

    python -m experiments.train_tokenizer --model_dir=runs/demo

Writes `config.json` and `tokenizer_checkpoint` into the model folder. Started again, it resumes.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from scipy.cluster.vq import kmeans2

from experiments import cli, training_loop
from maskgit_jax import checkpoint, model, training
from maskgit_jax.config import read_config, write_config
from maskgit_jax.images import to_float
from maskgit_jax.tokenizer import Tokenizer

_MODEL_DIR = flags.DEFINE_string("model_dir", "runs/demo", "Folder that becomes the model.")
_CONFIG = flags.DEFINE_string(
    "config", str(model.builtin_folder("demo") / "config.json"), "Hyper-parameters, a config.json."
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Pictures to draw.", lower_bound=1)
_NUM_WARMUP_STEPS = flags.DEFINE_integer(
    "num_warmup_steps", 2_500, "Updates before there is a quantizer.", lower_bound=1
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 4_000, "Updates with the quantizer.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1.5e-3, "Peak, before there is a quantizer.")
_ENTROPY_WEIGHT = flags.DEFINE_float("entropy_weight", 0.02, "Published: 0.1, for large batches.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and batches.", lower_bound=0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)

_CODEBOOK_IMAGES = 400


def main() -> None:
    """Trains as the flags say."""
    cfg = read_config(Path(_CONFIG.value))
    folder = cli.output_folder(_MODEL_DIR)
    write_config(folder / "config.json", cfg)

    tokenizer = Tokenizer(cfg.tokenizer)
    images, _ = training_loop.draw_pictures(_NUM_IMAGES.value, cfg.tokenizer.image_size)

    def batch_at(step: int):
        rows = training_loop.batch_indices(_SEED.value, step, _BATCH_SIZE.value, _NUM_IMAGES.value)
        return to_float(images[rows])

    key = jax.random.key(_SEED.value)
    params = jax.jit(tokenizer.init)(key, batch_at(0))["params"]

    def train(name: str, loss, params, num_steps: int, learning_rate: float, export=None):
        warmup_steps = min(200, num_steps // 2)
        optimizer = training.make_optimizer(learning_rate, num_steps, warmup_steps, 1e-4)
        loss = functools.partial(loss, tokenizer)
        update = functools.partial(training.update, loss, optimizer)
        state = training_loop.fit(
            jax.jit(update, donate_argnums=0),
            training.init_state(params, optimizer),
            batch_at,
            key=key,
            num_steps=num_steps,
            directory=folder / f"{name}_training",
            save_every=_SAVE_EVERY.value,
            export=export,
        )
        return state.params

    rate = _LEARNING_RATE.value
    params = train("autoencoder", training.autoencoder_loss, params, _NUM_WARMUP_STEPS.value, rate)
    params["quantizer"]["codebook"] = _codebook(tokenizer, params, images[:_CODEBOOK_IMAGES])
    loss = functools.partial(training.tokenizer_loss, entropy_weight=_ENTROPY_WEIGHT.value)
    export = functools.partial(checkpoint.write_checkpoint, folder / "tokenizer_checkpoint")
    # At the full rate the latents run away from the codes that were just put among them.
    train("tokenizer", loss, params, _NUM_STEPS.value, 0.4 * rate, export)


def _codebook(tokenizer: Tokenizer, params, images) -> Float[np.ndarray, "K d"]:
    """Codes at the k-means centres of the latents of pictures."""
    encode = jax.jit(functools.partial(tokenizer.apply, method="latents"))
    latents = np.concatenate(
        [
            encode({"params": params}, to_float(images[i : i + 50]))
            for i in range(0, len(images), 50)
        ]
    ).reshape(-1, tokenizer.config.embedding_dim)
    centres, _ = kmeans2(
        latents, tokenizer.config.codebook_size, iter=12, minit="points", seed=_SEED.value
    )
    return centres.astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
