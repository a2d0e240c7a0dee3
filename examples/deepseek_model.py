"""A model of seeded random weights, decoded greedily in two ways and compared.

What ``flashmla-hub demo`` runs. ``models`` says which attention goes with which model; everything
else is Hugging Face transformers' own.
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
from transformers import DynamicCache
from transformers import __version__ as transformers_version

from flashmla_hub import Decision, explain_call
from flashmla_hub.examples import models
from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache

# Half-precision runs may part at a near tie; until then logits stay this close, as a share of
# their standard deviation. A wrong scale or a wrong page moves them by more than that.
HALF_PRECISION_SHARE = 0.25

Tick = Callable[[], None]
Spoil = Callable[[PagedLatentCache, list[AbsorbedMLA]], None]


@dataclass
class Setup:
    """A model and left-padded prompts (batch, width), ``real`` where they are no padding.

    ``layout``: of the hub's cache; a quantised one is compared with transformers over the rows that
    such a cache gives back.
    """

    model: Any
    prompts: Tensor
    real: Tensor
    tokens: int
    kind: models.Kind = models.KINDS["v3"]
    layout: str = "dense"


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
    *,
    device: str,
    dtype: str,
    batch: int,
    tokens: int,
    heads: int,
    layers: int,
    seed: int,
    model: str = "v3",
    layout: str = "dense",
) -> Setup:
    """The model, and ``batch`` prompts of different lengths, some longer than a page."""
    kind = models.get(model, layout)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = kind.make(models.Sizes(heads, layers, 1024 + tokens))
        made = made.eval().to(device, getattr(torch, dtype))
        if hasattr(made, "set_experts_implementation"):
            made.set_experts_implementation("eager")  # grouped_mm lacks dtypes on some devices
        lengths = torch.tensor([9 + 29 * row % 113 for row in range(batch)])
        if kind.one_length:
            lengths[:] = 150
        width = int(lengths.max())
        real = torch.arange(width) >= width - lengths[:, None]
        prompts = torch.randint(1, models.VOCABULARY, (batch, width)).masked_fill(~real, 0)
    return Setup(made, prompts.to(device), real.to(device), tokens, kind, layout)


def generate_stock(setup: Setup, tick: Tick = lambda: None) -> Run:
    """Greedy decoding by transformers alone."""
    model = setup.model
    # The argument was renamed between releases.
    takes = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"

    def start() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        state = {name: DynamicCache(config=model.config)}

        def step(ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
            mask = real.long()
            return model(
                ids, attention_mask=mask, position_ids=positions, use_cache=True, **state
            ).logits

        return step

    with setup.kind.as_cached(model, setup.layout):
        return _greedy(setup, start, tick)


def generate_hub(
    setup: Setup,
    tick: Tick = lambda: None,
    backend: str | None = None,
    spoil: Spoil | None = None,
    make_cache: Callable[..., PagedLatentCache] | None = None,
    attention: type[AbsorbedMLA] | None = None,
) -> Run:
    """Greedy decoding with every layer's attention going through flashmla_hub.

    ``spoil`` is for negative controls: it may damage the cache and the layers after the prompts.
    ``make_cache`` and ``attention``: a cache and a layer of another kind (sharded_decode).
    """
    model, batch, kind = setup.model, len(setup.prompts), setup.kind
    make_cache, attention = make_cache or kind.make_cache, attention or kind.attention
    options = {} if setup.layout == "dense" else {"layout": setup.layout}
    served: list[AbsorbedMLA] = []

    def start() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        layers = [layer.self_attn for layer in kind.layers(model)]
        cache = make_cache(
            len(layers),
            batch,
            setup.prompts.shape[1] + setup.tokens,
            dtype=model.dtype,
            device=model.device,
            **options,
        )
        state = {kind.state: DynamicCache(config=model.config)} if kind.state else {}
        modules = [attention(layer, cache, i, backend, **state) for i, layer in enumerate(layers)]
        served[:] = modules

        def step(ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
            cache.begin_step(real[:, -ids.shape[1] :])
            with _attention_replaced(kind.layers(model), modules):
                logits = model(ids, position_ids=positions, use_cache=False).logits
            if spoil is not None and ids.shape[1] > 1:
                spoil(cache, modules)
            return logits

        return step

    run = _greedy(setup, start, tick)
    if (call := served[-1].call) is not None:
        run.decision = explain_call(**call)
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
def _attention_replaced(layers: list[Any], modules: list[AbsorbedMLA]) -> Iterator[None]:
    stock = [layer.self_attn for layer in layers]
    try:
        for layer, module in zip(layers, modules, strict=True):
            layer.self_attn = module
        yield
    finally:
        for layer, module in zip(layers, stock, strict=True):
            layer.self_attn = module
