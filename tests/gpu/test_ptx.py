"""The instruction wrappers of csrc/sm90/ptx on the card, each against plain code."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from gpu_cases import needs_hopper

from flashmla_hub.backends.hopper.compilers import find_compilers
from flashmla_hub.backends.hopper.driver import Driver
from flashmla_hub.backends.hopper.tensormap import Encoder
from flashmla_hub.backends.hopper.units import Unit

pytestmark = [pytest.mark.gpu, needs_hopper]


class Kernels:
    def __init__(self, fp16: bool) -> None:
        compilers, reasons = find_compilers()
        assert compilers, reasons
        torch.zeros(1, device="cuda")  # torch's context is the one to load into
        unit = Unit("selftest", "sm90/ptx/selftest.cu", (f"FMH_FP16={fp16:d}",))
        self.driver = Driver()
        self.module = self.driver.load(compilers[0].compile(unit).cubin)
        self.encoder = Encoder(self.driver, fp16)

    def tile_map(self, x: torch.Tensor) -> Any:
        """(64, columns) seen as (64 elements, 64 rows, column tiles, 1), one box."""
        tiles = x.shape[1] // 64
        box = (64, 64, tiles, 1)
        return self.encoder.encode("x", x.data_ptr(), box, (x.stride(0) * 2, 128, 128), box)

    def launch(self, name: str, grid: int, block: int, *args: Any, shared: int = 0) -> None:
        """Tensors go as pointers, ints as ints, tensor maps by value."""
        function = self.driver.function(self.module, name, shared)
        config = self.driver.launch_config(block, shared, dependent=False)
        config.gridDimX = grid
        config.hStream = torch.cuda.current_stream().cuda_stream
        values: list[Any] = []
        for a in args:
            if isinstance(a, torch.Tensor):
                values.append(ctypes.c_uint64(a.data_ptr()))
            elif isinstance(a, int):
                values.append(ctypes.c_int(a))
            else:
                values.append(a)
        addresses = [getattr(v, "address", None) or ctypes.addressof(v) for v in values]
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        (error,) = self.driver.launch(config, function, ctypes.addressof(pointers), 0)
        assert error == self.driver.success, error
        torch.cuda.synchronize()


@pytest.fixture(scope="module", params=[False, True], ids=["bf16", "fp16"])
def kernels(request: pytest.FixtureRequest) -> tuple[Kernels, torch.dtype]:
    return Kernels(request.param), torch.float16 if request.param else torch.bfloat16


@pytest.mark.parametrize(
    ("product", "columns"),
    [(0, 64), (1, 256), (2, 256), (3, 256), (4, 64)],
    ids=["scores", "weights in shared", "weights in registers", "weights by stmatrix", "held q"],
)
def test_products(kernels: tuple[Kernels, torch.dtype], product: int, columns: int) -> None:
    lib, dtype = kernels
    g = torch.Generator("cuda").manual_seed(product)
    a = torch.randn(64, 64, generator=g, device="cuda").to(dtype)
    b = torch.randn(64, 256, generator=g, device="cuda").to(dtype)
    out = torch.full((64, columns), torch.nan, device="cuda")
    maps = lib.tile_map(a), lib.tile_map(b)
    lib.launch("fmh_test_product", 1, 128, *maps, a, out, product, shared=5 * 8192)
    right = b[:, :64].T if columns == 64 else b
    expected = a.double() @ right.double()
    assert (out.double() - expected).norm() <= 1e-6 * expected.norm()


def test_small_quotients(kernels: tuple[Kernels, torch.dtype]) -> None:
    wrong = torch.zeros(1, dtype=torch.int32, device="cuda")
    kernels[0].launch("fmh_test_quotients", 5000, 256, wrong)
    assert wrong.item() == 0


@pytest.mark.parametrize("valid", [0, 1, 37, 64])
def test_gathered_rows(kernels: tuple[Kernels, torch.dtype], valid: int) -> None:
    source = torch.arange(1, 513, device="cuda", dtype=torch.int16).view(64, 8)
    out = torch.zeros_like(source)
    kernels[0].launch("fmh_test_gather", 1, 64, source, out, valid)
    expected = source.clone()
    expected[valid:] = 0
    assert torch.equal(out.flip(0), expected)


def test_functions(kernels: tuple[Kernels, torch.dtype]) -> None:
    lib, dtype = kernels
    x = torch.linspace(-120, 60, 4096, device="cuda")
    exp2, log2 = torch.empty_like(x), torch.empty_like(x)
    pairs = torch.empty(2048, dtype=torch.int32, device="cuda")
    halves = torch.full_like(x, torch.nan)
    lib.launch("fmh_test_functions", 16, 256, x, exp2, log2, pairs, halves)
    assert ((exp2.double() / torch.exp2(x.double()) - 1).abs() < 4e-7).all()
    assert ((log2.double() - torch.log2(x.double().abs())).abs() < 2e-6).all()
    assert torch.equal(pairs.view(dtype), x.to(dtype))
    stored = (x.view(-1, 2)[:, 0] > 0).repeat_interleave(2)
    assert halves.isnan().equal(~stored)
    assert torch.equal(halves[stored], x.half().float()[stored])
