"""The models of the demo: how a small one is made, and which attention and cache it decodes with.

Random weights, few layers and a small vocabulary; the sizes that the attention kernels see (latent,
rope and head dims, the sliding window, compression rates) are the real ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor, nn

from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache
from flashmla_hub.examples.deepseek_v32 import SparseMLA, as_cached
from flashmla_hub.examples.glm_dsa import GlmNoRopeMLA, GlmSparseMLA

VOCABULARY = 512


@dataclass(frozen=True)
class Sizes:
    heads: int
    layers: int
    positions: int


@dataclass(frozen=True)
class Kind:
    """A model that the demo knows.

    Attributes:
        make: the model of given sizes, seeded by torch's generator.
        attention, make_cache: the hub's side, as ``attention(module, cache, layer, backend)``.
        layouts: layouts of the cache beside ``dense``.
        needs: the first transformers that has the model.
        state: name of the argument by which ``attention`` takes transformers' cache, '' for none.
        one_length: prompts may not be padded.
    """

    make: Callable[[Sizes], Any]
    attention: Any = AbsorbedMLA
    make_cache: Callable[..., Any] = PagedLatentCache
    layouts: tuple[str, ...] = ()
    needs: str = "5.17"
    state: str = ""
    one_length: bool = False

    def layers(self, model: Any) -> list[Any]:
        return list(model.model.layers)

    @contextmanager
    def as_cached(self, model: Any, layout: str) -> Iterator[None]:
        """transformers' own attention over the rows that a cache of ``layout`` gives back."""
        with ExitStack() as stack:
            if layout != "dense":
                for layer in self.layers(model):
                    stack.enter_context(_round_trip(layer.self_attn, layout))
            yield


def get(name: str, layout: str = "dense") -> Kind:
    """The kind of this name; refuses a layout it has no use for, and an older transformers."""
    if name not in KINDS:
        raise InvalidRequestError("--model", repr(name), " | ".join(KINDS))
    kind = KINDS[name]
    if layout not in ("dense", *kind.layouts):
        takes = " | ".join(("dense", *kind.layouts))
        raise InvalidRequestError("--kv-format", repr(layout), f"{takes} for --model {name}")
    have = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if have < tuple(int(part) for part in kind.needs.split(".")):
        wanted = f">= {kind.needs}, which has the model of --model {name}"
        raise InvalidRequestError("transformers", transformers.__version__, wanted)
    return kind


def _round_trip(module: Any, layout: str) -> AbstractContextManager[Any]:
    """Let one attention module of transformers read what a cache of ``layout`` would hand it."""

    def kept(rows: Tensor) -> Tensor:
        return as_cached(rows.reshape(-1, rows.shape[-1]), layout).view_as(rows)

    if hasattr(module, "expand_kv"):
        expand = module.expand_kv

        def expand_kv(latent: Tensor, k_rope: Tensor) -> Any:
            widths = [latent.shape[-1], k_rope.shape[-1]]
            return expand(*kept(torch.cat([latent, k_rope], dim=-1)).split(widths, dim=-1))

        return patch.object(module, "expand_kv", expand_kv)

    # DeepSeek-V4 hands tokens and entries to its attention function in one tensor, K and V alike.
    home = inspect.getmodule(type(module))
    attend, forward = home.eager_attention_forward, module.forward  # type: ignore[union-attr]

    def over_kept(
        layer: Any, query: Tensor, key: Tensor, _: Tensor, *rest: Any, **more: Any
    ) -> Any:
        return attend(layer, query, kept(key), kept(key), *rest, **more)

    def run(*args: Any, **kwargs: Any) -> Any:
        with patch.object(home, "eager_attention_forward", over_kept):
            return forward(*args, **kwargs)

    return patch.object(module, "forward", run)


_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 96,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "eos_token_id": None,
}
_MLA = _COMMON | {
    "intermediate_size": 256,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 512,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
}
# The indexer: lists shorter than the prompts, so that it has something to leave out.
_INDEXER = {"index_topk": 64, "index_n_heads": 4, "index_head_dim": 128}


def _sized(sizes: Sizes) -> dict[str, int]:
    return {
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
    }


def _with_rope(sizes: Sizes, **changed: Any) -> dict[str, Any]:
    return {
        **_MLA,
        **_sized(sizes),
        "num_key_value_heads": sizes.heads,
        "qk_rope_head_dim": 64,
        "first_k_dense_replace": min(2, sizes.layers),
        **changed,
    }


def _indexer_types(sizes: Sizes) -> list[str]:
    return ["full" if i % 2 == 0 else "shared" for i in range(sizes.layers)]


def _v3(sizes: Sizes) -> Any:
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**_with_rope(sizes)))


def _v32(sizes: Sizes) -> Any:
    config = transformers.DeepseekV32Config(**_with_rope(sizes, **_INDEXER))
    return transformers.DeepseekV32ForCausalLM(config)


def _glm(sizes: Sizes) -> Any:
    heads = {"v_head_dim": 256, "qk_nope_head_dim": 192}
    types = _indexer_types(sizes)
    config = transformers.GlmMoeDsaConfig(
        **_with_rope(sizes, **_INDEXER, **heads, indexer_types=types)
    )
    return transformers.GlmMoeDsaForCausalLM(config)


def _glm_no_rope(sizes: Sizes) -> Any:
    from transformers.models.glm5_next.modeling_glm5_next import (
        Glm5NextTextConfig,
        Glm5NextTextModel,
    )

    config = Glm5NextTextConfig(
        **_MLA | {"v_head_dim": 256, "qk_nope_head_dim": 256},
        **_INDEXER,
        **_sized(sizes),
        num_key_value_heads=sizes.heads,
        qk_rope_head_dim=0,
        layer_types=["indexed_attention"] * sizes.layers,
        mlp_layer_types=["dense"] * sizes.layers,
        indexer_types=_indexer_types(sizes),
    )
    return TextWithHead(Glm5NextTextModel(config))


def _v4(sizes: Sizes) -> Any:
    kinds = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
    config = transformers.DeepseekV4Config(
        **_COMMON,
        **_sized(sizes),
        **_INDEXER | {"index_topk": 24},
        layer_types=[kinds[(i + 1) % 3] for i in range(sizes.layers)],
        mlp_layer_types=["moe"] * sizes.layers,
        o_groups=2,
        o_lora_rank=64,
        attn_implementation="eager",
    )
    model = transformers.DeepseekV4ForCausalLM(config)
    for layer in model.model.layers:  # without weights of its own a sink would be 0 everywhere
        nn.init.normal_(layer.self_attn.sinks)
    return model


class TextWithHead(nn.Module):
    """transformers has this model inside one that reads pictures: its text part and a head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.lm_head = nn.Linear(model.config.hidden_size, VOCABULARY, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.1)

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def forward(self, ids: Tensor, cache: Any = None, **options: Any) -> Any:
        got = self.model(ids, cache=cache, **options)
        got.logits = self.lm_head(got.last_hidden_state)
        return got


def _no_rope_cache(*args: Any, **options: Any) -> PagedLatentCache:
    return PagedLatentCache(*args, dim=512, **options)


def _v4_attention(*args: Any, **options: Any) -> Any:
    from flashmla_hub.examples.deepseek_v4 import CompressedMLA

    return CompressedMLA(*args, **options)


def _v4_cache(*args: Any, **options: Any) -> Any:
    from flashmla_hub.examples.deepseek_v4 import PairedCache

    return PairedCache(*args, **options)


KINDS = {
    "v3": Kind(_v3),
    "v32": Kind(_v32, SparseMLA, layouts=("v32",), needs="5.24", state="index_cache"),
    "v4": Kind(
        _v4,
        _v4_attention,
        _v4_cache,
        layouts=("model1",),
        needs="5.24",
        state="state_cache",
        one_length=True,
    ),
    "glm": Kind(_glm, GlmSparseMLA, layouts=("v32",), needs="5.24", state="index_cache"),
    "glm_no_rope": Kind(_glm_no_rope, GlmNoRopeMLA, _no_rope_cache, (), "5.24", "index_cache"),
}
