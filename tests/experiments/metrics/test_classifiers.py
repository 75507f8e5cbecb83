"""Classifiers of every format, against the same sums in NumPy."""

import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.demo_world import world
from experiments.demo_world.judge import JUDGE_CHECKPOINT, load_judge
from experiments.metrics import classifiers
from experiments.metrics.pretrained import transformers_library
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_float
from tests.experiments.metrics.test_clip import save_network

K = 4


def pictures(count: int = 5, side: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def save_onnx(path, shape, outputs: int, operations=("Flatten", "MatMul"), size: int = 8) -> str:
    """A linear layer on [N, 3, H, W] or [N, H, W, 3]; `size` where the shape leaves it open.

    Weights are the same for both layouts: those of [H, W, 3], in that order.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = onnx_weights(outputs, size)
    if shape[3] != 3:
        weights = weights.reshape(size, size, 3, outputs).transpose(2, 0, 1, 3)
    weights = weights.reshape(-1, outputs)
    nodes, before = [], "pixels"
    for index, operation in enumerate(operations):
        inputs = [before, "weights"] if operation == "MatMul" else [before]
        before = "out" if index + 1 == len(operations) else f"inner{index}"
        nodes.append(helper.make_node(operation, inputs, [before]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, str(path))
    return str(path)


def onnx_weights(outputs: int, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(outputs)
    return rng.normal(0, 0.1, (size * size * 3, outputs)).astype(np.float32)


def linear(images: np.ndarray, outputs: int, size: int = 8) -> np.ndarray:
    """What the saved network gives, computed without it."""
    resized = [Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR) for x in images]
    pixels = np.stack(resized) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return pixels.reshape(len(images), -1) @ onnx_weights(outputs, size).astype(np.float64)


@pytest.mark.parametrize(
    "shape",
    [
        [None, 3, 8, 8],
        ["N", 8, 8, 3],
        [1, 3, 8, 8],
        [2, 8, 8, 3],  # five pictures in pieces of two
        [8, 3, 8, 8],
    ],
)
def test_onnx_gives_the_probabilities_of_the_resized_picture(tmp_path, shape):
    classify = classifiers.load_classifier(save_onnx(tmp_path / "a.onnx", shape, K), K)
    images = pictures()
    expected = softmax(linear(images, K))
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(classify(images), expected, atol=1e-5)


def test_onnx_of_open_size_takes_224_pixels(tmp_path):
    shape = ["N", "C", "H", "W"]
    path = save_onnx(tmp_path / "a.onnx", shape, K, size=224)
    images = pictures(2, 20)
    expected = softmax(linear(images, K, 224))
    np.testing.assert_allclose(classifiers.load_classifier(path, K)(images), expected, atol=1e-4)


def test_onnx_probabilities_stay_and_a_background_is_dropped(tmp_path):
    images, shape = pictures(), ["N", 8, 8, 3]
    operations = ("Flatten", "MatMul", "Softmax")
    logits = save_onnx(tmp_path / "logits.onnx", shape, K + 1)
    shares = save_onnx(tmp_path / "shares.onnx", shape, K + 1, operations)
    expected = softmax(linear(images, K + 1))
    assert expected[:, 0].max() > 0.1
    for path in (logits, shares):
        found = classifiers.load_classifier(path, K)(images)
        np.testing.assert_allclose(found, expected[:, 1:], atol=1e-5)
    found = classifiers.load_classifier(shares, K + 1)(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-80, -1), min_size=K, max_size=K), st.floats(0, 500))
def test_class_probabilities_are_the_softmax_whatever_is_added(row, shift):
    logits = np.array([row])
    for outputs in (logits, logits - shift):
        found = classifiers.class_probabilities(outputs, K)
        np.testing.assert_allclose(found, softmax(logits), rtol=1e-9)


def test_bad_onnx_files_are_told(tmp_path):
    def message(path) -> str:
        with pytest.raises(InputError) as caught:
            classifiers.load_classifier(str(path), K)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no classifier at" in message(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "cannot be run" in message(broken)
    grey = save_onnx(tmp_path / "grey.onnx", ["N", 1, 8, 24], K)
    assert "takes tensor(float) ['N', 1, 8, 24] and gives tensor(float); expected" in message(grey)
    flat = save_onnx(tmp_path / "flat.onnx", [None, 3, 8, 8], K, ("MatMul",), size=2)
    assert "cannot be run" in message(flat)
    others = save_onnx(tmp_path / "others.onnx", [None, 3, 8, 8], K + 2)
    assert "gives [2, 6] for two pictures; expected [2, 4]" in message(others)


def test_missing_onnxruntime_is_told(tmp_path, monkeypatch):
    path = save_onnx(tmp_path / "a.onnx", [None, 3, 8, 8], K)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'maskgit_jax\[onnx\]'"):
        classifiers.load_classifier(path, K)


@pytest.fixture(scope="module")
def flax_folder(tmp_path_factory):
    """A tiny vision transformer of K classes for pictures of 8 pixels, and the network saved."""
    folder = tmp_path_factory.mktemp("vit")
    with transformers_library("ViT", "") as library:
        config = library.ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_labels=K,
        )
        network = save_network(library.FlaxViTForImageClassification, config, folder)
        library.ViTImageProcessor(
            size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
        ).save_pretrained(folder)
    return folder, network


def test_flax_folder_is_read_with_its_preprocessing(flax_folder):
    folder, (network, params) = flax_folder
    images = pictures()
    resized = [Image.fromarray(x).resize((8, 8), Image.Resampling.BILINEAR) for x in images]
    pixels = (np.stack(resized) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    logits = jax.jit(lambda x: network(x, params=params).logits)(pixels.transpose(0, 3, 1, 2))
    expected = softmax(np.asarray(logits))
    assert np.ptp(expected, axis=0).min() > 1e-3
    found = classifiers.load_classifier(str(folder), K)(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bad_flax_folders_are_told(flax_folder, tmp_path):
    folder, _ = flax_folder
    with pytest.raises(InputError, match="is for 4 classes; expected the model's 5"):
        classifiers.load_classifier(str(folder), K + 1)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        classifiers.load_classifier(str(tmp_path), K)
    with transformers_library("BERT", "") as library:
        library.BertConfig(num_labels=K).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a bert; expected an"):
        classifiers.load_classifier(str(tmp_path), K)


def test_demo_judge_gives_the_class_of_photos():
    scenes = [world.draw_scene(3, index, size=96) for index in range(8)]
    photos = np.stack([scene.image for scene in scenes])
    found = classifiers.load_demo_judge()(photos)
    judge, params = load_judge(JUDGE_CHECKPOINT)
    logits = np.asarray(jax.jit(judge.apply)({"params": params}, to_float(photos)).label)
    np.testing.assert_allclose(found, softmax(logits), atol=1e-5)
    assert np.mean(found.argmax(axis=1) == [scene.label for scene in scenes]) >= 0.75
