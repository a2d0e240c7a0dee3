"""Finding and importing plugins, one by one, each in its own guard.

pluggy's own entry-point loader ends at the first plugin that raises, waits for ever on one that
hangs, and skips a duplicate name without a word; so entry points are walked by hand. What a
third-party plugin may do to a process is found out in a child first (verdicts.py); then it is
imported here under a time limit, with a mark on disk that outlives the process should it end it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from types import ModuleType

from flashmla_hub import config, guard, log
from flashmla_hub.guard import Fault
from flashmla_hub.hookspecs import ENTRY_POINT_GROUP, PROTOCOL_CURRENT, PROTOCOL_MIN

BUILTIN = "built-in"  # what stands for the distribution of the project's own plugins


@dataclass(frozen=True)
class Found:
    """An entry point, not imported yet. ``dist`` is the distribution that declares it.

    ``builtin``: it stands in this project's own table, whatever a distribution calls itself.
    """

    name: str
    value: str
    dist: str = BUILTIN
    dist_version: str = ""
    builtin: bool = False

    @property
    def module(self) -> str:
        return self.value.partition(":")[0].strip()


def builtins() -> list[Found]:
    """The plugins this project ships, from the one table that lists them."""
    table = importlib.import_module(f"{__package__}.backends").BUILTINS
    return [Found(name, value, builtin=True) for name, value in table.items()]


def discover() -> tuple[list[Found], list[tuple[Found, str]]]:
    """(plugins to load, [(plugin, why it is left out)]). Imports none of them.

    Distributions whose metadata is broken are somebody else's and passed over, unless the broken
    part names this hub.
    """
    found = builtins()
    ours = {f.value for f in found}
    taken = {f.name: f for f in found}
    refused: list[tuple[Found, str]] = []
    distributions = iter(importlib.metadata.distributions())
    while True:
        try:
            dist = next(distributions)
        except StopIteration:
            return found, refused
        except Exception as error:  # a finder of somebody's: what it would have found is lost
            log.warning("not all distributions could be listed: %s", guard.described(error))
            return found, refused
        for candidate, why in _of(dist):
            if candidate.value in ours:
                continue
            first = taken.get(candidate.name)
            if why:
                refused.append((candidate, why))
            elif first is None:
                taken[candidate.name] = candidate
                found.append(candidate)
            elif first != candidate:  # the same distribution seen twice on sys.path is no clash
                why = f"duplicate name: {candidate.name!r} is taken by {first.dist} ({first.value})"
                refused.append((candidate, why))


def _of(dist: importlib.metadata.Distribution) -> list[tuple[Found, str]]:
    """(plugin, what is wrong with its entry) of one distribution."""
    try:
        if ENTRY_POINT_GROUP not in (dist.read_text("entry_points.txt") or ""):
            return []
    except Exception as error:
        log.debug("metadata of %s is broken: %s", getattr(dist, "_path", "?"), error)
        return []
    name, version = _word(dist, "Name"), _word(dist, "Version")
    try:
        entries = [ep for ep in dist.entry_points if ep.group == ENTRY_POINT_GROUP]
        return [(Found(str(ep.name), str(ep.value), name, version), "") for ep in entries]
    except Exception as error:
        return [(Found(name, "", name, version), f"entry_points.txt: {guard.described(error)}")]


def _word(dist: importlib.metadata.Distribution, field: str) -> str:
    try:
        return str(dist.metadata[field] or "?")
    except Exception:  # METADATA is absent or not UTF-8; the entry point may be good all the same
        return "?"


def load(found: Found) -> ModuleType:
    """Import a plugin's module and check what it says of itself (a third-party plugin only after
    ``verdicts.judge`` found nothing wrong with it).

    Raises:
        Fault: with the reason, whatever the plugin did.
    """

    def import_it(asking: guard.Asking) -> ModuleType:
        module = importlib.import_module(found.module)
        asking.question = "FLASHMLA_HUB_PROTOCOL"
        try:
            protocol = module.FLASHMLA_HUB_PROTOCOL
        except AttributeError:
            protocol = None
        _check_protocol(protocol)
        return module

    if found.builtin or _importing(found.module):
        return guard.here("import", import_it)
    return guard.in_time("import", config.current().plugin_timeout, import_it)


def _importing(name: str) -> bool:
    """Whether a caller up the stack is importing the plugin's package right now: another thread
    would then wait for it, and it for that thread."""
    spec = getattr(sys.modules.get(name.partition(".")[0]), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _check_protocol(protocol: object) -> None:
    if type(protocol) is not int:
        raise Fault(
            f"FLASHMLA_HUB_PROTOCOL is {guard.shown(protocol)}, expected an integer; the current "
            f"protocol is {PROTOCOL_CURRENT}"
        )
    if not PROTOCOL_MIN <= protocol <= PROTOCOL_CURRENT:
        remedy = "upgrade the plugin" if protocol < PROTOCOL_MIN else "upgrade flashmla-hub"
        raise Fault(
            f"plugin protocol {guard.shown(protocol)}, accepted {PROTOCOL_MIN}..{PROTOCOL_CURRENT}"
            f"; {remedy}"
        )
