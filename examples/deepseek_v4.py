"""DeepSeek-V4's attention over two paged caches: code to lift.

V4 keeps one row of 512 values a token, K and V at once, and reads two things with it: the last
``sliding_window`` tokens, and *compressed entries*, each made of many tokens, from a second cache.
In "heavily compressed" layers a query reads all entries that are complete by then, in "compressed
sparse" ones those that the layer's indexer picks. Both are attended in one softmax together with a
learned sink: while decoding by a call of ``flash_mla_with_kvcache`` with two lists, for a prompt by
``flash_mla_sparse_fwd`` with one.

Compressor and indexer are transformers' own; ``PairedCache`` holds what they make. Prompts have one
length here, since transformers counts the compressor's windows from the first column.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

from flashmla_hub import flash_mla_sparse_fwd, flash_mla_with_kvcache, kv_format
from flashmla_hub.examples.deepseek_decode import PagedLatentCache, new_pool
from flashmla_hub.examples.deepseek_v32 import as_cached


class PairedCache(PagedLatentCache):
    """A ``PagedLatentCache`` of tokens and, for each layer, a second pool of compressed entries.

    Attributes:
        entry_pools: for each layer, (blocks, ENTRIES, 1, dim); a request's pages follow each other.
        entries: how many entries of each request a layer holds.
    """

    ENTRIES = 2  # a page: what 128 tokens leave of themselves at a rate of 64

    def __init__(self, layers: int, batch: int, max_tokens: int, **options: Any) -> None:
        super().__init__(layers, batch, max_tokens, **{"dim": 512} | options)
        # One entry for every fourth token is the most that a layer makes.
        self.pages = -(-max_tokens // (4 * self.ENTRIES))
        pool = self.pools[0]
        blocks = (batch * self.pages, self.ENTRIES, 512, self.layout)
        self.entry_pools = [new_pool(*blocks, pool.dtype, pool.device) for _ in range(layers)]
        self.entries = [0] * layers

    def entry_slots(self, entry: Tensor) -> Tensor:
        """Numbers of entries (batch, ...) -> slots of ``entry_pools``, -1 for those < 0."""
        row = torch.arange(len(entry), device=entry.device).view(-1, *[1] * (entry.dim() - 1))
        return torch.where(entry < 0, -1, row * self.pages * self.ENTRIES + entry).int()

    def append_entries(self, layer: int, compressed: Tensor) -> None:
        """Keep what is new of ``compressed`` (batch, entries, dim), all entries so far."""
        new = compressed[:, self.entries[layer] :]
        number = torch.arange(self.entries[layer], compressed.shape[1], device=new.device)
        slots = self.entry_slots(number.expand(len(new), -1)).flatten()
        kv_format.append(self.entry_pools[layer], new.flatten(0, 1), slots, layout=self.layout)
        self.entries[layer] = compressed.shape[1]


class CompressedMLA(nn.Module):
    """V4's attention with the weights of ``attention`` as they are.

    ``state_cache`` is transformers' cache: here it holds the compressor's and the indexer's state.
    """

    attention: Any  # a module; Any, since its attributes are DeepSeek's
    call: dict[str, Any] | None = None  # the arguments of the last call, for explain_call

    def __init__(
        self,
        attention: nn.Module,
        cache: PairedCache,
        layer: int,
        backend: str | None = None,
        state_cache: Any = None,
    ) -> None:
        super().__init__()
        self.attention, self.cache, self.layer, self.backend = attention, cache, layer, backend
        self.state_cache = state_cache
        self.softmax_scale: float = self.attention.scaling
        self.window: int = self.attention.sliding_window

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, position_ids: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        """hidden_states (batch, s_q, hidden size) -> the same, and no attention weights."""
        a, cache = self.attention, self.cache
        batch, s_q, _size = hidden_states.shape
        cos, sin = position_embeddings[a.rope_layer_type]

        q_residual = a.q_a_norm(a.q_a_proj(hidden_states))
        q = a.q_b_norm(a.q_b_proj(q_residual).view(batch, s_q, -1, a.head_dim))
        q = apply_rotary_pos_emb(q, cos, sin, unsqueeze_dim=2)
        rows = a.kv_norm(a.kv_proj(hidden_states))
        rows = apply_rotary_pos_emb(rows.unsqueeze(2), cos, sin, unsqueeze_dim=2).squeeze(2)
        kv_format.append(
            cache.pools[self.layer], rows.flatten(0, 1), cache.slots, layout=cache.layout
        )
        entries, compressed = self._compress(hidden_states, q_residual, position_ids)

        tokens = self._window_of(position_ids)
        if s_q > 1:
            out = self._prompt(q, rows, compressed, tokens, entries)
        else:
            out = self._decode(q, tokens, entries)
        out = apply_rotary_pos_emb(out, cos, -sin, unsqueeze_dim=2)
        grouped = out.reshape(batch, s_q, a.config.o_groups, -1)
        return a.o_b_proj(a.o_a_proj(grouped).flatten(2)), None

    def _window_of(self, position_ids: Tensor) -> Tensor:
        """(batch, s_q, window): positions that the sliding window shows, -1 before the first."""
        back = torch.arange(1 - self.window, 1, device=position_ids.device)
        return (position_ids[..., None] + back).clamp(min=-1)

    def _compress(
        self, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The entries each query reads (batch, s_q, n), -1 for none, and all entries' rows
        (batch, entries, dim); None and None where there is nothing to read."""
        compressor = self.attention.compressor
        if compressor is None:
            return None, None
        arguments = (hidden_states, q_residual, position_ids, self.state_cache, self.layer)
        if not hasattr(compressor, "indexer"):
            compressed = compressor(*arguments)[0].squeeze(1)
            number = torch.arange(compressed.shape[1], device=compressed.device)
            complete = (position_ids[..., None] + 1) // compressor.compress_rate
            picked = torch.where(number < complete, number, -1)
        else:  # the compressor runs its indexer inside, and hands out a mask made of the list
            lists: list[Tensor] = []
            hook = compressor.indexer.register_forward_hook(lambda *call: lists.append(call[-1]))
            compressed = compressor(*arguments)[0].squeeze(1)
            hook.remove()
            picked = lists[0]
        self.cache.append_entries(self.layer, compressed)
        return (picked, compressed) if compressed.shape[1] else (None, None)

    def _decode(self, q: Tensor, tokens: Tensor, entries: Tensor | None) -> Tensor:
        cache = self.cache
        # No metadata: layers of three kinds would share one step's, which is bound to one shape.
        self.call = {
            "q": q,
            "k_cache": cache.pools[self.layer],
            "block_table": None,
            "cache_seqlens": None,
            "head_dim_v": self.attention.head_dim,
            "softmax_scale": self.softmax_scale,
            "indices": cache.slots_of(tokens),
            "attn_sink": self.attention.sinks.detach().float(),
            "backend": self.backend,
            "kv_format": None if cache.layout == "dense" else cache.layout,
        }
        if entries is not None:
            self.call["extra_k_cache"] = cache.entry_pools[self.layer]
            self.call["extra_indices_in_kvcache"] = cache.entry_slots(entries)
        return flash_mla_with_kvcache(**self.call)[0]

    def _prompt(
        self,
        q: Tensor,
        rows: Tensor,
        compressed: Tensor | None,
        tokens: Tensor,
        entries: Tensor | None,
    ) -> Tensor:
        """A whole prompt: its own rows and its entries are one array, read through one list."""
        batch, s_q, h_q, dim = q.shape
        both, at = rows, tokens
        if compressed is not None and entries is not None:
            both = torch.cat([rows, compressed], dim=1)
            at = torch.cat([tokens, torch.where(entries < 0, -1, entries + s_q)], dim=-1)
        start = torch.arange(batch, device=q.device).view(-1, 1, 1) * both.shape[1]
        indices = torch.where(at < 0, -1, start + at).int()
        out, _, _ = flash_mla_sparse_fwd(
            q.flatten(0, 1),
            as_cached(both.flatten(0, 1), self.cache.layout).unsqueeze(1),
            indices.flatten(0, 1).unsqueeze(1),
            self.softmax_scale,
            dim,
            self.attention.sinks.detach().float(),
            backend=self.backend,
        )
        return out.view(batch, s_q, h_q, dim)
