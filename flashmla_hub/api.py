"""The public functions beside the attention calls: what would be chosen, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flashmla_hub import (
    calls,
    config,
    dispatch,
    identify,
    limits,
    registry,
    tracing,
    validation,
)
from flashmla_hub.asking import Broken, Entry
from flashmla_hub.backend import Backend, BackendInfo
from flashmla_hub.call import DecodeArguments
from flashmla_hub.checks import describe
from flashmla_hub.decision import Decision
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.guard import Asking, Fault
from flashmla_hub.request import ChoiceKey, KernelKey, check_key, choice_key

__all__ = [
    "BackendStatus", "backends", "devices", "explain", "explain_call", "get_backend",
    "list_backends", "simulate_device", "use_backend", "warmup",
]  # fmt: skip


@dataclass(frozen=True)
class BackendStatus:
    """A backend as this machine has it: ``ready``, ``unavailable`` or ``quarantined``.

    ``limits``: what it takes natively, in words made from its declarations.
    """

    name: str
    status: str
    reason: str
    dist: str
    version: str
    info: BackendInfo
    limits: tuple[str, ...] = ()


def devices() -> list[DeviceInfo]:
    """The devices of this process, the CPU first; under ``simulate_device`` the simulated one."""
    return identify.devices()


def list_backends() -> list[BackendStatus]:
    """Every backend and quarantined plugin with its status. Imports no vendor library.

    ``flashmla_hub.backends()`` does the same; that name is also the package of the built-in ones.
    """
    state = registry.state()
    here = devices()
    found = [_status(entry, here) for entry in state.entries.values()]
    nothing = BackendInfo(summary="")
    quarantined = registry.state().quarantined  # what was met on the way included
    told = {(b.name, b.reason) for b in found}
    found += [
        BackendStatus(q.name, "quarantined", q.reason, q.dist, "", nothing)
        for q in quarantined
        if (q.name, q.reason) not in told
    ]
    return sorted(found, key=lambda b: (b.status != "ready", b.name))


backends = list_backends


def get_backend(name: str) -> Backend:
    """The registered backend of this name.

    Raises:
        InvalidRequestError: there is none; the message lists the names.
        PluginError: it is quarantined; the message says why.
    """
    return registry.get(name)


def use_backend(name: str | None) -> AbstractContextManager[Any]:
    """``with use_backend("torch"):`` - every call of this thread or task uses that backend.

    Never falls back to another one. None lifts an outer ``use_backend``.

    Example:
        >>> import flashmla_hub as hub
        >>> with hub.use_backend("torch"):
        ...     hub.explain(hub.KernelKey(), device="cpu").why
        'use_backend()'
    """
    if name is not None:
        registry.get(name)
    return config.scoped(backend=name)


def simulate_device(vendor: str, arch: str = "") -> AbstractContextManager[Any]:
    """``with simulate_device("amd", "gfx942"):`` - answer as if tensors were on that device.

    Changes what ``explain`` and ``devices`` answer in this thread or task. *Running* under it
    needs a backend registered with ``runs_simulated=True``.

    Example:
        >>> import flashmla_hub as hub
        >>> with hub.simulate_device("nvidia", "sm_90"):
        ...     hub.explain(hub.KernelKey(h_q=16)).device.vendor
        'nvidia'
    """
    return config.scoped(simulated=identify.simulated(vendor, arch))


def explain(
    key: ChoiceKey | KernelKey,
    *,
    device: DeviceInfo | torch.device | str | None = None,
    backend: str | None = None,
    as_installed: bool | None = None,
) -> Decision:
    """What would serve this request, and why; and why not the others. Runs nothing.

    Args:
        key: a ChoiceKey, or a KernelKey (then for one row of up to 4096 tokens).
        device: a DeviceInfo, a torch device, or "vendor[:arch]" to simulate one; None: the
            simulated device in force, else this process's accelerator, else the CPU.
        backend: as in a call: the explicit choice.
        as_installed: whether what this machine lacks counts as a reason, or is a note. None: it
            counts for real devices only.

    Example:
        >>> import flashmla_hub as hub
        >>> decision = hub.explain(hub.KernelKey(h_q=12), device="cpu")
        >>> decision.selected
        'torch'
        >>> print(decision.text().splitlines()[0])
        selected torch: highest rank (10) of 1 that accept
    """
    choice = _choice(key)
    where = resolve_device(device)
    installed = not where.simulated if as_installed is None else as_installed
    return dispatch.decide(choice, where, backend, as_installed=installed)


def explain_call(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: Any,
    tile_scheduler_metadata: Any = None,
    num_splits: Any = None,
    softmax_scale: Any = None,
    causal: Any = False,
    is_fp8_kvcache: Any = None,
    indices: Any = None,
    attn_sink: Any = None,
    extra_k_cache: Any = None,
    extra_indices_in_kvcache: Any = None,
    topk_length: Any = None,
    extra_topk_length: Any = None,
    *,
    out: Any = None,
    lse_out: Any = None,
    backend: str | None = None,
    batch_invariant: bool = False,
    check_values: bool = False,
    kv_format: str | None = None,
    enable_batch_invariant: bool | None = None,
    use_legacy: bool | None = None,
    descale_q: Any = None,
    descale_k: Any = None,
    indexer_topk: int = 0,
) -> Decision:
    """The Decision that ``flash_mla_with_kvcache`` with the same arguments would take.

    ``selected`` is None, and ``why`` says so, for a call whose rows have no room for a key: it is
    answered without a backend.

    Raises:
        InvalidRequestError, NotSupportedError: as the call would.
    """
    args = DecodeArguments(
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, is_fp8_kvcache,
        indices, attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length,
        extra_topk_length, out, lse_out, backend, batch_invariant, check_values, kv_format,
        enable_batch_invariant, use_legacy, descale_q, descale_k, indexer_topk,
    )  # fmt: skip
    if tracing.needs_op(args):
        raise InvalidRequestError("q", "a fake or meta tensor", "tensors in memory")
    args = calls.resolved(args)
    checked = validation.decode(args)
    validation.no_overlap(args)
    choice = choice_key(checked.key, checked.batch, checked.capacity)
    device = identify.identify(q.device)
    if checked.empty:
        why = "no backend: no row has room for a key, so out is 0 and lse +inf"
        return Decision(choice, device, None, why, (), checked.notes)
    return dispatch.decide(choice, device, backend, running=True, notes=checked.notes)


def warmup(
    key: ChoiceKey | KernelKey,
    *,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> Decision:
    """Choose and bind (compile, load) without launching: a later capture then meets a known kernel.

    Raises:
        NoBackendError, NotSupportedError, PluginError: as a call would.
    """
    return dispatch.resolve(_choice(key), resolve_device(device), backend).decision


def _choice(key: ChoiceKey | KernelKey) -> ChoiceKey:
    if isinstance(key, KernelKey):
        check_key(key)
        return choice_key(key, 1, key.topk or 4096)
    if not isinstance(key, ChoiceKey):
        raise InvalidRequestError("key", describe(key), "a ChoiceKey or a KernelKey")
    check_key(key.kernel)
    return key


def resolve_device(device: DeviceInfo | torch.device | str | None) -> DeviceInfo:
    """The DeviceInfo that an argument ``device=`` of the functions above means."""
    if isinstance(device, DeviceInfo):
        return device
    if isinstance(device, torch.device):
        return identify.identify(device)
    if device is None:
        found = devices()
        return found[1] if len(found) > 1 else found[0]
    try:
        known = torch.device(device)
    except RuntimeError:
        return identify.simulated(*identify.parse_device(device))
    return identify.identify(known)


def _status(entry: Entry, here: list[DeviceInfo]) -> BackendStatus:
    takes: tuple[str, ...] = ()

    def status(label: str, reason: str) -> BackendStatus:
        return BackendStatus(
            entry.name, label, reason, entry.dist, entry.version, entry.info, takes
        )

    def fits(device: DeviceInfo, asking: Asking) -> tuple[bool, dict[str, None]]:
        declared = entry.declarations(device, asking)
        names = dict.fromkeys(str(c) for d in declared for c in d.devices)
        return any(not d.device_reasons(device) for d in declared), names

    try:
        takes = tuple(limits.describe(entry.declarations(here[0])))
        taken = "nothing"
        reasons: list[str] = []
        for device in here:
            fitting, names = entry.ask("capabilities", device, partial(fits, device))
            taken = ", ".join(names) or taken
            if fitting:
                reasons = list(entry.lacks(device))
                if not reasons:
                    return status("ready", f"on {device}")
        if reasons:
            return status("unavailable", "; ".join(reasons))
        return status("unavailable", f"takes {taken}; here: {', '.join(map(str, here))}")
    except Broken as fault:
        registry.quarantine(entry.name, fault.reason)
        return status("quarantined", fault.reason)
    except Fault as fault:
        return status("unavailable", fault.reason)
