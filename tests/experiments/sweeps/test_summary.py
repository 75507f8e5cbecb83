import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.app.run_folder import read_results
from experiments.sweeps import plots, summary
from experiments.sweeps.summary import DISTANCE, Row, Sweep
from maskgit_jax.errors import InputError

SETTINGS = {
    "num_steps": [16],
    "layers": ["early"],
    "lambda_s": [0.9],
    "guidance_scale": [0.3],
    "paper_weight": [1.0],
}


def plan_of(num_sketches: int, seeds: list[int], **settings) -> dict:
    settings = SETTINGS | settings
    names = ["fish", "<b>house</b>", "cup", *map(str, range(3, num_sketches))][:num_sketches]
    combinations = int(np.prod([len(values) for values in settings.values()]))
    return {
        "model": "demo",
        "divergence": "jeffreys",
        "num_proposals": 1,
        "dtype": "float32",
        "settings": settings,
        "sketches": [
            {"path": f"drawings/{i}.png", "label": i, "class_name": name, "digest": "0"}
            for i, name in enumerate(names)
        ],
        "seeds": seeds,
        "rejection": {"num_candidates": 1, "score": None},
        "num_items": combinations * num_sketches * len(seeds),
    }


def lines_of(plan: dict, *measures: str) -> list[dict]:
    """All items of a plan, with random measures."""
    rng = np.random.default_rng(0)
    every = itertools.product(
        plan["seeds"], enumerate(plan["sketches"]), itertools.product(*plan["settings"].values())
    )
    return [
        {
            "item": item,
            "file": f"pictures/{item:06d}.png",
            "sketch": sketch["path"],
            "sketch_file": f"sketches/{index:03d}.png",
            "label": sketch["label"],
            "class_name": sketch["class_name"],
            **dict(zip(plan["settings"], setting, strict=True)),
            "seed": seed,
            **{name: round(rng.uniform(), 6) for name in (DISTANCE, *measures)},
        }
        for item, (seed, (index, sketch), setting) in enumerate(every)
    ]


def write_sweep(folder: Path, plan: dict, lines: list[dict]) -> epath.Path:
    """The folder of a sweep with these items, and a torn line at the end."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "results.jsonl").write_text("".join(map(to_line, lines)) + '{"item": 99, "fi')
    for name in {line[key] for line in lines for key in ("file", "sketch_file")}:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)
    return epath.Path(folder)


def to_line(record: dict) -> str:
    return json.dumps(record) + "\n"


def by_hand(lines: list[dict], name: str, **setting) -> tuple[float, float]:
    """Mean and standard error over sketches, each of which has the same number of items."""
    chosen = [line for line in lines if setting.items() <= line.items()]
    files = sorted({line["sketch_file"] for line in chosen})
    table = np.array([[x[name] for x in chosen if x["sketch_file"] == file] for file in files])
    means = table.mean(axis=1)
    return means.mean(), means.std(ddof=1) / np.sqrt(len(files))


def test_means_and_errors_go_over_sketches_of_averaged_seeds():
    plan = plan_of(3, [0, 1], lambda_s=[1.0, 0.5], layers=["late", "1,3"])
    lines = lines_of(plan, "class_probability")
    rows = summary.summarise(Sweep(plan, lines[::-1]))
    settings = [(row.setting["layers"], row.setting["lambda_s"]) for row in rows]
    assert settings == [("late", 1.0), ("late", 0.5), ("1,3", 1.0), ("1,3", 0.5)]
    for row, (layers, value) in zip(rows, settings, strict=True):
        assert (row.num_items, row.num_sketches) == (6, 3)
        assert list(row.measures) == [DISTANCE, "class_probability"]
        for name, found in row.measures.items():
            assert found == pytest.approx(by_hand(lines, name, layers=layers, lambda_s=value))


def test_unequal_sketches_count_alike_and_one_alone_goes_over_its_items():
    plan = plan_of(2, [0, 1, 2])
    lines = lines_of(plan)
    first = [line for line in lines if line["sketch"].endswith("0.png")]
    (row,) = summary.summarise(Sweep(plan, first))
    x = np.array([line[DISTANCE] for line in first])
    assert row.measures[DISTANCE] == pytest.approx((x.mean(), x.std(ddof=1) / 3**0.5))

    other = next(line for line in lines if line not in first)
    (row,) = summary.summarise(Sweep(plan, [*first, other]))
    means = x.mean(), other[DISTANCE]
    error = abs(means[0] - means[1]) / 2  # s / √2 of two values
    assert row.measures[DISTANCE] == pytest.approx((np.mean(means), error))

    (row,) = summary.summarise(Sweep(plan, [other]))
    assert row.measures[DISTANCE][0] == other[DISTANCE] and np.isnan(row.measures[DISTANCE][1])


def test_measures_are_all_numbers_but_settings_and_names():
    plan = plan_of(2, [0, 1])
    lines = lines_of(plan, "clip_text")
    more = {"candidate": 3, "scores": [1.0, 2.0], "ids_digest": "ab", "kept": True}
    lines = [line | more for line in lines]
    lines[1]["score"] = 0.25
    (row,) = summary.summarise(Sweep(plan, lines))
    assert list(row.measures) == [DISTANCE, "clip_text", "score"]
    assert row.measures["score"][0] == 0.25
    assert summary.realism_measure([row]) == "clip_text"
    assert np.isnan(summary.measure(row, "class_probability")).all()


def test_csv_has_a_row_for_each_setting():
    plan = plan_of(2, [0], lambda_s=[0.0, 1.0], layers=["1,3"])
    lines = lines_of(plan, "clip_text")
    del lines[1]["clip_text"], lines[3]["clip_text"]
    rows = list(csv.DictReader(io.StringIO(summary.to_csv(summary.summarise(Sweep(plan, lines))))))
    errors = [f"{DISTANCE}_error", "clip_text_error"]
    names = [*SETTINGS, "num_items", "num_sketches", DISTANCE, errors[0], "clip_text", errors[1]]
    assert list(rows[0]) == names
    for row, value in zip(rows, (0.0, 1.0), strict=True):
        assert (row["layers"], float(row["lambda_s"]), row["num_items"]) == ("1,3", value, "2")
        found = float(row[DISTANCE]), float(row[errors[0]])
        assert found == pytest.approx(by_hand(lines, DISTANCE, lambda_s=value), rel=1e-5)
    assert float(rows[0]["clip_text"]) == pytest.approx(
        by_hand(lines[::2], "clip_text", lambda_s=0.0)[0], rel=1e-5
    )
    assert rows[1]["clip_text"] == "" and rows[1]["clip_text_error"] == ""


def test_null_is_a_number_that_is_not_known(tmp_path):
    """As a network that scores gives them; the other settings' figures are whole."""
    plan = plan_of(2, [0], lambda_s=[0.0, 1.0])
    lines = lines_of(plan, "class_probability")
    lines[1] |= {"class_probability": None}
    sweep = summary.read_sweep(write_sweep(tmp_path, plan, lines))
    assert np.isnan(sweep.results[1]["class_probability"])
    whole, broken = summary.summarise(sweep)
    assert whole.measures["class_probability"] == pytest.approx(
        by_hand(lines, "class_probability", lambda_s=0.0)
    )
    assert np.isnan(broken.measures["class_probability"]).all()
    assert np.isfinite(broken.measures[DISTANCE]).all()
    row = list(csv.DictReader(io.StringIO(summary.to_csv([whole, broken]))))[1]
    assert row["class_probability"] == row["class_probability_error"] == ""
    assert plots.num_digits([np.nan]) == 3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_front_is_what_nothing_beats(points):
    rows = [Row({}, 1, 1, {DISTANCE: (x, 0.0), "clip_text": (y, 0.0)}) for x, y in points]
    rows.append(Row({}, 1, 1, {DISTANCE: (-1.0, 0.0)}))  # no realism known: on no front
    front = summary.pareto_front(rows, "clip_text")
    found = [(row.measures[DISTANCE][0], row.measures["clip_text"][0]) for row in front]
    unbeaten = {
        (x, y)
        for x, y in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    assert found == sorted(unbeaten)


def test_results_of_all_hosts_in_order_without_torn_lines(tmp_path):
    plan = plan_of(2, [0, 1, 2])
    lines = lines_of(plan)
    folder = write_sweep(tmp_path, plan, lines[1::3])
    for host in range(2):
        text = "".join(map(to_line, lines[3 * (1 - host) :: 4]))
        (tmp_path / f"results.{host}-of-2.jsonl").write_bytes(text.encode() + b'{"x": "\xce')
    expected = [line for i, line in enumerate(lines) if i % 3 == 1 or i in (0, 3, 4)]
    assert read_results(folder, "item") == expected
    assert summary.read_sweep(folder) == (plan, expected)


def test_folders_that_are_no_sweep_s(tmp_path):
    plan = plan_of(1, [0])
    (line,) = lines_of(plan)
    folder = write_sweep(tmp_path / "good", plan, [line])
    results = tmp_path / "good" / "results.jsonl"

    def message() -> str:
        with pytest.raises(InputError) as error:
            summary.read_sweep(folder)
        return str(error.value)

    for text, words in (
        ("", "no item is finished"),
        (to_line(line)[:-1], "no item is finished"),
        ("{'item': 1}\n", "is damaged"),
        ("[1]\n", "is damaged"),
        (to_line({"item": 0}), "item 0 has no file"),
        (to_line({k: v for k, v in line.items() if k != "lambda_s"}), "has no lambda_s"),
        (to_line(line | {"lambda_s": 0.7}), "lambda_s 0.7, which plan.json lacks"),
    ):
        results.write_text(text)
        assert words in message()
    for text in ("{", "[]", "{}", json.dumps({k: v for k, v in plan.items() if k != "seeds"})):
        (tmp_path / "good" / "plan.json").write_text(text)
        assert "is no sweep's plan" in message()
    folder = epath.Path(tmp_path / "nowhere")
    assert "plan.json cannot be read (No such file or directory)" in message()
    folder = epath.Path(results)
    assert "plan.json cannot be read (Not a directory)" in message()
