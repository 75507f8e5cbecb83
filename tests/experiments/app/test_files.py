import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.app.files import to_json
from experiments.app.tables import cell, read_figures

numbers = st.none() | st.floats() | st.integers() | st.text(max_size=3) | st.booleans()
values = st.recursive(
    numbers, lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x), max_leaves=9
)


def strict(text: str):
    """What a reader makes of it that keeps to the standard."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@given(values)
def test_any_value_is_json_and_only_numbers_that_are_not_finite_change(value):
    def expected(value):
        if isinstance(value, dict):
            return {name: expected(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [expected(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert strict(to_json(value)) == expected(value)


def test_numbers_of_numpy_and_tuples():
    row = {"mean": (np.float64(0.5), np.nan), "none": None, "best": (-np.inf,)}
    assert strict(to_json(row)) == {"mean": [0.5, None], "none": None, "best": [None]}


def test_figures_read_again_are_those_that_were_written():
    figures = {"iou": (0.5, 0.125), "alone": (0.25, math.nan), "missing": None, "exact": 24.0}
    again = read_figures(strict(to_json(figures)))
    np.testing.assert_equal(again, figures)
    cells = [cell(figure, 3) for figure in again.values()]
    assert cells == ["0.500 ± 0.125", "0.250 ± -", "-", "24.000"]
    assert cell((math.nan, math.nan), 3) == "-"
