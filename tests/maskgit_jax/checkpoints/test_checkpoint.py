import json
import os
import stat
import tempfile

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgit_jax import files
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.checkpoints.checkpoint import (
    check_params,
    manifest_of,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)
from maskgit_jax.checkpoints.download import KINDS, MODELS
from maskgit_jax.errors import InputError
from tests.commands import TESTS

HERE = TESTS
GOLDEN = HERE / "golden" / "model"
BUILT_IN = HERE.parent / "maskgit_jax" / "checkpoints" / "manifests"

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
)
KEYS = st.text(min_size=1, max_size=6).filter(lambda key: "/" not in key)
TREES = st.dictionaries(
    KEYS,
    st.recursive(ARRAYS, lambda leaf: st.dictionaries(KEYS, leaf, min_size=1, max_size=3)),
    max_size=3,
)


def make_params():
    return {
        "Dense_0": {
            "kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
            "bias": np.zeros(4, np.float32),
        },
        "Embed_0": {"embedding": np.full((5, 2), 0.5, np.float32)},
    }


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


def parse_checkpoint(data, *, source):
    """`read_checkpoint` of bytes; messages name `source`."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            return read_checkpoint(file.name)
        except InputError as error:
            raise InputError(str(error).replace(file.name, source)) from None


def packed(tree) -> bytes:
    return serialization.msgpack_serialize(tree)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_is_read_and_rewritten_byte_for_byte(kind, tmp_path):
    golden = GOLDEN / f"{kind}_checkpoint"
    params = read_checkpoint(golden)
    leaves = jax.tree.leaves(params)
    assert len(leaves) == len(manifest_of(params)) > 50
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in leaves)
    check_params(params, manifest_of(params), source=str(golden))
    write_checkpoint(tmp_path / "copy", params)
    assert (tmp_path / "copy").read_bytes() == golden.read_bytes()


@settings(deadline=None, max_examples=60)
@given(params=TREES)
def test_round_trip(params, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip"
    write_checkpoint(path, params)
    assert path.read_bytes() == serialization.to_bytes({"params": params})
    again = read_checkpoint(path)
    assert manifest_of(again) == manifest_of(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_round_trip_of_device_arrays_and_bfloat16(tmp_path):
    params = {"a": jnp.arange(3, dtype=jnp.bfloat16)}
    write_checkpoint(tmp_path / "x", params)
    again = read_checkpoint(tmp_path / "x")
    assert manifest_of(again) == {"params/a": ((3,), "bfloat16")}
    assert again["a"].tolist() == [0, 1, 2]
    check_params(again, manifest_of(params), source="x")


def test_arrays_that_flax_splits_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    write_checkpoint(tmp_path / "x", make_params())
    assert b"__msgpack_chunked_array__" in (tmp_path / "x").read_bytes()
    again = read_checkpoint(tmp_path / "x")
    jax.tree.map(np.testing.assert_array_equal, again, make_params())
    shapes = checkpoint.read_shapes(tmp_path / "x")
    assert manifest_of(shapes) == manifest_of(make_params())


def test_write_replaces_whole_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    (tmp_path / ".x.0123.tmp").write_bytes(b"what a kill left")
    params = make_params()
    write_checkpoint(path, params)
    assert sorted(os.listdir(tmp_path)) == ["checksums.json", "x"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    jax.tree.map(np.testing.assert_array_equal, params, make_params())


def test_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = error_of(write_checkpoint, path, make_params())
    assert str(path) in message and "No space left on device" in message
    assert os.listdir(tmp_path) == ["x"] and path.read_bytes() == b"old"


def test_write_errors(tmp_path):
    path = tmp_path / "no" / "x"
    message = error_of(write_checkpoint, path, make_params())
    assert f"{path} cannot be written (No such file or directory)" in message
    assert "'params/a/b'" in error_of(write_checkpoint, tmp_path / "x", {"a/b": np.zeros(1)})
    message = error_of(write_checkpoint, tmp_path / "x", {"a": {"b": 1.0}})
    assert "holds a float at 'params/a/b'; expected an array" in message
    assert os.listdir(tmp_path) == []


def test_missing_file_and_folder(tmp_path):
    missing = tmp_path / "none"
    assert f"{missing} does not exist" in error_of(read_checkpoint, missing)
    assert f"{missing} does not exist" in error_of(read_manifest, missing)
    assert f"{tmp_path} is a folder" in error_of(read_checkpoint, tmp_path)
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "x"
    assert f"{below} cannot be read: Not a directory" in error_of(read_checkpoint, below)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>\n<p>", b"\r\n <html>", b"<?xml?><Error/>"])
def test_web_page(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert f"{path} is a web page (HTML or XML)" in error_of(read_checkpoint, path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (packed({"params": {}})[:-1], "not a whole Flax checkpoint"),
        (packed({"params": {}}) + b"\n", "(10 bytes; 1 bytes after its end)"),
        (b"PK\x03\x04 a zip file", "not a whole Flax checkpoint (15 bytes"),
        (b"\xc1", "not a whole Flax checkpoint (1 bytes"),
        (b"\x81" * 5000, "not a whole Flax checkpoint"),
        (packed([1, 2]), "no dict with the one entry 'params'"),
        (packed({}), "no dict with the one entry 'params'"),
        (packed({"a": 1, "b": 2, "c": 3, "d": 4}), "no dict with the one entry 'params'"),
        (packed({"params": 3}), "an int at 'params' instead of an array"),
        (packed({"params": np.zeros(2)}), "an extension at 'params' instead"),
        (packed({"params": {"a": {"b": "text"}}}), "a text at 'params/a/b' instead of an array"),
        (packed({"params": {"a": np.float32(1)}}), "an extension that is no array of its size"),
        (packed({"params": {3: np.zeros(2)}}), "an int instead of a text"),
        (packed({"params": {"a\n": 1}}), "'params/a\\n'"),
        (packed({"params": {"a/b": np.zeros(1)}}), "'params/a/b' twice or without a name"),
        (b"\x81\xa6params\x82\xa1a\x80\xa1a\x80", "'params/a' twice or without a name"),
        # A number of entries that the file cannot have, names and values in one byte each.
        (b"\x81\xa6params\xdf\x7f\xff\xff\xff", "more entries at 'params' than a model"),
        (b"\x81\xa6params\xde\xff\xff" + b"\xa1" * 99, "more entries at 'params' than a model"),
        (b"\x81\xa6params" + b"\x81\xa1a" * 99, "than a model has"),
        (b"\x81\xa6params\x81\xdb\xff\xff\xff\xff", "a name of 4294967295 bytes"),
        (b"\x81\xa6params\x81\xa1a\xc9\xff\xff\xff\xff\x01", "no array of its size"),
        (
            msgpack.packb(
                {"params": {"a": msgpack.ExtType(1, msgpack.packb([[0, 2**63], "int8", b""]))}}
            ),
            "an array [0, 9223372036854775808]",
        ),
        (
            msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb([[3], "f4", b"12"]))}}),
            "not a whole Flax checkpoint",
        ),
        (
            msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb([[1], "??", b"1"]))}}),
            "not a whole Flax checkpoint",
        ),
    ],
)
def test_other_content(tmp_path, content, found):
    path = tmp_path / "x"
    path.write_bytes(content)
    message = error_of(read_checkpoint, path)
    assert message.startswith(str(path)) and found in message


@pytest.mark.parametrize("kind", KINDS)
def test_golden_cut_anywhere(kind):
    data = (GOLDEN / f"{kind}_checkpoint").read_bytes()
    for end in (1, 2, 9, 10, 100, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1):
        assert "not a whole Flax checkpoint" in error_of(parse_checkpoint, data[:end], source="x")


def test_small_file_cut_at_every_byte():
    data = serialization.to_bytes({"params": make_params()})
    for end in range(len(data)):
        assert error_of(parse_checkpoint, data[:end], source="x").startswith("x is ")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_gives_an_input_error_or_a_tree(data):
    content = bytearray(serialization.to_bytes({"params": make_params()}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        params = parse_checkpoint(bytes(content), source="x")
        check_params(params, manifest_of(make_params()), source="x")
    except InputError as error:
        assert str(error).isprintable() and str(error).startswith("x ")


@given(content=st.binary(max_size=40))
def test_random_bytes_are_no_checkpoint(content):
    assert error_of(parse_checkpoint, content, source="x").startswith("x ")


def test_out_of_memory_is_no_damage(monkeypatch):
    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(np, "frombuffer", exhausted)
    with pytest.raises(MemoryError):
        parse_checkpoint(packed({"params": {"a": np.zeros(1)}}), source="x")


def test_manifest_of_arrays_and_of_shapes():
    expected = {
        "params/Dense_0/kernel": ((3, 4), "float32"),
        "params/Dense_0/bias": ((4,), "float32"),
        "params/Embed_0/embedding": ((5, 2), "float32"),
    }
    assert manifest_of(make_params()) == expected
    assert manifest_of(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_params()))) == expected
    assert manifest_of({"a": jax.ShapeDtypeStruct((), jnp.bfloat16)}) == {
        "params/a": ((), "bfloat16")
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_built_in_manifests_are_the_published_ones(kind, name):
    file = f"{kind}_{name}_manifest.json"
    manifest = read_manifest(BUILT_IN / file)
    published = json.loads((HERE / "manifests" / file).read_text())
    assert {path: [list(shape), dtype] for path, (shape, dtype) in manifest.items()} == published
    assert len(manifest) == {"tokenizer": 168, "maskgit": 393}[kind]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"a": [[1], "float32"]}',
        b'{"params/a": 3}',
        b'{"params/a": [3, "float32"]}',
        b'{"params/a": [[1.5], "float32"]}',
        b'{"params/a": ["12", "float32"]}',
        b'{"params/a": [[1], 2]}',
        b'{"params/a": [[1]]}',
    ],
)
def test_manifest_errors(tmp_path, content):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    assert error_of(read_manifest, path).startswith(f"{path} is not a manifest; expected JSON")


def test_check_accepts_any_order_and_device_arrays():
    params = make_params()
    manifest = dict(reversed(manifest_of(params).items()))
    check_params(params, manifest, source="x")
    check_params(jax.tree.map(jnp.asarray, params), manifest, source="x")


def drop(params):
    del params["Dense_0"]["kernel"]


def add(params):
    params["Dense_9"] = {"kernel": np.zeros(1), "bias": np.zeros(1)}


def rename(params):
    params["Embed_1"] = params.pop("Embed_0")


def transpose(params):
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].T


def double(params):
    params["Dense_0"]["bias"] = np.zeros(4, np.float64)


def spoil(value):
    def change(params):
        params["Embed_0"]["embedding"][4, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "deviation"),
    [
        (drop, "1 of 3 missing, first 'params/Dense_0/kernel'"),
        (add, "2 unexpected, first 'params/Dense_9/kernel'"),
        (
            rename,
            "1 of 3 missing, first 'params/Embed_0/embedding'; "
            "1 unexpected, first 'params/Embed_1/embedding'",
        ),
        (
            transpose,
            "1 of wrong shape, first 'params/Dense_0/kernel': found (4, 3), expected (3, 4)",
        ),
        (
            double,
            "1 of wrong dtype, first 'params/Dense_0/bias': found float64, expected float32",
        ),
        (spoil(np.nan), "1 with NaN or infinite values, first 'params/Embed_0/embedding'"),
        (spoil(-np.inf), "1 with NaN or infinite values, first 'params/Embed_0/embedding'"),
        (spoil(-10001), "1 with values beyond ±10000, first 'params/Embed_0/embedding'"),
    ],
)
def test_check_names_what_deviates(change, deviation):
    params = make_params()
    manifest = manifest_of(params)
    change(params)
    message = error_of(check_params, params, manifest, source="/models/x")
    assert message == (
        f"/models/x does not fit the model: parameters {deviation}; use the checkpoint that "
        "belongs to this model, undamaged"
    )


def test_check_tells_every_kind_of_deviation_in_one_line():
    params = make_params()
    manifest = manifest_of(params) | {"params/z": ((1,), "float32")}
    for change in (transpose, double, spoil(np.nan), add):
        change(params)
    message = error_of(check_params, params, manifest, source="x")
    for found in ("missing", "unexpected", "wrong shape", "wrong dtype", "NaN"):
        assert found in message


def test_a_file_that_is_being_replaced_is_not_called_damaged(tmp_path, monkeypatch):
    """A kill between the file and its checksum leaves a good file."""
    path = tmp_path / "x"
    write_checkpoint(path, make_params())
    note = files.note_checksum

    def killed(path, found):
        if found is not None:
            raise KeyboardInterrupt
        note(path, found)

    monkeypatch.setattr(files, "note_checksum", killed)
    changed = jax.tree.map(lambda x: x + 1, make_params())
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, changed)
    jax.tree.map(np.testing.assert_array_equal, read_checkpoint(path), changed)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]"])
def test_damaged_checksums(tmp_path, text):
    path = tmp_path / "x"
    write_checkpoint(path, make_params())
    (tmp_path / "checksums.json").write_text(text)
    assert "checksums.json is damaged" in error_of(read_checkpoint, path)
    write_checkpoint(path, make_params())
    read_checkpoint(path)
