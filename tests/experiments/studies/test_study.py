"""A study: its rows, its table, what a stopped one goes on with, and tables in Markdown files."""

import json
import sys

import numpy as np
import pytest

from experiments.studies import (
    attention,
    editing,
    reconstruction,
    scenes,
    sketches,
    steps,
    strokes,
)
from experiments.studies.study import Row, Study, grid, write_table
from maskgit_jax.errors import InputError
from tests.commands import ROOT

COLUMNS = {"iou": ("IoU", 3), "passes": ("passes", 0)}
SHOWN = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
MADE = {
    "first, a": Row({"iou": (0.5, 0.25), "passes": 24.0, "more": None}, SHOWN),
    "second, b": Row({"iou": (0.75, float("nan")), "passes": 48.0, "more": 1}),
    "third, b": Row({"iou": None, "passes": 96.0, "more": (1.0, 0.5)}),
}


def study(folder, made=None, record=None, **more):
    """A study that notes which rows it makes; "again" is "first, a" by construction."""

    def make(name):
        if made is not None:
            made.append(name)
        return MADE[name]

    rows = {name: lambda name=name: make(name) for name in MADE} | {"again": "first, a"}
    return Study("name", COLUMNS, rows, record or {"seed": 0, "steps": 8}, folder, **more)


def test_rows_are_made_once_and_written_as_they_are_finished(tmp_path, capsys):
    made = []
    assert list(study(tmp_path, made).run(["second, b"])) == ["second, b"]
    before = (tmp_path / "name.jsonl").read_text()
    (tmp_path / "name.jsonl").write_text(before + before[:30])  # killed while it wrote
    rows = study(tmp_path, made).run()
    # In the order of the study, whatever was made first.
    assert made == ["second, b", "first, a", "third, b"] and list(rows) == [*MADE, "again"]
    capsys.readouterr()
    again = study(tmp_path, made).run()
    assert len(made) == 3
    np.testing.assert_equal(again, rows)
    np.testing.assert_array_equal(again["first, a"].shown, SHOWN)
    assert again["second, b"].shown is None

    lines = [json.loads(line) for line in (tmp_path / "name.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["second, b", "first, a", "third, b"]
    assert all(line["record"] == {"seed": 0, "steps": 8} for line in lines)
    results = json.loads((tmp_path / "name.json").read_text())
    assert results["settings"] == {"seed": 0, "steps": 8}
    assert results["rows"]["first, a"] == results["rows"]["again"]
    assert results["rows"]["second, b"] == {
        "iou": {"value": 0.75, "standard_error": None},
        "passes": 48.0,
        "more": 1,
    }
    assert capsys.readouterr().out == (
        "| pictures  | IoU           | passes |\n"
        "| --------- | ------------- | ------ |\n"
        "| first, a  | 0.500 ± 0.250 | 24     |\n"
        "| second, b | 0.750 ± -     | 48     |\n"
        "| third, b  | -             | 96     |\n"
        "| again     | 0.500 ± 0.250 | 24     |\n"
    )


def test_rows_may_share_a_label(tmp_path):
    study(tmp_path, heading="rule", label=lambda name: name.split(", ")[-1]).run()
    assert (tmp_path / "name.md").read_text() == (
        "| rule | IoU | passes |\n"
        "| --- | --- | --- |\n"
        "| a | 0.500 ± 0.250 | 24 |\n"
        "| b | 0.750 ± - | 48 |\n"
        "| b | - | 96 |\n"
        "| again | 0.500 ± 0.250 | 24 |\n"
    )


def test_rows_of_other_settings_or_damaged_ones_are_refused(tmp_path):
    study(tmp_path).run()
    for record, words in (
        ({"seed": 0, "steps": 9}, "name.jsonl was made by other flags: steps was 8, is 9"),
        ({"seed": 0}, "steps was 8, is not known"),
        ({"seed": 0, "steps": 8, "new": [1]}, r"new was not known, is \[1\]"),
    ):
        with pytest.raises(InputError, match=words):
            study(tmp_path, record=record)
    (tmp_path / "name.jsonl").write_text('{"name": "first, a"}\n')
    with pytest.raises(InputError, match="is damaged: give another --output_dir"):
        study(tmp_path)


def test_without_a_folder_nothing_is_kept():
    made = []
    study(None, made).run()
    study(None, made).run()
    assert made == 2 * list(MADE)


def test_a_table_in_a_markdown_file_is_written_anew(tmp_path, monkeypatch):
    path = tmp_path / "docs.md"
    other = "<!-- other: begin () -->\nkept\n<!-- other: end -->\n"
    path.write_text(
        f"# Title\n\n{other}\n<!-- name: begin (old) -->\nold\n<!-- name: end -->\nend\n"
    )
    monkeypatch.setattr(
        sys, "argv", ["x/study.py", "--rows=a b", f"--docs={path}", "--output_dir=out", "--seed=1"]
    )
    study(None, docs=path).run(["first, a"])
    assert path.read_text() == (
        f"# Title\n\n{other}\n"
        "<!-- name: begin (python -m experiments.study '--rows=a b' --seed=1) -->\n\n"
        "| pictures | IoU | passes |\n| --- | --- | --- |\n| first, a | 0.500 ± 0.250 | 24 |\n"
        "| again | 0.500 ± 0.250 | 24 |\n\n"
        "<!-- name: end -->\nend\n"
    )
    written = path.read_bytes()
    study(None, docs=path).run(["first, a"])
    assert path.read_bytes() == written
    made = []
    (tmp_path / "none.md").write_text("no marks")
    for missing in ("none.md", "nowhere.md"):
        with pytest.raises(InputError, match=rf"--docs=.*{missing}"):
            study(None, made, docs=tmp_path / missing)
    assert made == []
    with pytest.raises(InputError, match="<!-- twice: begin"):
        path.write_text(2 * "<!-- twice: begin () --><!-- twice: end -->")
        write_table(path, "twice", None)


@pytest.mark.parametrize(
    ("file", "name", "columns"),
    [
        ("demo_model", "evaluation", scenes.COLUMNS),
        ("demo_model", "drawings", sketches.DRAWING_COLUMNS),
        ("editing", "inpainting", editing.COLUMNS),
        ("editing", "outpainting", editing.COLUMNS),
        ("editing", "reconstruction", reconstruction.COLUMNS),
        ("maskgit_edit", "strokes", strokes.COLUMNS),
        ("steps", "steps", steps.COLUMNS),
        ("attention", "auc", attention.COLUMNS),
    ],
)
def test_the_tables_in_docs_are_those_of_their_studies(file, name, columns):
    path = ROOT / "docs" / f"{file}.md"
    write_table(path, name, None)
    between = path.read_text().split(f"<!-- {name}: begin")[1].split(f"<!-- {name}: end")[0]
    rows = [line for line in between.splitlines() if line.startswith("|")]
    assert len(rows) >= 4
    assert {row.count(" | ") for row in rows} == {len(columns)}


def test_a_grid_has_its_rows_and_enlarges_small_pictures():
    image = grid([SHOWN, SHOWN[::-1]])
    assert image.shape == (2 * (96 + 10) + 8, 3 * (96 + 10) + 8, 3)
