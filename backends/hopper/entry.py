"""The form of a compiled kernel in a file: it carries its key and the digest of its payload, so
that a reader notices damage. Imports neither torch nor the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

MAGIC = b"flashmla-hub cubin 1\n"
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Entry:
    """A cubin and where it came from: the unit's name and digest, and the compiler's version."""

    unit: str
    digest: str
    compiler: str
    cubin: bytes


def encode(key: str, entry: Entry) -> bytes:
    header = {
        "key": key,
        "unit": entry.unit,
        "digest": entry.digest,
        "compiler": entry.compiler,
        "size": len(entry.cubin),
        "sha256": hashlib.sha256(entry.cubin).hexdigest(),
    }
    return MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + entry.cubin


def decode(key: str, data: bytes) -> Entry | None:
    """The entry in ``data``, None where it is damaged or belongs to another key."""
    if not data.startswith(MAGIC):
        return None
    line, newline, cubin = data[len(MAGIC) :].partition(b"\n")
    if len(line) > _HEADER_BYTES:  # not of our making, and perhaps nested deeper than Python reads
        return None
    try:
        header = json.loads(line)
        whole = (
            newline == b"\n"
            and header["key"] == key
            and header["size"] == len(cubin)
            and header["sha256"] == hashlib.sha256(cubin).hexdigest()
        )
        return Entry(header["unit"], header["digest"], header["compiler"], cubin) if whole else None
    except (ValueError, KeyError, TypeError):
        return None
