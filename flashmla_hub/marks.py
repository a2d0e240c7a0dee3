"""Marks on disk around the calls that could end the process: who was at work when it died.

No guard inside a process stops ``os._exit``, a crash, or native code that never comes back and is
killed from outside. So while a third-party plugin's code runs there is a file with a lock on it.
Whoever finds a file whose lock is free knows that its writer is dead, and on which question. Locks
belong to the kernel: they end with their process, over containers and machines too, where process
ids mean nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmla_hub import files

try:
    import fcntl
except ImportError:  # no such locks here: the limits in time and the child's verdict remain
    fcntl = None  # type: ignore[assignment]

KEPT = 512
_numbers = itertools.count()


@dataclass(frozen=True)
class Death:
    """What is known of processes that died at one thing: how many, the last one's question."""

    question: str
    deaths: int
    when: str
    path: Path

    def __str__(self) -> str:
        times = "a process" if self.deaths == 1 else f"{self.deaths} processes"
        return f"{times} ended during {self.question} (last seen {self.when})"


@contextmanager
def mark(folder: Path | None, stem: str, question: str) -> Iterator[None]:
    """Leave a mark for the duration. Does nothing where nothing can be written or locked."""
    fd, path = _make(folder, stem, question) if folder is not None and fcntl else (-1, Path())
    try:
        yield
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


def _make(folder: Path, stem: str, question: str) -> tuple[int, Path]:
    label = f"{stem}.{os.getpid()}-{next(_numbers)}-{time.time_ns():x}"
    path, temporary = folder / f"{label}.mark", folder / f"{label}.new"
    try:
        files.make_folder(folder)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1, path
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, json.dumps({"question": question}).encode())
        os.rename(temporary, path)  # only now can it be found, locked already
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        os.close(fd)
        return -1, path
    return fd, path


def death(folder: Path | None, stem: str) -> Death | None:
    """The deaths at ``stem``, marks of the newly dead included."""
    if folder is None or fcntl is None:
        return None
    for path in folder.glob(f"{stem}.*.mark"):
        _bury(folder, stem, path)
    path = _record(folder, stem)
    try:
        known = files.parse_json(files.read_regular(path, 10_000))
        return Death(str(known["question"]), int(known["deaths"]), str(known["when"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(folder: Path | None, stem: str, question: str, deaths: int = 1) -> None:
    """Note that ``question`` must not be asked again."""
    if folder is None:
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"question": question, "deaths": deaths, "when": when})
    with contextlib.suppress(OSError):
        files.write_atomically(_record(folder, stem), text)
        files.prune(folder, "*.dead", KEPT)


def forget(folder: Path | None, stem: str) -> None:
    """The thing went well: what is recorded of ``stem`` is no more."""
    if folder is not None:
        with contextlib.suppress(OSError):
            _record(folder, stem).unlink()


def _record(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.dead"


def _bury(folder: Path, stem: str, path: Path) -> None:
    """Turn a dead process's mark into a record; leave a living one's alone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(fd).st_ino:
            return
        found: Any = files.parse_json(os.read(fd, 10_000))
        question = str(found["question"])
        before = _known_deaths(folder, stem)
        record(folder, stem, question, before + 1)
        path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return  # it is alive, or has just finished
    finally:
        os.close(fd)


def _known_deaths(folder: Path, stem: str) -> int:
    try:
        return int(files.parse_json(files.read_regular(_record(folder, stem), 10_000))["deaths"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
