"""Compile every unit ahead of time: a ninja file that runs one nvcc per unit in parallel.

Runs while a wheel is built with ``FLASHMLA_HUB_AOT=1``, or by hand from a checkout:

    python -m backends.hopper.aot FOLDER

Neither torch nor the hub is imported.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools.command.build_py import build_py

from .compilers import CompileError, Nvcc, run_to_the_end
from .entry import Entry, encode
from .units import CSRC, Unit
from .variants import all_units


def ninja_file(units: Sequence[Unit], nvcc: Nvcc, folder: Path, root: Path = CSRC) -> str:
    """Text of the ninja file that compiles ``units`` to ``folder``/<digest>.raw."""
    lines = ["rule cubin", "  command = $run", "  description = nvcc $unit", ""]
    for unit in units:
        output = folder / f"{unit.digest(root)}.raw"
        run = shlex.join(nvcc.command(unit, output, root))
        lines += [
            f"build {_ninja(str(output))}: cubin {_ninja(str(root / unit.source))}",
            f"  run = {run.replace('$', '$$')}",
            f"  unit = {unit.name}",
            "",
        ]
    return "\n".join(lines)


def build(folder: Path, units: Sequence[Unit] | None = None, root: Path = CSRC) -> list[Path]:
    """Compile ``units`` (default: every instantiation) into ``folder``; returns the cubins.

    Raises:
        CompileError: nvcc or ninja is missing, nvcc is refused, or a unit does not compile.
    """
    units = all_units() if units is None else units
    program, ninja = Nvcc.find(), shutil.which("ninja")
    if program is None or ninja is None:
        missing = "nvcc" if program is None else "ninja"
        raise CompileError(f"FLASHMLA_HUB_AOT=1 needs nvcc and ninja: {missing} was not found")
    nvcc = Nvcc(program)
    work = folder / "build"
    work.mkdir(parents=True, exist_ok=True)
    (work / "build.ninja").write_text(ninja_file(units, nvcc, work.resolve(), root))
    code, log = run_to_the_end([ninja, "-C", str(work)])
    if code:
        raise CompileError(f"ninja failed with {code}:\n{log}")
    outputs = []
    for unit in units:
        digest = unit.digest(root)
        cubin = (work / f"{digest}.raw").read_bytes()
        entry = Entry(unit.name, digest, nvcc.fingerprint, cubin)
        outputs.append(folder / f"{digest}.cubin")
        outputs[-1].write_bytes(encode(digest, entry))  # cut short, it would read as absent
    shutil.rmtree(work)
    return outputs


def _ninja(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class BuildWithCubins(build_py):
    """The build step of setup.py, followed by the cubins of every kernel beside this module."""

    def run(self) -> None:
        super().run()
        here = Path(__file__).resolve().parent
        target = Path(self.build_lib) / "flashmla_hub" / "backends" / "hopper"
        for path in build((here if self.editable_mode else target) / "cubins"):
            print(f"compiled {path}")


if __name__ == "__main__":
    for path in build(Path(sys.argv[1])):
        print(path)
