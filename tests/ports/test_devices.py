"""Each rule on a fake of exactly the attributes that it reads, and all rules on every fake."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from flashmla_hub import identify
from flashmla_hub.device import DeviceProbe


@dataclass
class Fake:
    """A process on some vendor's machine: torch's attributes, its modules, its distributions."""

    type: str
    vendor: str
    arch: str = ""
    confidence: str = "high"
    version: dict[str, str] = field(default_factory=dict)
    torch: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    properties: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    dist: str = "2.6.0"

    def probe(self) -> DeviceProbe:
        runtime = SimpleNamespace(
            get_device_name=lambda index: self.name,
            get_device_properties=lambda index: SimpleNamespace(**self.properties),
            get_device_capability=lambda index: (3, 1),
        )
        fakes = SimpleNamespace(version=SimpleNamespace(**self.version), **self.torch)
        setattr(fakes, self.type, runtime)
        if self.vendor == "moore_threads":
            fakes.musa = runtime
        return DeviceProbe(
            type=self.type,
            torch=fakes,
            modules=dict.fromkeys(self.modules),
            dist_version=lambda name: self.dist if name == "torch" else None,
            machine="x86_64",
        )


CUDA = {"cuda": "12.8", "hip": ""}
SM90 = {"major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80 << 30}
AMD = {"gcnArchName": "gfx942:sramecc+:xnack-"}
FAKES = {
    "cpu": Fake("cpu", "cpu", "x86_64"),
    "meta": Fake("meta", "cpu", "x86_64"),
    "nvidia H100": Fake(
        "cuda", "nvidia", "sm_90", version=CUDA, name="NVIDIA H100 80GB HBM3", properties=SM90
    ),
    "nvidia old driver": Fake(
        "cuda",
        "nvidia",
        "sm_70",
        version=CUDA,
        name="Tesla V100-SXM2-16GB",
        properties={"major": 7, "minor": 0},
    ),
    "amd": Fake("cuda", "amd", "gfx942", version={"hip": "6.3"}, properties=AMD, name="MI300X"),
    "amd MI50": Fake(
        "cuda", "amd", "gfx906", version={"hip": "5.7"}, properties={"gcnArchName": "gfx906"}
    ),
    "hygon": Fake(
        "cuda",
        "hygon",
        "gfx936",
        version={"hip": "6.1"},
        torch={"__hcu_version__": "25.04"},
        properties={"gcnArchName": "gfx936:sramecc+:xnack-"},
    ),
    "hygon Z100": Fake(
        "cuda",
        "hygon",
        "gfx906",
        version={"hip": "6.1"},
        torch={"__hcu_version__": "25.04"},
        properties={"gcnArchName": "gfx906"},
    ),
    "hygon by gfx number": Fake(
        "cuda",
        "hygon",
        "gfx928",
        "medium",
        version={"hip": "6.1"},
        properties={"gcnArchName": "gfx928"},
    ),
    "hygon by wheel": Fake(
        "cuda",
        "hygon",
        "gfx906",
        "medium",
        version={"hip": "6.1"},
        properties={"gcnArchName": "gfx906"},
        dist="2.4.1+das.opt1.dtk2504",
    ),
    "metax C500": Fake(
        "cuda",
        "metax",
        "xcore1000",
        version={"cuda": "11.6", "maca": "3.0.0.4"},
        name="MetaX C500",
        properties={"major": 8, "minor": 0},
    ),
    "metax C600": Fake(
        "cuda", "metax", "xcore1500", version={"cuda": "11.6", "maca": "3.8"}, name="MetaX C600"
    ),
    "metax by name": Fake(
        "cuda", "metax", "xcore1000", "medium", version={"cuda": "11.6"}, name="MetaX C550"
    ),
    "metax by wheel": Fake(
        "cuda", "metax", "", "low", version={"cuda": "11.6"}, dist="2.1.2+metax2.29"
    ),
    "iluvatar": Fake(
        "cuda",
        "iluvatar",
        "ivcore11",
        version={"cuda": "10.2"},
        torch={"corex": True},
        name="Iluvatar BI-V150",
        properties={"major": 7, "minor": 1},
    ),
    "iluvatar by name": Fake(
        "cuda",
        "iluvatar",
        "ivcore10",
        "medium",
        version={"cuda": "10.2"},
        name="Iluvatar BI-V100",
        properties={"major": 7, "minor": 0},
    ),
    "iluvatar by wheel": Fake(
        "cuda", "iluvatar", "", "medium", version={"cuda": "10.2"}, dist="2.10.0+corex.4.5.0"
    ),
    "moore_threads": Fake(
        "musa", "moore_threads", "mp_31", version={"musa": "4.1"}, name="MTT S5000"
    ),
    "moore_threads torchada": Fake(
        "cuda", "moore_threads", "mp_31", version={"musa": "4.1", "cuda": ""}, name="MTT S5000"
    ),
    "thead": Fake("cuda", "thead", "", "low", version=CUDA, name="PPU-ZW810E"),
    "thead ZW": Fake("cuda", "thead", "", "low", version=CUDA, name="ZW810E"),
    "kunlunxin": Fake("cuda", "kunlunxin", "", "low", version=CUDA, modules=("torch_xmlir",)),
    "kunlunxin by name": Fake("cuda", "kunlunxin", "", "low", version=CUDA, name="Kunlun P800"),
    "kunlunxin xpu": Fake("xpu", "kunlunxin", "", "low", modules=("torch_xmlir",)),
    "intel": Fake("xpu", "intel", name="Intel(R) Data Center GPU Max 1550"),
    "ascend": Fake("npu", "ascend", "ascend910b3", name="Ascend910B3"),
    "cambricon": Fake("mlu", "cambricon", name="MLU590"),
    "enflame": Fake("gcu", "enflame", "s60", "medium", name="S60"),
    "apple": Fake("mps", "apple"),
    "sunrise": Fake("ptpu", "sunrise", confidence="medium"),
    "tsingmicro": Fake("txda", "tsingmicro", confidence="medium"),
    "biren": Fake("supa", "biren", confidence="medium"),
    "habana": Fake("hpu", "habana", confidence="medium"),
    "aipu": Fake("aipu", "aipu", confidence="medium"),
}


@pytest.mark.parametrize("label", FAKES)
def test_exactly_one_rule_claims_each_vendors_device(label):
    fake = FAKES[label]
    info = identify.ask_rules(fake.probe())
    assert (info.vendor, info.arch, info.confidence) == (fake.vendor, fake.arch, fake.confidence)
    assert info.type == fake.type
    assert info.rule and "no rule" not in info.rule
    assert info.name in (fake.name, "x86_64 CPU")


@pytest.mark.parametrize("posing", ["metax C500", "iluvatar", "moore_threads torchada", "thead"])
def test_a_device_that_poses_as_cuda_is_not_nvidias(posing):
    from flashmla_hub.backends.devices import nvidia

    assert nvidia.flashmla_hub_identify_device(FAKES[posing].probe()) is None


UNKNOWN = (
    Fake("cuda", "", version={"cuda": "11.6"}, name="Some Card"),
    Fake("cuda", "", version={}, name="NVIDIA H100", properties=SM90),
    Fake("vulkan", "", version=CUDA, name="NVIDIA H100", properties=SM90),
    Fake("vulkan", "", version={"maca": "3.0"}, name="MetaX C500"),
    Fake("vulkan", "", version={"hip": "6.3"}, torch={"corex": True}, name="Iluvatar PPU Kunlun"),
)


@pytest.mark.parametrize("fake", UNKNOWN, ids=lambda fake: f"{fake.type} {fake.name}")
def test_what_shows_no_positive_sign_is_unknown_and_says_what_was_seen(fake):
    info = identify.ask_rules(fake.probe())
    assert info.vendor == "unknown"
    assert "no rule matched" in info.rule


def test_a_torch_with_nothing_in_it_is_unknown():
    probe = DeviceProbe("cuda", torch=SimpleNamespace(), dist_version=lambda name: None, modules={})
    assert identify.ask_rules(probe).vendor == "unknown"


def test_a_runtime_that_raises_leaves_the_vendor_known():
    def broken(*args):
        raise RuntimeError("driver not loaded")

    fakes = SimpleNamespace(
        version=SimpleNamespace(musa="4.1"),
        musa=SimpleNamespace(
            get_device_capability=broken, get_device_name=broken, get_device_properties=broken
        ),
    )
    info = identify.ask_rules(DeviceProbe("musa", torch=fakes, modules={}))
    assert (info.vendor, info.arch, info.name) == ("moore_threads", "", "")


def test_reads_the_facts_that_scratch_is_sized_by():
    info = identify.ask_rules(FAKES["nvidia H100"].probe())
    assert (info.multiprocessors, info.memory) == (132, 80 << 30)
