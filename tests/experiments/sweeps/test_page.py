import base64
import csv
import io
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from experiments.sweeps import plots
from experiments.sweeps.page import check_packages, write_report
from experiments.sweeps.plots import choose_layout
from experiments.sweeps.summary import DISTANCE, Row, Sweep, measure, pareto_front, summarise
from maskgit_jax.errors import InputError
from tests.commands import ROOT
from tests.experiments.sweeps.test_summary import lines_of, plan_of, write_sweep

REALISM = "class_probability"


def rows_of(*measures: str, **settings) -> list[Row]:
    plan = plan_of(3, [0, 1], **settings)
    return summarise(Sweep(plan, lines_of(plan, *measures)))


class Page(HTMLParser):
    """What a browser makes of a page: its text, its tags and their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(html)
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.text += " " if tag in ("td", "th") else ""
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data

    def pictures(self) -> list[Image.Image]:
        uris = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        assert len(uris) == self.tags.count("img")
        pictures = []
        for uri in uris:
            kind, data = uri.split(",")
            assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
            pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return pictures


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    """The report of a sweep of which a seventh is missing, with one picture lost."""
    plan = plan_of(
        2, [0, 1], lambda_s=[0.0, 0.5, 1.0], guidance_scale=[0.0, 2.0], layers=["early", "1,3"]
    )
    lines = lines_of(plan, REALISM)[:41]
    folder = write_sweep(tmp_path_factory.mktemp("sweep") / "out", plan, lines)
    (folder / lines[5]["file"]).unlink()
    write_report(folder)
    return Path(folder)


def test_report_needs_no_other_file(unfinished):
    page = Page((unfinished / "report.html").read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert name not in ("src", "href") or (tag == "img" and value.startswith("data:image/"))
    style = page.text[: page.text.index("Sweep of demo", 20)]
    assert "url(" not in style and "@import" not in style


def test_unfinished_report_says_so_and_has_all_sections(unfinished):
    page = Page((unfinished / "report.html").read_text())
    assert "Not finished: 41 of 48 items." in page.words
    assert "41 pictures: 12 settings, 2 sketches, 2 seeds." in page.words
    for title in ("Settings", "Pareto front", "Extremes", "From sketch to pictures"):
        assert title in page.words
    # Plots; 6 ends of each kind of each layers, beside sketches; contact sheets and their sketches.
    num_plots, num_pairs, num_cells = 5, 24, 41
    missing = [("span", "class", "none")]
    num_lost = sum(entry in missing for entry in page.attributes)
    pictures = page.pictures()
    in_sheets = num_cells + 7 + 2  # with the cells of items that are not finished
    assert len(pictures) + num_lost == num_plots + 2 * num_pairs + in_sheets
    assert num_lost in (8, 9)  # 7 not finished; the lost one in its sheet and maybe among the ends
    assert all(picture.format in ("PNG", "JPEG") for picture in pictures)


def test_text_of_the_data_is_escaped(unfinished):
    html = (unfinished / "report.html").read_text()
    assert "<b>house" not in html and "&lt;b&gt;house&lt;/b&gt;" in html
    assert "<b>house</b>" in Page(html).words


def test_files_are_whole(unfinished):
    names = ["curves_class_probability", "curves_structure_distance", "scatter"]
    names += ["heat_class_probability", "heat_structure_distance"]
    files = sorted(path.name for path in (unfinished / "plots").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    for name in names:
        with Image.open(unfinished / "plots" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 300
        pdf = (unfinished / "plots" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF-") and pdf.endswith(b"%%EOF\n")
    with open(unfinished / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["num_items"]) for row in rows) == 41 and len(rows) == 12
    # Nothing half-written is left.
    assert not [path for path in unfinished.rglob("*.part")]


def test_tables_hold_the_summary(unfinished):
    with open(unfinished / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    words = Page((unfinished / "report.html").read_text()).words
    table = words[words.index("All settings") :]
    for row in rows:
        cells = [row["layers"], f"{float(row['lambda_s']):g}", f"{float(row['guidance_scale']):g}"]
        mean, error = float(row[DISTANCE]), float(row[f"{DISTANCE}_error"])
        assert " ".join([*cells, row["num_items"], f"{mean:.3f} ± {error:.3f}"]) in table
    best = min((row for row in rows if row["layers"] == "1,3"), key=lambda row: row[DISTANCE])
    assert f"{float(best[DISTANCE]):.3f}" in words[: words.index("Settings")]


def test_a_single_setting_has_no_plots_and_many_are_cut(tmp_path):
    plan = plan_of(1, [0])
    folder = write_sweep(tmp_path / "one", plan, lines_of(plan))
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "nothing is known of realism" in page.words and "Not finished" not in page.words
    # The sketch beside the picture; no farthest item; a contact sheet of one.
    assert len(page.pictures()) == 4 and list((folder / "plots").iterdir()) == []

    plan = plan_of(14, [0, 1], guidance_scale=[float(i) for i in range(1, 61)])
    folder = write_sweep(tmp_path / "many", plan, lines_of(plan)[: 60 * 15])
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "The first 50 of 60; all are in summary.csv" in page.words
    # 12 sketches × 12 values × 2 seeds, of which the second has the first sketch alone.
    assert f"{12 * 12 + 12} of the 900 pictures, of 12 of the 14 sketches" in page.words


def drawn(figure) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Points, and lower and upper ends of the error bars, of each line of each panel."""
    return [
        [
            (bars.lines[0].get_xydata(), np.array(bars.lines[2][0].get_segments())[:, :, 1])
            for bars in axes.containers
        ]
        for axes in figure.axes
    ]


def test_curves_are_the_summary():
    rows = rows_of(REALISM, lambda_s=[1.0, 0.0, 0.5], guidance_scale=[2.0, 0.6], layers=["a", "b"])
    layout = choose_layout(rows)
    assert layout == ("lambda_s", "guidance_scale", ("layers",), {})
    for name in (DISTANCE, REALISM):
        figure = plots.draw_curves(rows, layout, name)
        assert [axes.get_title() for axes in figure.axes] == ["layers a", "layers b"]
        for layers, lines in zip("ab", drawn(figure), strict=True):
            for scale, (points, ends) in zip((0.6, 2.0), lines, strict=True):
                line = [
                    next(
                        measure(row, name)
                        for row in rows
                        if row.setting
                        == row.setting
                        | {"layers": layers, "guidance_scale": scale, "lambda_s": value}
                    )
                    for value in (0.0, 0.5, 1.0)
                ]
                means, errors = np.array(line).T
                np.testing.assert_allclose(points, np.stack([[0, 0.5, 1], means], axis=1))
                np.testing.assert_allclose(ends, np.stack([means - errors, means + errors], axis=1))
    assert figure.get_supylabel() == "probability of the class"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0.6", "2"]
    lines = [bars.lines[0] for bars in figure.axes[0].containers]
    for get in ("get_color", "get_marker", "get_linestyle"):
        assert getattr(lines[0], get)() != getattr(lines[1], get)()


def test_heat_is_the_summary_and_its_best_is_bold():
    rows = rows_of(REALISM, lambda_s=[0.0, 0.5, 1.0], guidance_scale=[0.0, 0.6])
    rows = rows[:-1]  # one is not known yet
    for name, best in ((DISTANCE, min), (REALISM, max)):
        figure = plots.draw_heat(rows, choose_layout(rows), name)
        (axes,) = figure.axes
        means = [measure(row, name)[0] for row in rows]
        heat = np.append(means, np.nan).reshape(3, 2).T
        np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), heat)
        texts = [f"{mean:.3f}" for mean in heat.ravel()[:-1]] + ["–"]
        assert [text.get_text() for text in axes.texts] == texts
        bold = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
        assert bold == [f"{best(means):.3f}"]


def test_scatter_is_the_summary_and_circles_the_front():
    rows = rows_of(REALISM, lambda_s=[0.0, 0.5, 1.0], guidance_scale=[0.0, 0.6])
    front = pareto_front(rows, REALISM)
    (axes,) = plots.draw_scatter(rows, choose_layout(rows), REALISM, front).axes
    points = np.concatenate(
        [marks.get_offsets() for marks in axes.collections if marks.get_label()[0] != "_"]
    )
    expected = [(measure(row, DISTANCE)[0], measure(row, REALISM)[0]) for row in rows]
    np.testing.assert_allclose(
        points[np.lexsort(points.T)], np.array(expected)[np.lexsort(np.transpose(expected))]
    )
    assert axes.texts[0].get_text() == "1"
    assert axes.texts[0].xy == (measure(front[0], DISTANCE)[0], measure(front[0], REALISM)[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, None, (), {})),
        ({"layers": ["early", "late"]}, ("layers", None, (), {})),
        ({"num_steps": [8, 16, 32], "layers": ["a", "b"]}, ("num_steps", None, ("layers",), {})),
        (
            {"paper_weight": [0.0, 1.0], "num_steps": [8, 16, 32]},
            ("num_steps", "paper_weight", (), {}),
        ),
        (
            {"guidance_scale": [0.0, 1.0], "lambda_s": [0.0, 1.0], "num_steps": [8, 16, 32]},
            ("lambda_s", "guidance_scale", ("num_steps",), {}),
        ),
    ],
)
def test_layout_takes_the_settings_that_have_several_values(settings, expected):
    assert choose_layout(rows_of(**settings)) == expected


def test_settings_are_held_at_the_best_where_panels_would_be_too_many():
    rows = rows_of(
        num_steps=list(range(1, 8)), layers=["a", "b"], lambda_s=[0.0, 1.0], paper_weight=[0.0, 1.0]
    )
    layout = choose_layout(rows)
    best = min(rows, key=lambda row: measure(row, DISTANCE)[0])
    assert layout == ("lambda_s", "num_steps", ("paper_weight", "layers"), {})
    rows = [
        Row(row.setting | {"guidance_scale": scale}, 1, 1, row.measures)
        for row in rows
        for scale in (0.0, 1.0)
    ]
    held = {"num_steps": best.setting["num_steps"]}
    layout = choose_layout(rows)
    assert layout == ("lambda_s", "guidance_scale", ("paper_weight", "layers"), held)
    figure = plots.draw_curves(rows, layout, DISTANCE)
    shown = [row for row in rows if held.items() <= row.setting.items()]
    points = np.concatenate([points for lines in drawn(figure) for points, _ in lines])
    assert sorted(points[:, 1]) == sorted(measure(row, DISTANCE)[0] for row in shown)


def test_layers_alone_are_marks_without_a_line():
    rows = rows_of(layers=["late", "1,3", "all"])
    figure = plots.draw_curves(rows, choose_layout(rows), DISTANCE)
    (bars,) = figure.axes[0].containers
    means = [measure(row, DISTANCE)[0] for row in rows]
    np.testing.assert_array_equal(bars.lines[0].get_xydata(), np.stack([[0, 1, 2], means], axis=1))
    assert bars.lines[0].get_linestyle() == "None"
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["late", "1,3", "all"]


def test_names_that_are_no_text_are_shown(tmp_path):
    plan = plan_of(1, [0])
    plan["sketches"][0]["path"] = "fish_\udcff.png"
    write_report(write_sweep(tmp_path, plan, lines_of(plan)))
    assert "fish_\\udcff.png" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_written_is_one_error(tmp_path):
    plan = plan_of(1, [0])
    folder = write_sweep(tmp_path, plan, lines_of(plan))
    (tmp_path / "plots").write_text("")
    with pytest.raises(InputError, match="the report cannot be written"):
        write_report(folder)
    with pytest.raises(InputError, match="nowhere"):
        write_report(epath.Path(tmp_path / "nowhere"))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_packages_are_asked_for(package, monkeypatch):
    check_packages()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"needs the package {package}: pip install 'maskgit_jax\[sweep\]'"
    ):
        check_packages()


def test_the_command_needs_a_folder():
    result = subprocess.run(
        [sys.executable, "-m", "experiments.report"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2
    assert result.stderr.startswith("report: --sweep_dir is missing") and result.stdout == ""
