"""The first calls of a user, each against the oracle; prints the versions it ran with.

A script: test_packaging runs it in environments that hold the wheel and no pytest.
"""

from __future__ import annotations

import numpy as np
import oracle
import torch
from core_helpers import dense, sparse

import flashmla_hub as hub

facts = {"d_v": 512, "softmax_scale": 576**-0.5}


def tensors(args: dict) -> dict:
    return {name: x for name, x in args.items() if isinstance(x, torch.Tensor)}


def call(args: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return hub.flash_mla_with_kvcache(**args)


for dtype in (torch.float32, torch.bfloat16):
    args = dense(s_q=2, dtype=dtype)
    wanted = oracle.dense_decode(**tensors(args), **facts)
    oracle.check(*call(args), wanted, f"dense {dtype}")
    args = sparse(s_q=2, dtype=dtype)
    wanted = oracle.sparse_decode(**tensors(args), **facts)
    oracle.check(*call(args), wanted, f"sparse {dtype}")

args = dense(s_q=2, seed=1)
compiled = torch.compile(lambda q: call({**args, "q": q * 2}), fullgraph=True)
wanted = oracle.dense_decode(**tensors({**args, "q": args["q"] * 2}), **facts)
oracle.check(*compiled(args["q"]), wanted, "dense, compiled")

print(f"right with torch {torch.__version__}, numpy {np.__version__}")
