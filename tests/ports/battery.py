"""A short battery for one adapter: what it declares, what it refuses, what it computes.

test_battery.py runs it as it is; the mutation check runs it on adapters with a line removed, where
it must fail. It needs no pytest fixture, so that a forked child can run it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import flashmla_hub
from flashmla_hub import identify, testing
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey
from tests.ports.requests import Dense, check_dense
from tests.simulated_ports import catalogue

PER_CALL = {"plans_per_call": True, "hazards": ()}
FOLDED = {"s_q 2 causal": {"fold_s_q"}, "s_q 3": {"fold_s_q"}}
LAYOUT = {"page strided": {"contiguous_kv"}, "q strided": {"contiguous_q"}}
WIDE_PAGE = {"page 128": {"split_pages"}}
SIX = {"s_q 6 causal": {"fold_s_q"}}
PORTS = {  # label: fakes, device, adapter, declared facts, {shape: rewrites}, what it refuses
    "metax": (
        ("metax",), "metax:xcore1000", "metax", PER_CALL, {},
        ("page_block_size=48", "h_q=256", "dtype=float32"),
    ),
    "moore_threads": (
        ("moore_threads",), "moore_threads:mp_31", "moore_threads",
        PER_CALL | {"hazards": ("synchronises", "prints")},
        WIDE_PAGE | {"s_q 9 causal": {"fold_s_q"}},
        ("page_block_size=16", "h_q=256", "dtype=float16"),
    ),
    "mate": (
        ("mate_wrapper", "mate"), "moore_threads:mp_31", "moore_threads_mate", PER_CALL,
        WIDE_PAGE | LAYOUT | SIX | {"h_q 12": {"pad_heads"}}, ("h_q=12", "h_q=256"),
    ),
    "hygon": (
        ("hygon",), "hygon:gfx936", "hygon", PER_CALL, WIDE_PAGE | LAYOUT | SIX,
        ("page_block_size=16", "h_q=256"),
    ),
    "iluvatar": (
        ("ixformer",), "iluvatar:ivcore11", "iluvatar",
        {"plans_per_call": False, "hazards": ("lse_unverified",)},
        {
            name: {"split_pages"} | FOLDED.get(name, set()) | LAYOUT.get(name, set())
            for name in ("one query", "page 128", "h_q 12", *FOLDED, *LAYOUT, "s_q 6 causal")
        } | {"s_q 6 causal": {"fold_s_q", "split_pages"}},
        ("page_block_size=8", "h_q=256"),
    ),
    "iluvatar_flash_mla": (
        ("iluvatar_flash_mla",), "iluvatar:ivcore11", "iluvatar_flash_mla",
        PER_CALL | {"hazards": ("lse_unverified",)}, WIDE_PAGE | LAYOUT | SIX,
        ("page_block_size=16", "h_q=256"),
    ),
    "amd": (
        ("aiter",), "amd:gfx942", "amd",
        {"plans_per_call": False, "hazards": ("plans_per_metadata",)},
        LAYOUT | SIX | {"h_q 12": {"pad_heads"}, "s_q 3": {"fold_s_q"}},
        ("h_q=12", "h_q=256", "dtype=float16"),
    ),
    "amd_middle": (
        ("aiter_middle",), "amd:gfx950", "amd",
        {"plans_per_call": False, "hazards": ("plans_per_metadata",)},
        LAYOUT | SIX | {"h_q 12": {"pad_heads"}, "s_q 3": {"fold_s_q"}},
        ("h_q=12", "dtype=float16"),
    ),
    "thead": (
        ("thead",), "thead", "thead", PER_CALL,
        WIDE_PAGE | SIX | {"page strided": {"contiguous_kv"}},
        ("page_block_size=16", "h_q=256"),
    ),
    "flaggems": (
        ("flag_gems",), "cambricon", "flaggems", PER_CALL, WIDE_PAGE | LAYOUT | SIX | FOLDED,
        ("page_block_size=16", "h_q=256", "dtype=float16"),
    ),
}  # fmt: skip
FP16 = ("metax", "mate", "hygon", "iluvatar", "iluvatar_flash_mla", "thead")
SHAPES = {
    "one query": {},
    "h_q 12": {"h_q": 12},
    "page 128": {"page": 128},
    "s_q 2 causal": {"s_q": 2, "causal": True},
    "s_q 2 causal h_q 12": {"s_q": 2, "causal": True, "h_q": 12},
    "s_q 2 causal page 128": {"s_q": 2, "causal": True, "page": 128},
    "s_q 3": {"s_q": 3, "lens": (70, 0, 2)},
    "s_q 6 causal": {"s_q": 6, "causal": True, "lens": (70, 0, 2)},
    "s_q 9 causal": {"s_q": 9, "causal": True, "lens": (70, 0, 2)},
    "page strided": {"strided": "page"},
    "q strided": {"q_strided": True},
}
CLOSED = (
    "q_alignment=1", "d_qk=512", "d_v=256", "h_kv=2", "kv_format=v32", "batch_invariant=True",
    "topk=64", "attn_sink=True", "extra_topk=64",
)  # fmt: skip


@contextlib.contextmanager
def ports(*labels: str, folder: Path) -> Iterator[None]:
    """The fakes of ``labels`` on ``sys.path``, the adapters registered."""
    # by name, not as an attribute: the mutation check replaces the module
    backends = importlib.import_module("tests.simulated_ports.backends")
    before = list(sys.path)
    sys.path[:0] = catalogue.install_each(labels, folder)
    try:
        with testing.registered(backends, "simulated_ports"):
            yield
    finally:
        sys.path[:] = before


def battery(label: str, folder: Path) -> None:
    """Raise unless the adapter of ``label`` declares, refuses and computes what it should."""
    fakes, device, name, facts, rewrites, refused = PORTS[label]
    with ports(*fakes, folder=folder), flashmla_hub.simulate_device(*identify.parse_device(device)):
        backend = flashmla_hub.get_backend(f"simulated_{name}")
        _declares(backend, facts)
        _refuses(backend, device, refused)
        for shape in SHAPES:
            _computes(backend.name, shape, _expected(rewrites, shape), SHAPES[shape])
        if label in FP16:
            check_dense(backend.name, dtype="float16")
        _edges(backend.name)


def _declares(backend, facts) -> None:
    for declaration in backend.capabilities(identify.identify("cpu")):
        for name, value in facts.items():
            assert getattr(declaration, name) == value, (name, getattr(declaration, name))


def _refuses(backend, device: str, refused: tuple[str, ...]) -> None:
    page = 16 if "iluvatar" in backend.name and "flash" not in backend.name else 64
    plain = KernelKey(h_q=16, page_block_size=page)
    keys = (plain, plain.with_(s_q=2, causal=True))
    for change in (*refused, *CLOSED):
        name, _, value = change.partition("=")
        parsed = {"True": True}.get(value, int(value) if value.isdigit() else value)
        for key in keys:
            must_refuse(backend, key.with_(**{name: parsed}), identify.identify("cpu"))
    others = ["nvidia:sm_70", "amd:gfx90a"]
    if backend.name != "simulated_flaggems":  # it takes any device of some vendors
        others += ["nvidia:sm_80", "moore_threads:mp_22"]
    for other in others:
        info = identify.simulated(*identify.parse_device(other))
        for key in keys:
            must_refuse(backend, key, info)


def must_refuse(backend, key: KernelKey, info) -> None:
    try:
        testing.bind_unchecked(backend, key, info)
    except NotSupportedError:
        return
    raise AssertionError(f"{backend.name} took {key.summary()} on {info}")


def _expected(rewrites: dict[str, set[str]], shape: str) -> set[str]:
    """What a shape needs; a shape made of two needs what either needs."""
    parts = ["s_q 2 causal", shape[13:]] if shape.startswith("s_q 2 causal ") else [shape]
    return set().union(*(rewrites.get(part, set()) for part in parts)) | {"repair_empty_rows"}


def _computes(name: str, shape: str, expected: set[str], values: dict) -> None:
    request = Dense(**values)
    request.make()
    decision = flashmla_hub.explain_call(
        request.q, request.k_cache, request.table, request.cache_seqlens, 512,
        causal=request.causal, backend=name,
    )  # fmt: skip
    own = next(c for c in decision.candidates if c.backend == name)
    if shape in ("s_q 9 causal", "s_q 6 causal", "s_q 3") and "fold_s_q" not in expected:
        return  # a native s_q is tested once, at 2
    applied = {step.name for step in own.steps}
    assert applied == expected, (shape, applied, expected, own.reasons)
    check_dense(name, **values)


def _edges(name: str) -> None:
    """Lengths out of range (C1.15), in-place changes (C2.3), and outputs given by the caller."""
    request = Dense(lens=(129, 70, 64))
    request.make()
    capacity = request.table.shape[1] * 64
    request.table.fill_(0)
    request.k_cache.copy_(torch.randn(request.k_cache.shape))
    meta, _ = flashmla_hub.get_mla_metadata()
    for lens in ((5, -3, capacity + 7), (64, 1, 0), (capacity + 1,) * 3):
        request.cache_seqlens.copy_(request.cache_seqlens.new_tensor(lens))
        out = torch.full((3, 1, 16, 512), float("nan"), dtype=torch.bfloat16)
        lse = torch.full((3, 16, 1), float("nan"))
        request.call(name, tile_scheduler_metadata=meta, out=out, lse_out=lse)
        request.judge(out, lse, lens)
