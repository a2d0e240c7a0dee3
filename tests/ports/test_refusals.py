"""Refuse before the call, with a reason that a user can act on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import flashmla_hub
from flashmla_hub import foreign, identify, testing
from flashmla_hub.backends.amd.plugin import Aiter
from flashmla_hub.backends.ascend.plugin import Ascend
from flashmla_hub.backends.flaggems.plugin import FlagGems, FlagGemsSparse
from flashmla_hub.backends.hygon.plugin import Hygon
from flashmla_hub.backends.iluvatar.plugin import Iluvatar
from flashmla_hub.backends.intellifusion.plugin import Intellifusion
from flashmla_hub.backends.metax.plugin import MetaX, MetaXSparse
from flashmla_hub.backends.moore_threads.plugin import Mate, MTFlashMLA
from flashmla_hub.backends.thead.plugin import THead
from flashmla_hub.errors import NoBackendError, NotSupportedError
from flashmla_hub.request import OPS, SPARSE_DECODE, SPARSE_PREFILL, KernelKey
from tests.ports.batteries import serves_large_batches
from tests.ports.requests import Dense

PORTS = {  # adapter: fakes, device, requests it must refuse by itself
    MetaX: (("metax",), "metax:xcore1000", ["page_block_size=48", "dtype=float32", "h_kv=2"]),
    MTFlashMLA: (
        ("moore_threads",),
        "moore_threads:mp_31",
        ["page_block_size=16", "page_block_size=128", "dtype=float16", "s_q=9", "h_q=256"],
    ),
    Mate: (
        ("mate_wrapper", "mate"),
        "moore_threads:mp_31",
        ["h_q=12", "page_block_size=128", "kv_strides=page_strided", "q_strides=token_strided"],
    ),
    Hygon: (("hygon",), "hygon:gfx936", ["page_block_size=16", "s_q=5", "h_kv=2"]),
    Iluvatar: (("ixformer",), "iluvatar:ivcore11", ["page_block_size=64", "s_q=2"]),
    Aiter: (
        ("aiter",),
        "amd:gfx942",
        ["dtype=float16", "h_q=12", "h_q=96", "kv_strides=page_strided", "s_q=2"],
    ),
    THead: (("thead",), "thead", ["page_block_size=16", "s_q=5", "dtype=float32"]),
    FlagGems: (("flag_gems",), "cambricon", ["s_q=2", "page_block_size=16", "dtype=float16"]),
}
EVERYWHERE = (
    "d_qk=512", "d_v=256", "kv_format=v32", "batch_invariant=True", "topk=64", "attn_sink=True",
)  # fmt: skip
CASES = [(adapter, change) for adapter, (_, _, own) in PORTS.items() for change in own]
CASES += [(adapter, change) for adapter in PORTS for change in EVERYWHERE]


def key_with(change: str) -> KernelKey:
    name, _, value = change.partition("=")
    parsed = {"True": True}.get(value, int(value) if value.isdigit() else value)
    return KernelKey(h_q=16, page_block_size=64).with_(**{name: parsed})


@pytest.mark.parametrize(("adapter", "change"), CASES)
def test_refuses_by_itself_what_it_does_not_claim(adapter, change, install):
    """Past the core's gate (contract C5.2): some ports end the process on what they refuse."""
    fakes, device, _ = PORTS[adapter]
    install(*fakes)
    key = key_with(change)
    if adapter is Iluvatar and not change.startswith("page"):
        key = key.with_(page_block_size=16)
    info = identify.simulated(*identify.parse_device(device))
    value = change.partition("=")[2]
    with pytest.raises(NotSupportedError, match=value) as raised:
        testing.bind_unchecked(adapter(), key, info)
    assert raised.value.backend == adapter.name
    assert "takes" in raised.value.accepted


@pytest.mark.parametrize(
    ("adapter", "device"),
    [
        (MTFlashMLA, "moore_threads:mp_22"),
        (Aiter, "amd:gfx90a"),
        (Aiter, "amd:gfx1250"),
        (MetaX, "nvidia:sm_80"),
        (Hygon, "amd:gfx942"),
        (Iluvatar, "nvidia:sm_70"),
        (THead, "nvidia:sm_80"),
        (FlagGems, "amd:gfx942"),
    ],
)
def test_refuses_devices_that_the_port_does_not_run_on(adapter, device, install):
    install(*PORTS[adapter][0])
    info = identify.simulated(*identify.parse_device(device))
    with pytest.raises(NotSupportedError, match=f"device {device}"):
        testing.bind_unchecked(adapter(), KernelKey(h_q=16, page_block_size=16), info)


def test_what_the_simulated_mt_flashmla_does_without_the_gate(tmp_path):
    """The reason for the gate: the port's own assertion ends the process."""
    code = (
        "import torch, flash_mla\n"
        "q = torch.zeros(1, 1, 16, 576, dtype=torch.bfloat16)\n"
        "k = torch.zeros(4, 16, 1, 576, dtype=torch.bfloat16)\n"
        "t, n = torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, dtype=torch.int32)\n"
        "m, s = flash_mla.get_mla_metadata(n, 16, 1)\n"
        "flash_mla.flash_mla_with_kvcache(q, k, t, n, 512, m, s)\n"
    )
    from tests.simulated_ports.catalogue import FAKES

    folder = FAKES["moore_threads"].install(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(folder)!r}, '.']\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "page_block_size == 64" in result.stderr
    assert "Traceback" not in result.stderr
    assert "build success meta api" in result.stdout


def test_mt_flashmla_serves_large_batches_in_parts(install, simulated_ports):
    """4096 rows in one call would end the process."""
    install("moore_threads")
    with flashmla_hub.simulate_device("moore_threads", "mp_31"):
        serves_large_batches("simulated_moore_threads")


def test_a_cache_past_4_gib_is_refused_where_aiter_wraps(install, simulated_ports):
    install("aiter")
    page = 64
    blocks = (1 << 32) // (page * 576 * 2) + 1
    cache = torch.empty(blocks, page, 1, 576, dtype=torch.bfloat16)  # never touched
    q = torch.zeros(1, 1, 16, 576, dtype=torch.bfloat16)
    table = torch.zeros(1, 1, dtype=torch.int32)
    lens = torch.ones(1, dtype=torch.int32)
    with (
        flashmla_hub.simulate_device("amd", "gfx942"),
        pytest.raises(NotSupportedError, match="aiter#5765"),
    ):
        flashmla_hub.flash_mla_with_kvcache(q, cache, table, lens, 512, backend="simulated_amd")


def missing(adapter, device: str) -> str:
    info = identify.simulated(*identify.parse_device(device))
    return "; ".join(adapter().environment_reasons(info))


def test_an_aiter_without_lse_is_known_before_it_is_imported(install):
    install("aiter_old")
    assert "0.1.6" in missing(Aiter, "amd:gfx942")
    assert "upgrade to 0.1.9" in missing(Aiter, "amd:gfx942")
    assert "aiter" not in sys.modules


def test_an_aiter_whose_source_is_hidden_is_judged_at_bind(install, tmp_path, monkeypatch):
    install("aiter_old")
    monkeypatch.setattr(foreign, "source", lambda distribution, path: None)
    info = identify.simulated("amd", "gfx942")
    assert Aiter().environment_reasons(info) == ()
    with pytest.raises(NotSupportedError, match=r"0\.1\.9"):
        Aiter().bind(KernelKey(h_q=16), info)


def test_an_ixformer_without_lse_is_refused_at_bind(install):
    install("ixformer_old")
    info = identify.simulated("iluvatar", "ivcore11")
    with pytest.raises(NotSupportedError, match="return_softmax_lse"):
        Iluvatar().bind(KernelKey(h_q=16, page_block_size=16), info)


def test_an_ixformer_with_another_lse_shape_is_refused(install, simulated_ports, tmp_path):
    install("ixformer")
    ops = tmp_path / "ixformer/ixformer/inference/functions/vllm_ops.py"
    ops.write_text(ops.read_text().replace("lse.squeeze(-1)", "lse.squeeze(-1).T"))
    request = Dense(page=16, lens=(3, 5))
    request.make()
    with (
        flashmla_hub.simulate_device("iluvatar", "ivcore11"),
        pytest.raises(NotSupportedError, match="lse shape"),
    ):
        request.call("simulated_iluvatar")


def test_a_flaggems_of_sparse_decode_only_says_so(install):
    install("flag_gems_sparse")
    assert "no dense MLA decode" in missing(FlagGems, "nvidia:sm_90")
    assert missing(FlagGemsSparse, "nvidia:sm_90") == ""


def test_metax_sparse_needs_mcflashmla(install):
    install("metax")
    assert "mcFlashMLA instead" in missing(MetaXSparse, "metax:xcore1000")
    assert missing(MetaX, "metax:xcore1000") == ""


def test_a_mate_wrapper_without_mate_says_so(install):
    install("mate_wrapper")
    assert "mate itself is not" in missing(Mate, "moore_threads:mp_31")


def test_a_missing_port_is_refused_at_bind_too(install):
    info = identify.simulated("metax", "xcore1000")
    with pytest.raises(NotSupportedError, match="installation"):
        MetaX().bind(KernelKey(h_q=16), info)


def test_a_hygon_wheel_whose_metadata_fits_nothing_is_refused(install, tmp_path):
    install("hygon_newer")
    interface = tmp_path / "hygon_newer/flash_mla/flash_mla_interface.py"
    package = tmp_path / "hygon_newer/flash_mla/__init__.py"
    package.write_text("from flash_mla.flash_mla_interface import *\n")
    text = interface.read_text().replace("get_mla_decoding_metadata_dense_fp8", "_gone")
    interface.write_text(text)
    info = identify.simulated("hygon", "gfx936")
    with pytest.raises(NotSupportedError, match="metadata function"):
        Hygon().bind(KernelKey(h_q=16), info)


@pytest.mark.parametrize(
    ("adapter", "vendor", "way"),
    [(Intellifusion, "intellifusion", "entry point"), (Ascend, "ascend", "no lse")],
)
@pytest.mark.parametrize("op", OPS)
def test_what_is_known_but_cannot_serve_always_refuses_with_the_way_forward(
    adapter, vendor, way, op, install
):
    install("tyllm", "torch_npu")
    key = KernelKey(op=op, h_q=16)
    if op != "dense_decode":
        key = key.with_(topk=64, page_block_size=1 if op == SPARSE_PREFILL else 64)
    info = identify.simulated(vendor)
    with pytest.raises(NotSupportedError, match=way):
        adapter().bind(key, info)
    decision = flashmla_hub.explain(key, device=info)
    own = next(c for c in decision.candidates if c.backend == adapter.name)
    assert not own.accepted
    assert way in " ".join(own.reasons)


@pytest.mark.parametrize("adapter", PORTS)
def test_explain_on_a_bare_machine_says_what_to_install(adapter, install):
    _, device, _ = PORTS[adapter]
    vendor, arch = identify.parse_device(device)
    key = KernelKey(h_q=12, page_block_size=64)
    decision = flashmla_hub.explain(key, device=f"{vendor}:{arch}" if arch else vendor)
    own = next(c for c in decision.candidates if c.backend == adapter.name)
    assert own.accepted, str(decision)
    notes = " ".join(own.notes)
    assert "not installed" in notes
    assert any(word in notes for word in ("install ", "build ", "run ", "comes with"))
    as_installed = flashmla_hub.explain(
        key, device=f"{vendor}:{arch}" if arch else vendor, as_installed=True
    )
    own = next(c for c in as_installed.candidates if c.backend == adapter.name)
    assert not own.accepted


def test_without_a_port_that_fits_the_error_lists_every_reason(install, simulated_ports):
    request = Dense()
    request.make()
    with (
        flashmla_hub.simulate_device("metax", "xcore1000"),
        pytest.raises(NoBackendError, match="MetaX's flash_mla is not installed") as raised,
    ):
        request.call()
    assert {c.backend for c in raised.value.decision.candidates} >= {"metax", "simulated_metax"}


def test_sparse_requests_are_not_dense_ports_business(install):
    info = identify.simulated("metax", "xcore1000")
    for op in (SPARSE_DECODE, SPARSE_PREFILL):
        with pytest.raises(NotSupportedError, match=f"op={op}"):
            MetaX().bind(KernelKey(op=op, topk=64), info)
