"""Trains the judge of `evaluate` on the demo world's photos, masks and labels.

    python -m experiments.train_judge --output_dir=runs/judge

Writes `judge_checkpoint` into the folder; started again, it resumes. At the end it prints how well
the judge does on held-out photos. It sees no sketches: its word about a sketch's shape must come
from what objects look like.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from tqdm import tqdm

from experiments import cli, training_loop
from experiments.judge import Judge, mean_and_error, predict, silhouette_iou
from maskgit_jax import checkpoint, training, world
from maskgit_jax.images import to_float

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/judge", "Folder for the weights.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 8_000, "Pictures to draw.", lower_bound=1)
_NUM_HELD_OUT = flags.DEFINE_integer("num_held_out", 500, "Pictures to test on.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 1_500, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 4e-3, "Peak learning rate.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and augmentation.", lower_bound=0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)

HELD_OUT_SEED = 2
"""Neither the training seed nor the scenes that `evaluate` draws."""

_SIZE = 48  # pixels a side
_EMPTY_SHARE = 1 / 8  # of the pictures trained on


def roughen(key: Key[Array, ""], images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Pictures as a weak generator might have made them, in [0, 1].

    Each is blurred up to what a quarter of its resolution holds, its contrast, brightness and tint
    change, and fine and patchy noise is added, all by random amounts down to none.
    """
    blur_key, contrast_key, tint_key, fine_key, patch_key = jax.random.split(key, 5)
    batch, height, width, _ = images.shape

    def amount(key, low, high):
        return jax.random.uniform(key, (batch, 1, 1, 1), minval=low, maxval=high)

    def at_most(key, high):
        """Amounts of which a third are zero."""
        return jnp.maximum(amount(key, -high / 2, high), 0)

    def enlarge(x):
        return jax.image.resize(x, images.shape, "linear")

    half, quarter = (
        enlarge(images.reshape(batch, height // k, k, width // k, k, 3).mean(axis=(2, 4)))
        for k in (2, 4)
    )
    level = at_most(blur_key, 2.0)
    x = images + jnp.minimum(level, 1) * (half - images)
    x = x + jnp.maximum(level - 1, 0) * (quarter - half)

    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = mean + (x - mean) * amount(contrast_key, 0.7, 1.2)
    brightness, tint = jax.random.split(tint_key)
    x = x + amount(brightness, -0.1, 0.1) + 0.03 * jax.random.normal(tint, (batch, 1, 1, 3))

    strength, noise = jax.random.split(fine_key)
    x = x + at_most(strength, 0.08) * jax.random.normal(noise, x.shape)
    strength, noise = jax.random.split(patch_key)
    patches = enlarge(jax.random.normal(noise, (batch, height // 4, width // 4, 3)))
    return jnp.clip(x + at_most(strength, 0.12) * patches, 0, 1)


def empty_pictures(
    key: Key[Array, ""], batch: int, height: int, width: int
) -> Float[Array, "b h w 3"]:
    """Pictures of nothing: one colour each, white among them, with patches of noise on it."""
    grey_key, tint_key, strength_key, *noise_keys = jax.random.split(key, 6)
    colour = jax.random.uniform(grey_key, (batch, 1, 1, 1), maxval=1.4)
    colour = jnp.clip(colour + 0.15 * jax.random.normal(tint_key, (batch, 1, 1, 3)), 0, 1)
    patches = jnp.zeros((batch, height, width, 3))
    strengths = jax.random.uniform(strength_key, (3, batch, 1, 1, 1), minval=-0.2, maxval=0.3)
    for noise_key, cells, strength in zip(noise_keys, (3, 6, 12), strengths, strict=True):
        noise = jax.random.normal(noise_key, (batch, cells, cells, 3))
        patches += jnp.maximum(strength, 0) * jax.image.resize(noise, patches.shape, "linear")
    return jnp.clip(colour + patches, 0, 1)


def judge_loss(
    judge: Judge,
    params: training.Params,
    batch: tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"], Int[Array, "b"]],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], training.Metrics]:
    """Binary cross-entropy of the mask, mean over pixels, plus cross-entropy of the class.

    An eighth of the pictures makes way for empty ones: the judge must not see an object in every
    picture, and they have no class.
    """
    images, masks, labels = batch
    rough_key, empty_key, choice_key = jax.random.split(key, 3)
    shown = jax.random.bernoulli(choice_key, 1 - _EMPTY_SHARE, labels.shape)
    empty = empty_pictures(empty_key, *images.shape[:3])
    images = jnp.where(shown[:, None, None, None], roughen(rough_key, images), empty)
    masks = masks & shown[:, None, None]

    verdict = judge.apply({"params": params}, images)
    mask_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(verdict.mask, masks))
    label_losses = optax.softmax_cross_entropy_with_integer_labels(verdict.label, labels)
    right = jnp.argmax(verdict.label, axis=-1) == labels
    label_loss, accuracy = (
        jnp.sum(x * shown) / jnp.maximum(jnp.sum(shown), 1) for x in (label_losses, right)
    )
    metrics = {"mask_loss": mask_loss, "label_loss": label_loss, "accuracy": accuracy}
    return mask_loss + label_loss, metrics


def draw_scenes(
    seed: int, num_scenes: int
) -> tuple[
    UInt8[np.ndarray, "n size size 3"], Bool[np.ndarray, "n size size"], Int[np.ndarray, "n"]
]:
    """The first photos of a seed, their object masks and labels."""
    images = np.empty((num_scenes, _SIZE, _SIZE, 3), np.uint8)
    masks = np.empty((num_scenes, _SIZE, _SIZE), bool)
    labels = np.empty(num_scenes, np.int32)
    for i in tqdm(range(num_scenes), desc="drawing pictures", unit="", mininterval=1):
        scene = world.draw_scene(seed, i, size=_SIZE)
        images[i], masks[i], labels[i] = scene.image, scene.mask, scene.label
    return images, masks, labels


def main() -> None:
    """Trains as the flags say."""
    folder = cli.output_folder(_OUTPUT_DIR)
    scenes = draw_scenes(training_loop.TRAIN_SEED, _NUM_IMAGES.value)

    def batch_at(step: int):
        rows = training_loop.batch_indices(_SEED.value, step, _BATCH_SIZE.value, _NUM_IMAGES.value)
        images, masks, labels = (array[rows] for array in scenes)
        return to_float(images), masks, labels

    judge = Judge()
    key = jax.random.key(_SEED.value)
    params = judge.init(key, batch_at(0)[0])["params"]
    optimizer = training.make_optimizer(
        _LEARNING_RATE.value, _NUM_STEPS.value, min(100, _NUM_STEPS.value // 2), 1e-4
    )
    loss = functools.partial(judge_loss, judge)
    update = jax.jit(functools.partial(training.update, loss, optimizer), donate_argnums=0)
    state = training_loop.fit(
        update,
        training.init_state(params, optimizer),
        batch_at,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "judge_training",
        save_every=_SAVE_EVERY.value,
        export=functools.partial(checkpoint.write_checkpoint, folder / "judge_checkpoint"),
    )

    held_out, masks, labels = draw_scenes(HELD_OUT_SEED, _NUM_HELD_OUT.value)
    photos = to_float(held_out)
    for kind, images in (("photos", photos), ("roughened", np.asarray(roughen(key, photos)))):
        found_masks, found_labels = predict(judge, state.params, images)
        for name, values in (
            ("class accuracy", found_labels == labels),
            ("silhouette IoU", silhouette_iou(found_masks, masks)),
        ):
            mean, error = mean_and_error(values)
            print(f"held-out {kind}: {name} {mean:.3f} ± {error:.3f}")
    empty = empty_pictures(jax.random.fold_in(key, HELD_OUT_SEED), *photos.shape[:3])
    found_masks, _ = predict(judge, state.params, np.asarray(empty))
    print(f"empty pictures: {found_masks.mean():.3f} of the pixels taken for an object")


if __name__ == "__main__":
    cli.run(main)
