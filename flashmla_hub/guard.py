"""Calling code of a plugin's so that nothing it does ends or escapes the host's call.

Whatever the code raises, SystemExit and KeyboardInterrupt included, becomes a :class:`Fault`. A
real Ctrl-C still ends the call: signals reach the main thread only, so :func:`in_time`, which runs
the code in a thread of its own, cannot confuse the two, and :func:`here` listens for the signal.
What can end a process from inside (``os._exit``, a crash) no guard in it can stop: plugins.py
leaves a mark on disk around such calls.
"""

from __future__ import annotations

import contextvars
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from flashmla_hub.errors import PluginError, clipped

T = TypeVar("T")

_inside = threading.local()


class Fault(PluginError):
    """What a plugin's code did wrong, in words that begin with the question it was asked.

    ``hung``: it did not answer in time, and may never be asked again in this process.
    """

    def __init__(self, reason: str, hung: bool = False) -> None:
        self.reason, self.hung = reason, hung
        super().__init__(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.hung)


class Asking:
    """Names the question that is being answered, for the fault's text."""

    def __init__(self, question: str) -> None:
        self.question = question

    def fault(self, error: BaseException) -> Fault:
        """The hub's own findings pass as they are."""
        if isinstance(error, Fault):
            return error
        return Fault(f"{self.question} raised {described(error)}")


def described(error: BaseException) -> str:
    """``Type: text``, bounded; an error whose text cannot be had is named all the same."""
    text = clipped(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shown(value: object) -> str:
    """``repr(value)``, bounded, of a value that a plugin gave."""
    try:
        return clipped(repr(value), 100)
    except BaseException as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def busy() -> bool:
    """Whether this thread runs a plugin's code under :func:`in_time`."""
    return getattr(_inside, "busy", False)


def here(question: str, code: Callable[[Asking], T]) -> T:
    """``code(asking)`` in this thread, for as long as it takes.

    Raises:
        Fault: whatever the code raised.
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    asking, pid = Asking(question), os.getpid()
    with _interrupts() as pressed:
        try:
            answer = code(asking)
        except Exception as error:
            raise asking.fault(error) from error
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and pressed():
                raise
            raise asking.fault(error) from error
        finally:
            _end_a_fork(pid)
    return answer


def in_time(question: str, limit: float, code: Callable[[Asking], T]) -> T:
    """``code(asking)`` in a thread of its own, with the settings in force here; ``limit`` seconds.

    What it prints goes to stderr: a command's stdout belongs to the command. Code that does not
    return in time is told to stop (which reaches Python code, not a blocking system call) and left
    behind.

    Raises:
        Fault: whatever the code raised, or that it did not finish.
    """
    if busy():  # a plugin that asks the hub: its own limit runs already
        return here(question, code)
    asking, pid = Asking(question), os.getpid()
    result: list[T] = []
    raised: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        _inside.busy = True
        try:
            result.append(context.run(code, asking))
        except BaseException as error:
            raised.append(error)
        finally:
            _end_a_fork(pid)

    thread = threading.Thread(target=run, name=f"flashmla_hub: {question}", daemon=True)
    with _stdout_to_stderr(thread):
        thread.start()
        thread.join(limit)
    if thread.is_alive():
        _tell_to_stop(thread)
        raise Fault(f"{asking.question} did not finish in {limit:g} s", hung=True)
    if raised:
        raise asking.fault(raised[0]) from raised[0]
    return result[0]


def _end_a_fork(pid: int) -> None:
    """Code that forks must not leave two processes that go on with the host's work."""
    if os.getpid() != pid:
        os._exit(0)


def _tell_to_stop(thread: threading.Thread) -> None:
    """Raise SystemExit in the thread at its next Python instruction, so that it burns no core."""
    import ctypes

    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed. Where that cannot be seen, any interrupt counts as one:
    better a call ended by a plugin than one that cannot be ended."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals go to the main thread
        return
    if not callable(before):
        # Ignored (a shell's background job) or the system's own: then none arrives as an exception.
        seen = before not in (signal.SIG_IGN, signal.SIG_DFL)
        yield lambda: seen
        return

    def listen(number: int, frame: Any) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, listen)
    try:
        yield lambda: bool(came)
    finally:
        if signal.getsignal(signal.SIGINT) is listen:
            signal.signal(signal.SIGINT, before)


class _Router(io.TextIOBase):
    """``sys.stdout`` while plugins run: their threads' text goes to stderr, all other through."""

    def __init__(self, real: TextIO) -> None:
        self.real, self.threads = real, set[threading.Thread]()

    def _target(self) -> TextIO:
        mine = threading.current_thread() in self.threads
        return sys.stderr if mine and sys.stderr is not None else self.real

    def write(self, text: str) -> int:
        return self._target().write(text)

    def flush(self) -> None:
        self._target().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


_routing = threading.Lock()


@contextmanager
def _stdout_to_stderr(thread: threading.Thread) -> Iterator[None]:
    with _routing:
        if sys.stdout is None:
            router = None
        elif isinstance(sys.stdout, _Router):
            router = sys.stdout
        else:
            router = sys.stdout = _Router(sys.stdout)  # type: ignore[assignment]
        if router is not None:
            router.threads.add(thread)
    try:
        yield
    finally:
        with _routing:
            if router is not None:
                if not thread.is_alive():  # what was left behind goes on to print to stderr
                    router.threads.discard(thread)
                if not router.threads and sys.stdout is router:
                    sys.stdout = router.real


def _after_fork() -> None:
    global _routing
    _routing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
