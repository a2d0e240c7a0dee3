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
        pools: for each layer, (num_blocks, page_block_size, 1, dim).
        block_table: (batch, max_blocks_per_seq) int32, in no particular order of pages.
        cache_seqlens: (batch,) int32, tokens of each request so far.
        slots: (batch * s_q,) where the current step's tokens go; -1 for padding.
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
    ) -> None:
        blocks = -(-max_tokens // page_block_size)
        shape = (batch * blocks, page_block_size, 1, dim)
        # Unused slots may hold anything: NaN shows that nothing reads them.
        self.pools = [
            torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(layers)
        ]
        order = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(seed))
        self.block_table = order.view(batch, blocks).int().to(device)
        self.cache_seqlens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.slots = torch.empty(0, dtype=torch.int64, device=device)
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
        self.meta, _ = get_mla_metadata()


class AbsorbedMLA(nn.Module):
    """MLA with absorbed projections; takes the weights of ``attention`` as they are."""

    attention: Any  # a module; Any, since its attributes are DeepSeek's

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
        a, cache = self.attention, self.cache
        batch, s_q, _ = hidden_states.shape
        cos, sin = (x.unsqueeze(2) for x in position_embeddings)  # (batch, s_q, 1, rope dim)

        q = a.q_proj(hidden_states) if a.q_lora_rank is None else self._low_rank_q(hidden_states)
        q = q.view(batch, s_q, -1, a.qk_nope_head_dim + a.qk_rope_head_dim)
        q_nope, q_rope = q.split([a.qk_nope_head_dim, a.qk_rope_head_dim], dim=-1)
        q_latent = torch.einsum("bshn,hnr->bshr", q_nope, self.w_uk)
        q = torch.cat([q_latent, self._rotate(q_rope, cos, sin)], dim=-1)

        latent, k_rope = a.kv_a_proj_with_mqa(hidden_states).split(
            [a.kv_lora_rank, a.qk_rope_head_dim], dim=-1
        )
        k_rope = self._rotate(k_rope.unsqueeze(2), cos, sin).squeeze(2)
        rows = torch.cat([a.kv_a_layernorm(latent), k_rope], dim=-1).flatten(0, 1)
        pool = cache.pools[self.layer]
        kv_format.append(pool, rows, cache.slots)

        out, _ = self.attend(q, pool)
        out = torch.einsum("bshr,hvr->bshv", out, self.w_uv)
        return a.o_proj(out.flatten(2)), None

    def attend(self, q: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of q (batch, s_q, h_q, dim) over the latents of this layer."""
        return flash_mla_with_kvcache(
            q,
            pool,
            self.cache.block_table,
            self.cache.cache_seqlens,
            self.attention.kv_lora_rank,
            self.cache.meta,
            softmax_scale=self.softmax_scale,
            causal=True,
            backend=self.backend,
        )

    def _low_rank_q(self, hidden_states: Tensor) -> Tensor:
        a = self.attention
        return a.q_b_proj(a.q_a_layernorm(a.q_a_proj(hidden_states)))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of x (batch, s_q, heads, rope dim)."""
        if self.rope_interleave:  # pairs lie side by side: gather the halves first
            x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin
