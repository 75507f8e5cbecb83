"""The notebooks: the files as they are kept, and what they do on a CPU with few steps."""

import ast
import base64
import configparser
import io
import json
import os
import re
import sys
import types
from dataclasses import fields
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from guidance.structure import StructureSettings
from maskgit_jax.labels import find_label
from maskgit_jax.model import model_config
from tests.commands import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
NAMES = ("imagenet", "quick_start", "sweep")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    (found,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return found


def pictures(notebook: NotebookNode) -> list[np.ndarray]:
    """The pictures among the outputs, in order."""
    found = [
        base64.b64decode(output["data"]["image/png"])
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in found]


def text(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebooks_are_these():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_tell_nothing_of_a_machine(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size <= 300_000
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    size = 0
    for cell in code_cells(notebook):
        assert set(cell.metadata) <= {"tags"}
        for output in cell.outputs:
            assert output.output_type != "error"
            # Without its kernel, a widget is nothing.
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
            encoded = output.get("data", {}).pop("image/png", "")  # may hold a path by chance
            size += len(base64.b64decode(encoded))
    assert size <= 200_000
    assert not re.search(r"/(home|root|tmp|work|Users)\b", nbformat.writes(notebook))
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))


@pytest.mark.parametrize("name", NAMES)
def test_they_use_what_is_offered_in_python(name):
    cells = code_cells(nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT))
    program = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    imported = [
        module
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
        if module.split(".")[0] in ("maskgit_jax", "guidance", "experiments")
    ]
    readers = ["experiments.sweeps.summary"] if name == "sweep" else ["guidance", "maskgit_jax"]
    assert sorted(imported) == sorted([*readers, "maskgit_jax.images"])


@pytest.mark.parametrize(
    ("name", "extra"), [("imagenet", "[cuda]"), ("quick_start", ""), ("sweep", "[sweep]")]
)
def test_colab_installs_from_the_address_in_the_metadata(name, extra, monkeypatch):
    """Asks for the address where setup.cfg has none; installs nothing twice, or elsewhere."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    known = metadata.get("metadata", "url", fallback="")
    cell = code_cells(nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT))[0]
    program = TransformerManager().transform_cell(cell.source)
    installed, asked = [], []

    def answer(prompt):
        asked.append(prompt)
        return "https://example.org/project"

    def run():
        shell = types.SimpleNamespace(run_line_magic=lambda *line: installed.append(line))
        values = {"get_ipython": lambda: shell, "input": answer}
        exec(program, values)
        assert values["REPOSITORY"] == known
        (_, line) = installed[-1] if installed else ("", "")
        return line.format_map(values)

    assert run() == ""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert run() == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    address = known or "https://example.org/project"
    assert run() == f'install -q "maskgit_jax{extra} @ git+{address}"'
    assert len(asked) == (not known)


def test_the_imagenet_notebook_asks_for_the_released_settings():
    notebook = nbformat.read(FOLDER / "imagenet.ipynb", nbformat.NO_CONVERT)
    values: dict = {}
    exec(parameters_cell(notebook).source, values)
    config = model_config(values["MODEL"])
    assert find_label(values["LABEL"], config.class_names) == 35
    assert (values["LAYERS"], values["NUM_STEPS"], values["LAMBDA_S"]) == (
        "1,3,16,20,21,22",
        500,
        0.9,
    )
    preset = config.presets["masksketch"]
    assert [values[name] for name in ("LAYERS", "NUM_STEPS", "LAMBDA_S")] == [
        preset[name] for name in ("layers", "num_steps", "lambda_s")
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where one notebook finds what another has compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, cache, monkeypatch):
    """Runs a notebook with other parameters, and a cell at its end that sets `findings`."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)

    def run(name: str, parameters: str, check: str) -> tuple[NotebookNode, dict]:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)
        place = notebook.cells.index(parameters_cell(notebook)) + 1
        notebook.cells.insert(place, nbformat.v4.new_code_cell(parameters))
        check += "\nimport json\nprint(json.dumps(findings | {'python': sys.executable}))"
        notebook.cells.append(nbformat.v4.new_code_cell(check))
        resources = {"metadata": {"path": str(tmp_path)}}
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=300, coalesce_streams=True, resources=resources
        )
        client.execute()  # raises where a cell does
        findings = json.loads(text(notebook.cells[-1]))
        assert os.path.samefile(findings["python"], sys.executable)
        return notebook, findings

    return run


@pytest.mark.slow
def test_quick_start(run):
    there = "(slider, 0.0), (class_menu, 'cup'), (sketch_menu, 'star')"
    back = "(sketch_menu, 'mushroom'), (class_menu, 'mushroom'), (slider, 0.8)"
    notebook, findings = run(
        "quick_start",
        "NUM_STEPS, NUM_PICTURES = 2, 2",
        "sheets = [sheet.value.hex()]\n"
        f"for control, value in ({there}, {back}):\n"
        "    control.value = value\n"
        "    sheets.append(sheet.value.hex())\n"
        "from maskgit_jax.sampling import batched\n"
        "findings = {'sheets': sheets, 'compilations': batched._advance._cache_size()}",
    )
    shown = pictures(notebook)
    # A cell is 96 pixels in a frame of one, with gaps of two.
    assert [picture.shape for picture in shown] == [
        (102, 102, 3),
        (102, 302, 3),
        (302, 302, 3),
        (202, 302, 3),
        (102, 302, 3),
    ]
    np.testing.assert_array_equal(shown[1][:, :102], shown[0])
    # The sketch, and the first picture after each of two steps; below, what is to be sampled again
    # in grey: tokens of eight pixels a side, none in the end.
    above, below = (shown[3][top : top + 96] for top in (3, 103))
    first, last = slice(103, 199), slice(203, 299)
    np.testing.assert_array_equal(above[:, last], shown[1][3:99, first])
    np.testing.assert_array_equal(below[:, last], above[:, last])
    grey = (below[:, first] == 150).all(-1)
    assert 0 < grey.mean() < 1
    np.testing.assert_array_equal(grey, grey[::8, ::8].repeat(8, 0).repeat(8, 1))
    np.testing.assert_array_equal(below[:, first][~grey], above[:, first][~grey])
    assert np.ptp(shown[1][3:99, 103:199].reshape(-1, 3), axis=0).min() > 50
    sheets = findings["sheets"]
    assert len(set(sheets[:4])) == 4
    assert sheets == sheets[::-1]
    assert findings["compilations"] == 1


@pytest.mark.slow
def test_sweep(run, tmp_path):
    notebook, findings = run(
        "sweep",
        "SKETCHES = SKETCHES.replace('*', 'c[ou]*')\n"
        "LAMBDA_S, GUIDANCE_SCALE, NUM_STEPS = '0,1', '0,0.3', 2",
        "findings = {'rows': len(rows), 'best': best.setting}",
    )
    printed = [text(cell) for cell in code_cells(notebook)]
    assert any("8 items: 2 sketches × 2 lambda_s × 2 guidance_scale" in each for each in printed)
    assert sum("1 of 1 batches are finished" in each for each in printed) == 1
    folder = tmp_path / "out" / "sweep"
    # The second run decoded nothing.
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    items = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert (len(items), findings["rows"]) == (8, 4)

    (table,) = [each for each in printed if each.startswith("λ_s   guidance")]
    distances, probabilities, errors = {}, {}, {}
    for line in table.splitlines()[1:]:
        lambda_s, scale, distance, _, _, probability, *_ = line.split()
        setting = float(lambda_s), float(scale)
        group = [item for item in items if (item["lambda_s"], item["guidance_scale"]) == setting]
        distances[setting] = np.mean([item["structure_distance"] for item in group])
        ends = [item["class_probability"] for item in group]
        probabilities[setting], errors[setting] = np.mean(ends), abs(ends[0] - ends[1]) / 2
        assert float(distance) == pytest.approx(distances[setting], abs=6e-4)
        assert float(probability) == pytest.approx(probabilities[setting], abs=6e-4)
    top = max(probabilities, key=probabilities.get)
    good = [
        each
        for each in distances
        if probabilities[top] - probabilities[each] <= 2 * np.hypot(errors[top], errors[each])
    ]
    best = min(good, key=distances.get)
    assert (float(findings["best"]["lambda_s"]), float(findings["best"]["guidance_scale"])) == best
    scatter, sheet, curves = pictures(notebook)
    assert sheet.shape == (202, 202, 3)
    assert min(scatter.std(), curves.std()) > 10  # something is drawn


@pytest.mark.slow
def test_imagenet(run):
    notebook, findings = run(
        "imagenet",
        "MODEL, LABEL, LAYERS, NUM_STEPS, NUM_PICTURES = 'demo', 'ball', 'all', 2, 2",
        "own = guidance.sketch(model, sketch, 0, num_samples=2, num_steps=2, lambda_s=0.9)\n"
        "from maskgit_jax.sampling import batched\n"
        "findings = {'pictures': pictures.tolist(), 'own': own.images.tolist()}\n"
        "findings |= {'settings': own.settings, 'compilations': batched._advance._cache_size()}",
    )
    # λ_s as released; guidance, mask rates, temperatures, the rest: the model's presets.
    preset = model_config("demo").presets["masksketch"]
    changed = {"label": 0, "seed": 0, "kernel": "jnp", "lambda_s": 0.9, "num_steps": 2}
    assert findings["settings"] == preset | changed
    values = [findings["settings"][knob.name] for knob in fields(StructureSettings)[1:]]
    assert values == [0.9, 0.3, 1.0, 0.05, 0, 0, 1, 1, 0, 0, 0.6]
    assert (findings["pictures"], findings["compilations"]) == (findings["own"], 1)
    sketch, sheet = pictures(notebook)
    assert sketch.shape == (96, 96, 3)
    # Gaps of eight, frames of one.
    assert sheet.shape == (114, 326, 3)
    np.testing.assert_array_equal(sheet[9:105, 9:105], sketch)
    first, second = np.array(findings["pictures"], np.uint8)
    np.testing.assert_array_equal(sheet[9:105, 115:211], first)
    assert np.abs(first.astype(int) - second).mean() > 1
