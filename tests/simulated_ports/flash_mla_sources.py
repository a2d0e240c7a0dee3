"""Sources of the fakes that are imported as ``flash_mla``: a dictionary of files for each port."""

from __future__ import annotations

INIT = """
from flash_mla.flash_mla_interface import *
from flash_mla.flash_mla_interface import flash_mla_with_kvcache, get_mla_metadata
"""

G1_INTERFACE = """
import torch
import {extension} as ext

def get_mla_metadata(cache_seqlens, num_heads_per_head_k, num_heads_k):
    return ext.get_mla_metadata(cache_seqlens, num_heads_per_head_k, num_heads_k)

def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
    softmax_scale=None, causal=False,
):
    import {extension} as late  # absolute, at call time
    if softmax_scale is None:
        softmax_scale = q.shape[-1] ** (-0.5)
    return late.fwd_kvcache_mla(
        q, k_cache, None, head_dim_v, cache_seqlens, block_table, softmax_scale, causal,
        tile_scheduler_metadata, num_splits,
    )
"""

CHECKS = """
import torch
from tests.simulated_ports import attention

def check(condition, text):
    if not condition:
        raise RuntimeError(text)

def common(q, k_cache, head_size_v, seqlens_k, block_table, tsm, num_splits, dtypes):
    check(q.dtype in dtypes, "Unsupported tensor dtype for query")
    check(k_cache.dtype == q.dtype, "query and key must have the same dtype")
    check((q.data_ptr() | k_cache.data_ptr()) % 16 == 0, "misaligned address")
    check(q.stride(-1) == 1 and k_cache.stride(-1) == 1, "last dimension must be contiguous")
    check(block_table.dtype == torch.int32 and block_table.stride(-1) == 1, "block_table")
    check(seqlens_k.dtype == torch.int32 and seqlens_k.is_contiguous(), "seqlens_k")
    check(q.shape[0] > 0 and q.shape[2] % k_cache.shape[2] == 0, "heads")
    check(q.shape[3] == 576, "head_size == 576")
    check(tsm.dtype == torch.int32 and tsm.shape[1] == 8, "tile_scheduler_metadata")
    check(num_splits.shape == (q.shape[0] + 1,), "num_splits")
    attention.walks_back_from_the_last_page(block_table, seqlens_k, k_cache.shape[1])

def schedule(seqlens_k):
    # real metadata depends on the lengths; a call with another step's is silently wrong
    tsm = torch.zeros((1, 8), dtype=torch.int32)
    splits = torch.cat([seqlens_k.new_zeros(1), seqlens_k.cumsum(0, dtype=torch.int32)])
    return tsm, splits

def planned(seqlens_k, num_splits):
    return num_splits.diff().to(torch.int32)
"""

METAX_EXT = (
    CHECKS
    + """
def get_mla_metadata(seqlens_k, num_heads_per_head_k, num_heads_k):
    # the launch is commented out: what comes back was never written
    tsm = torch.full((2, 8), -(2**31), dtype=torch.int32)
    return tsm, torch.full((seqlens_k.shape[0] + 1,), -(2**31), dtype=torch.int32)

def fwd_kvcache_mla(q, k, v, dv, lens, table, scale, causal, tsm, num_splits):
    common(q, k, dv, lens, table, tsm, num_splits, (torch.bfloat16, torch.float16))
    check(k.shape[1] & (k.shape[1] - 1) == 0, "page_block_size must be 2^n")
    check(dv % 32 == 0, "head_size_v should be a multiple of 32")
    out, lse = attention.dense(q, k, table, lens, 512, scale, causal and q.shape[1] > 1)
    return out, lse.masked_fill(lse.isnan(), float("-inf"))
"""
)

METAX_MC_EXT = (
    CHECKS
    + """
import math

def get_mla_metadata(seqlens_k, num_q_tokens_per_head_k, h_k, h_q=None, fp8=False, topk=None):
    check(not fp8, "FP8 KV Cache is not supported.")
    check(topk is None or h_q is not None, "num_heads_q must be provided when topk is provided")
    return schedule(seqlens_k)

def fwd_kvcache_mla(
    q, k, v, dv, lens, table, scale, causal, tsm, num_splits, fp8, indices, all_valid,
    cp_world_size, cp_rank, cp_tot_seqlen_k,
):
    check(not fp8, "flash mla with kvcache api not support fp8 now")
    common(q, k, dv, lens, table, tsm, num_splits, (torch.bfloat16, torch.float16))
    check(cp_world_size == 1, "context parallelism")
    if indices is None:
        check(k.shape[1] & (k.shape[1] - 1) == 0, "page_block_size must be 2^n")
        lens = planned(lens, num_splits)
        return attention.dense(q, k, table, lens, 512, scale, causal and q.shape[1] > 1)
    check(q.shape[2] >= 64 or q.shape[1] == 1, "head q must greter than 64 when seqlen q > 1")
    check(indices.dtype == torch.int32 and indices.shape[-1] % 64 == 0, "indices")
    return sparse(q, k.flatten(0, 1), indices, scale)

def sparse(q, slots, indices, scale):
    out = q.new_empty((*q.shape[:3], 512))
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]))
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            entries = indices[b, t][indices[b, t] != -1].long()
            check(bool(((entries >= 0) & (entries < len(slots))).all()), "illegal memory access")
            row = attention.heads(q[b, t], slots[entries], scale, 512)
            out[b, t], lse[b, :, t] = row[0].to(q.dtype), row[1].float()
    return out, lse

def sparse_prefill_fwd(q, kv, indices, scale, d_v, all_valid):
    check(q.dtype == torch.bfloat16 and q.shape[1] % 64 == 0, "bf16, h_q % 64 == 0")
    check(indices.shape[-1] % 64 == 0, "topk")
    out = q.new_empty((*q.shape[:2], 512))
    lse, top = torch.empty(q.shape[:2]), torch.empty(q.shape[:2])
    for t in range(q.shape[0]):
        entries = indices[t, 0][indices[t, 0] != -1].long()
        check(bool(((entries >= 0) & (entries < len(kv))).all()), "illegal memory access")
        row = attention.heads(q[t], kv[entries], scale, 512)
        out[t] = row[0].to(q.dtype)
        lse[t], top[t] = (row[1] / math.log(2)).float(), (row[2] / math.log(2)).float()
    return out, top, lse
"""
)

METAX_MC_INTERFACE = """
import torch
import flash_mla_cuda as flash_mla

def get_mla_metadata(cache_seqlens, *args, **kwargs):
    if "num_heads_per_head_k" in kwargs:
        raise TypeError("deprecated spelling")
    if len(args) > 5:
        raise TypeError(f"get_mla_metadata() takes 6 positional arguments but {len(args) + 1}")
    full = list(args) + [None, False, None][len(args) - 2:]
    return flash_mla.get_mla_metadata(cache_seqlens, *full)

def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
    softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None,
    indices_all_valid_per_q=None, descale_q=None, descale_k=None, cp_world_size=1, cp_rank=0,
    cp_tot_seqlen_k=None,
):
    if indices is not None:
        assert causal == False, "causal must be `false` if sparse attention is enabled."
    return flash_mla.fwd_kvcache_mla(
        q, k_cache, None, head_dim_v, cache_seqlens, block_table, softmax_scale, causal,
        tile_scheduler_metadata, num_splits, is_fp8_kvcache, indices, indices_all_valid_per_q,
        cp_world_size, cp_rank, cp_tot_seqlen_k,
    )

def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v=512, indices_all_valid_per_q=None):
    return flash_mla.sparse_prefill_fwd(q, kv, indices, sm_scale, d_v, indices_all_valid_per_q)
"""

MT_EXT = (
    CHECKS
    + """
import os
import sys

def get_mla_metadata(seqlens_k, num_heads_per_head_k, num_heads_k):
    os.write(1, b"build success meta api...\\n")  # printf
    return schedule(seqlens_k)

def flash_assert(condition, text):
    if not condition:
        os.write(2, text.encode())
        os._exit(1)

def fwd_kvcache_mla(q, k, v, dv, lens, table, scale, causal, tsm, num_splits):
    common(q, k, dv, lens, table, tsm, num_splits, (torch.bfloat16,))
    flash_assert(k.shape[1] == 64, "page_block_size == 64")
    flash_assert(dv == 512, "head_size_v == 512")
    flash_assert(q.shape[0] < 4096, "batch_size < 4096")
    out, lse = attention.dense(
        q, k, table, planned(lens, num_splits), 512, scale, causal and q.shape[1] > 1
    )
    os.write(1, b"build success mla api...\\n")
    return out, lse.masked_fill(lse.isnan(), float("inf"))
"""
)

SCHED_META = """
import dataclasses
import torch

@dataclasses.dataclass
class FlashMLASchedMeta:
    have_initialized: bool = False
    config: object = None
    tile_scheduler_metadata: object = None
    num_splits: object = None

def get_mla_metadata(*args, **kwargs):
    return FlashMLASchedMeta(), None
"""

G3_CALL = """
def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v,
    tile_scheduler_metadata: FlashMLASchedMeta, num_splits=None, softmax_scale=None, causal=False,
    is_fp8_kvcache=False, indices=None, attn_sink=None, extra_k_cache=None,
    extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None{out},
):
    meta = tile_scheduler_metadata
    assert isinstance(meta, FlashMLASchedMeta), "must be of type FlashMLASchedMeta"
    assert num_splits is None, "num_splits must be None"
    config = (q.shape[:3], k_cache.shape[1:3], causal)
    if not meta.have_initialized:
        meta.have_initialized, meta.config = True, config
        meta.num_splits = core.schedule(cache_seqlens)
    assert meta.config == config, "inconsistent with sched_meta"
    return core.dense(q, k_cache, block_table, cache_seqlens, head_dim_v, meta.num_splits,
                      softmax_scale, causal)
"""

THEAD_CORE = (
    CHECKS
    + """
_schedule = schedule

def schedule(lens):
    return _schedule(lens)[1]

def dense(q, k, table, lens, dv, num_splits, scale, causal):
    tsm = torch.zeros((1, 8), dtype=torch.int32)
    common(q, k, dv, lens, table, tsm, num_splits, (torch.bfloat16, torch.float16))
    check(dv == 512, "head_dim_v must be 512")
    lens = planned(lens, num_splits)  # of the first call: reuse with other lengths is not noticed
    return attention.dense(q, k, table, lens, 512, scale, causal and q.shape[1] > 1)
"""
)

MATE_CORE = (
    THEAD_CORE
    + """
_dense = dense

def dense(q, k, table, lens, dv, num_splits, scale, causal):
    check(k.shape[1] == 64 and k.is_contiguous() and q.is_contiguous(), "page 64, contiguous")
    check(q.shape[2] in (8, 16, 32, 64, 128), "heads")
    return _dense(q, k, table, lens, dv, num_splits, scale, causal)
"""
)

# CHECKS' own schedule, with the lengths of the call: what Hygon's and Iluvatar's fakes need
G1_EXT = (
    CHECKS
    + """
def get_mla_metadata(seqlens_k, num_heads_per_head_k, num_heads_k):
    return schedule(seqlens_k)

def fwd_kvcache_mla(q, k, v, dv, lens, table, scale, causal, tsm, num_splits):
    common(q, k, dv, lens, table, tsm, num_splits, (torch.bfloat16, torch.float16))
    check(k.shape[1] == 64 and k.shape[2] == 1, "page 64, one kv head")
    check(dv == 512 and k.is_contiguous() and q.is_contiguous(), "contiguous")
    return attention.dense(
        q, k, table, planned(lens, num_splits), 512, scale, causal and q.shape[1] > 1
    )
"""
)

HYGON_NEWER = """
import torch
from . import cuda as ext

def get_mla_metadata(*args, **kwargs):
    return object(), None  # of the third generation, unlike the call below

def get_mla_decoding_metadata_dense_fp8(cache_seqlens, num_q_tokens_per_head_k, num_heads_k):
    return ext.get_mla_metadata(cache_seqlens, num_q_tokens_per_head_k, num_heads_k)

def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata: torch.Tensor,
    num_splits: torch.Tensor, softmax_scale=None, causal=False,
):
    return ext.fwd_kvcache_mla(
        q, k_cache, None, head_dim_v, cache_seqlens, block_table, softmax_scale, causal,
        tile_scheduler_metadata, num_splits,
    )
"""
