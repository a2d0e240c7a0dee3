"""One public call on a device, a :class:`Call`: its arguments, and what its outputs must look like.
placing.py makes it of a case's bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flashmla_hub.conformance.model import Case
from flashmla_hub.request import SPARSE_PREFILL

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
# a quiet NaN with a payload: outputs are filled with it, so what was never written shows
UNWRITTEN = {"bfloat16": 0x7FE5, "float16": 0x7E25, "float32": 0x7FC00025}
HUGE_BYTES = 1 << 31  # allocations past this are neither filled nor copied


class NotReached(Exception):
    """The case cannot be put to the port here; the message is the reason."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the case's op, all on ``device``.

    ``storages`` are the buffers that inputs are views of, by argument name.
    """

    case: Case
    device: torch.device
    q: Tensor
    kv: Tensor
    scale: float | None
    block_table: Tensor | None = None
    cache_seqlens: Tensor | None = None
    indices: Tensor | None = None
    topk_length: Tensor | None = None
    attn_sink: Tensor | None = None
    extra_kv: Tensor | None = None
    extra_indices: Tensor | None = None
    extra_topk_length: Tensor | None = None
    storages: dict[str, Tensor] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Call:
        return replace(self, **changes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        key = self.case.key
        if key.op == SPARSE_PREFILL:
            return (self.q.shape[0], key.h_q, key.d_v)
        return (self.q.shape[0], key.s_q, key.h_q, key.d_v)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        key = self.case.key
        if key.op == SPARSE_PREFILL:
            return (self.q.shape[0], key.h_q)
        return (self.q.shape[0], key.h_q, key.s_q)

    def poisoned_outputs(self) -> tuple[Tensor, Tensor]:
        """(out, lse) to be written in place, filled with the unwritten mark."""
        return (
            _filled(self.out_shape, _name(self.q.dtype), UNWRITTEN, self.device),
            _filled(self.lse_shape, "float32", UNWRITTEN, self.device),
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the inputs' buffers, as integers; huge ones are left out."""
        return {
            name: _as_integers(storage).clone()
            for name, storage in self.storages.items()
            if storage.nbytes < HUGE_BYTES
        }

    def changed_since(self, before: dict[str, Tensor]) -> list[str]:
        """Names of the inputs whose bytes differ from a snapshot."""
        return [n for n, old in before.items()
                if not torch.equal(_as_integers(self.storages[n]), old)]  # fmt: skip


def unwritten(tensor: Tensor) -> Tensor:
    """Where ``tensor`` still holds the unwritten mark."""
    size = tensor.element_size()
    return tensor.contiguous().view(CARRIERS[size]) == signed(UNWRITTEN[_name(tensor.dtype)], size)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_integers(storage: Tensor) -> Tensor:
    return storage.view(CARRIERS[storage.element_size()])


def signed(pattern: int, size: int) -> int:
    top = 1 << (8 * size - 1)
    return pattern - 2 * top if pattern >= top else pattern


def _filled(
    shape: tuple[int, ...], dtype: str, marks: dict[str, int], device: torch.device
) -> Tensor:
    kind = DTYPES[dtype]
    carrier = CARRIERS[kind.itemsize]
    return torch.full(shape, signed(marks[dtype], kind.itemsize), dtype=carrier,
                      device=device).view(kind)  # fmt: skip
