"""DeepSeek-V3.2's sparse attention (DSA) over a paged latent cache: code to lift.

V3.2 is MLA as in ``deepseek_decode`` with a list in front: a small *indexer* scores every cached
token for every query and names the ``index_topk`` best. The attention then reads those alone:
``flash_mla_with_kvcache(indices=)`` while decoding, ``flash_mla_sparse_fwd`` for prompts.

Three conversions stand between the two, and all of them are here: from the indexer's columns (which
count padding) to positions, from positions to slots of the paged cache, and, for a quantised cache,
from records back to rows for the prompt's own attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashmla_hub import flash_mla_sparse_fwd, flash_mla_with_kvcache, kv_format
from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache


class SparseMLA(AbsorbedMLA):
    """MLA over the tokens that the attention module's own indexer picks.

    ``index_cache`` is transformers' cache: here it holds the indexer's keys and nothing else.
    """

    def __init__(
        self,
        attention: nn.Module,
        cache: PagedLatentCache,
        layer: int,
        backend: str | None = None,
        index_cache: Any = None,
    ) -> None:
        super().__init__(attention, cache, layer, backend)
        self.index_cache = index_cache

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any = None, **options: Any
    ) -> tuple[Tensor, ...]:
        """hidden_states (batch, s_q, hidden size) -> the same, and no attention weights."""
        a = self.attention
        q_resid = a.q_a_layernorm(a.q_a_proj(hidden_states))
        q, rows = self.absorb(a.q_b_proj(q_resid), hidden_states, position_embeddings)
        pool, layout = self.cache.pools[self.layer], self.cache.layout
        kv_format.append(pool, rows, self.cache.slots, layout=layout)
        columns = self.pick(hidden_states, q_resid, position_embeddings, **options)
        out = self.attend_listed(q, rows, pool, self.visible_positions(columns))
        return self.expand(out), None

    def pick(
        self, hidden_states: Tensor, q_resid: Tensor, position_embeddings: Any, **options: Any
    ) -> Tensor:
        """The indexer's choice: (batch, s_q, topk) columns, padding counted."""
        column = torch.arange(self.cache.columns, device=hidden_states.device)
        own = column[-hidden_states.shape[1] :, None]
        mask = (column >= self.cache.padding[:, None, None]) & (column <= own)
        return self.attention.indexer(  # type: ignore[no-any-return]
            hidden_states, q_resid, position_embeddings, mask, None, cache=self.index_cache
        )

    def visible_positions(self, columns: Tensor) -> Tensor:
        """Columns -> positions in the request; -1 for what a query may not see. Where fewer than
        topk tokens are visible, the indexer fills its list up with others."""
        s_q = columns.shape[1]
        position = columns.long() - self.cache.padding[:, None, None]
        own = self.cache.cache_seqlens[:, None] - s_q + torch.arange(s_q, device=columns.device)
        seen = (columns >= 0) & (position >= 0) & (position <= own[..., None])
        return torch.where(seen, position, -1)

    def attend_listed(self, q: Tensor, rows: Tensor, pool: Tensor, positions: Tensor) -> Tensor:
        """Attention of q (batch, s_q, h_q, dim) to ``positions`` (batch, s_q, topk)."""
        layout = self.cache.layout
        if q.shape[1] > 1:
            return self._prompt(q, rows, positions)
        self.call = {
            "q": q,
            "k_cache": pool,
            "block_table": None,
            "cache_seqlens": None,
            "head_dim_v": self.attention.kv_lora_rank,
            "tile_scheduler_metadata": self.cache.meta,
            "softmax_scale": self.softmax_scale,
            "indices": self.cache.slots_of(positions),
            "backend": self.backend,
            "kv_format": None if layout == "dense" else layout,
        }
        return flash_mla_with_kvcache(**self.call)[0]

    def _prompt(self, q: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """A whole prompt attends to its own rows, which lie one request after the other."""
        batch, s_q, h_q, _ = q.shape
        row = torch.arange(batch, device=q.device).view(-1, 1, 1) * s_q
        start = row + self.cache.padding.view(-1, 1, 1)
        at = torch.where(positions < 0, -1, start + positions).int()
        out, _, _ = flash_mla_sparse_fwd(
            q.flatten(0, 1),
            as_cached(rows, self.cache.layout).unsqueeze(1),
            at.flatten(0, 1).unsqueeze(1),
            self.softmax_scale,
            self.attention.kv_lora_rank,
            backend=self.backend,
        )
        return out.view(batch, s_q, h_q, -1)


def as_cached(rows: Tensor, layout: str) -> Tensor:
    """Rows (n, dim) as a cache of ``layout`` gives them back: what quantising leaves of them."""
    if layout == "dense":
        return rows
    records = kv_format.quantize(rows.view(1, -1, 1, rows.shape[-1]), layout)
    return kv_format.dequantize(records, layout, rows.dtype).view_as(rows)
