"""All samplers of plain MaskGIT."""

from maskgit_jax.sampling.halton import Halton
from maskgit_jax.sampling.maskgit import MaskGit
from maskgit_jax.sampling.remdm import ReMdm

SAMPLERS = {"maskgit": MaskGit, "halton": Halton, "remdm": ReMdm}
"""The samplers by name: the surest ids first, ids spread over the picture, ids masked again."""
