"""The flags that the measurements of editing share."""

from typing import Any

from absl import flags

from maskgit_jax.editing.inpaint import EditSettings, chosen_settings
from maskgit_jax.errors import InputError
from maskgit_jax.model import model_config

flags.DEFINE_string("model", "demo", "demo, or the folder of a model of the demo world.")
flags.DEFINE_integer("num_images", 200, "Held-out pictures.")
flags.DEFINE_integer("num_steps", None, "Decoding steps.")
flags.DEFINE_float("temperature", None, "Of the choice which ids to keep.")
flags.DEFINE_float("token_temperature", None, "Ids are sampled from softmax(logits / it).")
flags.DEFINE_integer("seed", 0, "With a sample's index, all that it depends on.")
flags.DEFINE_integer("batch_size", 25, "Samples decoded together.")


def read(method: str = "edit") -> tuple[EditSettings, dict[str, Any]]:
    """The settings of "edit" or "stroke", and every value by its flag's name.

    Raises:
      InputError: a value out of its range, or no such model.
    """
    given = flags.FLAGS
    for name, least in (("num_images", 2), ("batch_size", 1)):
        if given[name].value < least:
            raise InputError(f"--{name}={given[name].value}: expected {least} or more")
    if not 0 <= given.seed < 2**32:
        raise InputError(f"--seed={given.seed}: expected 0 to {2**32 - 1}")
    config = model_config(given.model)
    settings = chosen_settings(
        config, given.num_steps, given.temperature, given.token_temperature, method
    )
    record = {name: given[name].value for name in ("model", "num_images", "seed")}
    return settings, record | settings._asdict()
