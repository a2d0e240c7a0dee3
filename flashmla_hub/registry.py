"""Which backends there are, which are quarantined, and why.

A plugin that raises, hangs, speaks another protocol, takes a name that is taken or has a bad hook
is quarantined with its reason and shown by ``flashmla-hub backends``; it never breaks the import of
the hub or another backend. The state is loaded at first need, and replaced as a whole: readers
need no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from flashmla_hub import config, guard, log, plugins
from flashmla_hub.asking import Entry
from flashmla_hub.backend import Backend
from flashmla_hub.device import DeviceProbe
from flashmla_hub.errors import InvalidRequestError, PluginError, clipped, nearest
from flashmla_hub.forks import Lock
from flashmla_hub.guard import Fault
from flashmla_hub.loading import Builder, Quarantined, Rule, State, load_all

__all__ = [
    "Quarantined", "Rule", "State", "ask_identify", "disbelieve", "entry", "get", "loaded",
    "quarantine", "quarantine_rule", "registered", "reload", "state",
]  # fmt: skip

_lock = Lock(reentrant=True, wait_s=60.0)
_state: State | None = None
_generation = 0
_loading = False


def state() -> State:
    """The snapshot in force; loads the plugins at the first call."""
    global _state
    current = _state
    if current is None:
        if guard.busy():
            raise _asked_too_early()
        with _lock:
            if _state is None:
                _state = _load()
            current = _state
    return current


def _asked_too_early() -> PluginError:
    return PluginError("a plugin asked the hub for its backends while it was being loaded")


def loaded() -> int:
    """The generation of the snapshot in force, 0 before the first: cheap, for keys."""
    current = _state
    return 0 if current is None else current.generation


def reload() -> State:
    """Forget what was loaded and load again (after an installation in this process)."""
    global _state
    if guard.busy():
        raise _asked_too_early()
    with _lock:
        _state = _load()
        return _state


def get(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        InvalidRequestError: no such backend; the message lists the names there are.
        PluginError: it is quarantined; the message says why.
    """
    return entry(name).backend


def entry(name: str, argument: str = "backend") -> Entry:
    """The entry of the backend called ``name``; ``argument`` is where the name came from.

    Raises: as ``get``.
    """
    current = state()
    found = current.entries.get(name) if isinstance(name, str) else None
    if found is not None:
        return found
    for quarantined in current.quarantined:
        if quarantined.name == name:
            raise PluginError(f"backend {name!r} is quarantined: {quarantined.reason}")
    names = ", ".join(sorted(current.entries)) or "none"
    hint = nearest(clipped(name), current.entries)
    raise InvalidRequestError(argument, guard.shown(name), f"one of: {names}{hint}")


def quarantine(name: str, reason: str) -> None:
    """Take a backend out of service for this process, with the reason."""
    global _state
    with _lock:
        current = state()
        if name not in current.entries:
            return
        log.warning("backend %s is quarantined: %s", name, reason)
        remaining = {n: e for n, e in current.entries.items() if n != name}
        _state = _next(
            current,
            entries=MappingProxyType(remaining),
            quarantined=(
                *current.quarantined,
                Quarantined(name, current.entries[name].dist, reason),
            ),
        )


def quarantine_rule(rule: Rule, reason: str) -> None:
    """Stop asking a plugin to identify devices."""
    global _state
    with _lock:
        current = state()
        if rule not in current.identify:
            return
        log.warning("plugin %s is quarantined: %s", rule.plugin, reason)
        _state = _next(
            current,
            identify=tuple(r for r in current.identify if r is not rule),
            quarantined=(*current.quarantined, Quarantined(rule.plugin, rule.dist, reason)),
        )


def disbelieve(rule: Rule, reason: str) -> None:
    """Report an answer of a rule that was not believed; the rule is asked again."""
    global _state
    with _lock:
        current = state()
        report = Quarantined(rule.plugin, rule.dist, reason)
        if report not in current.quarantined:
            log.warning("plugin %s: %s", rule.plugin, reason)
            # the generation stays: no answer changes, and this may be an answer on the way
            _state = replace(current, quarantined=(*current.quarantined, report))


def ask_identify(probe: DeviceProbe) -> list[tuple[Rule, Any]]:
    """(rule, answer) of every identification rule that does not answer None."""
    answers = []
    limit = config.current().plugin_timeout
    for rule in state().identify:

        def ask(asking: guard.Asking, rule: Rule = rule) -> Any:
            return rule.call(probe=probe)

        try:
            answer = (
                guard.here("identify", ask)
                if rule.builtin
                else guard.in_time("identify", limit, ask)
            )
        except Fault as fault:
            quarantine_rule(rule, fault.reason)
            continue
        if answer:
            answers.append((rule, answer[0]))
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
        builder = Builder(before)
        found = plugins.Found(name, name, "registered")
        if isinstance(thing, Backend):
            builder.take(found, [thing])
        else:
            builder.add(found, thing)
        _state = during = _next(builder.finish())
    try:
        yield during
    finally:
        with _lock:
            _state = _next(before)


def _next(current: State, **changes: Any) -> State:
    global _generation
    _generation += 1
    return replace(current, **changes, generation=_generation)


def _load() -> State:
    global _loading
    if _loading:
        raise _asked_too_early()
    _loading = True
    try:
        return _next(load_all())
    finally:
        _loading = False
