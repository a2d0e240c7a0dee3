"""What the torch backend promises beside right numbers."""

from __future__ import annotations

import oracle
import pytest
import torch
from torch_calls import (
    CPU,
    bound_dense,
    bound_prefill,
    bound_sparse,
    expect_dense,
    expect_sparse,
    key_of,
    run_dense,
    run_sparse,
)
from torch_cases import (
    Case,
    dense_inputs,
    prefill_inputs,
    random_dense,
    random_prefill,
    random_sparse,
    sparse_inputs,
)

from flashmla_hub import kv_format
from flashmla_hub.backends.torch_ref import attention, sources
from flashmla_hub.backends.torch_ref.plugin import TorchBackend
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import DENSE_DECODE

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture
def accelerator_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take the path of devices whose values are not at hand."""
    for module in (sources, attention):
        monkeypatch.setattr(module, "values_at_hand", lambda device: False)


@pytest.mark.usefixtures("accelerator_path")
@pytest.mark.parametrize(
    "seed",
    [*range(1000, 1012), *(pytest.param(n, marks=pytest.mark.full) for n in range(1012, 1300))],
)
def test_accelerator_path_agrees_with_the_oracle(seed: int) -> None:
    case = random_dense(seed)
    inputs = dense_inputs(case)
    oracle.check(*run_dense(case, inputs), expect_dense(case, inputs), case)
    case = random_sparse(seed)
    inputs = sparse_inputs(case)
    oracle.check(*run_sparse(case, inputs), expect_sparse(case, inputs), case)


@pytest.mark.usefixtures("accelerator_path")
@pytest.mark.parametrize("workspace", [1, 1 << 62])
def test_grouping_of_rows_changes_no_result(
    monkeypatch: pytest.MonkeyPatch, workspace: int
) -> None:
    monkeypatch.setattr(attention, "WORKSPACE", workspace)
    case = Case(7, lens=(0, 700, 1, 0, 64), s_q=2, causal=True, page=16)
    inputs = dense_inputs(case)
    oracle.check(*run_dense(case, inputs), expect_dense(case, inputs), case)


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_never_waits_for_an_accelerator(seed: int) -> None:
    """Meta tensors have no values, so that a host read of one raises; shapes come out the same."""
    calls = (
        (random_dense, dense_inputs, bound_dense),
        (random_sparse, sparse_inputs, bound_sparse),
        (random_prefill, prefill_inputs, bound_prefill),
    )
    for make, build, run in calls:
        case = make(seed)
        inputs = build(case)
        shadows = {name: None if t is None else _shadow(t) for name, t in inputs.items()}
        for got, wanted in zip(run(case, shadows), run(case, inputs), strict=True):
            assert got.device.type == "meta", case
            facts = [(t.shape, t.dtype, t.stride()) for t in (got, wanted)]
            assert facts[0] == facts[1], case


def _shadow(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype: torch.dtype) -> None:
    case = Case(3, dtype=dtype, lens=(1500, 70, 513), page=64, h_q=8, family="peaked")
    inputs = dense_inputs(case)
    inputs["q"] *= 40  # logits of several hundred
    inputs["q"][1] *= 20  # of 1e4
    inputs["q"][2] = 0  # all equal
    last = inputs["block_table"][0, 1499 // 64], 1499 % 64
    inputs["k_cache"][last] *= 30  # one huge late token
    out, lse = run_dense(case, inputs)
    oracle.check(out, lse, expect_dense(case, inputs), case, extreme=True)


def test_float16_does_not_overflow_inside() -> None:
    """Logits past 65504, and a sum of V past it."""
    case = Case(4, dtype=torch.float16, lens=(600,), h_q=2)
    inputs = dense_inputs(case)
    inputs["q"] = torch.full_like(inputs["q"], 60.0)
    inputs["k_cache"] = torch.full_like(inputs["k_cache"], 60.0)
    out, lse = run_dense(case, inputs)
    assert torch.equal(out, torch.full_like(out, 60.0))
    assert lse.isfinite().all()


@pytest.mark.parametrize("lens", [(0,), (0, 0, 0), (1, 0), (2, 3, 4)])
def test_rows_with_nothing_to_see(lens: tuple[int, ...]) -> None:
    case = Case(5, lens=lens, s_q=4, causal=True, h_q=3, page=2, width=1)
    inputs = dense_inputs(case)
    out, lse = run_dense(case, inputs)
    expected = expect_dense(case, inputs)
    oracle.check(out, lse, expected, case)
    empty = expected.lse.isposinf()
    assert empty.any() and torch.equal(lse.isposinf(), empty)
    assert not out.transpose(1, 2)[empty].any()


def test_a_table_of_no_columns_and_a_cache_of_no_pages() -> None:
    case = Case(6, lens=(0, 0))
    inputs = dense_inputs(case)
    narrow = inputs | {"block_table": torch.empty(2, 0, dtype=torch.int32)}
    no_pages = inputs | {
        "k_cache": inputs["k_cache"][:0],
        "block_table": torch.zeros(2, 3, dtype=torch.int32),
    }
    for out, lse in (run_dense(case, narrow), bound_dense(case, no_pages)):
        assert not out.any() and lse.isposinf().all()


def test_lengths_outside_the_table_are_clamped() -> None:
    case = Case(8, lens=(128, 128, 64), page=64)
    inputs = dense_inputs(case)
    inputs["block_table"][2, 1] = inputs["block_table"][0, 1]
    wrong = inputs | {"cache_seqlens": torch.tensor([1 << 30, 128, -5], dtype=torch.int32)}
    inputs["cache_seqlens"][2] = 0
    for got, wanted in zip(run_dense(case, wrong), run_dense(case, inputs), strict=True):
        assert torch.equal(got, wanted)


def test_writes_into_out_and_lse_in_place() -> None:
    case = Case(9, lens=(65, 0, 3), s_q=2)
    inputs = dense_inputs(case)
    wanted, wanted_lse = run_dense(case, inputs)
    wide = torch.full((3, 2, 16, 600), float("nan"), dtype=case.dtype)
    lse = torch.full_like(wanted_lse, float("nan"))
    got, got_lse = run_dense(case, inputs, wide[..., :512], lse)
    assert got.data_ptr() == wide.data_ptr() and got_lse is lse
    assert torch.equal(got, wanted) and torch.equal(got_lse, wanted_lse)
    assert wide[..., 512:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    lens = (700, 1, 0, 513, 64, 300)
    case = Case(10, dtype=dtype, lens=lens, s_q=2, causal=True, width=4)
    inputs = dense_inputs(case)
    whole = run_dense(case, inputs)
    again = run_dense(case, inputs)
    for got, wanted in zip(again, whole, strict=True):
        assert torch.equal(got, wanted)
    for b, n in enumerate(lens):
        row = {name: inputs[name][b : b + 1] for name in ("q", "block_table", "cache_seqlens")}
        row["block_table"] = row["block_table"][:, : -(-n // case.page)]
        alone = run_dense(case, inputs | row)
        for got, wanted in zip(alone, whole, strict=True):
            assert torch.equal(got[0], wanted[b]), f"row {b} of {case}"


def test_autocast_does_not_reach_inside() -> None:
    case = Case(11, dtype=torch.float32, lens=(300,))
    inputs = dense_inputs(case)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = run_dense(case, inputs)
    oracle.check(out, lse, expect_dense(case, inputs), case)


def test_scales_that_are_no_powers_of_two() -> None:
    case = Case(12, kv_format="v32", lens=(200, 77), h_q=8)
    inputs = dense_inputs(case)
    raw = inputs["k_cache"].view(torch.uint8)
    scales = raw[..., 512:528].contiguous().view(torch.float32)
    raw[..., 512:528] = (scales * 1.37).view(torch.uint8)
    out, lse = run_dense(case, inputs)
    oracle.check(out, lse, expect_dense(case, inputs), case, lse_factor=4)


def test_refuses_what_it_does_not_claim() -> None:
    key = key_of(Case(13), DENSE_DECODE)
    gpu = DeviceInfo("acme", "x1", "cuda")
    wrong = (
        (key.with_(dtype="float64"), CPU),
        (key.with_(d_qk=192, d_v=128), CPU),
        (key.with_(kv_format="v41_fp4", d_qk=512), CPU),
        (key.with_(kv_format="v41+v41_fp4", d_qk=512), CPU),
        (key.with_(kv_format="v32", d_qk=512), CPU),
        (key.with_(kv_format="model1", d_qk=512, kv_strides="token_strided"), CPU),
        (key.with_(attn_sink=True), CPU),
        (key.with_(batch_invariant=True), gpu),
    )
    for bad, device in wrong:
        with pytest.raises(NotSupportedError, match="torch"):
            TorchBackend().bind(bad, device)
    for name in kv_format.IDS:
        if name in kv_format.PAIRS:
            continue
        d_qk = kv_format.get(name).d_qk
        TorchBackend().bind(key.with_(kv_format=name, d_qk=d_qk, batch_invariant=True), CPU)


@pytest.mark.parametrize("mistake", ["scale", "length", "table"])
def test_the_oracle_notices(mistake: str) -> None:
    """The comparison has teeth: a wrong call does not pass it."""
    case = Case(14, lens=(640, 130), h_q=4)
    inputs = dense_inputs(case)
    wrong = dict(inputs)
    expected = expect_dense(case, inputs)
    if mistake == "scale":
        wrong["q"] = inputs["q"] * 1.05
    elif mistake == "length":
        wrong["cache_seqlens"] = inputs["cache_seqlens"] - 64
    else:
        wrong["block_table"] = inputs["block_table"].clone()
        wrong["block_table"][0, :2] = inputs["block_table"][1, :2]
    with pytest.raises(AssertionError, match="differs at"):
        oracle.check(*run_dense(case, wrong), expected, case)


@pytest.mark.parametrize("kv_format", ["dense", "v32"])
def test_addresses_past_32_bits(kv_format: str) -> None:
    """Past 2**31 elements and 2**32 bytes; the memory between the pages is never touched."""
    case = Case(15, lens=(128, 40), kv_format=kv_format, h_q=4)
    inputs = dense_inputs(case)
    near = inputs["k_cache"]
    stride = (1 << 31) // near.element_size() + 4096
    try:
        far = torch.empty(stride * len(near), dtype=near.dtype)
    except RuntimeError as error:
        pytest.skip(f"no address space for the pool: {error}")
    far = far.as_strided(near.shape, (stride, *near.stride()[1:]))
    assert far.stride(0) * (len(far) - 1) * far.element_size() > 1 << 32
    for page in range(len(near)):
        far[page].copy_(near[page])
    got = run_dense(case, inputs | {"k_cache": far})
    for x, y in zip(got, run_dense(case, inputs), strict=True):
        assert torch.equal(x, y)
