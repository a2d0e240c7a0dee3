"""The few things the launch path asks of torch about CUDA, in one place that tests replace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


def _allocate(size: int, stream: int) -> int:
    return torch.cuda.caching_allocator_alloc(size, stream=stream)


class TorchCuda:
    """Current device and stream, capture state and device properties, from torch."""

    def __init__(self) -> None:
        self.current_device: Callable[[], int] = torch.cuda.current_device
        # current_stream() builds an object, 4 us and more; the raw handle costs 0.1
        raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        self.stream: Callable[[int], int] = raw or (
            lambda index: int(torch.cuda.current_stream(index).cuda_stream)
        )

        # Memory without a tensor around it: 0.8 us where new_empty and its end take 2.2
        take = getattr(torch._C, "_cuda_cudaCachingAllocator_raw_alloc", None)
        give = getattr(torch._C, "_cuda_cudaCachingAllocator_raw_delete", None)
        known = take is not None and give is not None
        self.allocate: Callable[[int, int], int] = take if known else _allocate
        self.free: Callable[[int], None] = give if known else torch.cuda.caching_allocator_delete

    def guard(self, index: int) -> AbstractContextManager[Any]:
        """Make device ``index`` current for the duration."""
        return torch.cuda.device(index)

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        return bool(torch.cuda.is_current_stream_capturing())

    def multiprocessors(self, index: int) -> int:
        return int(torch.cuda.get_device_properties(index).multi_processor_count)
