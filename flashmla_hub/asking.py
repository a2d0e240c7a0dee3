"""What the hub asks a backend, each question in its guard.

A question that fails is answered: this request is refused, with the reason. A backend is taken out
of service only where it breaks the contract for good (a declaration of nonsense) or does not come
back. The built-in backends are asked directly; others in a thread of their own under the plugins'
time limit, with a mark on disk at the first question about each device (marks.py).
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from flashmla_hub import config, declared, guard, marks, verdicts
from flashmla_hub.backend import Backend, BackendInfo, Band, BoundKernel, PositionalKernel
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError, clipped
from flashmla_hub.guard import Asking, Fault
from flashmla_hub.hookspecs import PROTOCOL_CURRENT
from flashmla_hub.request import ChoiceKey, KernelKey

T = TypeVar("T")

MAX_DEVICES = 64  # whose declarations are kept for each backend
MAX_WORDS = 32  # reasons or notes that a backend may give at once


class Broken(Fault):
    """A fault that lasts: the backend is quarantined."""


@dataclass(eq=False)
class Entry:
    """A registered backend as the hub knows it. ``fingerprint`` is '' where nothing is marked."""

    name: str
    backend: Backend
    dist: str
    builtin: bool = False
    fingerprint: str = ""
    protocol: int = PROTOCOL_CURRENT
    version: str = ""
    info: BackendInfo = field(default_factory=lambda: BackendInfo(summary=""))
    runs_simulated: bool = False
    _declared: dict[DeviceInfo, tuple[Capabilities, ...]] = field(default_factory=dict)
    _asked: set[DeviceInfo] = field(default_factory=set)

    def ask(self, question: str, device: DeviceInfo, code: Callable[[Asking], T]) -> T:
        """``code`` guarded as this backend needs it.

        Raises:
            Fault: what it did wrong (Broken: for good).
        """
        if self.builtin:
            return guard.here(question, code)
        limit = config.current().plugin_timeout
        if device in self._asked or not self.fingerprint:
            return self._in_time(question, limit, code)
        place = verdicts.folder()
        with marks.mark(place, self.fingerprint, f"{question} of {self.name}"):
            answer = self._in_time(question, limit, code)
        if len(self._asked) >= MAX_DEVICES:
            self._asked.clear()
        self._asked.add(device)
        return answer

    def _in_time(self, question: str, limit: float, code: Callable[[Asking], T]) -> T:
        try:
            return guard.in_time(question, limit, code)
        except Fault as fault:
            if fault.hung:
                if self.fingerprint:
                    marks.record(verdicts.folder(), self.fingerprint, f"{question} of {self.name}")
                raise Broken(fault.reason) from fault
            raise

    def declarations(self, device: DeviceInfo, asking: Asking | None = None) -> tuple[Any, ...]:
        """What it declares for ``device``: taken once, checked and copied in depth.

        ``asking``: the question of a guard that is in force already.
        """
        known = self._declared.get(device)
        if known is not None:
            return known

        def take(asking: Asking) -> tuple[Capabilities, ...]:
            asking.question = "capabilities"
            answer = self.backend.capabilities(device)
            try:
                return declared.frozen(answer)
            except Fault as fault:
                raise Broken(fault.reason) from fault

        taken = take(asking) if asking else self.ask("capabilities", device, take)
        if len(self._declared) >= MAX_DEVICES:
            self._declared.clear()
        return self._declared.setdefault(device, taken)

    def lacks(self, device: DeviceInfo, asking: Asking | None = None) -> tuple[str, ...]:
        """``environment_reasons``, checked."""

        def take(asking: Asking) -> tuple[str, ...]:
            asking.question = "environment_reasons"
            return _words(asking.question, self.backend.environment_reasons(device))

        return take(asking) if asking else self.ask("environment_reasons", device, take)

    def notes(self, device: DeviceInfo, asking: Asking | None = None) -> tuple[str, ...]:
        """``notes``, checked; a fault in them is a note, for it changes no answer."""

        def take(asking: Asking) -> tuple[str, ...]:
            asking.question = "notes"
            return _words(asking.question, self.backend.notes(device))

        try:
            return take(asking) if asking else self.ask("notes", device, take)
        except BaseException as error:
            if isinstance(error, Broken) or (self.builtin and not isinstance(error, Exception)):
                raise
            return (Asking("notes").fault(error).reason,)

    def rank(self, choice: ChoiceKey, device: DeviceInfo, asking: Asking) -> int:
        """``rank``, in its bands."""
        asking.question = "rank"
        found = self.backend.rank(choice, device)
        if type(found) is not int and not isinstance(found, Band):
            raise Fault(f"rank returned {guard.shown(found)}, expected an int")
        if not 0 <= found <= Band.HIGHEST:
            bands = ", ".join(f"{b.name.lower()} from {b.value}" for b in Band)
            raise Fault(f"rank returned {guard.shown(found)}, expected 0..{Band.HIGHEST}: {bands}")
        return int(found)

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        """The backend's kernel. In this thread, which holds the current device and stream, and
        without a limit: binding may compile for minutes. The mark on disk tells the next process
        should this one end in it.

        Raises:
            NotSupportedError: the backend refuses.
            Fault: whatever else went wrong; its cause is the error.
        """

        def make(asking: Asking) -> BoundKernel | NotSupportedError:
            try:
                kernel = self.backend.bind(key, device)
            except NotSupportedError as error:
                return error
            if not isinstance(kernel, BoundKernel):
                raise Fault(f"bind returned {guard.shown(kernel)}, expected a BoundKernel")
            return kernel if self.protocol >= 2 else PositionalKernel(kernel, key.op)

        if self.fingerprint:
            place, stem = verdicts.folder(), self._bind_stem(key, device)
            with marks.mark(place, stem, f"bind of {self.name} for {key.summary()}"):
                answer = guard.here("bind", make)
            marks.forget(place, stem)
        else:
            answer = guard.here("bind", make)
        if isinstance(answer, NotSupportedError):
            raise answer
        return answer

    def died_binding(self, key: KernelKey, device: DeviceInfo) -> str:
        """Why ``key`` is not bound without being asked for by name: two processes ended in it.

        One may have been killed from outside while it compiled; two are a pattern.
        """
        if not self.fingerprint:
            return ""
        died = marks.death(verdicts.folder(), self._bind_stem(key, device))
        if died is None or died.deaths < 2:
            return ""
        return f"{died}; ask for it with backend={self.name!r}, or remove {died.path}"

    def _bind_stem(self, key: KernelKey, device: DeviceInfo) -> str:
        facts = hashlib.sha256(repr((self.name, key, str(device))).encode()).hexdigest()[:16]
        return f"{self.fingerprint}-{facts}"


def _words(question: str, answer: Iterable[Any]) -> tuple[str, ...]:
    """A backend's sentences; one that is no text, or endless, is a fault."""
    if not isinstance(answer, (tuple, list)):
        raise Fault(f"{question} returned {guard.shown(answer)}, expected a tuple of text")
    for word in answer:
        if not isinstance(word, str):
            raise Fault(f"{question} returned {guard.shown(word)} among its answers, expected text")
    return tuple(clipped(word, 2000) for word in answer[:MAX_WORDS])


_PASSING_ERRNOS = frozenset(
    getattr(errno, name, -1)
    for name in ("ENOSPC", "EDQUOT", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "ETIMEDOUT")
)


def passing_want(error: BaseException | None) -> bool:
    """Whether a failed bind says that something ran out, which may be there again later."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
            return True
        if isinstance(error, RuntimeError) and "out of memory" in clipped(error, 2000).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
