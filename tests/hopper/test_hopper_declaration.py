"""What the backend declares and refuses, and what it says of the machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from flashmla_hub.backends.hopper.environment import NVRTC_DISTRIBUTIONS, Environment
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.capabilities import unsupported_reasons
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import KernelKey

H100 = DeviceInfo("nvidia", "sm_90", "cuda", multiprocessors=132)
BASE = KernelKey()

TAKEN = [
    BASE,
    *(BASE.with_(h_q=h) for h in (1, 3, 9, 12, 16, 63, 64, 96, 126, 128, 256)),
    *(BASE.with_(h_q=h * 6, h_kv=h) for h in (2, 3, 8)),
    *(BASE.with_(s_q=s, causal=c) for s in (1, 2, 4, 16) for c in (False, True)),
    *(BASE.with_(page_block_size=p) for p in (1, 2, 16, 17, 32, 64, 128, 256)),
    BASE.with_(dtype="float16"),
    BASE.with_(d_qk=512),
    BASE.with_(batch_invariant=True),
    BASE.with_(kv_strides="page_strided"),
    BASE.with_(kv_strides="token_strided", q_strides="token_strided"),
    *(BASE.with_(kv_format="v32", h_q=h, s_q=2, causal=True) for h in (8, 128)),
    BASE.with_(op="sparse_decode", kv_format="v32", topk=2048, attn_sink=True),
    BASE.with_(
        op="sparse_decode",
        kv_format="model1",
        d_qk=512,
        topk=128,
        extra_topk=1024,
        extra_page_block_size=2,
        topk_length=True,
        extra_topk_length=True,
    ),
]
TAKEN += [
    BASE.with_(op="sparse_decode", topk=1, s_q=256, h_q=8, attn_sink=True, topk_length=True),
    BASE.with_(
        op="sparse_decode", topk=128, d_qk=512, extra_topk=513, extra_page_block_size=2,
        extra_topk_length=True, batch_invariant=True,
    ),
    BASE.with_(op="sparse_prefill", topk=16384, h_kv=2, page_block_size=1, topk_length=True),
]  # fmt: skip
REFUSED = {
    "dtype": BASE.with_(dtype="float32"),
    "s_q": BASE.with_(s_q=17),
    "head dims": BASE.with_(d_qk=320, d_v=256),
    "kv_format": BASE.with_(kv_format="v41"),
    "q_alignment": BASE.with_(q_alignment=8),
    "kv_alignment": BASE.with_(kv_alignment=8),
    "out_alignment": BASE.with_(out_alignment=8),
    "topk": BASE.with_(topk=64),
    "s_q of lists": BASE.with_(op="sparse_decode", topk=64, s_q=257),
    "h_kv of lists": BASE.with_(op="sparse_decode", topk=64, h_kv=2),
    "extra_topk of prefill": BASE.with_(op="sparse_prefill", topk=64, extra_topk=64),
    "attn_sink": BASE.with_(attn_sink=True),
}


def reasons(key: KernelKey, device: DeviceInfo = H100) -> list[str]:
    return unsupported_reasons(HopperBackend().capabilities(device), key, device)


@pytest.mark.parametrize("key", TAKEN, ids=KernelKey.summary)
def test_takes(key: KernelKey) -> None:
    assert reasons(key) == []


@pytest.mark.parametrize("field", REFUSED)
def test_refuses_by_declaration_and_by_itself(field: str) -> None:
    found = reasons(REFUSED[field])
    assert len(found) == 1
    name = field.partition(" of ")[0]
    assert found[0].startswith(f"{name}=")
    with pytest.raises(NotSupportedError, match=name):
        HopperBackend().bind(REFUSED[field], H100)


@pytest.mark.parametrize(
    ("vendor", "arch"), [("nvidia", "sm_80"), ("nvidia", "sm_100"), ("amd", "gfx942")]
)
def test_refuses_other_devices(vendor: str, arch: str) -> None:
    device = DeviceInfo(vendor, arch, "cuda")
    assert any("nvidia (sm_90)" in reason for reason in reasons(BASE, device))
    assert list(HopperBackend().build_items(device)) == []
    assert HopperBackend().environment_reasons(device) == ()


def test_a_key_first_seen_while_a_graph_is_captured_is_refused_before_anything_is_touched() -> None:
    class Capturing:
        def capturing(self) -> bool:
            return True

        def guard(self, index: int) -> contextlib.AbstractContextManager[None]:
            raise AssertionError("touched the device")

    with pytest.raises(NotSupportedError, match=r"warmup\(\), before capture"):
        HopperBackend(Capturing()).bind(BASE, H100)  # type: ignore[arg-type]


def test_build_items_cover_every_variant_with_keys_that_are_taken() -> None:
    items = list(HopperBackend().build_items(H100))
    assert len({item.name for item in items}) == len(items) == 42
    for item in items:
        assert reasons(item.key) == []


def test_the_files_of_the_build_exist_and_hold_the_argument_structure() -> None:
    files = [Path(name) for name in HopperBackend().files()]
    assert all(file.is_file() for file in files)
    assert any(file.name == "params.h" for file in files)


def environment(**changes: object) -> Environment:
    versions = {"cuda-bindings": (13, 0), "nvidia-cuda-nvrtc": (13, 0)}
    probes = {
        "driver": lambda: (13, 0),
        "distribution": versions.get,
        "nvcc": lambda: None,
        "system_nvrtc": lambda: False,
        "aot_folder": Path("/nonexistent"),
    }
    return Environment(**{**probes, **changes})  # type: ignore[arg-type]


def test_a_complete_machine_lacks_nothing() -> None:
    assert environment().reasons() == ()


def test_no_driver() -> None:
    (reason,) = environment(driver=lambda: None).reasons()
    assert "libcuda.so.1 not found" in reason


def test_an_old_driver_is_named_with_what_is_needed() -> None:
    versions = {"cuda-bindings": (12, 9), NVRTC_DISTRIBUTIONS[12]: (12, 8)}
    (reason,) = environment(driver=lambda: (12, 2), distribution=versions.get).reasons()
    assert "12.2" in reason
    assert ">= 12.4" in reason


@pytest.mark.parametrize(("driver", "extra"), [((12, 4), "cuda12"), ((13, 1), "cuda13")])
def test_missing_packages_are_named_with_the_extra_that_brings_them(
    driver: tuple[int, int], extra: str
) -> None:
    found = environment(driver=lambda: driver, distribution=lambda name: None).reasons()
    assert [reason.split(":")[0] for reason in found] == ["cuda-bindings", "NVRTC"]
    assert all(f"pip install 'flashmla-hub[{extra}]'" in reason for reason in found)


def test_nvrtc_is_not_missed_where_nvcc_or_prebuilt_cubins_are(tmp_path: Path) -> None:
    versions = {"cuda-bindings": (13, 0)}
    assert environment(distribution=versions.get, nvcc=lambda: "nvcc").reasons() == ()
    (tmp_path / "x.cubin").touch()
    assert environment(distribution=versions.get, aot_folder=tmp_path).reasons() == ()
    assert len(environment(distribution=versions.get).reasons()) == 1


def test_a_compiler_of_a_newer_major_than_the_driver_is_no_compiler() -> None:
    (reason,) = environment(driver=lambda: (12, 8)).reasons()
    assert "NVRTC 13.0" in reason
    assert "12.8" in reason
    assert "cuda12" in reason


def test_an_old_nvrtc_is_refused() -> None:
    versions = {"cuda-bindings": (12, 3), NVRTC_DISTRIBUTIONS[12]: (12, 3)}
    (reason,) = environment(driver=lambda: (12, 6), distribution=versions.get).reasons()
    assert "12.3 is too old" in reason
