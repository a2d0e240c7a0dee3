"""Reading tokens out of a KV cache by physical slot, for every layout the honest backend takes.

Written apart from the hub's own converters, from the contract's text (C3.1), so that neither can
hide the other's mistake.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOPE, ROPE = 512, 64  # v32: values in e4m3, then the rope part in bf16
M1_NOPE, M1_ROPE, M1_GROUP = 448, 64, 64  # model1
M1_ROW, M1_SCALES = M1_NOPE + 2 * M1_ROPE, 8  # bytes of a token's values and of its scales


def read_tokens(cache: Tensor, kv_format: str, page: Tensor, offset: Tensor) -> Tensor:
    """K of the tokens at (page, offset), int64 tensors of one shape, as float32.

    ``cache`` is (num_blocks, page_block_size, h_kv, d_qk or bytes); the result has shape
    ``page.shape + (h_kv, d_qk)``. Raises ValueError for an unknown layout.
    """
    if kv_format == "dense":
        return cache[page, offset]
    if kv_format == "v32":
        return _v32(cache[page, offset].contiguous())
    if kv_format == "model1":
        return _model1(cache, page, offset)
    raise ValueError(f"kv_format: got {kv_format!r}, expected dense, v32 or model1")


def _v32(token: Tensor) -> Tensor:
    raw = token.view(torch.uint8)
    values = raw[..., :NOPE].contiguous().view(torch.float8_e4m3fn).float()
    scales = raw[..., NOPE : NOPE + 16].contiguous().view(torch.float32)
    rope = raw[..., NOPE + 16 :].contiguous().view(torch.bfloat16).float()
    nope = values * scales.repeat_interleave(128, dim=-1)
    return torch.cat([nope.bfloat16().float(), rope], dim=-1)


def _model1(cache: Tensor, page: Tensor, offset: Tensor) -> Tensor:
    raw = cache.view(torch.uint8)
    blocks, size = raw.shape[0], raw.shape[1]
    flat = raw.as_strided((blocks, size * (M1_ROW + M1_SCALES)), (raw.stride(0), 1))
    row = (offset * M1_ROW)[..., None] + torch.arange(M1_ROW)
    token = flat[page[..., None], row]
    at = (size * M1_ROW + offset * M1_SCALES)[..., None] + torch.arange(M1_NOPE // M1_GROUP)
    exponent = flat[page[..., None], at].to(torch.int32) - 127
    scales = torch.ldexp(torch.ones(exponent.shape), exponent)
    scales = scales.repeat_interleave(M1_GROUP, dim=-1)
    values = token[..., :M1_NOPE].contiguous().view(torch.float8_e4m3fn).float()
    rope = token[..., M1_NOPE:].contiguous().view(torch.bfloat16).float()
    key = torch.cat([(values * scales).bfloat16().float(), rope], dim=-1)
    return key[..., None, :]
