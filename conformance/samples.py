"""Which positions of the outputs a run records, so that a verifier can recompute just those.

Contract: ``positions(case_id, tensor, size, seed)`` are C-order flat indices into the contiguous
tensor (``out`` (batch, s_q, h_q, d_v), ``lse`` (batch, h_q, s_q); for sparse_prefill ``out``
(batch, h_q, d_v), ``lse`` and ``max_logits`` (batch, h_q)), ascending and distinct: all of them
where ``size`` <= the count, else ``COUNT[tensor]`` seeded ones. A function of its arguments
alone; ``seed`` is the case's, so that a challenge moves the places with the inputs.
"""

from __future__ import annotations

import hashlib

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
