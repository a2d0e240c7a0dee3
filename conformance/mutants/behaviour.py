"""Backends whose numbers are right and whose manners are not: side effects, state, claims."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

import torch
from torch import Tensor

from flashmla_hub.backend import BoundKernel
from flashmla_hub.capabilities import between, unsupported_reasons
from flashmla_hub.conformance.mutants.honest import FULL, HALF, HonestBackend
from flashmla_hub.conformance.mutants.kernel import DTYPES, HonestKernel
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

# kernels


class Nondeterministic(HonestKernel):
    """Every second call differs in the last bits, as sums in another order do."""

    def __init__(self, key: KernelKey) -> None:
        super().__init__(key)
        self.calls = 0

    def finish(self, out: Tensor, total: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = super().finish(out, total, top)
        return out, lse * (1 + 3e-6 * (self.calls % 2))

    def run(self, call: Any) -> Any:
        self.calls += 1
        return super().run(call)


class BatchVariant(HonestKernel):
    """Splits by the size of the batch: right to the last bits, and these differ."""

    def dense(self, *args: Any) -> Any:
        self.split = max(16, 256 // args[0].shape[0])
        return super().dense(*args)


class WritesQuery(HonestKernel):
    """Scales q in place."""

    def run(self, call: Any) -> Any:
        result = super().run(call)
        call.q.mul_(0.5)
        return result


class WritesTable(HonestKernel):
    """Cleans the garbage out of the caller's block table."""

    def dense(self, *args: Any) -> Any:
        result = super().dense(*args)
        args[2].clamp_(0, args[1].shape[0] - 1)
        return result


class WritesCache(HonestKernel):
    """Zeroes the unused slots of the pages it reads."""

    def dense(self, *args: Any) -> Any:
        result = super().dense(*args)
        args[1].nan_to_num_()
        return result


class SyncsHost(HonestKernel):
    """Sizes its work by the longest row, which the host must wait for."""

    def dense(self, *args: Any) -> Any:
        longest = int(args[3].max().item())
        pages = max(0, -(-longest // self.key.page_block_size))
        table = args[2][:, : max(1, pages)]
        return super().dense(*args[:2], table, *args[3:])


class PrintsPython(HonestKernel):
    def run(self, call: Any) -> Any:
        print("[port] launching with", self.key.h_q, "heads")
        return super().run(call)


class PrintsNative(HonestKernel):
    """Prints as C code does, past sys.stdout."""

    def run(self, call: Any) -> Any:
        os.write(1, b"[port] launching\n")
        return super().run(call)


class ReturnsInputView(HonestKernel):
    """Uses the memory of q for out."""

    def dense(self, *args: Any) -> Any:
        out, lse = super().dense(*args)
        if args[5] is not None:
            return out, lse
        return args[0][..., : self.key.d_v].copy_(out), lse


class Float32Out(HonestKernel):
    """Returns out in float32 where it allocates it, and has it copied where not."""

    def store(self, target: Tensor | None, value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.float() if target is None else target.copy_(value)


class StaleLengths(HonestKernel):
    """Plans with the lengths of the first call of a shape and never again."""

    def __init__(self, key: KernelKey) -> None:
        super().__init__(key)
        self.first: dict[tuple[int, ...], Tensor] = {}

    def dense(self, *args: Any) -> Any:
        lengths = args[3]
        known = self.first.setdefault((*args[2].shape,), lengths.clone())
        return super().dense(*args[:3], known, *args[4:])


class OtherCallsPlan(HonestKernel):
    """One plan for the whole process: another call's, where two steps interleave."""

    plans = True
    last: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        if block_table is None or cache_seqlens is None:
            return None
        previous = self.last.get((*block_table.shape,), cache_seqlens)
        self.last[(*block_table.shape,)] = cache_seqlens.clone()
        return previous

    def dense(self, *args: Any) -> Any:
        lengths = args[3] if args[7] is None else args[7]
        return super().dense(*args[:3], lengths, *args[4:])


class Leaks(HonestKernel):
    """Keeps every output it ever made."""

    def __init__(self, key: KernelKey) -> None:
        super().__init__(key)
        self.kept: list[Tensor] = []

    def run(self, call: Any) -> Any:
        result = super().run(call)
        self.kept.append(result[0])
        return result


class Exits(HonestKernel):
    """Ends the process on what it does not like."""

    def run(self, call: Any) -> Any:
        if self.key.h_q % 16:
            raise SystemExit(1)
        return super().run(call)


# backends


class Refuser(HonestBackend):
    """Refuses with ``refuse`` what it does not declare; subclasses do it wrong."""

    declares = HALF

    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        raise NotSupportedError(self.name, reason, key.op, "what is declared")

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(self.declares, key, device)
        return self.refuse(key, reasons[0]) if reasons else self.kernel(key)


class AcceptsUnclaimed(Refuser):
    """Serves more than it declares."""

    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        return self.kernel(key)


class AcceptsOtherPages(Refuser):
    """Takes any page size it was not asked about for its own."""

    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        if reason.startswith("page_block_size"):
            return self.kernel(key)
        return super().refuse(key, reason)


class RefusesWithValueError(Refuser):
    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        raise ValueError(reason)


class RefusesWithAssert(Refuser):
    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        raise AssertionError


class WritesThenRefuses(Refuser):
    """Finds out after it has begun to write."""

    def refuse(self, key: KernelKey, reason: str) -> BoundKernel:
        return _LateRefusal(key)


class _LateRefusal(HonestKernel):
    def run(self, call: Any) -> Any:
        for tensor in call[4:8]:
            if isinstance(tensor, Tensor) and tensor.dtype in (*DTYPES.values(),):
                tensor.zero_()
        raise NotSupportedError("honest", "key", self.key.summary(), "what is declared")


class RefusesClaimedHeads(HonestBackend):
    """Declares any number of heads, and refuses 128."""

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        if key.h_q == 128:
            raise NotSupportedError(self.name, "h_q", key.h_q, "1..127")
        return super().bind(key, device)


class RefusesClaimedQueries(HonestBackend):
    """Declares any s_q, and refuses more than two at the launch."""

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        return _TwoQueries(key) if key.s_q > 2 else super().bind(key, device)


class _TwoQueries(HonestKernel):
    def run(self, call: Any) -> Any:
        raise NotSupportedError("honest", "s_q", self.key.s_q, "1 | 2")


class RefusesClaimedPages(HonestBackend):
    """Declares pages that are multiples of 16, and takes 64 alone."""

    declares = (dataclasses.replace(HALF[0], page_block_size=between(16, None, 16)),)

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        if key.page_block_size != 64:
            raise NotSupportedError(self.name, "page_block_size", key.page_block_size, "64")
        return super().bind(key, device)


class RaisesOnClaimed(HonestBackend):
    """Declares 96 heads and fails inside."""

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        if key.h_q not in (16, 32, 64, 128):
            raise RuntimeError(f"CUDA error: invalid configuration argument ({key.h_q})")
        return super().bind(key, device)


class SyncsAndClaimsGraphs(HonestBackend):
    """Waits for the device, and claims that its calls can be captured."""

    kernel = SyncsHost
    declares = tuple(dataclasses.replace(c, cuda_graph=True) for c in FULL)
