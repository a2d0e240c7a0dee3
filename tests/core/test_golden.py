"""The Decision for a table of (simulated device, shape), kept as text: a change of choice shows as
a diff in review.

    python tests/core/test_golden.py --update        writes tests/golden/ anew
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import flashmla_hub as hub
from flashmla_hub import identify
from flashmla_hub.request import choice_key

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

DEVICES = (
    "cpu:x86_64", "nvidia:sm_80", "nvidia:sm_89", "nvidia:sm_90", "nvidia:sm_100", "nvidia:sm_120",
    "amd:gfx90a", "amd:gfx942", "amd:gfx950", "metax:xcore1000", "moore_threads:mp_31",
    "hygon:gfx936", "iluvatar:ivcore11", "thead:ppu_10", "ascend:ascend910b3", "intel:xpu",
    "intellifusion:nnp", "unknown",
)  # fmt: skip

SHAPES = {
    "b128 h128 page64": (hub.KernelKey(), 128, 8192),
    "b1 h16 page64": (hub.KernelKey(h_q=16), 1, 32768),
    "b128 h128 s_q2 causal": (hub.KernelKey(s_q=2, causal=True), 128, 8192),
    "b32 h12 page16": (hub.KernelKey(h_q=12, page_block_size=16), 32, 4096),
    "b32 h16 page64 float16": (hub.KernelKey(h_q=16, dtype="float16"), 32, 4096),
    "b32 h16 page64 float32": (hub.KernelKey(h_q=16, dtype="float32"), 32, 4096),
    "b32 h64 h_kv2": (hub.KernelKey(h_q=64, h_kv=2), 32, 4096),
    "b32 h64 d512": (hub.KernelKey(h_q=64, d_qk=512), 32, 4096),
    "b32 h64 strided pool": (hub.KernelKey(h_q=64, kv_strides="page_strided"), 32, 4096),
    "b32 h64 batch_invariant": (hub.KernelKey(h_q=64, batch_invariant=True), 32, 4096),
    "b128 h128 sparse v32 topk2048": (
        hub.KernelKey(op="sparse_decode", kv_format="v32", topk=2048), 128, 2048),
    "b128 h64 sparse model1 topk512 sink": (
        hub.KernelKey(op="sparse_decode", kv_format="model1", d_qk=512, h_q=64, topk=512,
                      attn_sink=True), 128, 512),
    "s4096 h128 sparse prefill": (
        hub.KernelKey(op="sparse_prefill", page_block_size=1, topk=2048), 4096, 2048),
}  # fmt: skip


def lines(device: str) -> str:
    """One device's decisions: what is selected, with its rewrites, and why each other refuses.

    Backends for other devices, and for other ops, are left out: they would drown the rest.
    """
    text = [f"device {device}"]
    for label, (key, batch, capacity) in SHAPES.items():
        decision = hub.explain(choice_key(key, batch, capacity), device=simulated(device))
        text += ["", f"{label}: {decision.selected or 'none'}"]
        for candidate in decision.candidates:
            if any(reason.startswith(("device ", "op=")) for reason in candidate.reasons):
                continue
            verdict = f"rank {candidate.rank}" if candidate.accepted else "refused"
            text.append(f"  {candidate.backend}: {verdict}")
            text += [f"    - {reason}" for reason in candidate.reasons]
            text += [f"    rewrite {rewrite}" for rewrite in candidate.rewrites]
            text += [f"    hazard {hazard}" for hazard in candidate.hazards]
    return "\n".join(text) + "\n"


def simulated(device: str) -> hub.DeviceInfo:
    return identify.simulated(*identify.parse_device(device))


def path_of(device: str) -> Path:
    return GOLDEN / f"{device.replace(':', '-')}.txt"


@pytest.mark.parametrize("device", DEVICES)
def test_decisions(device):
    want, got = path_of(device).read_text(), lines(device)
    assert got == want, f"decisions on {device} changed; if meant: python {__file__} --update"


def test_no_stale_file():
    assert {p.name for p in GOLDEN.glob("*.txt")} == {path_of(d).name for d in DEVICES}


if __name__ == "__main__" and "--update" in sys.argv:
    GOLDEN.mkdir(exist_ok=True)
    for name in DEVICES:
        path_of(name).write_text(lines(name))
