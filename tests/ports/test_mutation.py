"""Removing any guard from an adapter makes the battery fail.

.ci/run takes a sample, a different one for each vendor; .ci/full takes every mutant.
"""

from __future__ import annotations

import os

import pytest

from tests.ports import batteries, mutants
from tests.ports.mutation import Mutant, caught

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

DECLARED = [m for m in mutants.of_declarations() if m.old not in mutants.EQUIVALENT]
ALL = [*DECLARED, *mutants.GUARDS]
SAMPLE = (
    next(m for m in DECLARED if m.old == "empty_rows=False," and m.module == "hygon.plugin"),
    next(m for m in DECLARED if m.old == "h_q=one_of(8, 16, 32, 64, 128)," and "amd" in m.module),
    next(m for m in mutants.GUARDS if m.new == "return table, lens"),
    next(m for m in mutants.GUARDS if m.old.startswith("if not name.upper()")),
)


def test_there_are_enough_of_them():
    removed = [m for m in ALL if not m.new]
    assert len(removed) >= 40, len(removed)
    assert len(set(ALL)) == len(ALL)


def test_every_line_is_still_there():
    for mutant in ALL:
        assert mutant.compiles(), mutant


@pytest.mark.parametrize("mutant", SAMPLE, ids=str)
def test_a_sample_is_caught(mutant):
    assert caught(mutant, batteries.run), f"survived: {mutant}"


@pytest.mark.full
@pytest.mark.parametrize("mutant", ALL, ids=str)
def test_is_caught(mutant):
    assert caught(mutant, batteries.run), f"survived: {mutant}"


def test_the_check_itself_passes_unchanged_adapters():
    same = Mutant("metax.plugin", "worth = 70", ("metax",), new="worth = 70")
    assert not caught(same, batteries.run)
