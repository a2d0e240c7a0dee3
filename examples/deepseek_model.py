"""A DeepSeek-V3 model of seeded random weights, decoded greedily in two ways and compared.

What ``flashmla-hub demo`` runs. The attention is ``deepseek_decode.AbsorbedMLA``; everything else
is Hugging Face transformers' own model.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers import __version__ as transformers_version

from flashmla_hub import Decision, explain_call
from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache

# Half-precision runs may part at a near tie; until then logits stay this close, as a share of
# their standard deviation. A wrong scale or a wrong page moves them by more than that.
HALF_PRECISION_SHARE = 0.25

Tick = Callable[[], None]
Spoil = Callable[[PagedLatentCache, list[AbsorbedMLA]], None]


@dataclass
class Setup:
    """A model and left-padded prompts (batch, width), ``real`` where they are no padding."""

    model: Any
    prompts: Tensor
    real: Tensor
    tokens: int


@dataclass
class Run:
    """``tokens`` (batch, n), ``logits`` (batch, n, vocabulary) of each step, tokens per second."""

    tokens: Tensor
    logits: Tensor
    tokens_per_second: float
    decision: Decision | None = None


@dataclass
class Comparison:
    """``agree`` is the verdict; ``logit_difference`` is the largest one between runs that have
    generated the same tokens so far, ``logit_spread`` the logits' standard deviation."""

    stock: Run
    hub: Run
    prompt_lengths: list[int]
    dtype: str
    logit_difference: float
    logit_spread: float
    agree: bool
    same_tokens: bool = field(init=False)

    def __post_init__(self) -> None:
        self.same_tokens = torch.equal(self.stock.tokens, self.hub.tokens)

    def to_json(self) -> dict[str, Any]:
        decision = self.hub.decision
        return {
            "agree": self.agree,
            "same_tokens": self.same_tokens,
            "dtype": self.dtype,
            "logit_difference": self.logit_difference,
            "logit_spread": self.logit_spread,
            "prompt_lengths": self.prompt_lengths,
            "tokens": {"transformers": self.stock.tokens.tolist(), "hub": self.hub.tokens.tolist()},
            "tokens_per_second": {
                "transformers": self.stock.tokens_per_second,
                "hub": self.hub.tokens_per_second,
            },
            "transformers": transformers_version,
            "decision": None if decision is None else decision.to_json(),
        }


def build(
    *, device: str, dtype: str, batch: int, tokens: int, heads: int, layers: int, seed: int
) -> Setup:
    """The model, and ``batch`` prompts of different lengths, some longer than a page."""
    config = DeepseekV3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        n_shared_experts=1,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=min(2, layers),
        q_lora_rank=96,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        max_position_embeddings=1024 + tokens,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DeepseekV3ForCausalLM(config).eval().to(device, getattr(torch, dtype))
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # grouped_mm lacks dtypes on some devices
        lengths = torch.tensor([9 + 29 * row % 113 for row in range(batch)])
        width = int(lengths.max())
        real = torch.arange(width) >= width - lengths[:, None]
        prompts = torch.randint(1, config.vocab_size, (batch, width)).masked_fill(~real, 0)
    return Setup(model, prompts.to(device), real.to(device), tokens)


def generate_stock(setup: Setup, tick: Tick = lambda: None) -> Run:
    """Greedy decoding by transformers alone."""
    model = setup.model
    # The argument was renamed between releases.
    takes = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"

    def start() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        state = {name: DynamicCache()}

        def step(ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
            mask = real.long()
            return model(
                ids, attention_mask=mask, position_ids=positions, use_cache=True, **state
            ).logits

        return step

    return _greedy(setup, start, tick)


def generate_hub(
    setup: Setup,
    tick: Tick = lambda: None,
    backend: str | None = None,
    spoil: Spoil | None = None,
    make_cache: Callable[..., PagedLatentCache] = PagedLatentCache,
    attention: type[AbsorbedMLA] = AbsorbedMLA,
) -> Run:
    """Greedy decoding with every layer's attention going through flashmla_hub.

    ``spoil`` is for negative controls: it may damage the cache and the layers after the prompts.
    ``make_cache`` and ``attention``: a cache and a layer of another kind (sharded_decode).
    """
    model, batch = setup.model, len(setup.prompts)
    caches: list[PagedLatentCache] = []

    def start() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        layers = [layer.self_attn for layer in model.model.layers]
        cache = make_cache(
            len(layers),
            batch,
            setup.prompts.shape[1] + setup.tokens,
            dtype=model.dtype,
            device=model.device,
        )
        caches.append(cache)
        modules = [attention(layer, cache, i, backend) for i, layer in enumerate(layers)]

        def step(ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
            cache.begin_step(real[:, -ids.shape[1] :])
            with _attention_replaced(model, modules):
                logits = model(ids, position_ids=positions, use_cache=False).logits
            if spoil is not None and ids.shape[1] > 1:
                spoil(cache, modules)
            return logits

        return step

    run = _greedy(setup, start, tick)
    heads, cache = model.config.num_attention_heads, caches[-1]
    q = torch.zeros(batch, 1, heads, 576, dtype=model.dtype, device=model.device)
    run.decision = explain_call(
        q, cache.pools[0], cache.block_table, cache.cache_seqlens, 512, backend=backend
    )
    return run


def compare(setup: Setup, stock: Run, hub: Run) -> Comparison:
    """Do the runs agree: equal tokens in float32, close logits in other dtypes?"""
    different = stock.tokens != hub.tokens
    # The logits of a step may be compared while all earlier tokens are equal.
    comparable = different.cumsum(1) - different.int() == 0
    difference = (stock.logits - hub.logits).abs().amax(-1)
    largest = float(torch.where(comparable, difference, 0.0).max())
    if not hub.logits.isfinite().all():
        largest = float("nan")
    spread = float(stock.logits.std())
    close = largest <= HALF_PRECISION_SHARE * spread
    full_precision = setup.model.dtype == torch.float32
    return Comparison(
        stock,
        hub,
        setup.real.sum(1).tolist(),
        str(setup.model.dtype).removeprefix("torch."),
        largest,
        spread,
        close and not (full_precision and bool(different.any())),
    )


@torch.no_grad()
def _greedy(setup: Setup, start: Callable[[], Any], tick: Tick) -> Run:
    """``start()`` returns a fresh ``step(ids, real so far, positions) -> logits``."""
    warm = start()
    logits = warm(setup.prompts, setup.real, _positions(setup.real))
    one_more = torch.cat([setup.real, torch.ones_like(setup.real[:, :1])], 1)
    warm(logits[:, -1:].argmax(-1), one_more, _positions(one_more)[:, -1:])

    step, ids, real = start(), setup.prompts, setup.real
    tokens, every_logits, seconds, begun = [], [], [], time.perf_counter()
    for _ in range(setup.tokens):
        logits = step(ids, real, _positions(real)[:, -ids.shape[1] :])[:, -1]
        ids = logits.argmax(-1, keepdim=True)
        real = torch.cat([real, torch.ones_like(ids, dtype=torch.bool)], 1)
        tokens.append(ids.cpu())  # waits for the device, so that the clock means something
        every_logits.append(logits.float().cpu())
        seconds.append(time.perf_counter() - begun)
        tick()
    if setup.tokens > 1:  # the prompts' step is not decoding
        rate = len(ids) * (setup.tokens - 1) / (seconds[-1] - seconds[0])
    else:
        rate = len(ids) / seconds[0]
    return Run(torch.cat(tokens, 1), torch.stack(every_logits, 1), rate)


def _positions(real: Tensor) -> Tensor:
    return (real.cumsum(1) - 1).clamp(min=0)


@contextmanager
def _attention_replaced(model: Any, modules: list[AbsorbedMLA]) -> Iterator[None]:
    layers = list(model.model.layers)
    stock = [layer.self_attn for layer in layers]
    try:
        for layer, module in zip(layers, modules, strict=True):
            layer.self_attn = module
        yield
    finally:
        for layer, module in zip(layers, stock, strict=True):
            layer.self_attn = module
