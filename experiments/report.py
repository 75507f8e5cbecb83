"""The report of a sweep, finished or not.

    python -m experiments.report --sweep_dir=sweep

Writes into the folder: `summary.csv`, means and standard errors of each setting; `plots`, as PNG
and PDF; `report.html`, one file with all that is to be seen, which needs no other.
`experiments.sweep` writes the same at its end.
"""

from absl import flags
from etils import epath

from experiments.app import cli
from experiments.sweeps.page import check_packages, write_report
from maskgit_jax.errors import InputError

_SWEEP_DIR = flags.DEFINE_string("sweep_dir", None, "Folder of a sweep: its --output_dir.")


def main() -> None:
    """Writes the report of the folder that the flag names."""
    if _SWEEP_DIR.value is None:
        raise InputError("--sweep_dir is missing: give the folder of a sweep, its --output_dir")
    check_packages()
    folder = epath.Path(_SWEEP_DIR.value)
    write_report(folder)
    print(f"look at {folder / 'report.html'}")


if __name__ == "__main__":
    cli.run(main)
