"""The one reader of the environment, and the scope that ``use_backend`` and friends change.

=================================  =========================================================
variable                           meaning
=================================  =========================================================
``FLASHMLA_HUB_BACKEND``           backend to use for every call (as ``backend=``)
``FLASHMLA_HUB_DEVICE``            ``vendor[:arch]``: overrides what identification found
``FLASHMLA_HUB_CACHE_DIR``         compiled kernels, plugin verdicts and tuning tables
``FLASHMLA_HUB_LOG``               ``debug``, ``info``, ``warning`` or ``error``: shown on stderr
``FLASHMLA_HUB_DISABLE_PLUGINS``   ``all``, or names of third-party plugins, comma-separated
``FLASHMLA_HUB_PLUGIN_TIMEOUT``    seconds a plugin may take to import (default 30)
``FLASHMLA_HUB_ENGINES``           engine integrations that are opt-in, comma-separated
``FLASHMLA_HUB_CHECK``             N: compare the first N calls of each kernel with the torch
                                   backend's and its inputs with what they were (debug, slow)
=================================  =========================================================

The environment is parsed once, at first use. Settings live in an immutable :class:`Scope` held by
a context variable: two threads with different settings do not disturb each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import InvalidRequestError, nearest

_PREFIX = "FLASHMLA_HUB_"
_VARIABLES = (
    "BACKEND", "DEVICE", "CACHE_DIR", "LOG", "DISABLE_PLUGINS", "PLUGIN_TIMEOUT", "ENGINES",
    "CHECK",
)  # fmt: skip
_ELSEWHERE = ("AOT", "CI_VENV")  # read where the hub is built and tested
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Config:
    """Settings of the process, typed.

    ``cache_dir`` is None for a user without a home, ``log`` where it was not set: then logging is
    left as the application has it. ``disable_plugins`` holds names, or ``all``.
    """

    backend: str | None = None
    device: str | None = None
    cache_dir: Path | None = field(default_factory=lambda: _default_cache_dir(os.environ))
    log: str | None = None
    disable_plugins: frozenset[str] = frozenset()
    plugin_timeout: float = 30.0
    engines: frozenset[str] = frozenset()
    check: int = 0


@dataclass(frozen=True)
class Scope:
    """What the calls of one thread (or task) see: settings, chosen backend, simulated device."""

    config: Config
    backend: str | None = None
    simulated: DeviceInfo | None = None


def _default_cache_dir(env: Mapping[str, str]) -> Path | None:
    base = env.get("XDG_CACHE_HOME") or env.get("LOCALAPPDATA")
    try:
        return (Path(base) if base else Path("~/.cache").expanduser()) / "flashmla_hub"
    except RuntimeError:  # no HOME, and no entry in the table of users
        return None


def _chosen_cache_dir(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise InvalidRequestError(
            _PREFIX + "CACHE_DIR", repr(text), f"a folder ({error})"
        ) from error


def from_environment(env: Mapping[str, str]) -> Config:
    """Parse the variables above.

    Raises:
        InvalidRequestError: naming the variable, its value and what it takes.
    """

    def text(name: str) -> str | None:
        return env.get(_PREFIX + name, "").strip() or None

    def names(name: str) -> frozenset[str]:
        return frozenset(n.strip() for n in (text(name) or "").split(",") if n.strip())

    log = (text("LOG") or "").lower() or None
    if log is not None and log not in _LEVELS:
        raise InvalidRequestError(_PREFIX + "LOG", repr(log), " | ".join(_LEVELS))
    timeout = text("PLUGIN_TIMEOUT") or "30"
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequestError(_PREFIX + "PLUGIN_TIMEOUT", repr(timeout), "seconds > 0")
    check = text("CHECK") or "0"
    if not (check.isascii() and check.isdigit()) or len(check) > 9:
        raise InvalidRequestError(_PREFIX + "CHECK", repr(check), "a number of calls, 0 for none")
    cache_dir = text("CACHE_DIR")
    return Config(
        backend=text("BACKEND"),
        device=text("DEVICE"),
        cache_dir=_chosen_cache_dir(cache_dir) if cache_dir else _default_cache_dir(env),
        log=log,
        disable_plugins=names("DISABLE_PLUGINS"),
        plugin_timeout=seconds,
        engines=names("ENGINES"),
        check=int(check),
    )


def unread(env: Mapping[str, str] | None = None) -> list[str]:
    """A line on each ``FLASHMLA_HUB_*`` variable of the environment that nobody reads."""
    known = [_PREFIX + name for name in _VARIABLES]
    given = os.environ if env is None else env
    read = (*known, *(_PREFIX + name for name in _ELSEWHERE))
    return [
        f"{name} is set, and nothing reads it{nearest(name, known)}"
        for name in sorted(given)
        if name.startswith(_PREFIX) and name not in read
    ]


_SCOPE: ContextVar[Scope | None] = ContextVar("flashmla_hub_scope", default=None)
_process_scope: Scope | None = None

changed = _SCOPE.get
"""The scope that this thread or task changed to, None for the process's own: cheap, for keys."""


def scope() -> Scope:
    """The scope in force. The same object as long as nothing changed it."""
    current_scope = _SCOPE.get()
    if current_scope is not None:
        return current_scope
    global _process_scope
    if _process_scope is None:  # a race builds it twice from one environment: equal values
        _process_scope = Scope(from_environment(os.environ))
        for line in unread():
            logging.getLogger("flashmla_hub").warning(line)
    return _process_scope


def current() -> Config:
    """The settings in force."""
    return scope().config


@contextmanager
def scoped(**changes: Any) -> Iterator[Scope]:
    """Replace fields of the :class:`Scope` for the duration, in this thread or task only."""
    replaced = replace(scope(), **changes)
    token = _SCOPE.set(replaced)
    try:
        yield replaced
    finally:
        _SCOPE.reset(token)


@contextmanager
def override(**changes: Any) -> Iterator[Config]:
    """Replace fields of the :class:`Config` for the duration, in this thread or task only."""
    with scoped(config=replace(current(), **changes)) as changed:
        yield changed.config


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a child process, with ``extra`` set."""
    return {**os.environ, **extra}
