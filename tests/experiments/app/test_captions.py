import numpy as np

from experiments.app.captions import named_grid
from maskgit_jax.images import make_grid


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8))


def test_columns_of_one_class_have_its_name_above():
    images = pictures(6)
    sheet = named_grid(images, ["cat", "dog, hound"] * 3, columns=2)
    plain = make_grid(images, columns=2)
    np.testing.assert_array_equal(sheet[16:], plain)
    columns = [sheet[:16, first : first + 42] for first in (8, 58)]
    # Other words, and as long as three letters of six pixels.
    assert all((each.min(axis=(0, 2)) < 255).nonzero()[0].max() < 18 for each in columns)
    assert (columns[0] != columns[1]).any()
    other = named_grid(images, ["cat", "pig"] * 3, columns=2)
    np.testing.assert_array_equal(other[:16, 8:50], columns[0])


def test_other_rows_have_lines_of_their_own_and_one_class_has_none():
    images = pictures(5)
    sheet = named_grid(images, ["a", "b", "a", "b", "a"])
    plain = make_grid(images)
    # Three in a row: a b a, b a.
    assert sheet.shape == (plain.shape[0] + 2 * 16, plain.shape[1], 3)
    np.testing.assert_array_equal(sheet[16:66], plain[:50])
    np.testing.assert_array_equal(sheet[-50:], plain[-50:])
    np.testing.assert_array_equal(
        named_grid(images, ["a"] * 5, scale=2), make_grid(images, scale=2)
    )


def test_long_and_foreign_names_stay_inside():
    images = pictures(2)
    sheet = named_grid(images, ["a name of many letters", "дом"], columns=2)
    assert (sheet[:16, 50:58] == 255).all() and (sheet[:16, 8:50] < 255).any()
    assert (sheet[:16, 58:76] < 255).any() and (sheet[:16, 76:] == 255).all()
