"""Every fake at once in one environment; devices of all vendors; nothing imported too early."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import flashmla_hub
from tests.ports.requests import Dense, check_dense
from tests.simulated_ports import catalogue

ROOT = Path(__file__).parents[2]
CHOICES = {  # device: the adapter that is right for it
    ("metax", "xcore1000"): "metax",
    ("metax", "xcore1500"): "metax",
    ("moore_threads", "mp_31"): "moore_threads_mate",
    ("hygon", "gfx936"): "hygon",
    ("iluvatar", "ivcore11"): "iluvatar_flash_mla",
    ("amd", "gfx942"): "amd",
    ("amd", "gfx950"): "amd",
    ("thead", ""): "thead",
    ("cambricon", ""): "flaggems",
}


@pytest.fixture
def everything(install, simulated_ports):
    install(*catalogue.MIXED)


@pytest.mark.parametrize("device", CHOICES)
def test_a_mixed_installation_selects_right_for_each_vendor(device, everything):
    with flashmla_hub.simulate_device(*device):
        request = Dense(s_q=2, causal=True)
        request.make()
        decision = flashmla_hub.explain_call(
            request.q, request.k_cache, request.table, request.cache_seqlens, 512, causal=True
        )
        running = [c.backend for c in decision.candidates if c.accepted]
        assert f"simulated_{CHOICES[device]}" in running, str(decision)
        out, lse = request.call()
        request.judge(out, lse, device)


def test_each_vendor_in_turn_and_back(everything):
    """Each port keeps its own modules, whichever was imported before it."""
    for _ in range(2):
        for device, name in CHOICES.items():
            with flashmla_hub.simulate_device(*device):
                check_dense(f"simulated_{name}", lens=(65, 0))
    with flashmla_hub.simulate_device("moore_threads", "mp_31"):
        check_dense("simulated_moore_threads", lens=(65, 0))
    with flashmla_hub.simulate_device("iluvatar", "ivcore11"):
        check_dense("simulated_iluvatar", lens=(65, 0))


@pytest.mark.parametrize(
    ("vendor", "way"), [("intellifusion", "entry point"), ("ascend", "no lse")]
)
def test_what_cannot_serve_is_refused_with_the_way_forward(vendor, way, everything):
    request = Dense()
    request.make()
    with (
        flashmla_hub.simulate_device(vendor),
        pytest.raises(flashmla_hub.NoBackendError, match=way),
    ):
        request.call()


def child(code: str, folders: list[str], **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*folders, str(ROOT)])} | env,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_no_vendor_library_is_imported_by_looking(tmp_path):
    """import, devices, backends and explain for every vendor, with every port installed."""
    folders = catalogue.install_each(catalogue.MIXED, tmp_path)
    devices = [":".join(d).rstrip(":") for d in CHOICES] + ["nvidia:sm_90", "intellifusion"]
    code = f"""
        import sys
        import flashmla_hub
        from flashmla_hub.request import OPS, KernelKey
        flashmla_hub.devices()
        for status in flashmla_hub.backends():
            print(status.name, status.status)
        for device in {devices!r}:
            for op in OPS:
                key = KernelKey(op=op, topk=0 if op == "dense_decode" else 64, h_q=16)
                str(flashmla_hub.explain(key, device=device))
                str(flashmla_hub.explain(key, device=device, as_installed=True))
        names = ("flash_mla", "flash_mla_cuda", "flash_mla_musa", "mate", "aiter", "ixformer",
                 "flag_gems", "tylang", "torch_npu", "torch_musa", "triton", "flashinfer", "vllm",
                 "sglang", "sgl_kernel")
        print("LOADED", sorted(set(names) & set(sys.modules)))
    """
    assert "LOADED []" in child(code, folders)


def test_a_port_is_found_without_its_vendors_runtime(tmp_path):
    """Detection reads metadata: a package whose import would end the process is still seen."""
    fake = catalogue.FAKES["metax"]
    folder = fake.install(tmp_path)
    (folder / "flash_mla/__init__.py").write_text("raise SystemExit('libmcruntime.so missing')\n")
    code = """
        from flashmla_hub.backends._ports import owners
        print("OWNER", owners.find("metax").version)
    """
    assert f"OWNER {fake.version}" in child(code, [str(folder)])


def test_the_drop_in_and_a_port_of_its_name_live_together(install, simulated_ports):
    """``import flash_mla`` is the hub, which serves the call with the real flash_mla."""
    from flashmla_hub import drop_in

    install("metax")
    with flashmla_hub.simulate_device("metax", "xcore1000"):
        check_dense("simulated_metax", lens=(65, 0))  # the port first: it takes no name
        drop_in.install()
        try:
            import flash_mla

            request = Dense()
            request.make()
            meta, splits = flash_mla.get_mla_metadata(request.cache_seqlens, 16, 1)
            out, lse = flash_mla.flash_mla_with_kvcache(
                request.q, request.k_cache, request.table, request.cache_seqlens, 512, meta, splits
            )
            request.judge(out, lse)
            assert flash_mla.__version__ == flashmla_hub.__version__
        finally:
            drop_in.uninstall()
