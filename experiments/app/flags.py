"""Command-line flags, made of the knobs of a command's `Flags` (`maskgit_jax/knobs.py`)."""

import dataclasses
import difflib
import os
import sys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.app.presets import read_preset
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import Knob, knob, knobs_of

_SPACE = " " * 6
_OF_PRESETS = "Settings that show no value have the model's own: the presets in its config.json.\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
    """What every command has."""

    compilation_cache: bool = knob(
        True, "Keep compiled programs for the next start, in MASKGIT_CACHE."
    )
    help: bool = knob(False, "Show this.")


class _Parser(flags.ArgumentParser):
    """Reads a flag's text; what is not allowed is a ValueError that says what is expected."""

    def __init__(self, declared: Knob, separator: str | None):
        super().__init__()
        self._declared, self._separator = declared, separator

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument  # a default
        if self._separator is None:
            return self._one(argument)
        values = [self._one(part.strip()) for part in argument.split(self._separator)]
        if len(set(values)) < len(values):
            raise ValueError("names a value twice")
        return values

    def _one(self, text: str) -> Any:
        declared = self._declared
        try:
            if declared.kind is Path:
                value: Any = os.path.expanduser(text)
            elif declared.kind is tuple:
                value = tuple(part.strip() for part in text.split(",") if part.strip())
            else:
                value = declared.kind(text)
        except ValueError:
            value = None
        if value is None or not declared.allows(value):
            raise ValueError(declared.refusal(value))
        return value


class _BooleanParser(flags.BooleanParser):
    """As absl's, with words of ours."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(argument)
        except ValueError:
            raise ValueError("expected true or false") from None


def parse(cls: type, argv: Sequence[str]) -> tuple[Any, bool]:
    """A command's settings from its command line, and whether compiled programs are kept.

    Args:
      cls: the command's `Flags`, a dataclass of knobs. Those that its `SEVERAL` names take several
        values, with commas between, `layers` with semicolons.
      argv: the command line, the command's name first.

    Raises:
      InputError: an unknown flag, a word that is no flag, or a value that is not allowed.
      SystemExit: after --help.
    """
    several = getattr(cls, "SEVERAL", ())
    known = knobs_of(cls, _Common)
    # The command's own first: --help shows them in this order.
    declared = {name: known[name] for name in (*cls.__annotations__, *known) if name in known}
    defaults = {f.name: f.default for each in (cls, _Common) for f in dataclasses.fields(each)}
    separators = {name: ";" if name == "layers" else "," for name in declared}
    values = flags.FlagValues()
    for name, each in declared.items():
        if each.kind is bool:
            values[name] = flags.BooleanFlag(name, defaults[name], each.help)
            values[name].parser = _BooleanParser()
        else:
            parser = _Parser(each, separators[name] if name in several else None)
            values[name] = flags.Flag(parser, None, name, defaults[name], each.help)
    try:
        rest = values(list(argv))
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, declared, 1)
        hint = f"did you mean --{near[0]}?" if near else "--help shows all"
        raise InputError(f"there is no --{error.flagname}: {hint}") from None
    except flags.Error as error:
        text = str(error).removeprefix("flag ").removeprefix("ERROR:: ")
        raise InputError(text) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: every setting is a flag, --name=value")
    if "preset" in declared and values["preset"].value is not None:
        for name, text in read_preset(values["preset"].value).items():
            # Sweeps alone have some of its flags, and take several values of others.
            takes = name in several or separators.get(name, ",") not in text
            if name in declared and not values[name].present and takes:
                values[name].parse(text)
    given = {name: values[name].value for name in declared}
    if given.pop("help"):
        print(_usage(cls, declared, defaults, several))
        raise SystemExit(0)
    keep = given.pop("compilation_cache")
    return cls(**given), keep


def _usage(
    cls: type, declared: dict[str, Knob], defaults: dict[str, Any], several: Collection[str]
) -> str:
    """What --help shows: the module's docstring, then all flags."""
    lines = [sys.modules[cls.__module__].__doc__ or ""]
    if defaults.get("num_steps", 0) is None:
        lines.append(_OF_PRESETS)
    lines.append("Flags:")
    for name, each in declared.items():
        default, text = defaults[name], each.help
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if isinstance(default, float):
            default = f"{default:g}"
        shown = f"  --{name}"
        if each.kind is bool:
            text += f" On; --no{name} turns it off." if default else ""
        elif each.choices or each.kind not in (str, Path):
            text += f" ({each.expected})"
        if default not in (None, "") and each.kind is not bool:
            shown += f"={default}"
        if name in several:
            text += f" Several: with {'semicolons' if name == 'layers' else 'commas'} between."
        lines += [shown, *textwrap.wrap(text, 92, initial_indent=_SPACE, subsequent_indent=_SPACE)]
    return "\n".join(lines)
