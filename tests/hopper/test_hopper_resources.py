"""What the compilers make of every instantiation: no serialised wgmma; no spills, or bounded ones
of a version that is known to spill (docs/kernels/compilers.md)."""

from __future__ import annotations

import re

import pytest

from flashmla_hub.backends.hopper.compilers import CompileError, Compiler, Nvcc, Nvrtc
from flashmla_hub.backends.hopper.units import Unit
from flashmla_hub.backends.hopper.variants import (
    LIST_ROWS,
    UNDECLARED_FAMILIES,
    Variant,
    all_units,
)

# C7508: setmaxnreg ignored. C7510, C7512, C7518, ...: wgmma serialised or waited for early.
BAD_WARNING = re.compile(r"C75\d\d")
SPILLED = 256  # bytes, of all threads' stores or loads in the text of one kernel
QUICK = [Variant().main, Variant().combine, Variant(LIST_ROWS).main]


def compilers() -> list[Compiler]:
    """nvcc and NVRTC, where they are."""
    found: list[Compiler] = []
    if program := Nvcc.find():
        found.append(Nvcc(program))
    try:
        found.append(Nvrtc())
    except Exception as error:
        print(f"NVRTC left out: {error}")
    return found


def check(unit: Unit) -> None:
    found = compilers()
    if not found:
        pytest.skip("needs nvcc or NVRTC")
    for compiler in found:
        try:
            log = compiler.compile(unit).log
        except CompileError as error:
            pytest.fail(str(error))
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
        assert spills, f"{compiler.fingerprint} says nothing of {unit.name}:\n{log}"
        most = SPILLED if compiler.spills else 0
        assert all(int(n) <= most for n in spills), f"{compiler.fingerprint}, {unit.name}: {spills}"
        bad = BAD_WARNING.findall(log)
        assert not bad, f"{compiler.fingerprint}, {unit.name}: {bad}\n{log}"


@pytest.mark.parametrize("unit", QUICK, ids=lambda u: u.name)
def test_the_base_variant(unit: Unit) -> None:
    check(unit)


MORE = [u for u in all_units() if u not in QUICK] + [
    Variant(family, False, d_qk, False, rows).main
    for family in UNDECLARED_FAMILIES
    for d_qk in family.head_dims
    for rows in family.rows
]


@pytest.mark.full
@pytest.mark.parametrize("unit", MORE, ids=lambda u: u.name)
def test_every_instantiation(unit: Unit) -> None:
    check(unit)
