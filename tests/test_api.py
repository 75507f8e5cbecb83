"""The functions that the packages offer, as docs/api.md shows them."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import guidance
import maskgit_jax
from guidance import masksketch
from guidance.settings import guidance_settings
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, read_image
from tests.commands import ROOT

FISH = ROOT / "experiments" / "sketches" / "fish.png"


@pytest.fixture(scope="module")
def demo():
    return maskgit_jax.load("demo")


@pytest.fixture(scope="module")
def fish(demo):
    return guidance.sketch(demo, FISH, "fish", num_samples=3, num_steps=3, batch_size=2)


@pytest.mark.slow
def test_the_snippets_of_the_docs_run(tmp_path, monkeypatch, capsys):
    shutil.copy(FISH, tmp_path / "fish.png")
    monkeypatch.chdir(tmp_path)
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/api.md")]
    snippets = re.findall(r"```python\n(.*?)```", "".join(pages), re.S)
    assert len(snippets) == 7
    found = {}
    for snippet in snippets:
        exec(snippet, found)
    assert found["fish"].images.shape == (2, 96, 96, 3)
    assert found["wide"].images.shape == (1, 96, 192, 3)
    assert found["edited"].images.shape == (2, 96, 96, 3)
    assert found["real"].settings["confidence"] == 0.7
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["2", "4", "6", "8"]


def test_a_sketch_is_the_tokens_own_sample(demo, fish):
    settings = guidance_settings(demo.config, {"num_steps": 3})
    square = fit_image(read_image(FISH), 96)
    tokens = np.concatenate(
        [[[demo.config.transformer.codebook_size + 6]], demo.ids_of(square[None])], 1
    )
    alone = masksketch.sample(
        demo,
        tokens,
        settings.settings,
        num_steps=3,
        seed=0,
        indices=np.array([2]),
        **settings.options,
    )
    np.testing.assert_array_equal(alone.ids[0], fish.tokens[2])
    assert alone.structure_distance[0] == fish.structure_distance[2]
    np.testing.assert_array_equal(fish.images, demo.images_of(fish.tokens))
    assert fish.settings["label"] == 6 and fish.settings["num_steps"] == 3


def test_the_stream_ends_with_the_sketch_and_masks_fewer_on_the_way(demo, fish):
    steps = list(guidance.stream_sketch(demo, str(FISH), 6, num_samples=3, num_steps=3))
    assert [samples.step for samples in steps] == [1, 2, 3]
    np.testing.assert_array_equal(steps[-1].ids, fish.tokens)
    masked = [samples.masked.sum() for samples in steps]
    assert masked == sorted(masked, reverse=True) and masked[0] > masked[-1]
    means = steps[-1].token_distances.mean(axis=1)
    np.testing.assert_allclose(means, steps[-1].structure_distance, rtol=1e-6)


def test_pictures_are_names_pillow_pictures_and_arrays(demo, fish):
    given = Image.open(FISH)
    pixels = np.asarray(given.convert("RGB"))
    for picture in (given, pixels, pixels / 255.0, pixels[..., 0]):
        same = guidance.sketch(demo, picture, "fish", num_samples=3, num_steps=3)
        np.testing.assert_array_equal(same.tokens, fish.tokens)


def test_what_is_outside_a_mask_stays(demo, fish):
    mask = np.zeros((96, 96), bool)
    mask[32:64, 32:64] = True
    original = fish.images[0]
    far = np.ones((96, 96), bool)
    far[24:72, 24:72] = False  # farther than a token's side
    for made in (
        maskgit_jax.edit(demo, original, mask, "fish", num_steps=2),
        guidance.sketch(demo, FISH, "fish", image=original, mask=mask, num_steps=2),
        guidance.stroke(demo, original, 255 - original, mask, "fish", num_steps=2),
    ):
        np.testing.assert_array_equal(made.images[0][far], original[far])
        assert (made.images[0] != original).any()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: guidance.sketch(m, FISH, "fish", lambda_s=2), "lambda_s=2: expected a number"),
        (lambda m: guidance.sketch(m, FISH, "fihs"), "did you mean 'fish'"),
        (lambda m: guidance.sketch(m, FISH, 6, image=FISH), "image and mask go together"),
        (lambda m: guidance.sketch(m, FISH, 6, sharpnes=1), "no knob sharpnes: expected num_steps"),
        (lambda m: guidance.sketch(m, np.zeros((3, 3)), 6), "3x3 pixels; expected at least 8"),
        (lambda m: guidance.sketch(m, np.full((9, 9), 3.0), 6), "array of float64 [9, 9]"),
        (lambda m: guidance.sketch(m, FISH, 6, num_samples=0), "num_samples=0: expected a whole"),
        (lambda m: maskgit_jax.generate(m, "fish", sampler="muse"), "sampler=muse: expected one"),
        (lambda m: maskgit_jax.generate(m, "fish", seed=-1), "seed=-1: expected a whole number"),
        (lambda m: maskgit_jax.edit(m, FISH, np.ones((9, 9)), 6), "the mask is white all over"),
        (lambda m: maskgit_jax.outpaint(m, FISH, 6), "no side to grow to"),
    ],
)
def test_wrong_input_is_one_line(demo, call, words):
    with pytest.raises(InputError) as error:
        call(demo)
    assert words in str(error.value) and "\n" not in str(error.value)
