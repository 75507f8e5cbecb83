import os

import numpy as np
import pytest
from PIL import Image

from experiments.app.drawings import label_of_path, read_drawings
from maskgit_jax.errors import InputError

CLASSES = ("tench, Tinca tinca", "mud turtle", "house")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("house.png", 2),
        ("mud_turtle_2.png", 1),
        ("Mud-Turtle_by_ann.png", 1),
        ("tinca_tinca_1.png", 0),
        ("house/0001.png", 2),
        ("mud_turtle/1.png", 1),
        ("mud_turtle/house_1.png", 1),
    ],
)
def test_names_say_the_class(path, label, tmp_path):
    assert label_of_path(tmp_path / path, CLASSES) == label


def test_a_number_is_no_class(tmp_path):
    with pytest.raises(InputError, match=r"tench_1\.png"):
        label_of_path(tmp_path / "0001.png", CLASSES)


def draw(path, grey: int) -> None:
    """A square of 8 pixels on white paper of 16."""
    path.parent.mkdir(exist_ok=True)
    paper = np.full((16, 16), 255, np.uint8)
    paper[4:12, 4:12] = grey
    Image.fromarray(paper).save(path)


def read(source, label=None):
    return read_drawings("sketches", str(source), CLASSES, 16, label=label)


def names(found) -> list[str]:
    return [os.path.basename(drawing.path) for drawing in found]


def test_a_pattern_finds_drawings_in_order(tmp_path):
    for name, grey in (("house_2.png", 10), ("house_1.png", 20), ("tench.png", 30)):
        draw(tmp_path / name, grey)
    found = read(tmp_path / "*.png")
    assert names(found) == ["house_1.png", "house_2.png", "tench.png"]
    assert [drawing.label for drawing in found] == [2, 2, 0]
    for drawing, grey in zip(found, (20, 10, 30), strict=True):
        np.testing.assert_array_equal(drawing.image[4:12, 4:12], np.full((8, 8, 3), grey))
    assert [drawing.label for drawing in read(tmp_path / "*.png", label="1")] == [1, 1, 1]


def test_a_folder_is_all_pictures_in_it_and_one_file_is_itself(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for place, name in enumerate(("house_2.PNG", "house_1.bmp", "tench/1.gif", "house_3.tif")):
        draw(folder / name, 10 * place)
    (folder / "notes.txt").write_text("no picture")
    draw(folder / "grid.png", 90)
    # What runs have written there is no drawing: the same command can be given again.
    draw(folder / "out" / "sample_000.png", 100)
    (folder / "out" / "plan.json").touch()
    assert names(read(folder)) == ["house_1.bmp", "house_2.PNG", "house_3.tif", "1.gif"]
    assert [drawing.label for drawing in read(folder)] == [2, 2, 2, 0]
    assert [drawing.label for drawing in read(folder, label="tench")] == [0] * 4
    assert names(read(folder / "house_3.tif")) == ["house_3.tif"]
    with pytest.raises(InputError, match="no file found; expected a folder of pictures"):
        read(tmp_path / "none")


def test_names_that_are_no_text_are_read(tmp_path):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/house_\xff.png")
    draw(tmp_path / "house.png", 1)
    os.rename(tmp_path / "house.png", source)
    (drawing,) = read(tmp_path)
    assert drawing.path == source and drawing.record(CLASSES)["path"] == source


def test_a_csv_names_one_sketch_for_two_classes(tmp_path):
    draw(tmp_path / "drawings" / "a.png", 1)
    table = tmp_path / "list.csv"
    table.write_text("label,sketch,note\nhouse,drawings/a.png,x\n0,drawings/a.png,\n")
    assert [drawing.label for drawing in read(table)] == [2, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sketch\na.png\n", "expected sketch,label"),
        ("sketch,label\na.png,\n", "line 2: no label"),
        ("sketch,label\n,house\n", "line 2: no sketch"),
        ("sketch,label\na.png,castle\n", "line 2: unknown label 'castle'"),
        ("sketch,label\na.png,house\na.png,2\n", "same drawing"),
        ("sketch,label\nb.png,house\n", "b.png"),
        ("sketch,label\n", "no file found"),
    ],
)
def test_a_faulty_csv_is_named(tmp_path, text, words):
    draw(tmp_path / "a.png", 1)
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=words):
        read(table)


def test_other_faults_are_named(tmp_path):
    draw(tmp_path / "house_1.png", 1)
    draw(tmp_path / "house_2.png", 1)
    with pytest.raises(InputError, match="same drawing"):
        read(tmp_path / "*.png")
    with pytest.raises(InputError, match="no file found"):
        read(tmp_path / "*.jpg")
    with pytest.raises(InputError, match="leave --label out"):
        read(tmp_path / "list.csv", label="house")
