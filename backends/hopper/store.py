"""Compiled cubins on disk: entries that are whole or absent, whatever happens to the writer.

An entry is written to a temporary file, synced and renamed into place, and carries its key and
the digest of its payload: a reader sees all of it or nothing, and notices damage. Where nothing
can be written (a read-only or missing home) entries are kept in memory, with one warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"flashmla-hub cubin 1\n"
_TEMP_PREFIX = ".writing-"
_TEMP_MAX_AGE_S = 3600.0


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


class CubinStore:
    """Entries by key in one folder; safe for any number of threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: dict[str, bytes] = {}

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.cubin"

    def load(self, key: str) -> Entry | None:
        try:
            data = self.path(key).read_bytes()
        except OSError:
            data = self._memory.get(key, b"")
        return decode(key, data) if data else None

    def save(self, key: str, entry: Entry) -> None:
        data = encode(key, entry)
        try:
            write_atomically(self.path(key), data)
        except OSError as error:
            if not self._memory:
                warnings.warn(
                    f"cannot write compiled kernels to {self.folder} ({error}); they are kept in "
                    "memory and compiled again by every process: set FLASHMLA_HUB_CACHE_DIR to a "
                    "writable folder",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._memory[key] = data

    def discard(self, key: str) -> None:
        self._memory.pop(key, None)
        with contextlib.suppress(OSError):
            self.path(key).unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before, power loss
    included. Raises OSError where the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    fd, temp = tempfile.mkstemp(prefix=_TEMP_PREFIX, dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind, long after any writer could be alive."""
    horizon = time.time() - _TEMP_MAX_AGE_S
    for leftover in folder.glob(_TEMP_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime < horizon:
                leftover.unlink()
