"""What all trainings share: loop, data, flags. Without its packages the process ends here."""

from experiments.app import cli
from maskgit_jax.errors import need

# The other modules, and so each command's flags, cannot be imported without them.
with cli.one_line_errors():
    need("training", "train", "grain", "optax", "orbax.checkpoint", "tensorboardX", "skimage")
