"""MaskGIT in JAX/Flax, on the released checkpoints: see `api` for what is offered in Python."""

from maskgit_jax.api import Pictures, edit, generate, outpaint
from maskgit_jax.model import Model
from maskgit_jax.model import load_model as load

__all__ = ["Model", "Pictures", "edit", "generate", "load", "outpaint"]
