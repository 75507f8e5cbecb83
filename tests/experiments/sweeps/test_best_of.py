"""Flags of best-of-N, and the scores that they stand for."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.app import digests
from experiments.app.flags import parse
from experiments.demo_world import world
from experiments.metrics import clip
from experiments.metrics.classifiers import load_classifier, load_demo_judge
from experiments.sweeps import best_of
from experiments.sweeps.best_of import best
from maskgit_jax.errors import InputError
from tests.experiments.metrics.test_classifiers import save_onnx
from tests.experiments.metrics.test_clip import save_clip

NAMES = ("a, b", "cat", "house fly, fly", "dog", "e")


def read(config, *arguments: str) -> best_of.BestOf:
    """What the flags stand for."""
    flags, _ = parse(best_of.BestOfFlags, ["test", *arguments])
    return best_of.read(flags, config)


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny.config, class_names=NAMES)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A CLIP's folder and a classifier's file."""
    folder = tmp_path_factory.mktemp("networks")
    save_clip(folder)
    return str(folder), save_onnx(folder / "a.onnx", ["N", 8, 8, 3], len(NAMES))


@pytest.fixture(scope="module")
def batch():
    """Pictures, sketches, labels, structure distances."""
    rng = np.random.default_rng(0)
    pictures, sketches = rng.integers(256, size=(2, 3, 8, 8, 3), dtype=np.uint8)
    return pictures, sketches, np.array([2, 0, 2]), rng.uniform(size=3)


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.sampled_from([np.nan, -np.inf, -1.5, 0.0, 2.0, np.inf]),
    )
)
def test_best_is_the_first_of_the_highest(scores):
    if np.isnan(scores).all(axis=1).any():
        with pytest.raises(InputError, match="NaN"):
            best(scores)
        return
    for row, winner in zip(scores, best(scores), strict=True):
        known = [score for score in row if not np.isnan(score)]
        assert row[winner] == max(known)
        assert max(known) not in row[:winner]


def test_without_flags_all_are_kept(config, batch):
    found = read(config)
    assert found.num_candidates == 1
    assert found.record == {"num_candidates": 1, "score": None, "classifier": None, "clip": None}
    measured = found.load()(*batch)
    assert measured.keys() == {"structure_distance"}
    np.testing.assert_array_equal(measured["structure_distance"], batch[3])


def test_structure_is_the_default_score(config, batch):
    found = read(config, "--keep=best_of_1000")
    assert (found.num_candidates, found.record["score"]) == (1000, "structure")
    measured = found.load()(*batch)
    assert measured.keys() == {"structure_distance", "score"}
    np.testing.assert_array_equal(measured["score"], -batch[3])


def test_classifier_score_is_the_probability_of_the_label(config, networks, batch):
    found = read(config, "--keep=best_of_2", "--score=classifier", f"--classifier={networks[1]}")
    assert found.record["classifier"] == networks[1]
    measured = found.load()(*batch)
    probabilities = load_classifier(networks[1], len(NAMES))(batch[0])
    expected = [probabilities[0, 2], probabilities[1, 0], probabilities[2, 2]]
    np.testing.assert_allclose(measured["score"], expected, rtol=1e-6)
    np.testing.assert_array_equal(measured["class_probability"], measured["score"])


def test_demo_world_has_a_judge(config):
    scenes = [world.draw_scene(3, index, size=96) for index in range(4)]
    photos, labels = np.stack([x.image for x in scenes]), np.array([x.label for x in scenes])
    demo = dataclasses.replace(
        config,
        transformer=dataclasses.replace(config.transformer, num_classes=len(world.CLASS_NAMES)),
        class_names=world.CLASS_NAMES,
    )
    found = read(demo)
    assert found.record["classifier"] == "judge"
    measured = found.load()(photos, photos, labels, np.zeros(4))
    assert measured.keys() == {"structure_distance", "class_probability"}
    expected = [row[label] for row, label in zip(load_demo_judge()(photos), labels, strict=True)]
    np.testing.assert_allclose(measured["class_probability"], expected, rtol=1e-6)
    assert np.median(expected) > 0.5


def test_clip_score_weighs_sketch_and_text(config, networks, batch, monkeypatch):
    loaded = clip.load_clip(networks[0])
    # One for all: each would compile anew.
    monkeypatch.setattr(clip, "load_clip", {networks[0]: loaded}.__getitem__)
    weights = "--clip_sketch_weight=0.5", "--clip_text_weight=2"
    named = f"--clip={networks[0]}", "--clip_prompt=my {} at dawn"
    found = read(config, "--keep=best_of_3", "--score=clip", *weights, *named)
    assert found.record == {
        "num_candidates": 3,
        "score": "clip",
        "classifier": None,
        "clip": networks[0],
        "clip_digest": digests.of_path(networks[0]),
        "clip_prompt": "my {} at dawn",
        "clip_sketch_weight": 0.5,
        "clip_text_weight": 2.0,
    }
    measured = found.load()(*batch)
    pictures, sketches = map(loaded.embed_pictures, batch[:2])
    fly, a = map(loaded.embed_text, ("my house fly at dawn", "my a at dawn"))
    to_sketch = (pictures * sketches).sum(axis=1)
    to_text = (pictures * [fly, a, fly]).sum(axis=1)
    np.testing.assert_allclose(measured["clip_sketch"], to_sketch, atol=1e-6)
    np.testing.assert_allclose(measured["clip_text"], to_text, atol=1e-6)
    np.testing.assert_allclose(measured["score"], 0.5 * to_sketch + 2 * to_text, atol=1e-6)
    assert abs(to_text[0] - pictures[0] @ a) > 1e-3

    # Asked for by name, CLIP measures whatever the score is.
    other = read(config, *named).load()(*batch)
    assert other.keys() == {"structure_distance", "clip_sketch", "clip_text"}
    np.testing.assert_allclose(other["clip_text"], to_text, atol=1e-6)


@pytest.mark.parametrize("name", ["file.onnx", "folder"])
def test_a_network_that_changed_under_its_path_has_another_record(config, tmp_path, name):
    path = tmp_path / name
    file = path if path.suffix else path / "deep" / "weights"
    file.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        (path / "config.json").write_text("{}")
    file.write_bytes(b"old")
    old = read(config, f"--classifier={path}").record
    assert old["classifier"] == str(path)
    assert read(config, f"--classifier={path}").record == old
    file.write_bytes(b"new")
    new = read(config, f"--classifier={path}").record
    assert {name for name in new if new[name] != old[name]} == {"classifier_digest"}
    file.write_bytes(b"old")
    assert read(config, f"--classifier={path}").record == old


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep=best"], "--keep=best: expected all, or best_of_N with N from 2 to 1000"),
        (["--keep=best_of_1"], "N from 2 to 1000"),
        (["--keep=best_of_1001"], "N from 2 to 1000"),
        (["--keep=best_of_8 "], "N from 2 to 1000"),
        (["--score=structure"], "--score without --keep=best_of_N changes nothing"),
        (["--clip_prompt=a {}"], "--clip_prompt without --score=clip or --clip changes nothing"),
        (["--keep=best_of_2", "--clip_text_weight=2"], "without --score=clip changes nothing"),
        (["--clip=x", "--clip_prompt=a {} and {}"], "expected {} once"),
        (["--clip=x", "--clip_prompt=a {name}"], "expected {} once"),
        (["--keep=best_of_2", "--score=classifier"], "needs a classifier of the model's classes"),
        (["--classifier=no.onnx"], "no classifier at 'no.onnx'"),
        (["--clip=./none"], "--clip=./none: no such folder"),
    ],
)
def test_bad_flags_are_told(config, arguments, message):
    with pytest.raises(InputError) as caught:
        read(config, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sketch", "text", "message"),
    [
        ("-1", "1", "--clip_sketch_weight=-1: expected a number from 0 to"),
        ("1", "nan", "--clip_text_weight=nan: expected a number from 0"),
        ("inf", "1", "--clip_sketch_weight=inf: expected a number from 0"),
        ("0", "0", "are both 0"),
    ],
)
def test_bad_weights_are_told(config, sketch, text, message):
    weights = f"--clip_sketch_weight={sketch}", f"--clip_text_weight={text}"
    with pytest.raises(InputError, match=message):
        read(config, "--keep=best_of_2", "--score=clip", *weights)
