"""DeepSeek's attention (MLA) over a paged latent cache, through flashmla_hub: code to lift.

MLA caches one latent of ``kv_lora_rank`` values and one rope key for each token, shared by all
heads. Instead of expanding the latents into keys and values of every head, *absorb* the expansion
into the projections around the attention::

    q . (W_uk c)  =  (W_uk^T q) . c            the query moves into the latent space
    W_uv (sum_j p_j c_j)                       the expansion of V waits until after the sum

so that all heads attend to the cached latents themselves: one KV head, K = [latent | rope key],
V = the latent. That is the call ``flash_mla_with_kvcache`` serves.

``AbsorbedMLA`` wraps an attention module with DeepSeek's weight names (Hugging Face transformers'
``DeepseekV3Attention``, for one) and shares a ``PagedLatentCache`` with the other layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashmla_hub import flash_mla_with_kvcache, get_mla_metadata, kv_format


class PagedLatentCache:
    """The latents of a batch of requests: a pool of pages for each layer, one block table for all.

    Attributes:
        pools: for each layer, (num_blocks, page_block_size, 1, dim), or records of ``layout``.
        layout: "dense", or the id of a quantised layout of ``flashmla_hub.kv_format``.
        block_table: (batch, max_blocks_per_seq) int32, in no particular order of pages.
        cache_seqlens: (batch,) int32, tokens of each request so far.
        slots: (batch * s_q,) where the current step's tokens go; -1 for padding.
        new: (batch, s_q) bool, which of the current step's tokens are no padding.
        padding: (batch,) how many columns of padding came before a request's first token.
        columns: tokens and padding of a request so far, the same for all.
        meta: the current step's metadata, shared by its layers.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        max_tokens: int,
        *,
        dim: int = 576,
        page_block_size: int = 64,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        layout: str = "dense",
    ) -> None:
        blocks = -(-max_tokens // page_block_size)
        self.layout = layout
        self.pools = [
            new_pool(batch * blocks, page_block_size, dim, layout, dtype, device)
            for _ in range(layers)
        ]
        order = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(seed))
        self.block_table = order.view(batch, blocks).int().to(device)
        self.cache_seqlens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.slots = torch.empty(0, dtype=torch.int64, device=device)
        self.new = torch.empty(batch, 0, dtype=torch.bool, device=device)
        self.padding = torch.zeros(batch, dtype=torch.int64, device=device)
        self.columns = 0
        self.meta: Any = get_mla_metadata()[0]

    def begin_step(self, new: Tensor) -> None:
        """Make room for a step's tokens.

        Args:
            new: (batch, s_q) bool, False for padding, which comes first in a row: the causal mask
                is aligned to the end of a row, so left padding needs no mask of its own.
        """
        page_block_size = self.pools[0].shape[1]
        position = (self.cache_seqlens[:, None] + new.cumsum(1) - 1).clamp(min=0)
        page = self.block_table.gather(1, position // page_block_size)
        slot = page * page_block_size + position % page_block_size
        self.slots = torch.where(new, slot, -1).flatten()
        self.cache_seqlens += new.sum(1).int()
        self.new, self.padding = new, self.padding + (~new).sum(1)
        self.columns += new.shape[1]
        self.meta, _ = get_mla_metadata()

    def slots_of(self, positions: Tensor) -> Tensor:
        """Positions of tokens (batch, s_q, n) -> int32 slots of the pools, -1 for those < 0."""
        page_block_size = self.pools[0].shape[1]
        at = positions.clamp(min=0)
        page = self.block_table.gather(1, (at // page_block_size).flatten(1)).view_as(at)
        slot = page * page_block_size + at % page_block_size
        return torch.where(positions < 0, -1, slot).int()


def new_pool(
    blocks: int,
    page_block_size: int,
    dim: int,
    layout: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """An empty cache of ``blocks`` pages. Unused slots may hold anything: NaN in every field shows
    that nothing reads them."""
    if layout == "dense":
        shape = (blocks, page_block_size, 1, dim)
        return torch.full(shape, float("nan"), dtype=dtype, device=device)
    record = kv_format.get(layout)
    shape = (blocks, record.page_stride(page_block_size))
    pages = torch.full(shape, 0xFF, dtype=torch.uint8, device=device)
    tokens = pages[:, : page_block_size * record.bytes_per_token]
    return tokens.unflatten(1, (page_block_size, 1, -1)).view(torch.float8_e4m3fn)


class AbsorbedMLA(nn.Module):
    """MLA with absorbed projections; takes the weights of ``attention`` as they are."""

    attention: Any  # a module; Any, since its attributes are DeepSeek's
    call: dict[str, Any] | None = None  # the arguments of the last call, for explain_call

    def __init__(
        self, attention: nn.Module, cache: PagedLatentCache, layer: int, backend: str | None = None
    ) -> None:
        super().__init__()
        self.attention, self.cache, self.layer, self.backend = attention, cache, layer, backend
        self.softmax_scale: float = self.attention.scaling
        a = self.attention
        self.rope_interleave = bool(getattr(a.config, "rope_interleave", True))
        expand = a.kv_b_proj.weight.view(-1, a.qk_nope_head_dim + a.v_head_dim, a.kv_lora_rank)
        w_uk, w_uv = expand.split([a.qk_nope_head_dim, a.v_head_dim], dim=1)
        self.w_uk, self.w_uv = w_uk, w_uv  # (h_q, nope or v dim, kv_lora_rank), views

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **unused: Any
    ) -> tuple[Tensor, None]:
        """hidden_states (batch, s_q, hidden size) -> the same, and no attention weights."""
        a = self.attention
        if a.q_lora_rank is None:
            q = a.q_proj(hidden_states)
        else:
            q = a.q_b_proj(a.q_a_layernorm(a.q_a_proj(hidden_states)))
        q, rows = self.absorb(q, hidden_states, position_embeddings)
        pool = self.cache.pools[self.layer]
        kv_format.append(pool, rows, self.cache.slots, layout=self.cache.layout)
        return self.expand(self.attend(q, pool)[0]), None

    def absorb(
        self, q: Tensor, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Projected queries (batch, s_q, heads * head dim) -> q in the latent space (batch, s_q,
        h_q, dim), and the rows (batch * s_q, dim) that the step's tokens add to the cache."""
        a = self.attention
        batch, s_q, _ = hidden_states.shape
        cos, sin = (x.unsqueeze(2) for x in position_embeddings)  # (batch, s_q, 1, rope dim)

        q = q.view(batch, s_q, -1, a.qk_nope_head_dim + a.qk_rope_head_dim)
        q_nope, q_rope = q.split([a.qk_nope_head_dim, a.qk_rope_head_dim], dim=-1)
        q = torch.cat([self.to_latent(q_nope), self._rotate(q_rope, cos, sin)], dim=-1)

        latent, k_rope = a.kv_a_proj_with_mqa(hidden_states).split(
            [a.kv_lora_rank, a.qk_rope_head_dim], dim=-1
        )
        k_rope = self._rotate(k_rope.unsqueeze(2), cos, sin).squeeze(2)
        return q, torch.cat([a.kv_a_layernorm(latent), k_rope], dim=-1).flatten(0, 1)

    def to_latent(self, q_nope: Tensor) -> Tensor:
        """(batch, s_q, h_q, nope dim) -> (batch, s_q, h_q, kv_lora_rank)."""
        return torch.einsum("bshn,hnr->bshr", q_nope, self.w_uk)

    def expand(self, out: Tensor) -> Tensor:
        """Attention over latents (batch, s_q, h_q, kv_lora_rank) -> (batch, s_q, hidden size)."""
        out = torch.einsum("bshr,hvr->bshv", out, self.w_uv)
        return self.attention.o_proj(out.flatten(2))  # type: ignore[no-any-return]

    def attend(self, q: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of q (batch, s_q, h_q, dim) over the latents of this layer."""
        cache = self.cache
        self.call = {
            "q": q,
            "k_cache": pool,
            "block_table": cache.block_table,
            "cache_seqlens": cache.cache_seqlens,
            "head_dim_v": self.attention.kv_lora_rank,
            "tile_scheduler_metadata": cache.meta,
            "softmax_scale": self.softmax_scale,
            "causal": True,
            "backend": self.backend,
            "kv_format": None if cache.layout == "dense" else cache.layout,
        }
        return flash_mla_with_kvcache(**self.call)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of x (batch, s_q, heads, rope dim)."""
        if self.rope_interleave:  # pairs lie side by side: gather the halves first
            x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin
