import pytest

from experiments.app.ranges import read_seeds
from maskgit_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "first", "seeds"),
    [
        ("1", 0, [0]),
        ("3", 7, [7, 8, 9]),
        ("0,3,7", 0, [0, 3, 7]),
        ("0-3", 0, [0, 1, 2, 3]),
        (" 9, 2 - 4", 0, [9, 2, 3, 4]),
        ("4294967295-4294967295", 0, [2**32 - 1]),
        ("1", 2**32 - 1, [2**32 - 1]),
    ],
)
def test_seeds_are_counted_or_listed(text, first, seeds):
    assert read_seeds(text, first) == seeds


@pytest.mark.parametrize(
    ("text", "first", "words"),
    [
        ("0", 0, "expected a number of seeds, such as 4, or a list"),
        ("two", 0, "such as 0,3,7 or 0-9, each a whole number from 0 to 4294967295"),
        ("1.5", 0, "expected a number of seeds"),
        ("", 0, "expected a number of seeds"),
        ("1,,2", 0, "expected a number of seeds"),
        ("0,4294967296", 0, "from 0 to 4294967295"),
        ("9-3", 0, "the range 9-3 falls"),
        ("1,0-1", 0, "names a seed twice"),
        ("0-1000000", 0, "--seeds=0-1000000: expected 1000000 at most"),
        ("1000001", 0, "1000000 at most"),
        ("2", 2**32 - 1, "the last would be 4294967296"),
        ("1,2", 5, "--seed=5 with --seeds=1,2"),
    ],
)
def test_bad_seeds_are_one_error(text, first, words):
    with pytest.raises(InputError, match=words):
        read_seeds(text, first)
