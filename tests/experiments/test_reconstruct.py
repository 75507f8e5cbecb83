"""Reconstruction from a random share of the ids."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.studies.reconstruction import random_mask
from tests.commands import ROOT, assert_refused


def test_masks_have_their_share_and_grow_with_it():
    masks = [random_mask(ratio, 144, [0, 5, 1]) for ratio in (0, 0.25, 0.5, 1)]
    assert [mask.sum() for mask in masks] == [0, 36, 72, 144]
    for small, large in itertools.pairwise(masks):
        assert not (small & ~large).any()
    assert (random_mask(0.5, 144, [0, 5, 0]) != masks[2]).sum() > 30
    every = np.mean([random_mask(0.25, 144, [0, i, 0]) for i in range(400)], axis=0)
    np.testing.assert_allclose(every, 0.25, atol=0.1)


@pytest.mark.slow
def test_less_is_reconstructed_from_fewer_ids(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.reconstruct", "--num_images=3", "--num_steps=2"),
            *("--ratios=0.95,0.25", "--output_dir=out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out/reconstruction.json").read_text())["rows"]
    psnr, distance, diversity = (
        [row[name]["value"] for row in rows.values()]
        for name in ("psnr", "perceptual", "diversity")
    )
    assert list(rows) == ["0 masked", "0.25 masked", "0.95 masked"]
    assert psnr[0] > psnr[1] > psnr[2] + 3
    assert distance[0] < distance[1] < distance[2]
    assert diversity[0] == 0 < diversity[1] < diversity[2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "columns",
        "grid.png",
        "reconstruction.json",
        "reconstruction.jsonl",
        "reconstruction.md",
        "reconstruction.png",
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tmp_path):
    cases = {
        "zero": (["--ratios=0,0.5"], "--ratios=0,0.5"),
        "above": (["--ratios=1.5"], "--ratios=1.5"),
        "word": (["--ratios=half"], "--ratios=half"),
        "folder": ([f"--images={tmp_path}"], "found 0 pictures"),
        "model": (["--model=imagenet512"], "--model=imagenet512"),
    }
    assert_refused("reconstruct", cases, cwd=tmp_path)
