"""DenseDecodeParams, read from the C header: what the host packs is checked field by field."""

from __future__ import annotations

import ctypes
import re

from flashmla_hub.backends.hopper.units import CSRC

HEADER = CSRC / "sm90/decode/dense/params.h"

_TYPES = {"int": ctypes.c_int, "float": ctypes.c_float, "long long": ctypes.c_longlong}


def fields() -> list[tuple[str, type]]:
    text = re.sub(r"//[^\n]*", "", HEADER.read_text())
    body = text[text.index("struct DenseDecodeParams {") :].partition("{")[2].partition("}")[0]
    found: list[tuple[str, type]] = []
    for declaration in body.split(";"):
        words = " ".join(declaration.split())
        if not words:
            continue
        match = re.fullmatch(r"(?:const )?(void|int|float|long long)( ?\*)? ?(.+)", words)
        assert match, words
        kind = ctypes.c_uint64 if match[2] else _TYPES[match[1]]
        found += [(name.strip(), kind) for name in match[3].split(",")]
    return found


class DenseDecodeParams(ctypes.Structure):
    _fields_ = fields()
