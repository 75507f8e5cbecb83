"""`experiments.attention`: its figures on hand-made inputs, and the command itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.studies import attention, attention_figures
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.config import write_config
from maskgit_jax.images import read_image
from maskgit_jax.networks.stacked import AttentionInputs
from tests.commands import ROOT, assert_refused
from tests.conftest import released

few_values = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@given(few_values, few_values)
def test_area_under_curve_counts_pairs_ties_half(near, far):
    wins = sum((n < f) + 0.5 * (n == f) for n in near for f in far)
    area = attention.area_under_curve(np.array(near, float), np.array(far, float))
    assert area == pytest.approx(wins / (len(near) * len(far)))


def own_pairs(count):
    return np.repeat(np.arange(count)[:, None], 2, axis=1)


def test_separation_at_its_ends():
    pairs = attention.other_pairs(np.zeros(12, int), np.random.default_rng(0), same_class=True)
    perfect = attention.separation(np.zeros(12), np.ones(len(pairs)), pairs)
    assert perfect == (1.0, 0.0, 1.0, 12 * 8)
    blind = attention.separation(np.ones(12), np.ones(len(pairs)), pairs)
    assert blind == (0.5, 0.0, 1.0, 12 * 8)
    nothing = attention.separation(np.ones(12), np.ones(0), np.zeros((0, 2), int))
    assert nothing.num_far == 0
    assert math.isnan(nothing.auc) and math.isnan(nothing.standard_error)


def test_the_standard_error_is_the_spread_over_worlds():
    """150 worlds of 40 scenes; sketches and photos that are far from all make pairs depend."""
    areas, errors = [], []
    for world in range(150):
        rng = np.random.default_rng(world)
        photos = rng.normal(size=(40, 3))
        sketches = photos + 0.5 * rng.normal(size=(40, 3))
        oddness = 0.7 * rng.normal(size=(2, 40))

        def distance(pairs, photos=photos, sketches=sketches, oddness=oddness):
            i, j = pairs.T
            return np.linalg.norm(sketches[i] - photos[j], axis=1) + oddness[0][i] + oddness[1][j]

        pairs = attention.other_pairs(np.zeros(40, int), rng, same_class=False)
        result = attention.separation(distance(own_pairs(40)), distance(pairs), pairs)
        areas.append(result.auc)
        errors.append(result.standard_error)
    assert 0.75 < np.mean(areas) < 0.9
    # 150 values know their spread to 6 %.
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.25)


def test_other_pairs_are_other_scenes_each_once():
    labels = np.array([0] * 12 + [1] * 3 + [2])
    for same_class, counts in ((True, [8] * 12 + [2] * 3 + [0]), (False, [8] * 16)):
        pairs = attention.other_pairs(labels, np.random.default_rng(0), same_class=same_class)
        assert np.all(pairs[:, 0] != pairs[:, 1])
        assert len({tuple(pair) for pair in pairs}) == len(pairs)
        np.testing.assert_array_equal(np.bincount(pairs[:, 0], minlength=16), counts)
        equal = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        assert np.all(equal) if same_class else not np.all(equal)


def test_pixel_distances():
    rng = np.random.default_rng(0)
    sketches, photos = rng.integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
    pairs = np.array([[0, 2], [1, 1]])
    grey = np.stack([sketches, photos]).astype(float).mean(axis=-1) / 255
    expected = [np.sqrt(np.mean((grey[0, i] - grey[1, j]) ** 2)) for i, j in pairs]
    distances = attention.pixel_distances(sketches, photos, pairs)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_the_centre_token_is_in_the_middle_of_the_drawing():
    sketch = np.full((48, 48, 3), 250, np.uint8)
    sketch[10:20, 33] = 20  # rows 10 to 19
    sketch[0, 0] = 240  # paper
    assert attention.centre_token(sketch, 12) == (15 // 4, 33 // 4)
    assert attention.centre_token(np.full((48, 48, 3), 9, np.uint8), 12) == (6, 6)


@pytest.fixture(scope="module")
def tiny_attention(tiny):
    tokens = np.random.default_rng(0).integers(0, 24, (5, 17))
    tokens[:, 0] = 24 + np.arange(5)
    return attention.attention_inputs(tiny, tokens.astype(np.int32))


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def maps_of(inputs: AttentionInputs, picture: int) -> np.ndarray:
    """[L, H, S, S] in float64."""
    queries, keys = (np.asarray(side[picture], np.float64) for side in inputs)
    return softmax(np.einsum("lqhd,lkhd->lhqk", queries, keys))


@pytest.mark.parametrize("head", [None, 1])
def test_token_attention_is_the_token_s_row_without_the_class_token(tiny_attention, head):
    one = jax.tree.map(lambda side: side[3], tiny_attention)
    maps = attention.token_attention(one, 6, head)
    rows = maps_of(tiny_attention, 3)[:, :, 7, 1:]
    expected = rows.mean(axis=1) if head is None else rows[:, head]
    np.testing.assert_allclose(maps, expected, rtol=1e-4)


def test_pair_distances_are_jeffreys_over_image_tokens(tiny_attention):
    """More pairs than fit in a batch, so that one is filled up."""
    pairs = np.array([[i, j] for i in range(5) for j in range(5)])[:23]
    sketches = jax.tree.map(lambda side: side[::-1], tiny_attention)
    distances = attention.pair_distances(sketches, tiny_attention, pairs, "jeffreys")
    assert distances.shape == (23, 3)
    for (i, j), distance in zip(pairs, distances, strict=True):
        p, q = maps_of(sketches, i), maps_of(tiny_attention, j)
        divergence = np.sum((p - q) * (np.log(p) - np.log(q)), axis=-1)
        expected = divergence[:, :, 1:].mean(axis=(1, 2))
        np.testing.assert_allclose(distance, expected, rtol=1e-3, atol=1e-6)


def hottest_pixels(picture, colours="viridis") -> int:
    import matplotlib

    top = np.array(matplotlib.colormaps[colours](1.0)[:3]) * 255
    return int(np.sum(np.all(np.abs(picture - top) < 2, axis=-1)))


def test_each_map_is_drawn_in_its_panel_and_scaled_by_its_layer():
    """Counts what has a layer's highest colour: tokens of 1/16 of a panel."""
    blank = np.full((16, 16, 3), 255, np.uint8)

    def draw(photo_tokens, sketch_tokens):
        maps = np.zeros((2, 2, 16))
        # The second layer has a tenth of the attention: it must look the same.
        for side, tokens in zip(maps, (photo_tokens, sketch_tokens), strict=True):
            side[:, tokens] = np.array([[0.5], [0.05]])
        maps = maps.reshape(2, 2, 4, 4)
        return attention_figures.draw_attention(blank, blank, *maps, (0, 0), "title")

    bar = hottest_pixels(draw([], []))
    one, two, four = (
        hottest_pixels(draw(*tokens)) - bar for tokens in (([5], []), ([5], [6]), ([5, 9], [6, 7]))
    )
    assert one > 2 * 40**2
    assert two == pytest.approx(2 * one, rel=0.1) and four == pytest.approx(4 * one, rel=0.1)


def test_distances_have_a_panel_per_layer_and_one_for_their_mean():
    blank = np.full((16, 16, 3), 255, np.uint8)
    distances = np.zeros((3, 4, 4))
    distances[1, 2, 2] = 7.0  # hottest in layer 1 and in the mean
    picture = attention_figures.draw_distances(blank, blank, distances, "title")
    alone = attention_figures.draw_distances(blank, blank, 0 * distances, "title")
    hottest = hottest_pixels(picture, "cividis") - hottest_pixels(alone, "cividis")
    distances[0, 0, 0] = 3.0
    picture = attention_figures.draw_distances(blank, blank, distances, "title")
    more = hottest_pixels(picture, "cividis") - hottest_pixels(alone, "cividis")
    assert hottest > 2 * 40**2 and more == pytest.approx(1.5 * hottest, rel=0.1)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.attention", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_demo_scenes_give_pictures_and_a_table(tmp_path):
    result = run("--num_scenes=12", "--token=3,4", "--head=0", "--output_dir=here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "here" / "auc.json").read_text())
    assert record["settings"]["num_scenes"] == 12
    names = [*(f"layer {i}" for i in range(8)), "mean of layers", "pixels (grey levels)"]
    assert list(record["rows"]) == names
    rows = list(record["rows"].values())
    for row in rows:
        assert row["num_any_class"] == 12 * 8
        assert row["num_same_class"] < 12 * 8
    own = [row["own_photo"] for row in rows]
    assert own[8] == pytest.approx(np.mean(own[:8]))
    # What the method rests on.
    assert rows[8]["auc_any_class"]["value"] > 0.6
    table = result.stdout.splitlines()
    assert len(table) == 13 and "| AUC any class " in table[0]
    assert f"{rows[3]['auc_any_class']['value']:.3f} ± " in table[5]
    for name in ("attention.png", "distance.png"):
        assert min(read_image(tmp_path / "here" / name).shape[:2]) > 500


@pytest.fixture(scope="module")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    """A model of other classes than the demo world's, and a picture of its size."""
    folder = tmp_path_factory.mktemp("tiny")
    write_config(folder / "config.json", tiny.config)
    checkpoint.write_checkpoint(folder / "maskgit_checkpoint", released(tiny))
    checkpoint.write_checkpoint(folder / "tokenizer_checkpoint", tiny.tokenizer_params)
    colours = np.random.default_rng(0).integers(0, 256, (8, 10, 3))
    Image.fromarray(colours.astype(np.uint8)).save(folder / "picture.png")
    return folder


@pytest.mark.slow
def test_files_and_another_model_give_pictures_alone(tiny_folder, tmp_path):
    picture = f"{tiny_folder}/picture.png"
    files = f"--photo={picture}", f"--sketch={picture}", "--label=b"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "auc.json").write_text("an earlier run's")
    result = run(f"--model={tiny_folder}", *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("no table: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "attention.png",
        "distance.png",
    ]


def bad_flags(folder: Path, tiny_folder: Path) -> dict[str, tuple[list[str], str]]:
    """Flags and the words that the error line must have."""
    (folder / "file").write_text("")
    Image.fromarray(np.uint8(255 * (1 - np.eye(8)))).save(folder / "distance.png")
    photo, sketch = f"--photo={folder}/distance.png", f"--sketch={folder}/distance.png"
    return {
        "token outside": (["--token=12,0"], "each from 0 to 11"),
        "token word": (["--token=middle"], "--token=middle"),
        "token negative": (["--token=-1,2"], "ROW,COLUMN"),
        "scene": (["--scene_index=-1"], "--scene_index=-1"),
        "seed": (["--seed=-1"], "--seed=-1"),
        "few scenes": (["--num_scenes=9"], "expected a whole number from 10 to 1000"),
        "head": (["--head=6"], "expected 0 to 5"),
        "no sketch": ([photo, "--label=fish"], "--sketch missing"),
        "no photo": ([sketch, "--label=fish"], "--photo missing"),
        "no label": ([photo, sketch], "--label missing"),
        "label alone": (["--label=fish"], "--photo and --sketch missing"),
        "label": ([photo, sketch, "--label=fsh"], "'fish'"),
        "missing": ([sketch, "--photo=nowhere.png", "--label=fish"], "nowhere.png"),
        "model": (["--model=nowhere"], "nowhere"),
        "scenes of another model": ([f"--model={tiny_folder}"], "give --photo"),
        "output": ([f"--output_dir={folder}/file/out"], "--output_dir"),
        "onto itself": ([photo, sketch, "--label=1", f"--output_dir={folder}"], "overwritten"),
        "divergence": (["--divergence=kl"], "jeffreys"),
        "no matplotlib": ([], "[evaluate]"),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tiny_folder, tmp_path):
    """All in one process: starting Python takes longer than the checks."""
    assert_refused(
        "attention",
        bad_flags(tmp_path, tiny_folder),
        cwd=tmp_path,
        prepare="if name == 'no matplotlib': sys.modules['matplotlib'] = None",
    )
    assert not (tmp_path / "out").exists()
