"""Batches of one size, and the commands that decode in them: none compiles for its last batch."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.app.batches import fill, make_batches, map_rows
from tests.commands import ROOT, run_each

MODEL = f"--model={ROOT}/tests/golden/model"
SKETCHES = ROOT / "experiments" / "sketches"


@given(st.integers(1, 60), st.integers(1, 70), st.booleans())
def test_every_row_is_kept_once_in_batches_of_one_size(count, size, exact):
    found = make_batches(count, size, exact=exact)
    assert {len(batch.rows) for batch in found} == {len(found[0].rows)}
    assert len(found[0].rows) == size if exact else len(found[0].rows) <= min(size, count)
    assert len(found) == -(-count // size)
    kept = np.concatenate([batch.rows[: batch.count] for batch in found])
    np.testing.assert_array_equal(kept, np.arange(count))
    for batch in found:
        assert (batch.rows[batch.count :] == batch.rows[batch.count - 1]).all()
        assert batch.first == batch.rows[0]


def test_what_is_filled_up_is_dropped_again():
    np.testing.assert_array_equal(fill(3, 5), [0, 1, 2, 2, 2])
    seen, done = [], []

    def function(rows, weights):
        seen.append(rows.tolist())
        return {"sum": rows + weights, "pair": np.stack([rows, rows], axis=1)}

    rows, weights = np.arange(5), np.full(5, 10)
    result = map_rows(function, rows, weights, batch_size=2, progress=done.append)
    assert seen == [[0, 1], [2, 3], [4, 4]] and done == [2, 2, 1]
    np.testing.assert_array_equal(result["sum"], rows + 10)
    np.testing.assert_array_equal(result["pair"], np.stack([rows, rows], axis=1))
    map_rows(function, rows, weights, batch_size=8, exact=True)
    assert seen[3] == [0, 1, 2, 3, 4, 4, 4, 4]


STEPS = "--num_steps=2"
# A model's tokenizer is compiled anew for each that is loaded.
LOAD_ONCE = "{0}.load_model = globals().setdefault('load', functools.cache({0}.load_model))"
EDIT = (f"--image={SKETCHES}/house.png", "--label=1", STEPS)
RUNS = {
    "sketch": [(f"--sketch={SKETCHES}/fish.png", "--label=1", STEPS)],
    "edit": [
        (*EDIT, "--box=8,8,16,16"),
        (*EDIT, "--box=8,8,16,16", f"--sketch={SKETCHES}/fish.png"),
        (*EDIT, "--extend=right"),
    ],
    "stroke": [(*EDIT, "--auto=inversion")],
    "generate": [("--labels=3", STEPS)],
}


@pytest.mark.slow
@pytest.mark.parametrize("module", RUNS)
def test_a_smaller_last_batch_compiles_nothing(module, tmp_path):
    """Three samples, two at a time, after two; and a sample is the same in any of them."""
    cases = {}
    for number, flags in enumerate(RUNS[module]):
        for count in (2, 3):
            batch = f"--num_samples={count}", "--batch_size=2", f"--output_dir={number}_{count}"
            cases[f"{number}, {count} samples"] = [MODEL, *flags, *batch]
    compiled = {}
    owner = module if module == "generate" else "sys.modules['experiments.app.picture_job']"
    for name, ended in run_each(
        module, cases, cwd=tmp_path, prepare=LOAD_ONCE.format(owner)
    ).items():
        assert ended.status is None, ended.errors
        compiled[name] = ended.compiled
    assert compiled["0, 2 samples"]
    for number in range(len(RUNS[module])):
        assert compiled[f"{number}, 3 samples"] == []
        (two, three) = (sorted((tmp_path / f"{number}_{n}").glob("sample_*.png")) for n in (2, 3))
        assert len(two) == 2 and len(three) == 3
        for one, other in zip(two, three, strict=False):
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_guidance_0_in_the_grid_compiles_nothing(tmp_path):
    """Whether the other class's logits are computed is the sweep's choice, not each batch's."""
    shutil.copy(SKETCHES / "fish.png", tmp_path)
    flags = [MODEL, f"--sketches={tmp_path}/fish.png", "--label=1", STEPS, "--batch_size=1"]
    cases = {
        "guided": [*flags, "--guidance_scale=0.5,1", "--output_dir=guided"],
        "both": [*flags, "--guidance_scale=0,0.5", "--output_dir=both"],
        "unguided": [*flags, "--guidance_scale=0", "--output_dir=unguided"],
    }
    prepare = LOAD_ONCE.format("sweep") + "; sweep.page.write_report = lambda path: None"
    ended = run_each("sweep", cases, cwd=tmp_path, prepare=prepare)
    assert all(each.status is None for each in ended.values()), ended
    assert ended["guided"].compiled
    assert ended["both"].compiled == []
    # Without any guidance, the other class's logits are not computed.
    assert ended["unguided"].compiled
    for one, other in ((("both", 0), ("unguided", 0)), (("both", 1), ("guided", 0))):
        one, other = (tmp_path / name / f"pictures/{i:06d}.png" for name, i in (one, other))
        assert one.read_bytes() == other.read_bytes()
