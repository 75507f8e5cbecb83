"""Trains a transformer on the ids of the demo world's pictures (MVTM, MaskGIT section 3.1).

    python -m experiments.train_transformer --model_dir=runs/demo

The folder must hold `config.json` and `tokenizer_checkpoint` (see `train_tokenizer`); writes
`maskgit_checkpoint` beside them. Started again, it resumes.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import cli, training_loop
from maskgit_jax import checkpoint, model, training
from maskgit_jax.config import read_config
from maskgit_jax.images import to_float
from maskgit_jax.transformer import Transformer

_MODEL_DIR = flags.DEFINE_string("model_dir", "runs/demo", "Folder of the model.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Pictures to draw.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 4_000, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
_LABEL_SMOOTHING = flags.DEFINE_float("label_smoothing", 0.1, "Share spread over all codes.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, batches and masks.", lower_bound=0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)

_ENCODE_BATCH = 100


def main() -> None:
    """Trains as the flags say."""
    folder = Path(_MODEL_DIR.value)
    cfg = read_config(folder / "config.json")
    tokenizer, tokenizer_params = model.load_tokenizer(folder, cfg.tokenizer)
    images, labels = training_loop.draw_pictures(_NUM_IMAGES.value, cfg.tokenizer.image_size)
    encode = jax.jit(functools.partial(tokenizer.apply, method="encode"))
    ids = np.concatenate(
        [
            encode({"params": tokenizer_params}, to_float(images[i : i + _ENCODE_BATCH]))
            for i in tqdm(range(0, len(images), _ENCODE_BATCH), desc="encoding", mininterval=1)
        ]
    ).reshape(len(images), -1)

    def batch_at(step: int):
        rows = training_loop.batch_indices(_SEED.value, step, _BATCH_SIZE.value, _NUM_IMAGES.value)
        return ids[rows], labels[rows]

    transformer = Transformer(cfg.transformer)
    key = jax.random.key(_SEED.value)
    empty = jnp.zeros((1, cfg.transformer.sequence_length), jnp.int32)
    params = jax.jit(transformer.init)(key, empty)["params"]
    optimizer = training.make_optimizer(
        _LEARNING_RATE.value, _NUM_STEPS.value, min(500, _NUM_STEPS.value // 2), 0.045
    )
    loss = functools.partial(
        training.masked_token_loss, transformer, label_smoothing=_LABEL_SMOOTHING.value
    )
    update = jax.jit(functools.partial(training.update, loss, optimizer), donate_argnums=0)
    training_loop.fit(
        update,
        training.init_state(params, optimizer),
        batch_at,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "transformer_training",
        save_every=_SAVE_EVERY.value,
        export=functools.partial(checkpoint.write_checkpoint, folder / "maskgit_checkpoint"),
    )


if __name__ == "__main__":
    cli.run(main)
