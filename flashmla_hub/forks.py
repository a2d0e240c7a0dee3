"""Locks that survive a fork. A lock that another thread holds when a process forks is held for
ever in the child, where that thread does not exist: here the child gets it free.

``wait_s``: what the lock protects must not be cut in half (modules that are being imported), so a
fork waits that long for the thread that holds it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_all: weakref.WeakSet[Lock] = weakref.WeakSet()
_held: list[Lock] = []


class Lock:
    """``threading.RLock`` (or ``Lock``) for ``with``, free in a forked child."""

    def __init__(self, reentrant: bool = False, wait_s: float = 0.0) -> None:
        self._make: Any = threading.RLock if reentrant else threading.Lock
        self._lock: Any = self._make()
        self.wait_s = wait_s
        _all.add(self)

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def acquire(self, timeout: float) -> bool:
        return bool(self._lock.acquire(timeout=timeout))

    def release(self) -> None:
        self._lock.release()

    def renew(self) -> None:
        self._lock = self._make()


def _before() -> None:
    from flashmla_hub import guard

    if guard.busy():  # a plugin forks while the thread that holds the lock waits for it
        return
    for lock in list(_all):
        if lock.wait_s and lock.acquire(lock.wait_s):
            _held.append(lock)


def _in_parent() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    _held.clear()
    for lock in list(_all):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
