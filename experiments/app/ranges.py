"""Lists of numbers as flags take them: numbers and ranges with commas, 3,5-7."""

import re
from collections.abc import Callable

from maskgit_jax.errors import InputError
from maskgit_jax.knobs import SEEDS, Knob

MOST = 10**6
"""Numbers that a list may have."""


def read_ranges(flag: str, text: str, one: str, read: Callable[[str], int]) -> list[int]:
    """The numbers that a flag's text means.

    Args:
      flag: its name.
      text: its value.
      one: what a number stands for.
      read: a number, and each end of a range, from its text.

    Raises:
      InputError: a range that falls, a number twice, too many, or what `read` raises.
    """
    numbers: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*(\d{1,10})\s*-\s*(\d{1,10})\s*", part)
        first, last = (read(end) for end in (bounds.groups() if bounds else (part, part)))
        if first > last:
            raise InputError(f"--{flag}={text}: the range {part.strip()} falls")
        if len(numbers) + last - first >= MOST:
            raise InputError(f"--{flag}={text}: expected {MOST} at most")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--{flag}={text} names a {one} twice")
    return numbers


def read_seeds(text: str, first: int) -> list[int]:
    """The seeds that --seeds means: a number alone counts them from `first` on, a list names them.

    Raises:
      InputError: none, too many, one out of range, or a list and a `first` other than 0.
    """
    seed, count = Knob("", int, **SEEDS), Knob("", int, 1, MOST)
    expected = "a number of seeds, such as 4, or a list of them, such as 0,3,7 or 0-9"

    def read(part: str) -> int:
        number = int(part) if re.fullmatch(r"\s*\d{1,10}\s*", part) else -1
        if not seed.allows(number):
            raise InputError(f"--seeds={text}: expected {expected}, each {seed.expected}")
        return number

    if not re.fullmatch(r"\s*\d+\s*", text):
        if first:
            raise InputError(
                f"--seed={first} with --seeds={text}: a list says which; leave one out"
            )
        return read_ranges("seeds", text, "seed", read)
    number = read(text)
    if not count.allows(number):
        raise InputError(f"--seeds={text}: expected {expected}; {MOST} at most")
    seeds = range(first, first + number)
    if not seed.allows(seeds[-1]):
        raise InputError(f"--seeds={text}: the last would be {seeds[-1]}, above {SEEDS['high']}")
    return list(seeds)
