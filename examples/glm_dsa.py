"""GLM's sparse attention over a paged latent cache: what differs from ``deepseek_v32``.

GLM 5 has DeepSeek-V3.2's attention with one indexer for several layers: a layer without one takes
the list of the layer before it. GLM 5.3 drops the rotary part as well (``GlmNoRopeMLA``): a cached
row is the latent alone, 512 values, and the indexer picks pools of neighbouring tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmla_hub.examples.deepseek_v32 import SparseMLA


class GlmSparseMLA(SparseMLA):
    """``SparseMLA`` whose list may come from the layer before, and goes to the next."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        prev_topk_indices: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        """As ``SparseMLA.forward``, and the list (batch, s_q, topk) for the next layer."""
        self.columns = prev_topk_indices
        out, weights = super().forward(hidden_states, position_embeddings, **options)
        return out, weights, self.columns

    def pick(self, *args: Any, **options: Any) -> Tensor:
        if self.attention.indexer is not None:
            self.columns = self.select(*args, **options)
        assert self.columns is not None, "the first layer of a model has an indexer"
        return self.columns

    def select(self, *args: Any, **options: Any) -> Tensor:
        """Run this layer's own indexer."""
        return super().pick(*args, **options)


class GlmNoRopeMLA(GlmSparseMLA):
    """Without rotary embeddings, and with an indexer that keeps count of the tokens itself."""

    def absorb(self, q: Tensor, hidden_states: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        a = self.attention
        q = q.view(*hidden_states.shape[:2], -1, a.qk_nope_head_dim)
        latent = a.kv_a_layernorm(a.kv_a_proj_with_mqa(hidden_states))
        return self.to_latent(q), latent.flatten(0, 1)

    def select(self, hidden_states: Tensor, q_resid: Tensor, _: Any, **options: Any) -> Tensor:
        # The indexer asks transformers' cache how long it is: one column a token is enough.
        count = hidden_states[:, None, :, :1]
        self.index_cache.update(count, count, self.layer)
        return self.attention.indexer(  # type: ignore[no-any-return]
            hidden_states=hidden_states,
            q_resid=q_resid,
            attention_mask=self.cache.new,
            cache=self.index_cache,
        )
