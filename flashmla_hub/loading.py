"""Plugins made into a registry's state: each imported, checked and asked for its backends in a
guard of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any

import pluggy

from flashmla_hub import config, guard, log, marks, plugins, verdicts
from flashmla_hub.asking import Entry
from flashmla_hub.backend import Backend, BackendInfo
from flashmla_hub.errors import InvalidRequestError, PluginError, clipped, nearest
from flashmla_hub.guard import Fault
from flashmla_hub.hookspecs import PROJECT, PROTOCOL_CURRENT, BackendQuery, HookSpecs

MAX_BACKENDS = 64  # that one plugin may bring

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_IDENTIFY = "flashmla_hub_identify_device"
_BACKENDS = "flashmla_hub_backends"
_VENDORS = "FLASHMLA_HUB_VENDORS"


@dataclass(frozen=True)
class Quarantined:
    """A plugin or backend that is not used, or not believed in something, and why."""

    name: str
    dist: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """A plugin's rule that identifies devices; ``vendors``: (vendor, {arch: product words})."""

    plugin: str
    dist: str
    builtin: bool
    call: Any
    vendors: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class State:
    """One snapshot. ``generation`` changes with every change, so caches can tell."""

    entries: MappingProxyType[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    quarantined: tuple[Quarantined, ...] = ()
    identify: tuple[Rule, ...] = ()
    generation: int = 0

    @cached_property
    def backends(self) -> MappingProxyType[str, Backend]:
        return MappingProxyType({n: e.backend for n, e in self.entries.items()})

    @cached_property
    def owners(self) -> MappingProxyType[str, str]:
        """The distribution of each backend."""
        return MappingProxyType({n: e.dist for n, e in self.entries.items()})


class Builder:
    """Collects plugins into the next State."""

    def __init__(self, base: State) -> None:
        self.base = base
        self.entries = dict(base.entries)
        self.quarantined = list(base.quarantined)
        self.identify = list(base.identify)

    def add(self, found: plugins.Found, plugin: Any, fingerprint: str = "") -> None:
        """Register one plugin's hooks; Fault if they are not what the contract says."""

        def ask(asking: guard.Asking) -> tuple[list[Entry], Any, Any]:
            asking.question = "registering its hooks"
            hooks, names = _hooks(found.name, plugin)
            protocol = getattr(plugin, "FLASHMLA_HUB_PROTOCOL", PROTOCOL_CURRENT)
            asking.question = _BACKENDS
            accepted: list[Entry] = []
            if _BACKENDS in names:
                for answer in getattr(hooks, _BACKENDS)(query=BackendQuery()):
                    accepted += self._checked(found, answer, fingerprint, protocol)
            asking.question = _VENDORS
            vendors = _vendors(getattr(plugin, _VENDORS, {}))
            return accepted, getattr(hooks, _IDENTIFY) if _IDENTIFY in names else None, vendors

        accepted, rule, vendors = self._ask(found, ask)
        self.entries |= {e.name: e for e in accepted}
        if rule is not None:
            self.identify.append(Rule(found.name, found.dist, found.builtin, rule, vendors))

    def take(self, found: plugins.Found, backends: list[Backend]) -> None:
        """Register backends as they are."""
        accepted = self._ask(found, lambda asking: self._checked(found, backends))
        self.entries |= {e.name: e for e in accepted}

    def _ask(self, found: plugins.Found, code: Any) -> Any:
        if found.builtin:
            return guard.here(_BACKENDS, code)
        return guard.in_time(_BACKENDS, config.current().plugin_timeout, code)

    def _checked(
        self,
        found: plugins.Found,
        offered: Any,
        fingerprint: str = "",
        protocol: int = PROTOCOL_CURRENT,
    ) -> list[Entry]:
        try:
            walk = iter(offered)
        except TypeError:
            raise Fault(
                f"{_BACKENDS} returned {type(offered).__name__}, expected an iterable of Backend"
            ) from None
        accepted: dict[str, Entry] = {}
        for backend in islice(walk, MAX_BACKENDS + 1):
            if len(accepted) == MAX_BACKENDS:
                raise Fault(f"{_BACKENDS} offers more than {MAX_BACKENDS} backends")
            if not isinstance(backend, Backend):
                raise Fault(f"{_BACKENDS} returned {type(backend).__name__}, expected a Backend")
            name = backend.name
            if type(name) is not str or not _NAME.fullmatch(name):
                raise Fault(f"backend name {guard.shown(name)}, expected [a-z][a-z0-9_]*")
            if name in self.entries or name in accepted:
                raise Fault(f"duplicate name: a backend {name!r} is registered already")
            version, info, simulated = backend.version, backend.info, backend.runs_simulated
            if not isinstance(version, str) or not isinstance(info, BackendInfo):
                raise Fault(
                    f"backend {name!r}: version is {guard.shown(version)} and info "
                    f"{guard.shown(info)}, expected text and a BackendInfo"
                )
            accepted[name] = Entry(
                name, backend, found.dist, found.builtin, fingerprint, protocol,
                version=version, info=info, runs_simulated=simulated is True,
            )  # fmt: skip
        return list(accepted.values())

    def refuse(self, found: plugins.Found, reason: str) -> None:
        log.warning("plugin %s (%s) is quarantined: %s", found.name, found.dist, reason)
        self.quarantined.append(Quarantined(found.name, found.dist, reason))

    def finish(self) -> State:
        return replace(
            self.base,
            entries=MappingProxyType(self.entries),
            quarantined=tuple(self.quarantined),
            identify=tuple(self.identify),
        )


def _vendors(given: Any) -> tuple[tuple[str, dict[str, str]], ...]:
    """A copy of a rule's ``FLASHMLA_HUB_VENDORS``."""
    try:
        made = {str(v): {str(a): str(w) for a, w in archs.items()} for v, archs in given.items()}
    except AttributeError:
        expected = "{vendor: {arch: product words}}"
        raise Fault(f"{_VENDORS} is {guard.shown(given)}, expected {expected}") from None
    return tuple(made.items())


def _hooks(name: str, plugin: Any) -> tuple[Any, set[str]]:
    """(the callers of a plugin's hooks, their names)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        lines = clipped(error, 1000).strip().splitlines() or [type(error).__name__]
        raise Fault(f"bad hook: {' '.join(lines)}") from error
    names = {caller.name for caller in manager.get_hookcallers(plugin) or []}
    if not names:
        hooks = f"{_IDENTIFY} or {_BACKENDS}"
        raise Fault(f"no hook found; decorate {hooks} with flashmla_hub.hookimpl")
    return manager.hook, names


def load_all() -> State:
    """Every plugin that is installed and not disabled.

    Raises:
        InvalidRequestError: FLASHMLA_HUB_DISABLE_PLUGINS names what is not there.
    """
    builder = Builder(State())
    found, refused = plugins.discover()
    off = _disabled(found)
    wrong, prints = verdicts.judge(c for c in found if c not in off)
    for candidate in found:
        if candidate in off:
            why = "disabled by FLASHMLA_HUB_DISABLE_PLUGINS"
            builder.quarantined.append(Quarantined(candidate.name, candidate.dist, why))
            continue
        try:
            if candidate in wrong:
                raise Fault(wrong[candidate])
            _load_one(builder, candidate, prints.get(candidate, ""))
        except PluginError as error:
            builder.refuse(candidate, str(error))
    for candidate, reason in refused:
        builder.refuse(candidate, reason)
    return builder.finish()


def _load_one(builder: Builder, found: plugins.Found, stem: str) -> None:
    if found.builtin:
        builder.add(found, plugins.load(found))
        return
    place = verdicts.folder()
    try:
        with marks.mark(place, stem, f"import of {found.name}"):
            module = plugins.load(found)
            builder.add(found, module, stem)
    except Fault as fault:
        if fault.hung:
            marks.record(place, stem, f"import of {found.name}")
        raise


def _disabled(found: list[plugins.Found]) -> set[plugins.Found]:
    """The third-party plugins that FLASHMLA_HUB_DISABLE_PLUGINS names.

    Raises:
        InvalidRequestError: it names one that is not installed.
    """
    wanted = config.current().disable_plugins
    third = {f.name: f for f in found if not f.builtin}
    for name in sorted(wanted - {"all"} - third.keys()):
        ours = any(f.builtin and f.name == name for f in found)
        raise InvalidRequestError(
            "FLASHMLA_HUB_DISABLE_PLUGINS",
            guard.shown(name) + (", which is built in" if ours else ""),
            f"all, or third-party plugins that are installed: {', '.join(third) or 'none is'}"
            f"{nearest(name, third)}",
        )
    return set(third.values()) if "all" in wanted else {third[n] for n in wanted}
