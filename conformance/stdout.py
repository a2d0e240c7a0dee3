"""Sees what a call writes to the process's stdout, from Python or from native code."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from types import TracebackType
from typing import IO


class StdoutWatch:
    """While entered, file descriptor 1 and ``sys.stdout`` lead into a file; ``text`` has it.

    ``sys.stdout`` may lead elsewhere than descriptor 1 (a test's capture), so both are turned.
    """

    def __init__(self) -> None:
        self.text = ""
        self._saved = -1
        self._file: IO[bytes] | None = None
        self._python: IO[str] | None = None

    def __enter__(self) -> StdoutWatch:
        _flush()
        self._file = tempfile.TemporaryFile()
        self._saved = os.dup(1)
        os.dup2(self._file.fileno(), 1)
        self._python = sys.stdout
        sys.stdout = os.fdopen(os.dup(self._file.fileno()), "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._file is not None and self._python is not None
        _flush()
        sys.stdout.close()
        sys.stdout = self._python
        os.dup2(self._saved, 1)
        os.close(self._saved)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()


def _flush() -> None:
    sys.stdout.flush()
    try:
        ctypes.CDLL(None).fflush(None)  # printf of a port's native code is buffered apart
    except (OSError, AttributeError, TypeError):
        return  # a platform whose C library cannot be reached this way
