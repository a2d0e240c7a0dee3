"""What is judged: a registered backend through the public API, or a bare function."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

import flashmla_hub
from flashmla_hub import DeviceInfo, InvalidRequestError, NotSupportedError
from flashmla_hub.call import DenseDecode, SparseDecode, SparsePrefill
from flashmla_hub.capabilities import Capabilities, unsupported_reasons
from flashmla_hub.conformance.memory import Call
from flashmla_hub.conformance.model import Case, to_json
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey, choice_key
from flashmla_hub.testing import bind_unchecked


@dataclass(frozen=True)
class Got:
    """A call's outputs as the port gave them; ``max_logits`` of sparse_prefill only."""

    out: Tensor
    lse: Tensor
    max_logits: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.out, self.lse, self.max_logits) if t is not None)


@dataclass(frozen=True)
class Claim:
    """Whether the subject claims a case: by itself (``native``), or with the hub's rewrites."""

    native: bool
    accepted: bool
    rewrites: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class Subject(Protocol):
    """``has_back_door``: unclaimed cases can be put to it past the hub's gate."""

    name: str
    version: str
    device: str
    info: DeviceInfo
    has_back_door: bool
    narrowed: int  # failures that were narrowed down so far

    def claim(self, case: Case) -> Claim: ...

    def run(self, call: Call, **more: Any) -> Got:
        """One public call; ``more`` are further keywords of it (out, lse_out, metadata ...)."""

    def run_unchecked(self, call: Call, out: Tensor, lse: Tensor) -> Got: ...

    def metadata(self, call: Call, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...

    def promises(self, name: str) -> bool: ...

    def hazards(self) -> frozenset[str]: ...

    def claims(self) -> tuple[Mapping[str, Any], ...]: ...

    def files(self) -> tuple[str, ...]: ...


def arguments(call: Call) -> dict[str, Any]:
    """The keyword arguments of ``flash_mla_with_kvcache`` for a decode call."""
    key = call.case.key
    result: dict[str, Any] = {
        "q": call.q,
        "k_cache": call.kv,
        "block_table": call.block_table,
        "cache_seqlens": call.cache_seqlens,
        "head_dim_v": key.d_v,
        "softmax_scale": call.scale,
        "causal": key.causal or "causal_flag" in call.case.layout,
    }
    if key.kv_format != "dense":
        result["is_fp8_kvcache"] = True
    if key.op == SPARSE_DECODE:
        result |= {
            "indices": call.indices,
            "attn_sink": call.attn_sink,
            "topk_length": call.topk_length,
            "extra_k_cache": call.extra_kv,
            "extra_indices_in_kvcache": call.extra_indices,
            "extra_topk_length": call.extra_topk_length,
        }
    return result


class BackendSubject:
    """A registered backend, always by explicit choice."""

    has_back_door = True

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.backend = flashmla_hub.get_backend(name)
        self.name, self.version, self.device = name, self.backend.version, device
        self.info = flashmla_hub.explain(KernelKey(), device=torch.device(device)).device
        self.narrowed = 0
        self.declarations: tuple[Capabilities, ...] = self.backend.capabilities(self.info)

    def missing(self) -> tuple[str, ...]:
        """Why nothing can be judged here: another device, or what this machine lacks."""
        if not any(not d.device_reasons(self.info) for d in self.declarations):
            classes = dict.fromkeys(str(c) for d in self.declarations for c in d.devices)
            return (f"takes {', '.join(classes) or 'no device'}; here: {self.info}",)
        return tuple(self.backend.environment_reasons(self.info))

    def claim(self, case: Case) -> Claim:
        native = not unsupported_reasons(self.declarations, case.key, self.info)
        capacity = case.key.topk or max((*case.lengths, 1))
        choice = choice_key(case.key, case.batch, capacity)
        decision = flashmla_hub.explain(choice, device=self.info, backend=self.name)
        candidate = next(c for c in decision.candidates if c.backend == self.name)
        names = tuple(step.name for step in candidate.steps)
        return Claim(native, candidate.accepted, names, candidate.reasons)

    def run(self, call: Call, **more: Any) -> Got:
        key = call.case.key
        if key.batch_invariant:
            more["batch_invariant"] = True
        if key.op == SPARSE_PREFILL:
            for name in ("tile_scheduler_metadata", "num_splits", "lse_out"):
                more.pop(name, None)
            assert call.indices is not None and call.scale is not None
            out, top, lse = flashmla_hub.flash_mla_sparse_fwd(
                call.q, call.kv, call.indices, call.scale, key.d_v, call.attn_sink,
                call.topk_length, backend=self.name, **more,
            )  # fmt: skip
            return Got(out, lse, top)
        if key.kv_format != "dense":
            more.setdefault("kv_format", key.kv_format)
        more = {**arguments(call), **more}
        return Got(*flashmla_hub.flash_mla_with_kvcache(backend=self.name, **more))

    def run_unchecked(self, call: Call, out: Tensor, lse: Tensor) -> Got:
        key = call.case.key
        kernel = bind_unchecked(self.backend, key, self.info)
        plan = kernel.plan(call.block_table, call.cache_seqlens) if kernel.plans else None
        scale = key.d_qk**-0.5 if call.scale is None else call.scale
        if key.op == DENSE_DECODE:
            dense = DenseDecode(call.q, call.kv, call.block_table, call.cache_seqlens, scale,
                                out, lse, plan)  # fmt: skip
            return Got(*kernel.run(dense))
        assert call.indices is not None
        if key.op == SPARSE_DECODE:
            sparse = SparseDecode(call.q, call.kv, call.indices, scale, out, lse,
                                  call.topk_length, call.attn_sink, call.extra_kv,
                                  call.extra_indices, call.extra_topk_length, plan)  # fmt: skip
            return Got(*kernel.run(sparse))
        top = torch.full_like(lse, float("nan"))
        prefill = SparsePrefill(call.q, call.kv, call.indices, scale, out, lse, top,
                                call.topk_length, call.attn_sink, plan)  # fmt: skip
        out, top, lse = kernel.run(prefill)
        return Got(out, lse, top)

    def metadata(self, call: Call, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return flashmla_hub.get_mla_metadata(*args, **kwargs)

    def promises(self, name: str) -> bool:
        return any(bool(getattr(d, name)) for d in self.declarations)

    def hazards(self) -> frozenset[str]:
        return frozenset(h for d in self.declarations for h in d.hazards)

    def claims(self) -> tuple[Mapping[str, Any], ...]:
        """Those declarations that hold on the device of the run."""
        here = [d for d in self.declarations if not d.device_reasons(self.info)]
        return tuple(plain_claims(d) for d in here)

    def files(self) -> tuple[str, ...]:
        return tuple(self.backend.files())


def plain_claims(declaration: Capabilities) -> dict[str, Any]:
    """A declaration verbatim, rules by name: they are code."""
    result: dict[str, Any] = {}
    for name, value in vars(declaration).items():
        if name == "rules":
            result[name] = [rule.name for rule in value]
        elif isinstance(value, str | bool | int):
            result[name] = value
        elif isinstance(value, tuple):
            result[name] = [to_json(v) if isinstance(v, tuple | str | bool | int) else str(v)
                            for v in value]  # fmt: skip
        else:
            result[name] = str(value)
    return result


class FunctionSubject:
    """A bare ``flash_mla_with_kvcache`` as ports publish it, judged without a plugin.

    It declares nothing, so every case is put to it, and NotImplementedError (NotSupportedError is
    one) counts as not claimed. ``get_mla_metadata`` of the same module is called as its first
    generation publishes it, if there.
    """

    has_back_door = False

    def __init__(self, spec: str, device: str = "cpu") -> None:
        module, function = _function(spec)
        self.function = function
        self._metadata = getattr(module, "get_mla_metadata", None)
        self.name, self.device, self.module = spec, device, module
        self.version = str(getattr(module, "__version__", ""))
        self.info = flashmla_hub.explain(KernelKey(), device=torch.device(device)).device
        self.narrowed = 0
        signature = inspect.signature(self.function).parameters
        self.takes = None if any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values()
        ) else frozenset(signature)  # fmt: skip

    def claim(self, case: Case) -> Claim:
        return Claim(native=True, accepted=True)

    def run(self, call: Call, **more: Any) -> Got:
        key = call.case.key
        if key.op == SPARSE_PREFILL:
            raise NotSupportedError(self.name, "op", key.op, "flash_mla_with_kvcache alone")
        given = {**arguments(call), **more}
        meta, splits = given.pop("tile_scheduler_metadata", None), given.pop("num_splits", None)
        positional = [given.pop(n) for n in ("q", "k_cache", "block_table", "cache_seqlens",
                                             "head_dim_v")]  # fmt: skip
        for name in [n for n, v in given.items() if v is None or v is False]:
            del given[name]  # older generations lack the optional arguments
        for name in given:
            if self.takes is not None and name not in self.takes:
                raise NotSupportedError(self.name, "argument", name, "its own signature")
        return Got(*self.function(*positional, meta, splits, **given))

    def run_unchecked(self, call: Call, out: Tensor, lse: Tensor) -> Got:
        raise NotSupportedError(self.name, "back door", "asked", "a registered backend")

    def metadata(self, call: Call, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self._metadata is None or call.cache_seqlens is None:
            return None, None  # the first generation's metadata is of lengths
        if not args and not kwargs:
            key = call.case.key
            args = (call.cache_seqlens, key.s_q * key.h_q // key.h_kv, key.h_kv)
        meta, splits = self._metadata(*args, **kwargs)
        return meta, splits

    def promises(self, name: str) -> bool:
        return False

    def hazards(self) -> frozenset[str]:
        return frozenset()

    def claims(self) -> tuple[Mapping[str, Any], ...]:
        return ()

    def files(self) -> tuple[str, ...]:
        path = getattr(self.module, "__file__", None)
        return (path,) if path else ()


def _function(spec: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and function of ``module:function``, also of a module in the current folder.

    Raises:
        InvalidRequestError: there is no such module or function, or the module fails to import.
    """
    module_name, _, attribute = spec.partition(":")
    wanted = "MODULE:FUNCTION of a module that can be imported from here"
    if not module_name or not attribute:
        raise InvalidRequestError("--call", repr(spec), wanted)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # behind everything installed, so that nothing is shadowed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the port's own code does
        told = f"{spec!r} ({type(error).__name__}: {error})"
        raise InvalidRequestError("--call", told, wanted) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "no function" if hasattr(module, attribute) else "nothing"
        told = f"{spec!r} ({module_name} has {what} of that name)"
        raise InvalidRequestError("--call", told, wanted)
    return module, function


def out_keywords(subject: Subject) -> bool:
    """Whether the subject can be given ``out=`` and ``lse_out=``; bare functions must name them."""
    if isinstance(subject, FunctionSubject):
        return subject.takes is not None and {"out", "lse_out"} <= subject.takes
    return True
