import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from flax.traverse_util import flatten_dict

from maskgit_jax.checkpoints import checkpoint, conversion, layouts
from maskgit_jax.config import ModelConfig, TokenizerConfig, TransformerConfig, read_config
from maskgit_jax.errors import InputError
from maskgit_jax.model import load_model
from tests.commands import TESTS, assert_refused, run_each
from tests.maskgit_jax.checkpoints.test_torch_files import SYSTEM
from tests.torch_writer import renamed, write_archive, write_torch

GOLDEN = TESTS / "golden" / "model"
SAMPLES = TESTS / "golden_torch"
COPIES = ("maskgit-torch", "open-muse")
FILES = {
    "maskgit-torch": ("maskgit.ckpt", "tokenizer.ckpt"),
    "open-muse": ("maskgit_muse.bin", "tokenizer_muse.bin"),
}


@pytest.fixture(scope="module")
def config():
    return read_config(GOLDEN / "config.json")


def make_config(blocks=2, multipliers=(1, 2, 1, 3), filters=4, hidden=12, heads=3, layers=2):
    side = 2 ** (len(multipliers) - 1)
    transformer = TransformerConfig(
        codebook_size=7,
        num_classes=3,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=20,
        sequence_length=10,
    )
    tokenizer = TokenizerConfig(
        image_size=3 * side,
        latent_size=3,
        filters=filters,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        embedding_dim=5,
        codebook_size=7,
        norm_groups=2,
    )
    names = tuple("abc")
    return ModelConfig(transformer=transformer, tokenizer=tokenizer, class_names=names)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        kind: jax.tree.map(
            lambda x: rng.standard_normal(x.shape, np.float32),
            layouts.model_shapes(kind, config),
        )
        for kind in layouts.KINDS
    }


def assert_equal_trees(found, expected):
    found, expected = (flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name
        assert found[name].shape == array.shape, name


def convert(sources, config, folder, form="msgpack"):
    weights = conversion.find_weights(sources, config)
    params = {kind: conversion.read_weights(w, config) for kind, w in weights.items()}
    conversion.write_model(folder, config, params, form)
    return weights


@pytest.mark.parametrize("copy", COPIES)
def test_samples_become_the_released_files_byte_for_byte(tmp_path, config, copy):
    weights = convert([SAMPLES / name for name in FILES[copy]], config, tmp_path / "m")
    assert {w.layout for w in weights.values()} == {copy}
    for name in ("maskgit_checkpoint", "tokenizer_checkpoint"):
        assert (tmp_path / "m" / name).read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"blocks": 1, "multipliers": (2, 2), "heads": 4},
        {"blocks": 3, "multipliers": (1,), "heads": 1, "layers": 1},
        {"blocks": 2, "multipliers": (3, 1, 2), "filters": 6, "hidden": 20, "heads": 5},
    ],
)
def test_other_sizes(tmp_path, copy, sizes):
    config = make_config(**sizes)
    params = random_params(config)
    paths = [
        write_torch(tmp_path / f"{kind}.ckpt", renamed(kind, params[kind], config, copy))
        for kind in layouts.KINDS
    ]
    for kind, weights in conversion.find_weights(paths, config).items():
        assert weights.layout == copy
        assert_equal_trees(conversion.read_weights(weights, config), params[kind])


@pytest.mark.parametrize("copy", [*COPIES, "released"])
def test_safetensors_with_the_same_names(tmp_path, copy):
    config = make_config()
    params = random_params(config)
    for kind, tree in params.items():
        flat = flatten_dict(tree, sep=".")
        arrays = flat if copy == "released" else renamed(kind, tree, config, copy)
        safetensors.numpy.save_file(arrays, tmp_path / f"{kind}.safetensors")
    for kind, weights in conversion.find_weights([tmp_path], config).items():
        assert_equal_trees(conversion.read_weights(weights, config), params[kind])


def test_model_folder_of_safetensors_loads_and_converts_back(tmp_path, config):
    convert([GOLDEN], config, tmp_path / "m", "safetensors")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    found, expected = load_model(tmp_path / "m"), load_model(GOLDEN)
    assert_equal_trees(found.transformer_params, expected.transformer_params)
    assert_equal_trees(found.tokenizer_params, expected.tokenizer_params)
    convert([tmp_path / "m"], config, tmp_path / "back")
    for name in ("maskgit_checkpoint", "tokenizer_checkpoint"):
        assert (tmp_path / "back" / name).read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("form", conversion.FORMATS)
def test_damaged_weights_do_not_load(tmp_path, config, form):
    """One flipped byte within an array: other numbers, otherwise a good file."""
    folder = tmp_path / "m"
    convert([GOLDEN], config, folder, form)
    load_model(folder)
    name = "model.safetensors" if form == "safetensors" else "maskgit_checkpoint"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 64
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} is damaged: its SHA-256 is"):
        load_model(folder)


def test_files_that_are_no_weights_are_passed_over(tmp_path, config):
    convert([GOLDEN], config, tmp_path / "m")
    np.savez(tmp_path / "m" / "training_ids.npz", np.zeros(3))
    (tmp_path / "m" / "notes.txt").write_text("mine")
    found = conversion.find_weights([tmp_path / "m"], config)
    assert {w.path.name for w in found.values()} == {"maskgit_checkpoint", "tokenizer_checkpoint"}


def test_weights_of_another_type_and_names_with_points_are_refused(tmp_path, config):
    params = jax.tree.map(np.array, checkpoint.read_checkpoint(GOLDEN / "tokenizer_checkpoint"))
    params["quantizer"]["codebook"] = params["quantizer"]["codebook"].astype(np.float16)
    checkpoint.write_checkpoint(tmp_path / "half", params)
    (weights,) = conversion.open_weights(tmp_path / "half", config)
    with pytest.raises(InputError, match=r"'quantizer\.codebook' as float16; expected float32"):
        conversion.compare(weights, weights, config)
    data = serialization.to_bytes(
        {"params": {"quantizer": {"a": np.ones(1)}, "quantizer.a": np.ones(1)}}
    )
    (tmp_path / "point").write_bytes(data)
    with pytest.raises(InputError, match=r"expected names without '\.'"):
        conversion.open_weights(tmp_path / "point", config)


def test_equal_copies_in_one_folder_are_one(config):
    weights = conversion.find_weights([SAMPLES], config)
    assert {w.path.name for w in weights.values()} == {"maskgit.ckpt", "tokenizer.ckpt"}


def test_compare_counts_what_differs(tmp_path, config):
    params = checkpoint.read_checkpoint(GOLDEN / "maskgit_checkpoint")
    params = jax.tree.map(np.array, params)
    params["MlmLayer_0"]["mlm_bias"]["bias"][3] += 0.25
    params["Embed_0"]["embeddings_ln"]["scale"][0] += 1
    checkpoint.write_checkpoint(tmp_path / "other", params)
    one, other = (
        conversion.open_weights(path, config)[0]
        for path in (SAMPLES / "maskgit.ckpt", tmp_path / "other")
    )
    found = conversion.compare(one, other, config)
    assert found.count == 73
    assert sorted(found.names) == ["Embed_0.embeddings_ln.scale", "MlmLayer_0.mlm_bias.bias"]
    assert found.largest == 1
    assert conversion.compare(one, one, config).names == []
    tokenizer = SAMPLES / "tokenizer.ckpt"
    with pytest.raises(InputError, match="hold two different transformers: give one of them"):
        conversion.find_weights([SAMPLES / "maskgit.ckpt", tmp_path / "other", tokenizer], config)


def changed(path, config, change):
    """A sample with its arrays changed."""
    arrays = dict(conversion.open_weights(SAMPLES / "maskgit_muse.bin", config)[0].arrays)
    change(arrays)
    return write_torch(path, arrays)


def test_faulty_arrays_are_named(tmp_path, config):
    def error(change):
        path = changed(tmp_path / "x.bin", config, change)
        with pytest.raises(InputError) as caught:
            conversion.read_weights(conversion.open_weights(path, config)[0], config)
        assert str(caught.value).isprintable()
        return str(caught.value)

    query = "transformer_layers.2.attention.query.weight"
    assert "1 missing, first 'transformer_layers.2" in error(lambda x: x.pop(query))
    assert "1 unexpected, first 'more'" in error(lambda x: x.update(more=np.ones(3, np.float32)))
    assert f"{query!r} has the shape [31, 32]" in error(lambda x: x.update({query: x[query][1:]}))
    assert "differ; in this architecture they are one table" in error(
        lambda x: x.update({"mlm_layer.to_logits.weight": x["mlm_layer.to_logits.weight"] + 1})
    )
    infinite = np.full((32, 32), np.inf, np.float32)
    assert "1 with NaN or infinite values" in error(lambda x: x.update({query: infinite}))


def test_command(tmp_path):
    config = f"--config={GOLDEN / 'config.json'}"
    torch = [str(SAMPLES / name) for name in FILES["maskgit-torch"]]
    other = jax.tree.map(np.array, checkpoint.read_checkpoint(GOLDEN / "tokenizer_checkpoint"))
    other["quantizer"]["codebook"][0, 0] += 1
    checkpoint.write_checkpoint(tmp_path / "other_tokenizer", other)
    both = f"{SAMPLES / 'maskgit.ckpt'},{tmp_path / 'other_tokenizer'}"
    ended = run_each(
        "convert",
        {
            "convert": [config, f"--source={','.join(torch)}", "--output_dir=new/m"],
            "again": [config, "--source=new/m", "--output_dir=b", "--format=safetensors"],
            "same": [config, f"--source={SAMPLES}", f"--compare_with={GOLDEN}"],
            "half": [config, f"--source={torch[1]}", f"--compare_with={SAMPLES}"],
            "here": [config, f"--source={GOLDEN}", "--output_dir=empty/.."],
            "differs": [config, f"--source={both}", f"--compare_with={GOLDEN}", "--output_dir=c"],
        },
        cwd=tmp_path,
    )
    assert ended.pop("here").status == 2  # a parent, not empty
    assert [end.status for end in ended.values()] == [None, None, None, None, 1]
    assert "maskgit: not compared, on one side alone" in ended["half"].output
    assert "0.5 M parameters converted" in ended["convert"].output
    assert "use it with --model=new/m" in ended["convert"].output
    assert "maskgit: all 73 arrays are equal, bit for bit" in ended["same"].output
    assert "tokenizer: 1 of 66 arrays differ, by up to 1," in ended["differs"].output
    assert not (tmp_path / "c").exists()
    for name in ("maskgit_checkpoint", "tokenizer_checkpoint"):
        assert (tmp_path / "new" / "m" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_command_refuses(tmp_path):
    config = f"--config={GOLDEN / 'config.json'}"
    good = f"{SAMPLES / 'maskgit.ckpt'},{SAMPLES / 'tokenizer.ckpt'}"
    sample = (SAMPLES / "maskgit.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(sample[:-100])
    flipped = bytearray(sample)
    flipped[len(sample) // 2] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(flipped)
    write_archive(tmp_path / "hostile.ckpt", SYSTEM.replace(b"echo", b"cat>"), {})
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    (tmp_path / "text.ckpt").write_text("weights")
    (tmp_path / "half.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    half = {"quantizer.codebook.weight": np.zeros((3, 2), np.float16)}
    safetensors.numpy.save_file(half, tmp_path / "float16.safetensors")
    write_torch(tmp_path / "judge.ckpt", {"fc.weight": np.zeros((2, 2), np.float32)})
    with (tmp_path / "large").open("wb") as file:  # sparse
        file.write(b"\x81\xa6params")
        file.truncate(20 << 30)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    (tmp_path / "empty").mkdir()
    other = json.loads((GOLDEN / "config.json").read_text())
    other["transformer"]["num_layers"] = 3
    (tmp_path / "three.json").write_text(json.dumps(other))
    other["transformer"] |= {"num_layers": 4, "hidden_size": 64}
    (tmp_path / "wide.json").write_text(json.dumps(other))
    out = "--output_dir=out"
    sides = ("source", "tokenizer.ckpt"), ("compare_with", "maskgit.ckpt")

    def source(name):
        return [config, f"--source={name},{SAMPLES / 'tokenizer.ckpt'}", out]

    assert_refused(
        "convert",
        {
            "no source": ([config, out], "--source is missing"),
            "no config": ([f"--source={good}", out], "--config is missing"),
            "no folder": ([config, f"--source={good}"], "--output_dir is missing"),
            "config": ([f"--source={good}", "--config=none.json", out], "none.json"),
            "missing": (source("none.ckpt"), "none.ckpt does not exist"),
            "cut": (source("cut.ckpt"), "cut.ckpt is not a whole PyTorch file"),
            "flipped": (source("flipped.ckpt"), "flipped.ckpt is not a whole PyTorch file"),
            "hostile": (source("hostile.ckpt"), "hostile.ckpt holds 'posix.system'"),
            "old": (source("old.pt"), "old.pt is a bare pickle, as torch.save wrote before"),
            "large": (source("large"), "large has 21474836480 bytes; expected at most"),
            "text": (source("text.ckpt"), "text.ckpt is not a whole Flax checkpoint"),
            "safetensors": (source("half.safetensors"), "not a whole .safetensors file"),
            "float16": (source("float16.safetensors"), "as F16; expected float32"),
            "another": (source("judge.ckpt"), "holds 1 arrays, 'fc.weight' first; expected a"),
            "one half": ([config, f"--source={SAMPLES / 'tokenizer.ckpt'}", out], "no transformer"),
            "empty": ([config, "--source=empty", out], "empty holds no files of weights"),
            "nothing to compare": (
                [config, *(f"--{name}={SAMPLES / file}" for name, file in sides)],
                "--source has the tokenizer, --compare_with the maskgit: nothing to compare",
            ),
            "used": ([config, f"--source={good}", "--output_dir=full"], "full exists and is not"),
            "file": ([config, f"--source={good}", "--output_dir=cut.ckpt/x"], "cannot be written"),
            "layers": ([f"--source={good}", "--config=three.json", out], "12 unexpected"),
            "width": ([f"--source={good}", "--config=wide.json", out], "which cannot be"),
            "released": ([f"--source={good}", "--config=imagenet256", out], "missing, first"),
        },
        cwd=tmp_path,
    )
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_half_written_is_left(tmp_path, config, monkeypatch):
    def full(path, params):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        convert([GOLDEN], config, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
