"""From a unit to loaded functions: disk cache, then a cubin built ahead of time, then NVRTC, then
nvcc. A cubin that the driver refuses falls to the next source, once, and leaves a note."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashmla_hub.forks import Lock

from .compilers import CompileError, Compiler, find_compilers
from .driver import CubinRefused
from .entry import Entry, decode
from .store import CubinStore
from .units import CSRC, Unit

AOT_FOLDER = Path(__file__).resolve().parent / "cubins"


@dataclass(frozen=True)
class Origin:
    """Where a loaded cubin came from: ``disk``, ``aot``, ``nvrtc`` or ``nvcc``; how long the
    compiler and the driver took (seconds); and what was tried before in vain."""

    source: str
    compiler: str
    compile_s: float
    load_s: float
    notes: tuple[str, ...] = ()


class BuildError(RuntimeError):
    """No source of a cubin worked; the message holds every attempt."""


@dataclass
class Builder:
    """Finds or makes the cubin of a unit. Thread-safe: a unit is built once, units in parallel."""

    store: CubinStore
    aot_folder: Path = AOT_FOLDER
    root: Path = CSRC
    find: Callable[[], tuple[Sequence[Compiler], Sequence[str]]] = find_compilers
    _found: tuple[Sequence[Compiler], Sequence[str]] | None = None
    _lock: Lock = field(default_factory=Lock)
    _building: dict[Unit, Lock] = field(default_factory=dict)

    def load(self, unit: Unit, load: Callable[[bytes], Any]) -> tuple[Any, Origin]:
        """``load(cubin)`` for the first cubin it takes, and where that came from.

        Raises:
            BuildError: every source failed; the message lists each with its reason.
        """
        notes: list[str] = []
        with self._lock:
            building = self._building.setdefault(unit, Lock())
        with building, closing(self._candidates(unit, notes)) as candidates:
            for source, entry, compile_s in candidates:
                started = time.perf_counter()
                try:
                    loaded = load(entry.cubin)
                except CubinRefused as error:
                    notes.append(f"{source} cubin of {entry.compiler}: {error}")
                    if source == "disk":
                        self.store.discard(cache_key(entry.digest, entry.compiler))
                    continue
                load_s = time.perf_counter() - started
                if compile_s:
                    self.store.save(cache_key(entry.digest, entry.compiler), entry)
                return loaded, Origin(source, entry.compiler, compile_s, load_s, tuple(notes))
        raise BuildError(f"no cubin of {unit.name} could be built and loaded: " + "; ".join(notes))

    def _candidates(
        self, unit: Unit, notes: list[str]
    ) -> Generator[tuple[str, Entry, float], None, None]:
        """The clean compilers' entries on disk, the cubin built ahead of time, the clean compilers;
        then the same of those that spill. The lock of a compile is held until the next is asked
        for: by then the entry is on disk, or this one was no good."""
        digest = unit.digest(self.root)
        compilers, reasons = self.compilers()
        clean = [c for c in compilers if not c.spills]
        if clean:
            yield from self._of(clean, unit, digest, notes, ahead=True)
        elif entry := read_aot(self.aot_folder, digest):
            yield "aot", entry, 0.0
        for compiler in compilers:
            if compiler.spills:
                notes.append(f"{compiler.name} {compiler.spills}")
                yield from self._of([compiler], unit, digest, notes)
        notes.extend(reasons)

    def _of(
        self,
        compilers: Sequence[Compiler],
        unit: Unit,
        digest: str,
        notes: list[str],
        ahead: bool = False,
    ) -> Iterator[tuple[str, Entry, float]]:
        for compiler in compilers:
            if entry := self.store.load(cache_key(digest, compiler.fingerprint)):
                yield "disk", entry, 0.0
        if ahead and (entry := read_aot(self.aot_folder, digest)):
            yield "aot", entry, 0.0
        for compiler in compilers:
            key = cache_key(digest, compiler.fingerprint)
            refused = self.store.load(key)  # by the driver, just now
            with self.store.building(key):
                entry = self.store.load(key)
                if entry is not None and entry != refused:  # another process was first
                    yield "disk", entry, 0.0
                    continue
                started = time.perf_counter()
                try:
                    cubin = compiler.compile(unit, self.root).cubin
                except CompileError as error:
                    notes.append(str(error))
                    continue
                took = time.perf_counter() - started
                yield compiler.name, Entry(unit.name, digest, compiler.fingerprint, cubin), took

    def compilers(self) -> tuple[Sequence[Compiler], Sequence[str]]:
        with self._lock:
            if self._found is None:
                self._found = self.find()
            return self._found


def cache_key(digest: str, fingerprint: str) -> str:
    """Name of a cache entry: the unit's text and everything about the compiler."""
    return hashlib.sha256(f"{digest} {fingerprint}".encode()).hexdigest()


def read_aot(folder: Path, digest: str) -> Entry | None:
    """The cubin built ahead of time from exactly this text, whole, or None."""
    try:
        return decode(digest, (folder / f"{digest}.cubin").read_bytes())
    except OSError:
        return None
