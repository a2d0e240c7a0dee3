"""Triton's interpreter for a whole test process, with its bfloat16 repaired.

Up to Triton 3.9 the interpreter keeps bfloat16 as the uint16 of its bits and computes on those:
products, sums and dots are garbage, and a conversion from float32 truncates. Here such operations
go through float32, and conversions round to nearest even, as devices do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("run through tests/triton/test_interpreter.py, which sets TRITON_INTERPRET")

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `import oracle`

_ARITHMETIC = ("create_f", "create_exp", "create_log", "create_sqrt", "create_max", "create_min",
               "create_clamp", "create_precise")  # fmt: skip
_CONVERSIONS = ("create_fp_", "create_fence")


def _is_bf16(value: Any) -> bool:
    handle = isinstance(value, interpreter.TensorHandle)
    return handle and value.dtype.scalar == tl.bfloat16


def _widened(method: Any) -> Any:
    def call(self: Any, *args: Any) -> Any:
        if not any(map(_is_bf16, args)):
            return method(self, *args)
        result = method(self, *(self.cast_impl(a, tl.float32) if _is_bf16(a) else a for a in args))
        narrow = isinstance(result, interpreter.TensorHandle)
        if narrow and result.dtype.scalar == tl.float32:
            return self.cast_impl(result, tl.bfloat16)
        return result

    return call


def _repair() -> None:
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_convert = builder.create_dot, interpreter._convert_float

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if _is_bf16(x) else x for x in (a, b))
        return plain_dot(self, a, b, *rest)

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            exact = torch.from_numpy(np.array(values, dtype=np.float32, copy=True))
            return exact.to(torch.bfloat16).view(torch.uint16).numpy()
        return plain_convert(values, source, target, rounding)

    def constant(self: Any, value: float) -> Any:
        bits = torch.tensor(float(value)).bfloat16().view(torch.uint16).item()
        return interpreter.TensorHandle(np.array([bits], dtype=np.uint16), tl.bfloat16)

    for name in dir(builder):
        if name.startswith(_ARITHMETIC) and not name.startswith(_CONVERSIONS):
            setattr(builder, name, _widened(getattr(builder, name)))
    builder.create_dot, builder.get_bf16 = dot, constant
    interpreter._convert_float = convert


_repair()
