"""What is compiled: a unit is one CUDA source with its defines, named by a digest of all its text.

This module, ``store``, ``compilers`` and ``aot`` import neither torch nor the hub, for they also
run while a wheel is built (``FLASHMLA_HUB_AOT=1``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Unit:
    """One instantiation: ``source`` (path inside csrc/) compiled for ``arch`` with ``defines``.

    ``kernels`` are the ``extern "C"`` entry points the cubin must hold.
    """

    name: str
    source: str
    defines: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    arch: str = "sm_90a"

    def digest(self, root: Path = CSRC) -> str:
        """Hex digest of the source, every header it includes, the defines and the arch."""
        return _digest(self, root)


@lru_cache(maxsize=256)
def _digest(unit: Unit, root: Path) -> str:
    h = hashlib.sha256()
    for word in (unit.source, unit.arch, *unit.defines):
        h.update(word.encode() + b"\0")
    for path in source_closure(unit.source, root):
        h.update(path.encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return h.hexdigest()


def source_closure(source: str, root: Path = CSRC) -> tuple[str, ...]:
    """``source`` and every quoted include reachable from it, as sorted paths inside ``root``.

    An include is looked up beside the including file first, then from ``root``, as the compilers
    do with ``-I root``; what is found in neither place (a toolkit header) belongs to the compiler
    version. Conditional includes are followed on both sides: too many files in a digest only
    cost a rebuild.
    """
    base = root.resolve()
    seen: set[str] = set()
    todo = [source]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        path = base / current
        for name in _INCLUDE.findall(path.read_bytes()):
            for folder in (path.parent, base):
                found = (folder / name.decode()).resolve()
                if found.is_file() and found.is_relative_to(base):
                    todo.append(found.relative_to(base).as_posix())
                    break
    return tuple(sorted(seen))
