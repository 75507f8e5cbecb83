import functools

import jax.numpy as jnp
import numpy as np

from guidance.strokes.energies import code_distance_energy
from maskgit_jax.images import fit_image, read_image, to_float
from maskgit_jax.model import builtin_folder, load_tokenizer, model_config
from tests.commands import ROOT
from tests.conftest import make_model
from tests.precision import as_on_tpu, products

SKETCHES = ROOT / "experiments" / "sketches"


def test_ids_are_the_same_where_products_are_rounded_by_default():
    """The sample sketches' ids, with bfloat16 factors wherever a TPU would take them."""
    config = model_config("demo")
    tokenizer, params = load_tokenizer(builtin_folder("demo"), config)
    files = sorted(SKETCHES.glob("*.png"))
    pictures = jnp.asarray([to_float(fit_image(read_image(file), 96)) for file in files])
    encode = functools.partial(tokenizer.apply, method="encode")
    exact = encode({"params": params}, pictures)
    rounded = as_on_tpu(encode, {"params": params}, pictures)
    assert exact.size == 1440
    assert np.sum(exact != rounded) == 0


def test_what_chooses_ids_is_exact_and_the_decoder_is_not():
    tiny = make_model()
    params, images = {"params": tiny.tokenizer_params}, jnp.zeros((1, 8, 8, 3))
    apply = tiny.tokenizer.apply
    latents = products(functools.partial(apply, method="latents"), params, images)
    encode = products(functools.partial(apply, method="encode"), params, images)
    decode = products(functools.partial(apply, method="decode"), params, jnp.zeros((1, 4, 4), int))
    convolution, product = ("conv_general_dilated", True), ("dot_general", True)
    # The first and the last, two in each of three blocks, one more where its width changes.
    assert latents == [convolution] * 9
    assert encode == [*latents, product]
    assert decode and not any(exact for _, exact in decode)
    # Training: the decoder's come after.
    assert products(apply, params, images) == [*encode, *decode]
    assert products(code_distance_energy, tiny.tokenizer_params["quantizer"]["codebook"]) == [
        product
    ]
