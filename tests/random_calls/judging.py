"""Whether one random call is right, or refused with a public error."""

from __future__ import annotations

import oracle
import torch
from drawn import Drawn, draw
from placing import Placed, same_bits

import flashmla_hub as hub
from flashmla_hub import errors

REFUSED = "refused"


def judge(seed: int, backend: str, device: torch.device, kernels: int = 0) -> tuple[str, str]:
    """("right", ""), ("refused", why) or ("WRONG", what)."""
    dtypes = ("bfloat16", "float16", "float32") if backend == "torch" else ("bfloat16", "float16")
    call = draw(seed, device, kernels=kernels, dtypes=dtypes)
    before = [x.clone() for x in call.inputs]
    try:
        results = _run(call, backend)
    except errors.FlashMLAHubError as error:
        return REFUSED, _short(error)
    try:
        _check(call, results, seed)
    except AssertionError as error:
        return "WRONG", f"{error}\n  {call.facts}\n  {_describe(call)}"
    for name, (old, now) in enumerate(zip(before, call.inputs, strict=True)):
        if not same_bits(old.resolve_neg(), now.resolve_neg()):
            return "WRONG", f"input {name} was changed: {call.facts}"
    return "right", ""


def _run(call: Drawn, backend: str) -> tuple[torch.Tensor, ...]:
    if call.facts.op == "prefill":
        out, top, lse = hub.flash_mla_sparse_fwd(**call.arguments, backend=backend)
        return out, lse, top
    return hub.flash_mla_with_kvcache(**call.arguments, backend=backend)


def _check(call: Drawn, results: tuple[torch.Tensor, ...], seed: int) -> None:
    out, lse = results[0].resolve_neg(), results[1].resolve_neg()
    for given, found, name in ((call.out, out, "out"), (call.lse, lse, "lse")):
        if given is not None:
            assert found.data_ptr() == given.view.data_ptr(), f"{name} is not the tensor given"
            assert _clean_around(given), f"memory beside {name} was written"
    if call.expected is None:
        assert out.numel() == 0 and lse.numel() == 0, "a batch of 0 gives empty results"
        return
    if call.facts.op == "prefill":
        out, lse = out.unsqueeze(1), lse.unsqueeze(2)
    oracle.check(out, lse, call.expected, f"seed {seed}", lse_factor=call.lse_factor)
    if len(results) == 3:
        top, want = results[2].double().cpu(), call.expected.max_logits.squeeze(-1)
        assert torch.equal(top.isneginf(), want.isneginf()), "-inf of max_logits"
        seen = want.isfinite()
        near = (top - want)[seen].abs() <= 1e-6 + 2e-4 * want[seen].abs() + 1e-4
        assert near.all(), "max_logits"


def _clean_around(given: Placed) -> bool:
    """Whether the memory around a view still holds what it was filled with."""
    mine = given.view.clone()
    given.view.fill_(torch.nan)
    clean = bool(given.pool.isnan().all())
    given.view.copy_(mine)
    return clean


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:150]}"


def _describe(call: Drawn) -> str:
    parts = []
    for name, x in call.arguments.items():
        if isinstance(x, torch.Tensor):
            sign = "-" if x.is_neg() else ""
            at = f"{tuple(x.shape)} {x.stride()} +{x.data_ptr() % 16}"
            parts.append(f"{name}={sign}{str(x.dtype)[6:]}{at}")
        else:
            parts.append(f"{name}={x}")
    return " ".join(parts)
