"""Pages that no row uses are not read: here the process has no right to read them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import ctypes, mmap, random
import torch
from flashmla_hub.backends.torch_ref import attention, sources
from torch_calls import bound_dense, bound_sparse, expect_dense, expect_sparse
from torch_cases import Case
import oracle

PAGE, PAGES = 64, 12
size = PAGE * 576 * 2  # bytes of a page of bfloat16, a multiple of the memory's own pages
assert size % mmap.PAGESIZE == 0
area = mmap.mmap(-1, PAGES * size)
pool = torch.frombuffer(area, dtype=torch.bfloat16).view(PAGES, PAGE, 1, 576)
used = (2, 3, 7, 10)
pool[list(used)] = torch.randn(len(used), PAGE, 1, 576).bfloat16()
libc = ctypes.CDLL(None, use_errno=True)
for page in set(range(PAGES)) - set(used):
    failed = libc.mprotect(ctypes.c_void_p(pool.data_ptr() + page * size), size, 0)
    assert not failed, ctypes.get_errno()

table = torch.tensor([[7, 2, 0, 1], [0, 2147480000, -1, 5], [3, 10, 7, 11], [10, 6, 4, 8]])
dense = {
    "q": torch.randn(4, 2, 16, 576).bfloat16(),
    "k_cache": pool,
    "block_table": table.int(),
    "cache_seqlens": torch.tensor([128, 0, 150, 1], dtype=torch.int32),
}
slots = [page * PAGE + offset for page in used for offset in (0, 5, 63)]
indices = torch.tensor([[slots], [[-1] * 12], [[0, 70, 2147480000] * 4], [slots[::-1]]])
sparse = {
    "q": dense["q"][:, :1],
    "k_cache": pool,
    "indices": indices.int(),
    "topk_length": torch.tensor([12, 12, 0, 5], dtype=torch.int32),
    "attn_sink": None,
}
dense_case = Case(1, lens=(128, 0, 150, 1), s_q=2, causal=True)
sparse_case = Case(1, lens=(0,) * 4, topk=12, topk_length=True)
for values_at_hand in (True, False):
    for module in (sources, attention):
        module.values_at_hand = lambda device: values_at_hand
    oracle.check(*bound_dense(dense_case, dense), expect_dense(dense_case, dense))
    oracle.check(*bound_sparse(sparse_case, sparse), expect_sparse(sparse_case, sparse))
print("read only what is used", flush=True)
print(float(pool[0].float().sum()))  # the guard guards: this ends the process
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses mprotect as Linux has it")
def test_pages_nobody_uses_are_never_read() -> None:
    folders = [str(path) for path in (ROOT, ROOT / "tests", Path(__file__).parent)]
    script = f"import sys; sys.path[:0] = {folders!r}" + SCRIPT
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.stdout == "read only what is used\n", done.stderr[-2000:]
    assert done.returncode == -signal.SIGSEGV
