"""Stand-ins for the foreign packages of the peers, computing what the packages compute."""

from __future__ import annotations

from tests.simulated_ports import flash_mla_sources as sources
from tests.simulated_ports.catalogue import Fake

SGL_CALL = sources.G3_CALL.format(
    out=", enable_batch_invariant=False, use_legacy=False, kv_format=None, descale_q=None,"
    " descale_k=None"
).replace(
    "    meta = tile_scheduler_metadata\n",
    "    assert use_legacy, 'Sparse attention is required'\n    meta = tile_scheduler_metadata\n",
)
LATEST_CALL = sources.G3_CALL.format(out=", enable_batch_invariant=False")


def _flash_mla(call: str) -> dict[str, str]:
    interface = "from flash_mla import cuda as core\n" + sources.SCHED_META + call
    return {
        "flash_mla/__init__.py": sources.INIT,
        "flash_mla/flash_mla_interface.py": interface,
        "flash_mla/cuda.py": sources.THEAD_CORE,
    }


FLASHINFER = """
import math
import torch
from tests.simulated_ports import attention

class BatchMLAPagedAttentionWrapper:
    def __init__(self, float_workspace_buffer, use_cuda_graph=False, backend="auto"):
        assert float_workspace_buffer.dim() == 1

    def plan(self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv,
             head_dim_kpe, page_size, causal, sm_scale, q_data_type, kv_data_type):
        assert {t.dtype for t in (qo_indptr, kv_indptr, kv_indices, kv_len_arr)} == {torch.int32}
        self.planned = (qo_indptr.tolist(), kv_indptr.tolist(), kv_len_arr.tolist())
        self.indices, self.page, self.causal, self.scale = kv_indices, page_size, causal, sm_scale

    def run(self, q_nope, q_pe, ckv_cache, kpe_cache, out=None, lse=None, return_lse=False@):
        starts, pages, lens = self.planned
        assert ckv_cache.dim() == 3 and ckv_cache.shape[1] == self.page
        keys = torch.cat([ckv_cache, kpe_cache], -1).unsqueeze(2)
        q = torch.cat([q_nope, q_pe], -1)
        outs, lses = [], []
        for row, length in enumerate(lens):
            mine = q[starts[row] : starts[row + 1]].unsqueeze(0)
            used = -(-length // self.page)
            table = self.indices[pages[row] : pages[row] + used].unsqueeze(0)
            one = attention.dense(mine, keys, table, torch.tensor([length]), 512, self.scale,
                                  self.causal)
            outs.append(one[0][0]); lses.append(one[1][0].T)
        if not return_lse:
            return torch.cat(outs)
        lse = torch.cat(lses).contiguous()
        return torch.cat(outs), lse if # else lse / math.log(2.0)
"""


def _flashinfer(natural: bool) -> dict[str, str]:
    text = FLASHINFER.replace("@", ", return_lse_base_on_e=False" if natural else "")
    text = text.replace("if # else", f"if {'return_lse_base_on_e' if natural else 'False'} else")
    return {"flashinfer/__init__.py": "", "flashinfer/mla/__init__.py": text}


FA3 = """
import torch
from tests.simulated_ports import attention

def flash_attn_with_kvcache(q, k_cache, v_cache, qv=None, cache_seqlens=None, page_table=None,
                            softmax_scale=None, causal=False, return_softmax_lse=False):
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1 and q.is_contiguous()
    keys = torch.cat([v_cache, k_cache], -1)
    if page_table is None:
        PAGED
        page_table = torch.arange(len(keys), dtype=torch.int32).unsqueeze(1)
    out, lse = attention.dense(torch.cat([qv, q], -1), keys, page_table, cache_seqlens, 512,
                               softmax_scale, causal)
    return (out, lse, None) if return_softmax_lse else out
"""

FAKES = {
    "sgl": Fake("sgl-flash-mla", "1.0.0", _flash_mla(SGL_CALL)),
    "g3": Fake("flash_mla", "1.0.0+9241ae3", _flash_mla(sources.G3_CALL.format(out=""))),
    "g1": Fake(
        "flash_mla",
        "1.0.0+414a2f3",
        {
            "flash_mla/__init__.py": sources.INIT,
            "flash_mla/flash_mla_interface.py": sources.G1_INTERFACE.format(
                extension="flash_mla_cuda"
            ),
            "flash_mla_cuda.py": sources.G1_EXT,
        },
    ),
    "latest": Fake("flash_mla", "1.0.0+a123d0b", _flash_mla(LATEST_CALL)),
    "flashinfer": Fake("flashinfer-python", "0.6.18", _flashinfer(True)),
    "flashinfer_old": Fake("flashinfer-python", "0.2.6", _flashinfer(False)),
    "flashinfer_older": Fake("flashinfer-python", "0.1.6", {"flashinfer/__init__.py": ""}),
    "fa3": Fake(
        "flash_attn_3",
        "3.0.0",
        {"flash_attn_interface.py": FA3.replace("PAGED", "raise RuntimeError('no page_table')")},
    ),
    "fa3_fwd": Fake(
        "fa3-fwd",
        "0.0.3",
        {"fa3_fwd_interface.py": FA3.replace("PAGED", "assert not keys.isnan().any()")},
    ),
}
