"""The FID network: its pools and resizing against NumPy, its weights file, its whole shape."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.metrics import inception
from maskgit_jax.errors import InputError


@pytest.fixture(scope="module")
def shapes():
    return inception.variable_shapes()


@pytest.fixture(scope="module")
def arrays(shapes) -> dict[str, np.ndarray]:
    """Random weights under PyTorch's names, in PyTorch's layout."""
    rng = np.random.default_rng(0)
    found = {"fc.bias": np.ones(1008, np.float32)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        modules, kind = [key.key for key in path[1:-1]], path[-1].key
        shape = leaf.shape
        if kind == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            # Variance 2 / inputs: the signal keeps its size through the ReLUs.
            values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            values = rng.uniform(0.8, 1.25, shape) if kind in ("scale", "var") else np.zeros(shape)
        kind = {
            "kernel": "weight",
            "scale": "weight",
            "bias": "bias",
            "mean": "running_mean",
            "var": "running_var",
        }[kind]
        found[".".join([*modules, kind])] = values.astype(np.float32)
        if kind == "running_var":
            found[".".join([*modules, "num_batches_tracked"])] = np.array(0)
    return found


def test_the_network_has_the_published_number_of_weights(shapes):
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    # torchvision states 27,161,264 for 1000 classes with the auxiliary classifier: two
    # convolutions with normalization and a layer with bias. Here: 1008 classes, no last bias.
    auxiliary = (768 * 128 + 2 * 128) + (128 * 768 * 25 + 2 * 768) + (768 * 1000 + 1000)
    assert count == 27_161_264 - auxiliary - (2048 * 1000 + 1000) + 2048 * 1008


def test_names_and_layout_are_pytorchs(arrays):
    # From the listing of the public file.
    assert arrays["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert arrays["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert arrays["Mixed_6a.branch3x3.bn.running_var"].shape == (384,)
    assert arrays["Mixed_6c.branch7x7_2.conv.weight"].shape == (160, 160, 1, 7)
    assert arrays["Mixed_6c.branch7x7dbl_2.conv.weight"].shape == (160, 160, 7, 1)
    assert arrays["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert arrays["fc.weight"].shape == (1008, 2048)
    assert sum(name.endswith("conv.weight") for name in arrays) == 94


def neighbourhoods(x):
    """Each pixel's 3×3 neighbourhood; NaN outside."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    height, width = x.shape[1:3]
    return np.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])


def test_pools_leave_the_padding_out():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32) - 5
    around = neighbourhoods(x)
    np.testing.assert_allclose(
        inception.average_pool(jnp.asarray(x)), np.nanmean(around, axis=0), rtol=1e-5
    )
    np.testing.assert_array_equal(inception.max_pool(jnp.asarray(x)), np.nanmax(around, axis=0))


@pytest.mark.parametrize("side", [48, 512])
def test_preprocess_takes_the_four_nearest_pixels(side):
    image = np.random.default_rng(0).integers(256, size=(1, side, side + 3, 3), dtype=np.uint8)
    found = np.asarray(inception.preprocess(jnp.asarray(image)))[0]
    assert found.shape == (299, 299, 3)

    def taps(size):
        at = np.maximum((np.arange(299) + 0.5) * size / 299 - 0.5, 0)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    (top, bottom, v), (left, right, u) = taps(side), taps(side + 3)
    x = image[0] / 255
    v, u = v[:, None, None], u[None, :, None]
    upper = x[top][:, left] * (1 - u) + x[top][:, right] * u
    lower = x[bottom][:, left] * (1 - u) + x[bottom][:, right] * u
    np.testing.assert_allclose(found, 2 * (upper * (1 - v) + lower * v) - 1, atol=1e-4)


def write_safetensors(path, arrays):
    header, blobs, position = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        blobs.append(array.tobytes())
        position += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def small_file(tmp_path, arrays, name="w.npz"):
    np.savez(tmp_path / name, **arrays)
    return str(tmp_path / name)


def test_what_is_wrong_with_a_weights_file_is_said_in_one_line(tmp_path, arrays):
    few = {name: arrays[name] for name in ("fc.weight", "Conv2d_1a_3x3.conv.weight")}
    kept = [name for name in arrays if not name.endswith("tracked") and name != "fc.bias"]
    with pytest.raises(InputError, match=rf"lacks {len(kept) - 2} of {len(kept)} arrays, first"):
        inception.load_inception(small_file(tmp_path, few))
    with pytest.raises(InputError, match="cannot open"):
        inception.load_inception(str(tmp_path / "none.npz"))
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a file named \.npz or \.safetensors"):
        inception.load_inception(str(tmp_path / "w.pth"))
    for name in ("cut.npz", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x01\x02\x03")
        with pytest.raises(InputError, match="is damaged"):
            inception.load_inception(str(tmp_path / name))
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/w\.npz cannot be fetched"):
        inception.load_inception("http://127.0.0.1:9/w.npz")


def test_another_shape_or_a_broken_number_is_refused(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(inception, "_read_arrays", lambda path: changed)
    changed = arrays | {"fc.weight": arrays["fc.weight"][:1000]}
    with pytest.raises(InputError, match=r"fc\.weight has shape \[1000, 2048\], expected"):
        inception.load_inception("w.npz")
    bad = arrays["Conv2d_1a_3x3.bn.bias"].copy()
    bad[3] = np.nan
    changed = arrays | {"Conv2d_1a_3x3.bn.bias": bad}
    with pytest.raises(InputError, match=r"Conv2d_1a_3x3\.bn\.bias holds NaN"):
        inception.load_inception("w.npz")


def test_both_file_formats_give_the_same_variables(tmp_path, arrays):
    write_safetensors(tmp_path / "w.safetensors", arrays)
    one = inception.load_inception(small_file(tmp_path, arrays))
    other = inception.load_inception(str(tmp_path / "w.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_array_equal(one["params"]["fc"]["kernel"], arrays["fc.weight"].T)
    kernel = one["params"]["Mixed_6c"]["branch7x7_2"]["conv"]["kernel"]
    weight = arrays["Mixed_6c.branch7x7_2.conv.weight"]
    np.testing.assert_array_equal(kernel[0, 5, 2], weight[:, 2, 0, 5])
    statistics = one["batch_stats"]["Conv2d_1a_3x3"]["bn"]
    np.testing.assert_array_equal(statistics["var"], arrays["Conv2d_1a_3x3.bn.running_var"])


def test_a_convolution_is_normalized_as_pytorch_does(arrays):
    name = "Conv2d_1a_3x3"
    kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
    norm = {kind: arrays[f"{name}.bn.{kind}"] for kind in ("weight", "running_var")}
    bias, mean = np.linspace(-1, 1, 32), np.linspace(0, 0.5, 32)
    variables = {
        "params": {"conv": {"kernel": kernel}, "bn": {"scale": norm["weight"], "bias": bias}},
        "batch_stats": {"bn": {"mean": mean, "var": norm["running_var"]}},
    }
    x = np.random.default_rng(1).normal(size=(1, 7, 7, 3)).astype(np.float32)
    found = inception._Conv(32, (3, 3), 2, "VALID").apply(variables, x)
    expected = np.zeros((3, 3, 32))
    for i in range(3):
        for j in range(3):
            expected[i, j] = np.einsum(
                "hwc,hwco->o", x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel
            )
    scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-3)
    np.testing.assert_allclose(
        found[0], np.maximum((expected - mean) * scale + bias, 0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_picture_runs_through_the_network(arrays, monkeypatch):
    monkeypatch.setattr(inception, "_read_arrays", lambda path: arrays)
    variables = inception.load_inception("w.npz")
    images = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    names = ("Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c")

    @jax.jit
    def run(variables, images):
        found, state = inception.InceptionV3().apply(
            variables, inception.preprocess(images), capture_intermediates=True
        )
        return found, {name: state["intermediates"][name]["__call__"][0] for name in names}

    found, maps = run(variables, jnp.asarray(images))
    maps = {name: np.asarray(x) for name, x in maps.items()}
    # Sides and widths as the paper's table 1 has them.
    assert {name: x.shape[1:] for name, x in maps.items()} == {
        "Mixed_5d": (35, 35, 288),
        "Mixed_6a": (17, 17, 768),
        "Mixed_6e": (17, 17, 768),
        "Mixed_7a": (8, 8, 1280),
        "Mixed_7c": (8, 8, 2048),
    }
    np.testing.assert_allclose(found.features, maps["Mixed_7c"].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        found.logits, np.asarray(found.features) @ arrays["fc.weight"].T, rtol=1e-3, atol=1e-4
    )
    assert np.abs(found.features[0] - found.features[1]).max() > 1e-3
