"""A vLLM plug-in of the job itself: it counts the hub's calls, spoils them for the controls, and
teaches vLLM's CPU platform decode context parallelism. ``HUB_JOB`` says what of it (JSON)."""

from __future__ import annotations

import atexit
import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flashmla_hub as hub
from flashmla_hub import parallel

calls: Counter[str] = Counter()
_registered = False


def register() -> None:
    global _registered
    if _registered:
        return
    _registered = True
    job = json.loads(os.environ["HUB_JOB"])
    _watch(job.get("scale", 1.0))
    atexit.register(_write, Path(job["calls"]))
    if job.get("accelerator_builder"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        path = "vllm_job_backend.AcceleratorBuilderBackend"
        register_backend(AttentionBackendEnum.CPU_MLA, path)
    if job.get("dcp"):
        _teach_dcp(wrong_base=job.get("wrong_base", False))


def _watch(scale: float) -> None:
    original = hub.flash_mla_with_kvcache

    def watched(q: Tensor, *args: Any, softmax_scale: float, **kwargs: Any) -> Any:
        calls["decode"] += 1
        calls[f"s_q={q.shape[1]}"] += 1
        return original(q, *args, softmax_scale=softmax_scale * scale, **kwargs)

    hub.flash_mla_with_kvcache = watched


def _write(path: Path) -> None:
    path.with_suffix(f".{os.getpid()}").write_text(json.dumps(calls))


def _teach_dcp(wrong_base: bool) -> None:
    """vLLM 0.32 merges in Triton and maps slots for one rank on CPU; both go to the hub here."""
    import vllm.utils.cpu_triton_utils as slot_mapping
    import vllm.v1.attention.ops.dcp as dcp

    slot_mapping._compute_slot_mapping_kernel_impl = _slot_mapping

    def merge(mode: str) -> Any:
        def merged(
            cp_attn_out: Tensor,
            cp_attn_lse: Tensor,
            cp_group: Any,
            ctx: Any = None,
            return_lse: bool = False,
            is_lse_base_on_e: bool = True,
            seq_lens: Tensor | None = None,
            query_start_loc: Tensor | None = None,
        ) -> Any:
            assert is_lse_base_on_e
            calls["merge"] += 1
            calls["empty shards"] += 0 if seq_lens is None else int((seq_lens == 0).sum())
            lse = cp_attn_lse / 0.6931471805599453 if wrong_base else cp_attn_lse
            out, lse = parallel.merge_over_group(
                cp_attn_out.unsqueeze(1), lse.unsqueeze(-1), cp_group.device_group, mode
            )
            return (out[:, 0], lse[..., 0]) if return_lse else out[:, 0]

        return merged

    dcp.cp_lse_ag_out_rs, dcp.dcp_a2a_lse_reduce = merge("ag_rs"), merge("a2a")


def _slot_mapping(
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: Tensor,
    positions: Tensor,
    block_table: Tensor,
    block_table_stride: int,
    slot_mapping: Tensor,
    KV_CACHE_BLOCK_SIZE: int,  # the names vLLM passes
    TOTAL_CP_WORLD_SIZE: int = 1,
    TOTAL_CP_RANK: int = 0,
    CP_KV_CACHE_INTERLEAVE_SIZE: int = 1,
    PAD_ID: int = -1,
    BLOCK_SIZE: int = 1024,
) -> None:
    slot_mapping[num_tokens:].fill_(PAD_ID)
    start = query_start_loc.tolist()
    for row, (first, end) in enumerate(itertools.pairwise(start)):
        slot_mapping[first:end] = parallel.local_slots(
            positions[first:end].to(torch.int64),
            block_table[row],
            TOTAL_CP_WORLD_SIZE,
            TOTAL_CP_RANK,
            KV_CACHE_BLOCK_SIZE,
            CP_KV_CACHE_INTERLEAVE_SIZE,
        )
