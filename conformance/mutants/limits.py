"""Kernels right on small shapes and wrong past a limit of one axis, or where two axes meet.

Each is a :class:`Limit`: a condition on the facts of a call, and what goes wrong there. The
roster measures the kit by whole axes with them, not by a list of known bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.model import VALUES, Case
from flashmla_hub.conformance.mutants.kernel import HonestKernel
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey

DENSE, SPARSE, PREFILL = (DENSE_DECODE,), (SPARSE_DECODE,), (SPARSE_PREFILL,)
LISTS = (SPARSE_DECODE, SPARSE_PREFILL)


class Facts(NamedTuple):
    """What a limit may look at: the key, rows, columns of the table, the longest row."""

    key: KernelKey
    batch: int
    columns: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Limit:
    """Wrong in rows from ``first_row`` on, in calls of ``ops`` where ``hits`` says so: half of
    their keys are lost, or (``raises``) there is no kernel."""

    name: str
    says: str
    ops: tuple[str, ...]
    hits: Callable[[Facts], bool]
    first_row: int = 0
    raises: bool = False

    def sees(self, case: Case) -> bool:
        """Whether the call of a case is one of those."""
        columns = Inputs(case).table_width if case.key.op == DENSE_DECODE else 0
        facts = Facts(case.key, case.batch, columns, max((*case.lengths, 0)))
        return case.check == VALUES and case.key.op in self.ops and self.hits(facts)


class LimitedKernel(HonestKernel):
    limit: Limit

    def wrong(self, facts: Facts) -> bool:
        hit = self.key.op in self.limit.ops and self.limit.hits(facts)
        if hit and self.limit.raises:
            raise RuntimeError(f"no kernel instance for {self.key.summary()}")
        return hit

    def dense(self, q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
              *rest: Any) -> Any:  # fmt: skip
        facts = Facts(self.key, q.shape[0], block_table.shape[1], int(cache_seqlens.max()))
        if self.wrong(facts):
            cache_seqlens = cache_seqlens.clone()
            cache_seqlens[self.limit.first_row :] //= 2
        return super().dense(q, k_cache, block_table, cache_seqlens, *rest)

    def lost(self, q: Tensor, indices: Tensor) -> Tensor:
        if self.wrong(Facts(self.key, q.shape[0])):
            indices = indices.clone()
            indices[self.limit.first_row :, ..., indices.shape[-1] // 2 :] = -1
        return indices

    def sparse(self, q: Tensor, k_cache: Tensor, indices: Tensor, *rest: Any) -> Any:
        return super().sparse(q, k_cache, self.lost(q, indices), *rest)

    def prefill(self, q: Tensor, kv: Tensor, indices: Tensor, *rest: Any) -> Any:
        return super().prefill(q, kv, self.lost(q, indices), *rest)


def _quantised(f: Facts) -> bool:
    return f.key.kv_format != "dense"


LIMITS = (
    # work lists, plans and grids of a fixed size
    Limit("rows_past_64", "rows past 64", DENSE, lambda f: f.batch > 64, 64),
    Limit("rows_past_128", "rows past 128", DENSE, lambda f: f.batch > 128, 128),
    Limit("rows_past_256", "rows past 256", DENSE, lambda f: f.batch > 256, 256),
    Limit("tokens_past_2048", "tokens past 2048", DENSE, lambda f: f.tokens > 2048),
    Limit("tokens_past_4096", "tokens past 4096", DENSE, lambda f: f.tokens > 4096),
    Limit("tokens_past_16384", "tokens past 16384", DENSE, lambda f: f.tokens > 16384),
    Limit("tokens_past_65536", "tokens past 65536", DENSE, lambda f: f.tokens > 65536),
    Limit("columns_past_1024", "wider than 1024", DENSE, lambda f: f.columns > 1024),
    Limit("columns_past_2048", "wider than 2048", DENSE, lambda f: f.columns > 2048),
    Limit("queries_past_4", "more than 4 queries", DENSE, lambda f: f.key.s_q > 4),
    Limit("queries_past_8", "more than 8 queries", DENSE, lambda f: f.key.s_q > 8),
    Limit("pages_past_256", "pages past 256", DENSE,
          lambda f: f.key.page_block_size > 256, raises=True),
    Limit("pages_past_512", "pages past 512", DENSE, lambda f: f.key.page_block_size > 512),
    Limit("pages_past_1024", "pages past 1024", DENSE, lambda f: f.key.page_block_size > 1024),
    Limit("uneven_pages", "pages past", DENSE,
          lambda f: bool(f.key.page_block_size & (f.key.page_block_size - 1))),
    Limit("sparse_rows_past_64", "rows past 64", SPARSE, lambda f: f.batch > 64, 64),
    Limit("sparse_rows_past_256", "rows past 256", SPARSE, lambda f: f.batch > 256, 256),
    Limit("lists_past_512", "lists past & raises", LISTS,
          lambda f: f.key.topk >= 512, raises=True),
    Limit("lists_past_1024", "lists past 1024", LISTS, lambda f: f.key.topk > 1024),
    Limit("lists_past_2048", "lists past 2048", SPARSE, lambda f: f.key.topk > 2048),
    Limit("lists_past_8192", "lists past 8192", LISTS, lambda f: f.key.topk > 8192),
    Limit("sparse_queries_past_4", "more than 4 queries", SPARSE, lambda f: f.key.s_q > 4),
    Limit("sparse_pages_past_64", "pages past 64", SPARSE, lambda f: f.key.page_block_size > 64),
    Limit("sparse_pages_past_256", "pages past 256", SPARSE,
          lambda f: f.key.page_block_size > 256),
    Limit("second_lists_past_128", "second lists past 128", SPARSE,
          lambda f: f.key.extra_topk > 128),
    Limit("second_pages_past_128", "second pages past 128", SPARSE,
          lambda f: f.key.extra_page_block_size > 128),
    Limit("prefill_queries_past_32", "queries past 32", PREFILL, lambda f: f.batch > 32, 32),
    Limit("prefill_queries_past_256", "queries past 256", PREFILL, lambda f: f.batch > 256, 256),
    Limit("prefill_queries_past_2048", "queries past 2048", PREFILL,
          lambda f: f.batch > 2048, 2048),
    Limit("quantised_rows_past_64", "rows past 64", DENSE,
          lambda f: _quantised(f) and f.batch > 64, 64),
    Limit("quantised_tokens_past_2048", "tokens past 2048", DENSE,
          lambda f: _quantised(f) and f.tokens > 2048),
    Limit("quantised_pages_past_64", "pages past 64", DENSE,
          lambda f: _quantised(f) and f.key.page_block_size > 64),
    # where two axes meet
    Limit("heads_96_with_4_causal_queries", "queries & heads", DENSE,
          lambda f: f.key.h_q % 64 == 32 and f.key.h_q > 64 and f.key.s_q >= 4),
    Limit("queries_times_heads_past_512", "queries & heads", DENSE,
          lambda f: f.key.s_q * f.key.h_q > 512),
    Limit("rows_with_queries", "rows past & queries", DENSE,
          lambda f: f.batch > 16 and f.key.s_q > 2),
    Limit("long_fp16", "tokens past & float16", DENSE,
          lambda f: f.key.dtype == "float16" and f.tokens > 1024),
    Limit("causal_odd_pages", "page & causal", DENSE,
          lambda f: f.key.causal and f.key.page_block_size != 64),
    Limit("kv_heads_with_queries", "queries & h_kv", DENSE,
          lambda f: f.key.h_kv > 1 and f.key.s_q > 1),
    Limit("token_strides_with_queries", "queries & token-strided", DENSE,
          lambda f: f.key.kv_strides == "token_strided" and f.key.s_q > 1),
    Limit("strided_q_many_heads", "heads & q", DENSE,
          lambda f: f.key.q_strides != "packed" and f.key.h_q > 64),
    Limit("no_rope_with_queries", "queries & head dims", DENSE,
          lambda f: f.key.d_qk == f.key.d_v and f.key.s_q > 1 and not _quantised(f)),
    Limit("many_rows_small_pages", "rows past & page", DENSE,
          lambda f: f.batch > 16 and f.key.page_block_size < 16),
    Limit("wide_tables_long_rows", "tokens past & wider", DENSE,
          lambda f: f.columns > 1000 and f.tokens > 1000),
    Limit("float32_with_queries", "queries & float32", DENSE,
          lambda f: f.key.dtype == "float32" and f.key.s_q > 1),
    Limit("long_many_heads", "tokens past & heads", DENSE,
          lambda f: f.key.h_q > 64 and f.tokens > 1000),
    Limit("sinks_with_queries", "queries & attn_sink", SPARSE,
          lambda f: f.key.attn_sink and f.key.s_q > 1),
    Limit("sinks_many_heads", "heads & attn_sink", LISTS,
          lambda f: f.key.attn_sink and f.key.h_q > 64),
    Limit("lengths_with_queries", "queries & topk_length", SPARSE,
          lambda f: f.key.topk_length and f.key.s_q > 1),
    Limit("second_cache_with_queries", "queries & second lists", SPARSE,
          lambda f: f.key.extra_topk > 0 and f.key.s_q > 1),
    Limit("second_cache_with_sinks", "second lists & attn_sink", SPARSE,
          lambda f: f.key.extra_topk > 0 and f.key.attn_sink and not f.key.topk_length),
    Limit("long_lists_many_heads", "lists & heads", LISTS,
          lambda f: f.key.topk > 256 and f.key.h_q > 64),
    Limit("long_lists_with_length", "lists & topk_length", LISTS,
          lambda f: f.key.topk > 256 and f.key.topk_length),
    Limit("prefill_sinks_with_length", "topk_length & attn_sink", PREFILL,
          lambda f: f.key.attn_sink and f.key.topk_length),
    Limit("quantised_with_queries", "more than & queries", LISTS,
          lambda f: _quantised(f) and f.key.s_q > 2),
    Limit("quantised_strided_pages", "page-strided & pages", SPARSE,
          lambda f: f.key.kv_strides != "packed" and f.key.page_block_size > 64),
)  # fmt: skip


def kernel_of(limit: Limit) -> type[LimitedKernel]:
    name = "".join(part.title() for part in limit.name.split("_"))
    return type(name, (LimitedKernel,), {"limit": limit})
