"""Files that outlive a process: written whole or not at all, read without trusting the place.

Compiled kernels, verdicts and tuning tables lie in a folder that other programs, and other users,
may have put things into. What is read here is a regular file of bounded size that belongs to this
user, in a folder that nobody else can write to; anything else is an OSError that says what it is,
never a hang, an exhausted memory or a stranger's code.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
_TEMP_PREFIX = ".writing-"
_TEMP_MAX_AGE_S = 3600.0
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before, power loss included.

    Missing folders are made for this user only. Leaves no temporary file behind, and removes those
    of writers that were killed.

    Raises:
        OSError: the folder cannot be written.
    """
    make_folder(path.parent)
    _sweep(path.parent)
    fd, temp = tempfile.mkstemp(prefix=_TEMP_PREFIX, dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
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


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its missing parents, for this user only whatever the umask is."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for place in reversed(missing):
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind, long after any writer could be alive."""
    horizon = time.time() - _TEMP_MAX_AGE_S
    for leftover in folder.glob(_TEMP_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if leftover.lstat().st_mtime < horizon:
                leftover.unlink()


def unsafe(folder: Path) -> str:
    """Why nothing may be loaded from ``folder``; '' when it may, and when it does not exist.

    Looked at: its owner, who may write to it, and, of a link, the link's owner too.
    """
    if not hasattr(os, "geteuid"):
        return ""  # other systems guard a user's folders by other means
    me = os.geteuid()
    try:
        found = folder.lstat()
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (me, 0):
                return f"{folder} is a link that user {found.st_uid} made"
            found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a folder"
    if found.st_uid != me:
        return f"{folder} belongs to user {found.st_uid}, this process runs as {me}"
    if found.st_mode & 0o022:
        return f"{folder} can be written by others; once its content is known, chmod go-w it"
    return ""


def read_regular(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of this user's.

    Raises:
        OSError: it is absent, something else (a pipe, a link, a folder), longer than ``most``
            bytes, or belongs to another user.
    """
    fd = os.open(path, _OPEN_FLAGS)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")
        if found.st_size > most:
            raise OSError(f"{path} has {found.st_size} bytes, at most {most} are read")
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            raise OSError(f"{path} belongs to user {found.st_uid}")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise OSError(f"{path} grows while it is read")
    return data


def parse_json(text: bytes | str) -> Any:
    """``json.loads`` that answers ValueError to whatever is no JSON, however deeply nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def prune(folder: Path, pattern: str, keep: int) -> None:
    """Remove the files of ``folder`` that were used longest ago, down to ``keep``."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                found.append((path.lstat().st_mtime, path))
    for _, path in sorted(found)[: max(0, len(found) - keep)]:
        with contextlib.suppress(OSError):  # a folder under an entry's name stays
            path.unlink()
