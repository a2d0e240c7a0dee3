"""For the tests of ``flashmla-hub bench``: what a picture is."""

from __future__ import annotations

import struct
from pathlib import Path


def png_size(path: Path) -> tuple[int, ...]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])
