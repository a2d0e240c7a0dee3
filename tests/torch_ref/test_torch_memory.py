"""Scratch is bounded by the device and the shape of a chunk, never by lengths (contract C1.4)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch_calls import bound_dense, run_dense
from torch_cases import Case

from flashmla_hub.backends.torch_ref import attention
from flashmla_hub.backends.torch_ref.sources import PagedSource


class LargestTensor(TorchDispatchMode):
    """Keeps the size in bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("h_q", [1, 128])
def test_128_rows_of_131072_tokens(monkeypatch: pytest.MonkeyPatch, h_q: int) -> None:
    """Gathered at once, the keys of this call would take 19 GB, twice that as float32. Meta
    tensors take the path of devices whose lengths are not at hand: it walks the whole table,
    in chunks of which each group's first ones do here (operations on meta tensors are slow)."""
    every_chunk = PagedSource.chunks
    monkeypatch.setattr(PagedSource, "chunks", lambda *args: islice(every_chunk(*args), 3))
    page, batch, tokens = 64, 128, 131072
    case = Case(1, lens=(tokens,) * batch, h_q=h_q, page=page)
    with torch.device("meta"), LargestTensor() as seen:
        inputs = {
            "q": torch.empty(batch, 1, h_q, 576, dtype=torch.bfloat16),
            "k_cache": torch.empty(2, page, 1, 576, dtype=torch.bfloat16),
            "block_table": torch.empty(batch, tokens // page, dtype=torch.int32),
            "cache_seqlens": torch.empty(batch, dtype=torch.int32),
        }
        bound_dense(case, inputs)
    assert seen.largest <= attention.WORKSPACE


def test_a_long_row_on_the_cpu() -> None:
    """The CPU's path with real values: 131072 tokens of one row, and 127 rows of one token."""
    page, batch, tokens = 64, 128, 131072
    case = Case(1, lens=(tokens, *[1] * (batch - 1)), h_q=2, page=page)
    inputs = {
        "q": torch.ones(batch, 1, 2, 576, dtype=torch.bfloat16),
        "k_cache": torch.ones(2, page, 1, 576, dtype=torch.bfloat16),
        "block_table": torch.zeros(batch, tokens // page, dtype=torch.int32),
        "cache_seqlens": torch.tensor(case.lens, dtype=torch.int32),
    }
    with LargestTensor() as seen:
        out, _ = run_dense(case, inputs)
    assert seen.largest <= attention.WORKSPACE
    torch.testing.assert_close(out, torch.ones_like(out))
