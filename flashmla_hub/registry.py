"""Which backends there are, which are quarantined, and why.

A plugin that raises, speaks another protocol, takes a name that is taken or has a bad hook is
quarantined with its reason and shown by ``flashmla-hub backends``; it never breaks the import of
the hub or another backend. The state is loaded at first need, and replaced as a whole: readers
need no lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from flashmla_hub import config, log, plugins
from flashmla_hub.backend import Backend
from flashmla_hub.device import DeviceProbe
from flashmla_hub.errors import InvalidRequestError, PluginError
from flashmla_hub.hookspecs import PROJECT, PROTOCOL_CURRENT, BackendQuery, HookSpecs

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_IDENTIFY = "flashmla_hub_identify_device"
_BACKENDS = "flashmla_hub_backends"


@dataclass(frozen=True)
class Quarantined:
    """A plugin or backend that is not used, and why."""

    name: str
    dist: str
    reason: str


@dataclass(frozen=True)
class State:
    """One snapshot. ``generation`` changes with every change, so caches can tell."""

    backends: MappingProxyType[str, Backend] = field(default_factory=lambda: MappingProxyType({}))
    owners: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    protocols: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    quarantined: tuple[Quarantined, ...] = ()
    identify: tuple[tuple[str, Any], ...] = ()
    generation: int = 0


_lock = threading.RLock()
_state: State | None = None
_generation = 0


def state() -> State:
    """The snapshot in force; loads the plugins at the first call."""
    global _state
    current = _state
    if current is None:
        with _lock:
            if _state is None:
                _state = _load()
            current = _state
    return current


def loaded() -> int:
    """The generation of the snapshot in force, 0 before the first: cheap, for keys."""
    current = _state
    return 0 if current is None else current.generation


def reload() -> State:
    """Forget what was loaded and load again (after an installation in this process)."""
    global _state
    with _lock:
        _state = _load()
        return _state


def get(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        InvalidRequestError: no such backend; the message lists the names there are.
        PluginError: it is quarantined; the message says why.
    """
    current = state()
    backend = current.backends.get(name)
    if backend is not None:
        return backend
    for entry in current.quarantined:
        if entry.name == name:
            raise PluginError(f"backend {name!r} is quarantined: {entry.reason}")
    names = ", ".join(sorted(current.backends)) or "none"
    raise InvalidRequestError("backend", repr(name), f"one of: {names}")


def quarantine(name: str, reason: str) -> None:
    """Take a backend out of service for this process, with the reason."""
    global _state
    with _lock:
        current = state()
        if name not in current.backends:
            return
        log.warning("backend %s is quarantined: %s", name, reason)
        remaining = {n: b for n, b in current.backends.items() if n != name}
        entry = Quarantined(name, current.owners.get(name, "?"), reason)
        _state = _next(
            current,
            backends=MappingProxyType(remaining),
            quarantined=(*current.quarantined, entry),
        )


def quarantine_plugin(name: str, reason: str) -> None:
    """Stop asking a plugin to identify devices."""
    global _state
    with _lock:
        current = state()
        if all(plugin != name for plugin, _ in current.identify):
            return
        log.warning("plugin %s is quarantined: %s", name, reason)
        _state = _next(
            current,
            identify=tuple(p for p in current.identify if p[0] != name),
            quarantined=(*current.quarantined, Quarantined(name, "plugin", reason)),
        )


def ask_identify(probe: DeviceProbe) -> list[tuple[str, Any]]:
    """(plugin, answer) of every identification rule that does not answer None."""
    answers = []
    for plugin, call in state().identify:
        try:
            answer = call(probe=probe)
        except Exception as error:
            quarantine_plugin(plugin, f"identify raised {type(error).__name__}: {error}")
            continue
        if answer:
            answers.append((plugin, answer[0]))
    return answers


@contextmanager
def registered(thing: Backend | Any, name: str = "test") -> Iterator[State]:
    """Add a backend, or a plugin object with hooks, for the duration (``flashmla_hub.testing``).

    Raises:
        PluginError: what would quarantine an installed plugin.
    """
    global _state
    with _lock:
        before = state()
        if isinstance(thing, Backend):
            added = {**before.backends, **_checked([thing], before.backends)}
            owners = {**before.owners, thing.name: "registered"}
            _state = _next(
                before, backends=MappingProxyType(added), owners=MappingProxyType(owners)
            )
        else:
            builder = _Builder(before)
            builder.add(plugins.Found(name, name, "registered"), thing)
            _state = builder.finish()
        during = _state
    try:
        yield during
    finally:
        with _lock:
            _state = _next(before)


def _next(current: State, **changes: Any) -> State:
    global _generation
    _generation += 1
    return replace(current, **changes, generation=_generation)


def _checked(offered: Any, taken: Any) -> dict[str, Backend]:
    accepted: dict[str, Backend] = {}
    try:
        offered = list(offered)
    except TypeError:
        raise PluginError(
            f"{_BACKENDS} returned {type(offered).__name__}, expected an iterable of Backend"
        ) from None
    for backend in offered:
        if not isinstance(backend, Backend):
            raise PluginError(f"{_BACKENDS} returned {type(backend).__name__}, expected a Backend")
        if not isinstance(backend.name, str) or not _NAME.fullmatch(backend.name):
            raise PluginError(f"backend name {backend.name!r}, expected [a-z][a-z0-9_]*")
        if backend.name in taken or backend.name in accepted:
            raise PluginError(f"duplicate name: a backend {backend.name!r} is registered already")
        accepted[backend.name] = backend
    return accepted


class _Builder:
    """Collects plugins into the next State."""

    def __init__(self, base: State) -> None:
        self.base = base
        self.backends = dict(base.backends)
        self.owners = dict(base.owners)
        self.protocols = dict(base.protocols)
        self.quarantined = list(base.quarantined)
        self.identify = list(base.identify)

    def add(self, found: plugins.Found, plugin: Any) -> None:
        """Register one plugin's hooks; PluginError if they are not what the contract says."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        try:
            manager.register(plugin, name=found.name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PluginError(f"bad hook: {' '.join(lines)}") from error
        callers = manager.get_hookcallers(plugin) or []
        if not callers:
            hooks = f"{_IDENTIFY} or {_BACKENDS}"
            raise PluginError(f"no hook found; decorate {hooks} with flashmla_hub.hookimpl")
        try:
            answers = getattr(manager.hook, _BACKENDS)(query=BackendQuery())
        except Exception as error:
            raise PluginError(f"{_BACKENDS} raised {type(error).__name__}: {error}") from error
        accepted: dict[str, Backend] = {}
        for answer in answers:
            accepted |= _checked(answer, {**self.backends, **accepted})
        self.backends |= accepted
        self.owners |= dict.fromkeys(accepted, found.dist)
        spoken = getattr(plugin, "FLASHMLA_HUB_PROTOCOL", PROTOCOL_CURRENT)
        self.protocols |= dict.fromkeys(accepted, spoken)
        if any(caller.name == _IDENTIFY for caller in callers):
            self.identify.append((found.name, getattr(manager.hook, _IDENTIFY)))

    def refuse(self, found: plugins.Found, reason: str) -> None:
        log.warning("plugin %s (%s) is quarantined: %s", found.name, found.dist, reason)
        self.quarantined.append(Quarantined(found.name, found.dist, reason))

    def finish(self) -> State:
        return _next(
            self.base,
            backends=MappingProxyType(self.backends),
            owners=MappingProxyType(self.owners),
            protocols=MappingProxyType(self.protocols),
            quarantined=tuple(self.quarantined),
            identify=tuple(self.identify),
        )


def _load() -> State:
    builder = _Builder(State())
    found, refused = plugins.discover()
    disabled = config.current().disable_plugins
    off = {c for c in found if not c.builtin and {"all", c.name} & disabled}
    wrong = plugins.check_in_children(c for c in found if c not in off)
    for candidate in found:
        if candidate in off:
            why = "disabled by FLASHMLA_HUB_DISABLE_PLUGINS"
            builder.quarantined.append(Quarantined(candidate.name, candidate.dist, why))
            continue
        try:
            if candidate in wrong:
                raise PluginError(wrong[candidate])
            module: ModuleType = plugins.load(candidate)
            builder.add(candidate, module)
        except PluginError as error:
            builder.refuse(candidate, str(error))
    for candidate, reason in refused:
        builder.refuse(candidate, reason)
    return builder.finish()
