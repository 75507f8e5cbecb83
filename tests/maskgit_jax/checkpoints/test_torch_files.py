import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgit_jax.checkpoints.torch_files import TorchFile
from maskgit_jax.errors import InputError
from tests.commands import TESTS
from tests.torch_writer import index_of, integer, tensor, text, write_archive, write_torch

SAMPLES = TESTS / "golden_torch"
ARRAYS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bias": np.array([0.5, -2], np.float32),
}


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        file = TorchFile(path)
        for name in file:
            file[name]
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    return message


@pytest.mark.parametrize("wrapped", [False, True])
def test_reads_what_was_written(tmp_path, wrapped):
    file = TorchFile(write_torch(tmp_path / "x", ARRAYS, wrapped=wrapped))
    assert list(file) == ["weight", "bias"] and file.shapes == {"weight": (3, 4), "bias": (2,)}
    for name, expected in ARRAYS.items():
        assert file[name].dtype == np.float32
        np.testing.assert_array_equal(file[name], expected)


@pytest.mark.parametrize("name", ["maskgit.ckpt", "tokenizer_muse.bin"])
def test_samples_by_pytorch_itself(name):
    """Reference: Python's own unpickler with stand-ins for the three constructors."""
    path = SAMPLES / name
    with zipfile.ZipFile(path) as archive:
        members = {member.split("/", 1)[1]: archive.read(member) for member in archive.namelist()}

    def rebuild(storage, offset, shape, strides, *_):
        strides = [4 * stride for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return {"OrderedDict": OrderedDict, "_rebuild_tensor_v2": rebuild}.get(name, name)

        def persistent_load(self, reference):
            return np.frombuffer(members[f"data/{reference[2]}"], np.float32)

    expected = Unpickler(io.BytesIO(members["data.pkl"])).load()
    expected = expected.get("state_dict", expected)
    found = TorchFile(path)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_views_of_one_storage(tmp_path):
    """A transposed view and a part of one storage, as tied and split weights are saved."""
    storage = np.arange(12, dtype=np.float32)
    entries = {
        "transposed": tensor("0", (4, 3), strides=(1, 4), size=12),
        "part": tensor("0", (2, 2), strides=(4, 1), offset=5, size=12),
        "scalar": tensor("0", (), offset=11, size=12),
    }
    file = TorchFile(write_archive(tmp_path / "x", index_of(entries), {"0": storage}))
    np.testing.assert_array_equal(file["transposed"], storage.reshape(3, 4).T)
    np.testing.assert_array_equal(file["part"], [[5, 6], [9, 10]])
    assert file["scalar"] == 11


def test_attributes_of_a_state_dict_are_passed_over(tmp_path):
    """`_metadata`, which modules' state dicts carry, is a BUILD instruction."""
    entry = text("bias") + tensor("0", (2,))
    metadata = b"}" + text("_metadata") + b"ccollections\nOrderedDict\n)Rsb"
    index = b"\x80\x02ccollections\nOrderedDict\n)R(" + entry + b"u" + metadata + b"."
    file = TorchFile(write_archive(tmp_path / "x", index, {"0": ARRAYS["bias"]}))
    np.testing.assert_array_equal(file["bias"], ARRAYS["bias"])


class Canary:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"weight": x}}])
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol, wrap):
    canary = tmp_path / "canary"
    index = pickle.dumps(wrap(Canary(canary)), protocol)
    message = refused(write_archive(tmp_path / "x", index, {"0": ARRAYS["bias"]}))
    assert not canary.exists()
    assert "nothing of it was run" in message or "is not a whole PyTorch file" in message
    pickle.loads(index)  # the canary does sing
    assert canary.exists()


SYSTEM = b"\x80\x02cposix\nsystem\n(" + text("echo") + b"tR."


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (SYSTEM, "'posix.system', which is none of collections.OrderedDict"),
        (b"\x80\x02cbuiltins\neval\n.", "'builtins.eval'"),
        (b"\x80\x02ctorch\nHalfStorage\n.", "'torch.HalfStorage'"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call that no state dict needs"),
        (b"\x80\x02(iposix\nsystem\n.", "the instruction INST"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N.", "serialization protocol 4"),
        (b"\x80\x02N.", "no dict of tensors"),
        (b"\x80\x02}.", "no dict of tensors"),
        (b"\x80\x02}" + text("a") + integer(1) + b"s.", "'a' that is no named tensor"),
        (b"\x80\x02}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns.", "keys are no strings"),
        (b"\x80\x02}" + b")" + integer(1) + b"s.", "a dict whose keys are no strings"),
        (b"\x80\x02)" + text("a") + integer(1) + b"s.", "entries added to what is no dict"),
        (b"\x80\x02N" + integer(1) + b"a.", "items added to what is no list"),
        (b"\x80\x02" + text("x") + b"Q.", "a reference that is no float32 storage"),
        (b"\x80\x02", "is not a whole PyTorch file"),
        (b"\x80\x02}h\x05.", "is not a whole PyTorch file"),
        (b"\x80\x02t.", "is not a whole PyTorch file"),
        (b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".", "no dict of tensors"),
        (b"\x80\x02" + b"}" * (5 << 20), "at most 4194304"),
        (index_of({"a": tensor("0", (3,))}), "a storage of 3 numbers in a member of 8 bytes"),
        (index_of({"a": tensor("1", (2,))}), "no member data/1"),
        (index_of({"a": tensor("0", (2,), offset=1)}), "does not lie within its storage"),
        (index_of({"a": tensor("0", (2, 2), strides=(0, 0), size=2)}), "does not lie within"),
        (index_of({"a": tensor("0", (2,), strides=(2,))}), "does not lie within its storage"),
        (index_of({"a": tensor("0", (2,), offset=-1)}), "offset, size or stride out of its"),
        (index_of({"a": tensor("0", (1,) * 9, size=2)}), "a tensor of 9 axes"),
        (index_of({"a": tensor("0", (1,), strides=(), size=2)}), "1 axes and 0 strides"),
        (index_of({"a": tensor("0", (2**30,), size=2)}), "offset, size or stride out of its"),
        (index_of({"a": tensor("0", (2,), size=2**31 - 1)}), "a member of 8 bytes"),
        (index_of({"a": tensor("0", (2,), storage="torch LongStorage")}), "torch.LongStorage"),
    ],
)
def test_refused_by_name(tmp_path, index, words):
    assert words in refused(write_archive(tmp_path / "x", index, {"0": ARRAYS["bias"]}))


def test_archives_that_are_none_of_pytorch_s(tmp_path):
    index = index_of({"a": tensor("0", (250_000,))})
    numbers = np.zeros(250_000, np.float32)
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", index)
        archive.writestr("archive/data/0", numbers.tobytes())
    assert "the compressed or encrypted member 'archive/data.pkl'" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"x")
    assert "unpack it and give the files in it" in refused(path)
    big = write_archive(path, index, {"0": numbers})
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert "not little-endian" in refused(path)


def test_parts_of_one_storage_do_not_keep_it(tmp_path):
    storage = np.arange(40, dtype=np.float32)
    entries = {"a": tensor("0", (2,), size=40), "b": tensor("0", (36,), offset=4, size=40)}
    file = TorchFile(write_archive(tmp_path / "x", index_of(entries), {"0": storage}))
    assert [file[name].base is None for name in file] == [True, True]
    np.testing.assert_array_equal(file["b"], storage[4:])
    assert "a" in file and "c" not in file
    many = {f"a{i}": tensor(str(i % 2), (2,), size=9000) for i in range(40)}
    numbers = np.zeros(9000, np.float32)
    path = write_archive(tmp_path / "x", index_of(many), {"0": numbers, "1": numbers})
    assert "small parts of large storages" in refused(path)


def test_names_are_looked_up_without_reading(monkeypatch):
    file = TorchFile(SAMPLES / "maskgit.ckpt")
    monkeypatch.setattr(TorchFile, "__getitem__", None)
    assert "bias" in file and "nothing" not in file


def test_members_that_claim_more_than_the_file(tmp_path):
    """The directory's size of a member, raised by hand; nothing of that size is allocated."""
    claim = 2**31 - 4
    index = index_of({"a": tensor("0", (claim // 4,), size=claim // 4)})
    path = write_archive(tmp_path / "x", index, {"0": ARRAYS["bias"]})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[entry + 20 : entry + 28] = struct.pack("<II", claim, claim)
    path.write_bytes(data)
    assert f"in a file of {len(data)}" in refused(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "x"


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_index_is_read_or_refused(scratch, place, flip):
    """The index alone is changed, with the checksum that fits."""
    index = bytearray(index_of({"a": tensor("0", (3, 4)), "b": tensor("1", (2,))}, wrapped=True))
    index[int(place * len(index))] ^= flip
    write_archive(scratch, bytes(index), {"0": ARRAYS["weight"], "1": ARRAYS["bias"]})
    try:
        file = TorchFile(scratch)
        assert all(np.isfinite(file[name]).all() for name in file)
    except InputError as error:
        assert str(error).isprintable()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([op.code for op in pickletools.opcodes]), max_size=30))
def test_any_sequence_of_instructions_is_read_or_refused(scratch, codes):
    index = b"\x80\x02" + "".join(codes).encode("latin1")
    write_archive(scratch, index, {"0": ARRAYS["bias"]})
    with pytest.raises(InputError):
        TorchFile(scratch)
