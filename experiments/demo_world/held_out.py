"""Which model the demo world's judge can judge, and the seeds of what is judged."""

from experiments.demo_world import world
from maskgit_jax.checkpoints import download
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model, load_model

EVAL_SEED = 1
"""The world's seed of the sketches; the models and the judge were trained on seed 0."""
REFERENCE_SEED = 5
"""That of the photos which the Fréchet distance, precision and recall compare with."""


def load_demo_world_model(name: str, dtype: str = "float32") -> Model:
    """Loads a model of the demo world's classes, the only ones that the judge knows.

    Raises:
      InputError: as `load_model`, or the model has other classes or an unsuited picture size.
    """
    known = "the judge knows the demo world's pictures: give demo or a folder of such a model"
    if name in download.MODELS:  # before gigabytes of it are fetched
        raise InputError(f"--model={name}: an ImageNet model; {known}")
    model = load_model(name, dtype=dtype)
    if model.config.class_names != world.CLASS_NAMES:
        raise InputError(f"--model={name}: its classes are not the demo world's; {known}")
    size = model.config.tokenizer.image_size
    if size % 4:
        raise InputError(f"--model={name}: image_size is {size}, expected a multiple of 4")
    return model
