"""MlaParams, read from the C header: what the host packs is checked field by field."""

from __future__ import annotations

import ctypes
import re

from flashmla_hub.backends.hopper.units import CSRC

HEADERS = (CSRC / "sm90/core/params.h", CSRC / "sm90/quantised/params.h")

_TYPES = {"int": ctypes.c_int, "float": ctypes.c_float, "long long": ctypes.c_longlong}


def fields(struct: str) -> list[tuple[str, type]]:
    """Name and type of each member, an array's as name_0, name_1; nested structures whole."""
    headers = "\n".join(header.read_text() for header in HEADERS)
    text = re.sub(r"//[^\n]*", "", headers)
    body = text[text.index(f"struct {struct} {{") :].partition("{")[2].partition("}")[0]
    found: list[tuple[str, type]] = []
    for declaration in body.split(";"):
        words = " ".join(declaration.split())
        if not words:
            continue
        match = re.fullmatch(r"(?:const )?(void|int|float|long long)( ?\*)? ?(.+)", words)
        if match is None:
            assert words == "ListParams lists", words
            found.append(("lists", ListParams))
            continue
        kind = ctypes.c_uint64 if match[2] else _TYPES[match[1]]
        for name in match[3].split(","):
            plain, _, count = name.strip().rstrip("]").partition("[")
            names = [f"{plain}_{i}" for i in range(int(count))] if count else [plain]
            found += [(one, kind) for one in names]
    return found


class ListParams(ctypes.Structure):
    _fields_ = fields("ListParams")


class MlaParams(ctypes.Structure):
    _fields_ = fields("MlaParams")


class QuantisedParams(ctypes.Structure):
    _fields_ = fields("QuantisedParams")
