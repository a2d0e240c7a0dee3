"""Sources of the fakes that go by names of their own: ixformer, AITER, FlagGems."""

from __future__ import annotations

IXFORMER = """
import torch
from tests.simulated_ports import attention

def vllm_paged_attention_mla(
    output, query, kv_cache, scale, block_tables, context_lens, max_context_len,
    use_cuda_graph=False{lse},
):
    assert isinstance(max_context_len, int), "max_context_len is a number on the host"
    assert (query.data_ptr() | kv_cache.data_ptr()) % 16 == 0, "misaligned address"
    assert kv_cache.dim() == 3 and query.dim() == 3 and kv_cache.is_contiguous()
    assert query.dtype in (torch.half, torch.bfloat16) and kv_cache.dtype == query.dtype
    assert kv_cache.shape[1] == 16, "block size 16"
    if int(context_lens.min()) <= 0 or int(context_lens.max()) > max_context_len:
        raise RuntimeError("context_lens out of range")
    out, lse = attention.dense(
        query.unsqueeze(1), kv_cache.unsqueeze(2), block_tables, context_lens, 512, scale, False
    )
    output.copy_(out.squeeze(1))
    {ret}
"""
IXFORMER_OLD = IXFORMER.format(lse="", ret="return output")
IXFORMER_NEW = IXFORMER.format(
    lse=", return_softmax_lse=False",
    ret="return (output, lse.squeeze(-1)) if return_softmax_lse else output",
)

AITER_BODY = """
    assert logit_cap <= 0
    assert q.dtype == torch.bfloat16 and kv_buffer.dtype == torch.bfloat16, "no fp16 kernel"
    assert q.is_contiguous() and kv_buffer.is_contiguous() and o.is_contiguous()
    assert (q.data_ptr() | kv_buffer.data_ptr()) % 16 == 0, "misaligned address"
    h, s_q = q.shape[1], max_seqlen_q
    assert kv_buffer.shape[1:3] == (1, 1), "entries of kv_indices are tokens when page is 1"
    assert h in (16, 32, 64, 128) or (h == 8 and s_q == 1), f"nhead={{h}} not supported"
    assert 1 <= s_q <= 4, "no such kernel"
    assert kv_indices.shape[0] >= int(kv_indptr[-1]) + 256, "prefetch ran past kv_indices"
    assert qo_indptr.tolist() == list(range(0, q.shape[0] + 1, s_q))
    if sm_scale is None:
        sm_scale = q.shape[-1] ** -0.5
    splits = 1 if num_kv_splits is None else num_kv_splits
    slots = kv_buffer.view(-1, 576)
    lse = torch.full((q.shape[0], h), -12345.0)
    for b in range(qo_indptr.shape[0] - 1):
        ids = kv_indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])].long()
        assert bool((ids >= 0).all() and (ids < len(slots)).all()), "memory fault"
        for t in range(s_q):
            seen = len(ids) - s_q + t + 1 if {causal} else len(ids)
            row = attention.softmax_row(q[b * s_q + t], slots[ids[:max(0, seen)]], sm_scale, 512)
            o[b * s_q + t] = row[0].to(o.dtype)
            if splits > 1:  # the single-split path does not store it
                lse[b * s_q + t] = row[1].float()
    return None, {ret}
"""
AITER_HEAD = """
import torch
from tests.simulated_ports import attention

def mla_decode_fwd(
    q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_seqlen_q,
"""
AITER_OLD = (  # 0.1.6: no lse
    AITER_HEAD
    + "    sm_scale=None, logit_cap=0.0, num_kv_splits=None,\n):"
    + AITER_BODY.format(causal="True", ret="None")
)
AITER_MIDDLE = (  # 0.1.9: the ninth by position is sm_scale, always causal
    AITER_HEAD
    + "    sm_scale=None, logit_cap=0.0, num_kv_splits=None, num_kv_splits_indptr=None,\n"
    "    work_meta_data=None, intra_batch_mode=False, return_logits=False, return_lse=False,\n):"
    + AITER_BODY.format(causal="True", ret="lse if return_lse else torch.empty(0)")
)
AITER_NEW = (
    AITER_HEAD + "    page_size=1, nhead_kv=1, sm_scale=None, logit_cap=0.0, num_kv_splits=None,\n"
    "    num_kv_splits_indptr=None, work_meta_data=None, intra_batch_mode=False,\n"
    "    return_logits=False, return_lse=False, g_kv_indptr=None, cp_world_size=1, cp_rank=0,\n"
    "    causal=True,\n):\n    assert page_size == 1 and nhead_kv == 1"
    + AITER_BODY.format(causal="causal", ret="lse if return_lse else torch.empty(0)")
)

FLAG_GEMS_SPARSE = """
import torch
from tests.simulated_ports import attention, fp8

def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
    softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None,
    extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
    out=None,
):
    batch, s_q, h, d = q.shape
    assert s_q == 1, "Only decode (seq_len_q=1) is supported"
    assert d == 512 == head_dim_v and is_fp8_kvcache and indices is not None
    assert topk_length is not None, "topk_length must be provided"
    assert k_cache.dtype == torch.uint8 and q.dtype == torch.bfloat16
    if softmax_scale is None:
        softmax_scale = head_dim_v**-0.5
    out = torch.empty_like(q)
    lse = torch.empty(batch, h)
    for b in range(batch):
        keys = [fp8.model1_tokens(k_cache, indices[b, 0, : int(topk_length[b])])]
        if extra_k_cache is not None:
            entries = extra_indices_in_kvcache[b, 0, : int(extra_topk_length[b])]
            keys.append(fp8.model1_tokens(extra_k_cache, entries))
        row = attention.softmax_row(q[b, 0], torch.cat(keys), softmax_scale, 512)
        o = row[0]
        if attn_sink is not None and not torch.all(attn_sink == float("-inf")):
            o = o * torch.sigmoid(row[1] - attn_sink.double()).unsqueeze(-1)
        out[b, 0], lse[b] = o.to(torch.bfloat16), row[1].float()
    return out, lse.unsqueeze(-1)
"""
FLAG_GEMS_DENSE = """
import torch
from tests.simulated_ports import attention

class FlashMLASchedMeta:
    lens = None

def get_mla_metadata(*args, **kwargs):
    return FlashMLASchedMeta(), None

def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
    softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None,
    extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
    out=None,
):
    if causal and q.shape[1] > 1:
        raise NotImplementedError("causal with s_q > 1")
    assert q.dtype == torch.bfloat16 and k_cache.shape[1:3] == (64, 1)
    assert q.is_contiguous() and k_cache.is_contiguous() and q.shape[-1] == 576
    assert q.shape[1] == 1, "one query a row"
    meta = tile_scheduler_metadata
    if meta.lens is None:
        meta.lens = cache_seqlens.clone()
    return attention.dense(q, k_cache, block_table, meta.lens, 512, softmax_scale, False)
"""
