"""What the hub will do with a plugin, done in a child process: ``python -m`` NAME VALUE.

Exceptions are the host's to judge: it catches them all. This is about what no guard inside a
process survives: hangs, exits, crashes. Only a failed import is told by the exit status.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from flashmla_hub import identify, registry, verdicts
from flashmla_hub.capabilities import DeviceClass
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.plugins import Found
from flashmla_hub.request import KernelKey, choice_key


def main(name: str, value: str) -> None:
    found = Found(name, value, dist="rehearsed")
    _say("import")
    plugin = importlib.import_module(found.module)
    registry.state()  # the built-in plugins, which the rules are asked beside
    _say("hooks")
    with _whatever(), registry.registered(plugin, name) as state:
        _say("identify")
        _ask(partial(identify.ask_rules, DeviceProbe(type="cpu")))
        for own in (n for n, owner in state.owners.items() if owner == "registered"):
            _rehearse(own, state.backends[own])


def _rehearse(name: str, backend: Any) -> None:
    cpu = identify.identify("cpu")
    _say(f"capabilities of {name}")
    declared = _ask(partial(backend.capabilities, cpu)) or ()
    devices = [cpu]
    with _whatever():  # a declaration of nonsense names no device
        devices += [_simulated(kind) for d in declared for kind in d.devices]
    choice = choice_key(KernelKey(), 1, 4096)
    for device in list(dict.fromkeys(devices))[:8]:
        _say(f"capabilities of {name}")
        _ask(partial(backend.capabilities, device))
        _say(f"environment_reasons of {name}")
        _ask(partial(backend.environment_reasons, device))
        _say(f"rank of {name}")
        _ask(partial(backend.rank, choice, device))
        _say(f"notes of {name}")
        _ask(partial(backend.notes, device))


def _simulated(kind: DeviceClass) -> DeviceInfo:
    arch = next((a for a in kind.archs if a != "*"), "")
    return DeviceInfo(kind.vendor, arch, type="simulated", simulated=True)


def _say(step: str) -> None:
    print(f"\n{verdicts.STAGE}{step}", flush=True)


def _whatever() -> contextlib.suppress:
    return contextlib.suppress(BaseException)


def _ask(question: Callable[[], Any]) -> Any:
    with _whatever():
        return question()
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
