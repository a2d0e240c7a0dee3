"""Covering arrays: few assignments of axes in which every possible pair of values occurs.

Greedy and without chance: the same axes give the same rows on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[int, int, int, int]  # axis, its value's number, a later axis, its value's number


def covering(axes: Mapping[str, Sequence[Any]], valid: Callable[[Row], bool]) -> list[Row]:
    """Rows, in order, each with a value for every axis.

    An axis's first value is the plain one: it is taken wherever no pair asks for another.
    ``valid`` judges whole and partial rows (absent axes are still open) and must be monotonous:
    a row that is invalid stays so. Pairs that occur in no valid row are left out.
    """
    names = list(axes)
    missing: dict[Pair, None] = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        for i, j in itertools.product(range(len(axes[names[a]])), range(len(axes[names[b]]))):
            missing[a, i, b, j] = None
    rows = []
    while missing:
        a, i, b, j = next(iter(missing))
        row = _complete({a: i, b: j}, names, axes, missing, valid)
        if row is None:
            del missing[a, i, b, j]
            continue
        for pair in _pairs(row):
            missing.pop(pair, None)
        rows.append({name: axes[name][row[n]] for n, name in enumerate(names)})
    return rows


def _complete(
    fixed: dict[int, int], names: Sequence[str], axes: Mapping[str, Sequence[Any]],
    missing: Mapping[Pair, None], valid: Callable[[Row], bool],
) -> dict[int, int] | None:  # fmt: skip
    """``fixed`` with every axis given the value that covers most missing pairs; None where the
    two cannot be together, or no rest fits them."""

    def fits(row: dict[int, int]) -> bool:
        return valid({names[n]: axes[names[n]][i] for n, i in row.items()})

    row = dict(fixed)
    if not fits(row):
        return None
    for axis in range(len(names)):
        if axis in row:
            continue

        def gain(value: int, axis: int = axis) -> int:
            return sum(_pair(axis, value, n, i) in missing for n, i in row.items())

        order = sorted(range(len(axes[names[axis]])), key=lambda v: (-gain(v), v))
        chosen = next((v for v in order if fits({**row, axis: v})), None)
        if chosen is None:
            return None
        row[axis] = chosen
    return row


def _pair(a: int, i: int, b: int, j: int) -> Pair:
    return (a, i, b, j) if a < b else (b, j, a, i)


def _pairs(row: dict[int, int]) -> list[Pair]:
    return [_pair(a, row[a], b, row[b]) for a, b in itertools.combinations(sorted(row), 2)]


def uncovered(
    axes: Mapping[str, Sequence[Any]], rows: Sequence[Row], valid: Callable[[Row], bool]
) -> list[tuple[str, Any, str, Any]]:
    """Pairs of values that no row holds although together they are valid."""
    found = []
    for a, b in itertools.combinations(axes, 2):
        held = {(axes[a].index(row[a]), axes[b].index(row[b])) for row in rows}
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b]))):
            if (i, j) not in held and valid({a: axes[a][i], b: axes[b][j]}):
                found.append((a, axes[a][i], b, axes[b][j]))
    return found
