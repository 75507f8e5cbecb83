"""Values of a command's flags under a name: the files of `experiments/flagfiles`."""

from importlib.resources import files

_FOLDER, _ENDING = files("experiments") / "flagfiles", ".flags"

PRESETS = tuple(
    sorted(x.name.removesuffix(_ENDING) for x in _FOLDER.iterdir() if _ENDING in x.name)
)
"""Their names."""


def read_preset(name: str) -> dict[str, str]:
    """The text of each flag that one of `PRESETS` sets."""
    lines = (_FOLDER / (name + _ENDING)).read_text(encoding="utf-8").splitlines()
    return dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))
