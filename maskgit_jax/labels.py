"""Class labels as people give them: a number, or any of a class's names."""

import difflib
import functools
import importlib.resources
import re
from collections.abc import Sequence

from maskgit_jax.errors import InputError

_LIST_ALL_UP_TO = 20
_MOST_SUGGESTIONS = 5


@functools.cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 ImageNet-1k classes in the usual order (ILSVRC 2012, synset ids ascending).

    Each entry holds the WordNet lemmas of its synset, separated by commas: entry 0 is
    "tench, Tinca tinca". Two entries can share a lemma ("crane": 134, a bird; 517, a machine).
    """
    file = importlib.resources.files("maskgit_jax").joinpath("data/imagenet_classes.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())


def find_label(text: str | int, class_names: Sequence[str]) -> int:
    """The class that `text` means: an index into `class_names`, without class-token offset.

    `text` is a number (an int or digits) or a name: the whole entry, or one of the synonyms that
    commas separate in it. Case, spaces, underscores and hyphens do not matter.

    Raises InputError when the number is out of range, when no class or several classes have the
    name, and when the text is empty.
    """
    count = len(class_names)
    # Before the name, whose key would drop the sign of -1. 18 digits: int() refuses thousands.
    if isinstance(text, int) or re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text):
        label = int(text)
        if not 0 <= label < count:
            raise InputError(f"class number {label} is out of range: give 0 to {count - 1}")
        return label

    key = _key(text)
    if not key:
        raise InputError(
            f"the label is empty: give a class number from 0 to {count - 1} or a name such as "
            f"{_synonyms(class_names[0])[0]!r}"
        )
    table = _labels_by_key(tuple(class_names))
    found = table.get(key, {})
    if not found:
        raise InputError(f"unknown label {text!r}: {_advice(text, table, class_names)}")
    if len(found) > 1:
        meanings = ", ".join(f"{label} ({class_names[label]})" for label in found)
        raise InputError(f"label {text!r} names several classes; give the number: {meanings}")
    return next(iter(found))


def _synonyms(entry: str) -> list[str]:
    return [name.strip() for name in entry.split(",")]


def _key(name: str) -> str:
    """A name without capitals, spaces, hyphens, underscores: "Mud-Turtle " gives "mudturtle"."""
    return re.sub(r"[\s_-]+", "", name.casefold())


@functools.lru_cache(maxsize=4)
def _labels_by_key(class_names: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """For each key, the classes that have such a name, each with that name."""
    table: dict[str, dict[int, str]] = {}
    for label, entry in enumerate(class_names):
        for name in (*_synonyms(entry), entry):
            table.setdefault(_key(name), {})[label] = name
    return table


def _advice(text: str, table: dict[str, dict[int, str]], class_names: Sequence[str]) -> str:
    """How to mend an unknown name: the names near it, else what there is to choose from."""
    # First the names with the very word: in edits, "bear" is far from "American black bear".
    word = re.compile(rf"(?<!\w){re.escape(text.strip())}(?!\w)", re.IGNORECASE)
    near = [
        (name, label)
        for label, entry in enumerate(class_names)
        for name in _synonyms(entry)
        if word.search(name)
    ]
    for key in difflib.get_close_matches(_key(text), [key for key in table if "," not in key]):
        near += [(name, label) for label, name in table[key].items()]
    if near:
        first_names: dict[int, str] = {}
        for name, label in near:
            first_names.setdefault(label, name)
        few = [f"{name!r} ({label})" for label, name in first_names.items()][:_MOST_SUGGESTIONS]
        return f"did you mean {', '.join(few)}?"
    if len(class_names) <= _LIST_ALL_UP_TO:
        listed = ", ".join(f"{name!r} ({label})" for label, name in enumerate(class_names))
        return f"the classes are {listed}"
    return (
        f"give a number from 0 to {len(class_names) - 1} or a class name such as "
        f"{_synonyms(class_names[0])[0]!r}"
    )
