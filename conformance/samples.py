"""Which outputs of a case are compared with the oracle, and which of those a run records.

Small cases are compared whole. Of a large one the :class:`Probe` says which rows, queries and
heads; every choice is a function of the case alone, so that a verifier makes it again.

``positions(case_id, tensor, size, seed)`` picks ``COUNT[tensor]`` seeded, ascending, distinct ones
of ``size`` elements (all where there are no more); ``recorded`` are C-order flat indices into the
contiguous tensor (``out`` (batch, s_q, h_q, d_v), ``lse`` (batch, h_q, s_q); for sparse_prefill
``out`` (batch, h_q, d_v), ``lse`` and ``max_logits`` (batch, h_q)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance.model import Case
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL

MANY_ROWS = 24  # up to so many rows a case is compared whole, unless it is a lot of work
MANY_QUERIES = 4
MUCH_WORK = 1 << 19  # keys times query heads, over the rows compared
EDGES = (1, 15, 31, 32, 63, 64, 127, 128, 255, 256, 1023)  # where tiles and grids end

COUNT = {"out": 64, "lse": 16, "max_logits": 16}


def positions(case_id: str, tensor: str, size: int, seed: int = 0) -> tuple[int, ...]:
    """Flat indices of the recorded elements of ``tensor`` (its number of elements is ``size``)."""
    count = COUNT[tensor]
    if size <= count:
        return tuple(range(size))
    address = f"{seed}/{case_id}" if seed else case_id
    chosen: set[int] = set()
    draw = 0
    while len(chosen) < count:
        # 256-bit words modulo size: the bias is below 2**-190
        word = hashlib.sha256(f"samples-v1/{address}/{tensor}/{draw}".encode()).digest()
        chosen.add(int.from_bytes(word, "little") % size)
        draw += 1
    return tuple(sorted(chosen))


def coordinate(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The C-order coordinate of a flat index."""
    result = []
    for extent in reversed(shape):
        index, here = divmod(index, extent)
        result.append(here)
    return tuple(reversed(result))


@dataclass(frozen=True)
class Probe:
    """Rows, queries of a row and heads, ascending, whose vectors are compared."""

    rows: tuple[int, ...]
    queries: tuple[int, ...]
    heads: tuple[int, ...]
    whole: bool


def probe(case: Case) -> Probe:
    """What of a case is compared; a query of sparse_prefill is a row."""
    key, batch = case.key, case.batch
    rows: Sequence[int] = range(batch)
    queries: Sequence[int] = range(key.s_q)
    heads: Sequence[int] = range(key.h_q)
    if batch > MANY_ROWS:
        longest = case.lengths.index(max(case.lengths))
        rows = _some(batch, case.id, (longest,))
    if key.s_q > MANY_QUERIES:
        queries = sorted({0, key.s_q // 2, key.s_q - 2, key.s_q - 1})
    if key.op == DENSE_DECODE:
        keys = sum(case.lengths[row] for row in rows)
    else:
        keys = (key.topk + key.extra_topk) * len(rows)
    if keys * len(queries) * key.h_q > MUCH_WORK:
        heads = _some(key.h_q, case.id)
    whole = len(rows) * len(queries) * len(heads) == batch * key.s_q * key.h_q
    return Probe(tuple(rows), tuple(queries), tuple(heads), whole)


def _some(count: int, name: str, more: Iterable[int] = ()) -> list[int]:
    """The ends of range(count), the edges within, ``more`` and two seeded ones."""
    word = hashlib.sha256(f"probe/{name}/{count}".encode()).digest()
    seeded = (word[0] * 256 + word[1], word[2] * 256 + word[3])
    chosen = {0, count - 1, max(count - 2, 0), *(n % count for n in seeded), *more}
    return sorted(chosen | {n for n in EDGES if n < count})


def recorded(case: Case, tensor: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Flat indices of the recorded elements of ``tensor``, which has this shape."""
    seen = probe(case)
    if seen.whole:
        return positions(case.id, tensor, int(np.prod(shape)), case.seed)
    axes: list[Sequence[int]] = [seen.rows]
    if case.key.op != SPARSE_PREFILL:
        axes.append(seen.queries if tensor == "out" else seen.heads)
        axes.append(seen.heads if tensor == "out" else seen.queries)
    else:
        axes.append(seen.heads)
    if tensor == "out":
        axes.append(range(shape[-1]))
    mesh = np.ix_(*(np.asarray(axis, np.int64) for axis in axes))
    flat: NDArray[np.int64] = np.ravel_multi_index(mesh, shape).reshape(-1)
    return tuple(int(flat[n]) for n in positions(case.id, tensor, flat.size, case.seed))
