"""The plug-in against vLLM itself, as far as no model is needed. Runs where vLLM is installed
(.ci/engines)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/engines installs it")

import flashmla_hub as hub
from flashmla_hub import parallel
from flashmla_hub.engines.vllm import plugin


@pytest.fixture(scope="module")
def member() -> Any:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    plugin.register()
    plugin.register()
    return AttentionBackendEnum.FLASHMLA_HUB


def test_the_registered_class_is_ours(member: Any) -> None:
    assert member.get_path() == plugin.BACKEND
    assert member.get_class().get_name() == member.name == "FLASHMLA_HUB"


def test_the_command_line_takes_the_name(member: Any) -> None:
    from vllm.config.attention import AttentionConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(["--model", "m", "--attention-backend", "FLASHMLA_HUB"])
    assert AttentionConfig(backend=args.attention_backend).backend is member


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"head_size": 512}, None),
        ({"block_size": 128}, None),
        ({"use_dcp": True}, None),
        ({"dtype": torch.float32}, "dtype not supported"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype not supported"),
        ({"use_sparse": True}, "dense MLA decode only"),
        ({"has_sink": True}, "dense MLA decode only"),
        ({"use_pcp": True}, "PCP not supported"),
        ({"use_adaptive_verification": True}, "query lens mismatch"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_vllms_own_validation(member: Any, changed: dict[str, Any], expected: str | None) -> None:
    asked = {
        "head_size": 576,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 64,
        "use_mla": True,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": None,
        "attn_type": "decoder",
    }
    with hub.use_backend("torch"):
        reasons = member.get_class().validate_configuration(**{**asked, **changed})
    if expected is None:
        assert reasons == []
    else:
        assert any(expected in reason for reason in reasons)


@pytest.mark.parametrize("interleave", [1, 2, 16, 64])
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_local_lengths_are_vllms(world_size: int, interleave: int) -> None:
    from vllm.v1.attention.backends.utils import get_dcp_local_seq_lens

    lens = torch.arange(2000, dtype=torch.int32)
    for rank in range(world_size):
        ours = parallel.local_seq_lens(lens, world_size, rank, interleave)
        assert torch.equal(ours, get_dcp_local_seq_lens(lens, world_size, rank, interleave))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_merge_is_vllms(world_size: int) -> None:
    from vllm.v1.attention.ops.dcp import _lse_weighted_combine

    g = torch.Generator().manual_seed(0)
    outs = torch.randn(world_size, 9, 8, 512, generator=g)
    lses = torch.randn(world_size, 9, 8, generator=g) * 5
    lses[0, 0], lses[:, 1], lses[1, 2] = torch.inf, torch.inf, torch.nan
    outs[0, 0] = torch.nan
    theirs, their_lse = _lse_weighted_combine(outs.clone(), lses.clone(), return_lse=True)
    out, lse = hub.merge_states(outs.unsqueeze(2).unbind(0), lses.unsqueeze(3).unbind(0))
    torch.testing.assert_close(out[:, 0], theirs, atol=1e-5, rtol=1e-5)
    lse = lse[..., 0]
    assert (lse[1] == torch.inf).all()  # a row empty everywhere: +inf, as FlashMLA
    assert (their_lse[1] == -torch.inf).all()  # vLLM marks it with -inf
    rows = [r for r in range(9) if r != 1]
    torch.testing.assert_close(lse[rows], their_lse[rows], atol=1e-5, rtol=1e-5)
