"""Compiled cubins on disk: entries that are whole or absent, whatever happens to the writer.

Where nothing can be written (a read-only or missing home), or where others could have written,
entries are kept in memory, with one warning. The number of entries is bounded in both places.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashmla_hub import files, log

from .entry import Entry, decode, encode

MAX_FILES = 512
MAX_IN_MEMORY = 64
LOCK_S = 900.0  # so long is another process given to compile what this one needs too


class CubinStore:
    """Entries by key in one folder (None: in memory); safe for any number of threads and processes
    at once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._told = False

    def path(self, key: str) -> Path | None:
        return self.folder / f"{key}.cubin" if self.folder is not None else None

    def load(self, key: str) -> Entry | None:
        path = self._usable(key)
        data = self._memory.get(key, b"")
        if path is not None:
            with contextlib.suppress(OSError):
                data = files.read_regular(path)
                os.utime(path)  # those used longest ago go first
        return decode(key, data) if data else None

    def save(self, key: str, entry: Entry) -> None:
        data = encode(key, entry)
        path = self._usable(key)
        if path is not None:
            try:
                files.write_atomically(path, data)
                files.prune(path.parent, "*.cubin", MAX_FILES)
                return
            except OSError as error:
                self._tell(f"cannot write compiled kernels to {self.folder} ({error})")
        self._memory[key] = data
        while len(self._memory) > MAX_IN_MEMORY:
            self._memory.popitem(last=False)

    def discard(self, key: str) -> None:
        self._memory.pop(key, None)
        if path := self._usable(key):
            with contextlib.suppress(OSError):
                path.unlink()

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Held by the one process that compiles ``key``: eight ranks that start at once need one
        compiler, not eight. A process that dies lets go; one that takes too long is not waited for.
        """
        path = self._usable(key)
        if path is None:
            yield
            return
        from filelock import FileLock, Timeout

        lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_S)
        with contextlib.ExitStack() as held:
            try:
                files.make_folder(path.parent)
                held.enter_context(lock)
            except (OSError, Timeout, NotImplementedError) as error:
                log.info("compiling without a lock: %s", error)
            yield
        with contextlib.suppress(OSError):
            files.prune(path.parent, "*.lock", MAX_FILES)

    def _usable(self, key: str) -> Path | None:
        """The file of ``key``; None, told once, where nothing may be loaded from its folder."""
        if self.folder is None:
            return None
        if why := files.unsafe(self.folder.parent) or files.unsafe(self.folder):
            self._tell(f"compiled kernels are not kept: {why}")
            return None
        return self.folder / f"{key}.cubin"

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "%s; they are kept in memory and compiled again by every process: set "
                "FLASHMLA_HUB_CACHE_DIR to a folder of your own", what,
            )  # fmt: skip
