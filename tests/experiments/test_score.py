"""Sets of pictures in folders and .npz files, and the command that scores them."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.app.picture_sets import ImageSet, open_image_set, write_adm_npz
from experiments.metrics import measures, scoring
from maskgit_jax.errors import InputError
from maskgit_jax.images import save_png, to_float, to_uint8
from tests.commands import ROOT, run_each


def pictures(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, side, side + 2, 3), dtype=np.uint8)


def write_folder(folder: Path, images: np.ndarray) -> Path:
    (folder / "deeper").mkdir(parents=True)
    for i, image in enumerate(images):
        save_png(folder / ("deeper" if i % 2 else "") / f"sample_{i:03d}.png", image)
    return folder


def read_all(image_set, batch_size: int) -> list[np.ndarray]:
    return list(image_set.batches(batch_size))


def test_adm_npz_written_in_batches_is_what_numpy_reads(tmp_path):
    images = pictures(7)
    write_adm_npz(tmp_path / "a.npz", (images[i : i + 3] for i in (0, 3, 6)), 7)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], images)
    np.savez(tmp_path / "b.npz", images)
    for name in ("a.npz", "b.npz"):
        found = open_image_set(tmp_path / name)
        assert (found.count, found.size) == (7, (16, 18))
        batches = read_all(found, 3)
        assert [len(batch) for batch in batches] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(batches), images)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.npz"
    write_adm_npz(target, [pictures(2)], 2)
    before = target.read_bytes()

    def broken():
        yield pictures(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_adm_npz(target, broken(), 2)
    with pytest.raises(ValueError, match="1 pictures were given, 2 announced"):
        write_adm_npz(target, [pictures(1)], 2)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
    with pytest.raises(InputError, match="cannot be written"):
        write_adm_npz(tmp_path / "no" / "a.npz", [pictures(1)], 1)


def test_a_folder_holds_its_pictures_by_path_without_the_grid(tmp_path):
    images = pictures(5)
    folder = write_folder(tmp_path / "set", images)
    save_png(folder / "grid.png", pictures(1, side=40)[0])
    (folder / "results.jsonl").write_text("{}")
    found = open_image_set(folder)
    assert (found.count, found.size) == (5, (16, 18))
    order = [1, 3, 0, 2, 4]  # "deeper" before "sample"
    np.testing.assert_array_equal(np.concatenate(read_all(found, 2)), images[order])


def test_sets_that_are_none_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    mixed = write_folder(tmp_path / "mixed", pictures(2))
    save_png(mixed / "z.png", pictures(1, side=20)[0])
    np.savez(tmp_path / "float.npz", pictures(2).astype(np.float32))
    np.savez(tmp_path / "flat.npz", pictures(2)[..., 0])
    np.savez(tmp_path / "named.npz", images=pictures(2))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name, message in (
        ("empty", "holds no pictures"),
        ("float.npz", "arr_0 is float32"),
        ("flat.npz", r"uint8 \[2, 16, 18\], expected uint8 \[N, H, W, 3\]"),
        ("named.npz", "holds no array arr_0"),
        ("cut.npz", "cannot be read"),
        ("none.npz", "none.npz does not exist"),
        ("none", "expected a folder of pictures or an .npz file"),
    ):
        with pytest.raises(InputError, match=message):
            open_image_set(tmp_path / name)
    with pytest.raises(InputError, match=r"z\.png is 22x20 pixels, .* is 18x16"):
        read_all(open_image_set(mixed), 8)


def test_a_damaged_array_is_said_to_be_so(tmp_path):
    file = io.BytesIO()
    np.save(file, pictures(4))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue()[:-100])
    found = open_image_set(tmp_path / "short.npz")
    with pytest.raises(InputError, match="cannot be read"):
        read_all(found, 4)


def test_export_and_bad_flags(tmp_path):
    folder = write_folder(tmp_path / "set", pictures(6))
    samples = f"--samples={folder}"
    cases = {"export": [samples, "--export=out.npz"], "nothing to do": [samples]}
    export, nothing = run_each("score", cases, cwd=tmp_path).values()
    assert export.status is None, export.errors
    with np.load(tmp_path / "out.npz") as file:
        assert file["arr_0"].shape == (6, 16, 18, 3)
    assert nothing.status == 2 and nothing.output == ""
    assert nothing.errors.startswith("score: --inception is missing")
    assert nothing.errors.count("\n") == 1


# The command with another network: features are mean colours, logits an eighth of them.
COLOURS = """
import numpy as np
from experiments import score
from experiments.app import cli
from experiments.metrics import scoring
from experiments.metrics.inception import Inception

def embed(variables, images):
    assert variables == "weights" and len(images) == 4
    colours = np.asarray(images, np.float64).mean(axis=(1, 2))
    return Inception(colours, colours / 8)

score.load_inception, scoring.embed = lambda source: source, embed
cli.run(score.main, score.Flags)
"""


def test_scores_are_those_of_the_pictures(tmp_path):
    scale = np.random.default_rng(0).uniform(0.2, 1, (40, 1, 1, 3))
    images = (pictures(40) * scale).astype(np.uint8)
    samples, reference = images[:18] // 2 + 60, images[6:]
    np.savez(tmp_path / "samples.npz", samples)
    write_folder(tmp_path / "reference", reference)
    arguments = (f"--samples={tmp_path / 'samples.npz'}", f"--reference={tmp_path / 'reference'}")
    result = subprocess.run(
        [sys.executable, "-c", COLOURS, *arguments, "--inception=weights", "--batch_size=4"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    a, b = (x.mean(axis=(1, 2)) for x in (samples, reference))
    shares = np.exp(a / 8) / np.exp(a / 8).sum(axis=1, keepdims=True)
    inside, covered = measures.within_manifold(a, b), measures.within_manifold(b, a)
    expected = {
        "Inception Score": measures.inception_score(shares)[0],
        "FID": measures.frechet_distance(a, b)[0],
        "precision": inside.mean(),
        "recall": covered.mean(),
    }
    lines = result.stdout.splitlines()
    found = {line.split(":")[0]: float(line.split()[-3]) for line in lines[:4]}
    assert found == {name: pytest.approx(value, rel=1e-2) for name, value in expected.items()}
    assert expected["recall"] < 0.5 < expected["precision"]
    assert lines[4] == "18 samples, 34 of the reference"


def test_round_trip_is_the_tokenizer_s(tiny):
    images = np.random.default_rng(1).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    given = ImageSet(5, (8, 8), lambda n: (images[i : i + n] for i in range(0, 5, n)))
    found = np.concatenate(list(scoring.round_trip(given, tiny).batches(2)))
    expected = [
        to_uint8(np.asarray(tiny.decode(tiny.encode(jnp.asarray(to_float(image))[None]))[0]))
        for image in images
    ]
    assert np.abs(found.astype(int) - np.stack(expected)).max() <= 1
    with pytest.raises(InputError, match="--samples are 9x8: the model's pictures are 8x8"):
        scoring.round_trip(given._replace(size=(9, 8)), tiny)
