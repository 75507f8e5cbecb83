"""The report of a sweep, finished or not.

    python -m experiments.report --sweep_dir=sweep

Writes into the folder: `summary.csv`, means and standard errors of each setting; `plots`, as PNG
and PDF; `report.html`, one file with all that is to be seen, which needs no other.
`experiments.sweep` writes the same at its end.
"""

import dataclasses
from pathlib import Path

from etils import epath

from experiments.app import cli
from experiments.sweeps.page import check_packages, write_report
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which sweep."""

    sweep_dir: str | None = knob(None, "Folder of a sweep: its --output_dir.", kind=Path)


def main(flags: Flags) -> None:
    """Writes a sweep's report."""
    if flags.sweep_dir is None:
        raise InputError("--sweep_dir is missing: give the folder of a sweep, its --output_dir")
    check_packages()
    folder = epath.Path(flags.sweep_dir)
    write_report(folder)
    print(f"look at {folder / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, Flags)
