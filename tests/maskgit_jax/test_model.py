import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskgit_jax
from maskgit_jax import files
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.checkpoints.checkpoint import parameter_shapes
from maskgit_jax.config import read_config, write_config
from maskgit_jax.errors import InputError
from maskgit_jax.model import builtin_folder, load_model, with_class_token
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from tests.commands import ROOT, TESTS

GOLDEN = TESTS / "golden" / "model"
SHIPPED = (
    "maskgit_jax/models/demo",
    "experiments/demo_world/weights",
    "tests/golden/model",
)
DATA = Path(maskgit_jax.__file__).parent / "data"


@pytest.mark.parametrize("size", [256, 512])
def test_full_size_models_have_the_released_parameters(size):
    config = read_config(DATA / f"imagenet{size}.json")
    assert config.class_names[35] == "mud turtle"
    ids = jax.ShapeDtypeStruct((1, config.transformer.sequence_length), jnp.int32)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    for kind, module, example in (
        ("maskgit", Transformer(config.transformer), ids),
        ("tokenizer", Tokenizer(config.tokenizer), images),
    ):
        released = checkpoint.read_manifest(
            TESTS / "manifests" / f"{kind}_imagenet{size}_manifest.json"
        )
        assert checkpoint.manifest_of(parameter_shapes(module, example)) == released


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


def edit_config(folder: Path, part: str, **changes) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data[part] |= changes
    path.write_text(json.dumps(data))


def error_of(folder) -> str:
    with pytest.raises(InputError) as error:
        load_model(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_config_survives_writing(tmp_path):
    config = read_config(builtin_folder("demo") / "config.json")
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", ["config.json", "maskgit_checkpoint", "tokenizer_checkpoint"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in error_of(folder)


def test_unknown_names_list_what_there_is(tmp_path):
    message = error_of(tmp_path / "nowhere")
    assert "nowhere" in message and "demo, imagenet256, imagenet512" in message


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("transformer", {"num_heads": 8}, "has num_heads 4, config.json says 8"),
        ("transformer", {"num_layers": 5}, "has num_layers 4, config.json says 5"),
        ("transformer", {"num_layers": 3}, "has num_layers 4, config.json says 3"),
        ("transformer", {"num_layers": 2000}, "num_layers is 2000: expected a whole number from 1"),
        ("transformer", {"num_layers": 1000}, "has num_layers 4, config.json says 1000"),
        ("transformer", {"dropout_rate": 10**400}, "dropout_rate is 1000"),
        ("tokenizer", {"num_res_blocks": 10**6}, "num_res_blocks is 1000000: expected"),
        ("tokenizer", {"num_res_blocks": 30}, "has num_res_blocks 1, config.json says 30"),
        ("tokenizer", {"num_res_blocks": 90}, "90 on 3 levels are more than 500 blocks"),
        ("tokenizer", {"channel_multipliers": [1] * 10**5}, "expected at most 20 whole"),
        ("transformer", {"intermediate_size": 128}, "intermediate_output"),
        ("transformer", {"num_heads": 5}, "num_heads 5"),
        ("transformer", {"num_heads": -4}, "num_heads"),
        ("transformer", {"hidden_size": "32"}, "hidden_size"),
        ("transformer", {"width": 32}, "unknown entry transformer.width"),
        ("transformer", {"codebook_size": 64}, "codebook_size"),
        ("transformer", {"sequence_length": 64}, "sequence_length"),
        ("transformer", {"mask_token_id": 7}, "mask_token_id"),
        ("tokenizer", {"filters": 64}, "decoder/Conv_0/bias"),
        ("tokenizer", {"image_size": 48}, "image_size 48"),
        ("tokenizer", {"channel_multipliers": []}, "channel_multipliers"),
        ("tokenizer", {"norm": "batch_norm"}, "batch_norm"),
    ],
)
def test_sizes_are_checked_against_the_files(folder, part, changes, words):
    edit_config(folder, part, **changes)
    assert words in error_of(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"transformer": {}}', '{"colour": 1}'])
def test_damaged_config_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in error_of(folder)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (["cat"], "9 class names for 10 classes"),
        (["cat", ""], "class_names[1] is '': expected words"),
        (["cat", " \t"], "class_names[1] is ' \\t'"),
        (["cat", "a\x1b[2J"], "class_names[1] is 'a\\x1b[2J'"),
        (["cat", "\ud800"], "class_names[1] is '\\ud800'"),
        (["cat", "cat"], "class_names has 'cat' twice"),
    ],
)
def test_class_names_are_words(folder, first, words):
    path = folder / "config.json"
    names = first + list("abcdefgh")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": names}))
    assert words in error_of(folder)


def test_a_name_that_stands_twice_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_heads"', '"num_layers": 3, "num_heads"'))
    assert "'num_layers' stands there twice" in error_of(folder)


def test_what_no_checksum_vouches_for_is_told_once(folder):
    def told(read, path):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(2):
                read(path)
        return {str(each.message) for each in found}, len(found)

    edit_config(folder, "transformer", dropout_rate=0.2)
    (folder / "checksums.json").rename(folder / "kept")
    assert told(read_config, folder / "config.json") == (set(), 0)
    words = f"{folder} has no checksums.json: damage to the numbers would not be noticed"
    assert told(load_model, folder) == ({words}, 1)
    (folder / "kept").rename(folder / "checksums.json")
    texts, _ = told(read_config, folder / "config.json")
    assert "config.json is not as it was written" in "".join(texts)


@pytest.mark.parametrize("folder", SHIPPED, ids=str)
def test_shipped_checksums_are_of_the_shipped_files(folder):
    found = files.read_checksums(ROOT / folder)
    names = {path.name for path in (ROOT / folder).iterdir()}
    assert found.keys() == names - {"checksums.json", "README.md"}
    assert found == {name: files.sha256(ROOT / folder / name) for name in found}


def test_not_a_number_is_found(folder):
    path = folder / "maskgit_checkpoint"
    params = jax.tree.map(np.array, checkpoint.read_checkpoint(path))
    params["MlmLayer_0"]["mlm_ln"]["scale"][3] = np.nan
    checkpoint.write_checkpoint(path, params)
    message = error_of(folder)
    assert "mlm_ln/scale" in message and "NaN" in message


@pytest.mark.slow
def test_ids_are_the_nearest_codes():
    model = load_model(GOLDEN)
    size = model.config.tokenizer.image_size
    images = jax.random.uniform(jax.random.key(0), (2, size, size, 3))
    variables = {"params": model.tokenizer_params}
    latents = np.asarray(model.tokenizer.apply(variables, images, method="latents"), np.float64)
    codes = np.asarray(model.tokenizer_params["quantizer"]["codebook"], np.float64)
    distances = np.sum((latents[..., None, :] - codes) ** 2, axis=-1)
    chosen = np.asarray(model.encode(images))
    nearest = distances.reshape(*chosen.shape, -1)
    picked = np.take_along_axis(nearest, chosen[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(picked, nearest.min(axis=-1), rtol=1e-4)


def test_the_class_token_comes_first():
    config = read_config(GOLDEN / "config.json")
    tokens = with_class_token(config, jnp.array([0, 9]), jnp.array([[1, 2], [3, -1]]))
    k = config.transformer.codebook_size
    np.testing.assert_array_equal(tokens, [[k, 1, 2], [k + 9, 3, -1]])
