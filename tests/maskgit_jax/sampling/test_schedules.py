import jax.numpy as jnp
import numpy as np
import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.sampling.schedules import SCHEDULE_NAMES, mask_ratio

FORMULAS = {
    "cosine": lambda r, n: np.cos(np.pi * r / 2),
    "cosine_alpha": lambda r, n: 1 - np.sin(np.pi * r / 2),
    "arccos": lambda r, n: np.arccos(r) / (np.pi / 2),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r * r,
    "cubic": lambda r, n: 1 - r * r * r,
    "square_root": lambda r, n: 1 - np.sqrt(r),
    "logarithmic": lambda r, n: -np.log(r) / np.log(n),
    "exponential": lambda r, n: 1 - n ** (r - 1),
}


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_formula_in_float64(name):
    ratio = np.linspace(0.01, 0.99, 50)
    expected = np.clip(FORMULAS[name](ratio, 144.0), 1e-6, 1)
    np.testing.assert_allclose(mask_ratio(name, jnp.float32(ratio), 144), expected, atol=2e-6)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_falls_from_all_to_almost_none(name):
    values = np.asarray(mask_ratio(name, jnp.linspace(0, 1, 101), 256))
    assert np.all(np.diff(values) <= 1e-6)
    assert values[0] >= 1 - 1 / 256 - 1e-6
    assert values[-1] == np.float32(1e-6)


def test_unknown_name_is_one_line():
    with pytest.raises(InputError, match=r"^unknown schedule 'cosin': expected one of cosine, "):
        check_schedule("cosin")
