"""CLIP from a folder, against its published form called without this project."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.metrics import clip, pretrained
from maskgit_jax.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz"
# "at" is one piece, all else is spelt.
VOCABULARY = [*CHARACTERS, *(f"{x}</w>" for x in CHARACTERS), "at</w>", START, END]
MEAN, STD = [0.48, 0.45, 0.4], [0.26, 0.26, 0.27]


def save_network(network_class, config, folder):
    """Saves a network of `transformers` with random weights; gives it and them."""
    network = network_class(config, _do_init=False)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: rng.normal(0, 0.8, shape.shape).astype(shape.dtype), network.params_shape_tree
    )
    network.save_pretrained(folder, params=params)
    return network, params


def save_clip(folder):
    """A tiny CLIP for pictures of 8 pixels; gives the network and its weights."""
    layers = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 20,
        "bos_token_id": VOCABULARY.index(START),
        "eos_token_id": VOCABULARY.index(END),
    }
    with pretrained.transformers_library("CLIP", "") as library:
        config = library.CLIPConfig(
            text_config=layers | text,
            vision_config=layers | {"image_size": 8, "patch_size": 4},
            projection_dim=6,
        )
        network = save_network(library.FlaxCLIPModel, config, folder)
        library.CLIPImageProcessor(
            size={"shortest_edge": 8},
            crop_size={"height": 8, "width": 8},
            image_mean=MEAN,
            image_std=STD,
        ).save_pretrained(folder)
        vocabulary = {piece: index for index, piece in enumerate(VOCABULARY)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return network


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_clip(folder)


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    return clip.load_clip(str(tiny_clip[0]))


def pictures(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))


def image_embeddings(network, params, images: np.ndarray) -> np.ndarray:
    """For pictures of the network's own size, which are not resized."""
    pixels = (images / 255 - MEAN) / STD
    embed = jax.jit(lambda x: network.get_image_features(x, params=params))
    return unit(embed(pixels.transpose(0, 3, 1, 2)))


def text_embedding(network, params, pieces: list[str]) -> np.ndarray:
    ids = np.array([[VOCABULARY.index(piece) for piece in (START, *pieces, END)]])
    embed = jax.jit(lambda x: network.get_text_features(x, params=params))
    return unit(embed(ids))[0]


@pytest.mark.slow
def test_similarities_are_cosines(tiny_clip, loaded):
    _, network, params = tiny_clip
    images, sketches = pictures(3), pictures(3, seed=1)
    texts = ["a cat", "a dog", "A  cat"]
    to_sketch, to_text = clip.similarities(loaded, images, sketches, texts)

    embedded = image_embeddings(network, params, images)
    cat = text_embedding(network, params, ["a</w>", "c", "at</w>"])
    dog = text_embedding(network, params, ["a</w>", "d", "o", "g</w>"])
    expected = (embedded * image_embeddings(network, params, sketches)).sum(axis=1)
    assert np.ptp(expected) > 1e-3 and abs(cat - dog).max() > 1e-2
    np.testing.assert_allclose(to_sketch, expected, atol=1e-5)
    np.testing.assert_allclose(to_text, (embedded * [cat, dog, cat]).sum(axis=1), atol=1e-5)


def test_larger_pictures_are_resized_bicubically(tiny_clip, loaded):
    from PIL import Image

    _, network, params = tiny_clip
    images = pictures(3, 14)
    small = [Image.fromarray(x).resize((8, 8), Image.Resampling.BICUBIC) for x in images]
    expected = image_embeddings(network, params, np.stack(small))
    np.testing.assert_allclose(loaded.embed_pictures(images), expected, atol=1e-5)


def test_pieces_are_filled_up_and_put_together():
    images, sizes = pictures(130, 4), []

    def first_pixels(piece):
        sizes.append(len(piece))
        return piece[:, 0, 0]

    np.testing.assert_array_equal(pretrained.in_pieces(first_pixels, images), images[:, 0, 0])
    assert sizes == [44, 44, 44]


def test_everything_compiles_once(loaded, caplog):
    loaded.embed_pictures(pictures(3))
    loaded.embed_text("warm")
    with jax.log_compiles():
        loaded.embed_pictures(pictures(3, 14, seed=2))
        loaded.embed_text("another text of more letters")
        assert "Compiling" not in caplog.text
        loaded.embed_pictures(pictures(2))
        assert "Compiling" in caplog.text


def test_missing_weights_are_told(tiny_clip, tmp_path):
    folder, network, params = tiny_clip
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    network.save_pretrained(tmp_path, params={"logit_scale": params["logit_scale"]})
    with pytest.raises(InputError, match=r"arrays are missing or not finite, first text_model/"):
        clip.load_clip(str(tmp_path))
    (tmp_path / "flax_model.msgpack").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        clip.load_clip(str(tmp_path))


def test_missing_or_newer_package_is_told(tiny_clip, monkeypatch):
    import transformers

    with monkeypatch.context() as patch:
        patch.setattr(transformers, "__version__", "5.0.1")
        with pytest.raises(InputError, match=r"found 5.0.1: pip install 'maskgit_jax\[clip\]'"):
            clip.load_clip(str(tiny_clip[0]))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'maskgit_jax\[clip\]'"):
        clip.load_clip(str(tiny_clip[0]))


@pytest.mark.slow
def test_cache_serves_without_a_network_and_a_missing_network_is_told_at_once(tiny_clip, tmp_path):
    """In a process of its own: where hub and cache are is read at import."""
    cached = tmp_path / "hub" / "models--tiny--clip"
    shutil.copytree(tiny_clip[0], cached / "snapshots" / "1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    program = (
        "import dataclasses\n"
        "from experiments.app import cli\n"
        "from experiments.metrics import clip\n"
        "clip.load_clip('tiny/clip'); print('loaded')\n"
        "cli.run(lambda flags: clip.load_clip(), dataclasses.make_dataclass('Flags', []))"
    )
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | closed,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (result.returncode, result.stdout) == (2, "loaded\n")
    assert "openai/clip-vit-base-patch32 cannot be loaded" in result.stderr
    assert "127.0.0.1:9 does not answer); connect once, or give a Flax CLIP's" in result.stderr
    assert result.stderr.count("\n") == 1
