"""Finding and loading plugins, one by one, each in its own guard.

pluggy's own entry-point loader ends at the first plugin that raises, waits for ever on one that
hangs, and skips a duplicate name without a word; so entry points are walked by hand. A
third-party plugin is imported once in a child process under a time limit before it is imported
here: that bounds hangs and survives ``exit()`` and segmentation faults. The verdict is kept on
disk by distribution version, so that the child runs once for each installed version.
"""

from __future__ import annotations

import contextvars
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from flashmla_hub import config
from flashmla_hub.errors import PluginError
from flashmla_hub.hookspecs import ENTRY_POINT_GROUP, PROTOCOL_CURRENT, PROTOCOL_MIN

BUILTIN = "built-in"


@dataclass(frozen=True)
class Found:
    """An entry point, not imported yet. ``dist`` is the distribution that declares it."""

    name: str
    value: str
    dist: str = BUILTIN
    dist_version: str = ""

    @property
    def builtin(self) -> bool:
        return self.dist == BUILTIN

    @property
    def module(self) -> str:
        return self.value.partition(":")[0].strip()


def builtins() -> list[Found]:
    """The plugins this project ships, from the one table that lists them."""
    table = importlib.import_module(f"{__package__}.backends").BUILTINS
    return [Found(name, value) for name, value in table.items()]


def discover() -> tuple[list[Found], list[tuple[Found, str]]]:
    """(plugins to load, [(plugin, why it is left out)]). Imports none of them."""
    found = builtins()
    ours = {f.value for f in found}
    taken = {f.name: f for f in found}
    refused: list[tuple[Found, str]] = []
    for dist in importlib.metadata.distributions():
        for ep in dist.entry_points:
            if ep.group != ENTRY_POINT_GROUP or ep.value in ours:
                continue
            name = dist.metadata["Name"] or "?"
            candidate = Found(ep.name, ep.value, name, dist.version)
            first = taken.get(ep.name)
            if first is None:
                taken[ep.name] = candidate
                found.append(candidate)
            elif first != candidate:  # the same distribution seen twice on sys.path is no clash
                why = f"duplicate name: {ep.name!r} is taken by {first.dist} ({first.value})"
                refused.append((candidate, why))
    return found, refused


def load(found: Found) -> ModuleType:
    """Import a plugin's module and check what it says of itself (a third-party plugin only after
    ``check_in_children`` found nothing wrong with it).

    Raises:
        PluginError: with the reason, whatever the plugin did.
    """
    try:
        module = importlib.import_module(found.module)
    except BaseException as error:  # a plugin may raise SystemExit; it must not end the process
        if isinstance(error, KeyboardInterrupt):
            raise
        raise PluginError(f"import raised {type(error).__name__}: {error}") from error
    protocol = getattr(module, "FLASHMLA_HUB_PROTOCOL", None)
    if not isinstance(protocol, int) or isinstance(protocol, bool):
        raise PluginError(
            f"FLASHMLA_HUB_PROTOCOL is {protocol!r}, expected an integer; the current protocol "
            f"is {PROTOCOL_CURRENT}"
        )
    if not PROTOCOL_MIN <= protocol <= PROTOCOL_CURRENT:
        remedy = "upgrade the plugin" if protocol < PROTOCOL_MIN else "upgrade flashmla-hub"
        raise PluginError(
            f"plugin protocol {protocol}, accepted {PROTOCOL_MIN}..{PROTOCOL_CURRENT}; {remedy}"
        )
    return module


def check_in_children(candidates: Iterable[Found]) -> dict[Found, str]:
    """Import each third-party plugin in a child process of its own; {plugin: what went wrong}.

    Side by side: most of a child's time goes into importing torch.
    """
    foreign = [found for found in candidates if not found.builtin]
    if not foreign:
        return {}
    with ThreadPoolExecutor(max_workers=min(4, len(foreign))) as pool:
        context = contextvars.copy_context()  # the pool's threads see the settings of this one
        verdicts = [pool.submit(context.copy().run, _check_in_child, found) for found in foreign]
    return {f: v for f, verdict in zip(foreign, verdicts, strict=True) if (v := verdict.result())}


def _check_in_child(found: Found) -> str:
    store = config.current().cache_dir / "plugins"
    stamp = store / f"{_fingerprint(found)}.json"
    try:
        if json.loads(stamp.read_text())["ok"] is True:
            return ""
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not judged yet, or a damaged entry: judge again
    limit = config.current().plugin_timeout
    command = [sys.executable, "-c", f"import {found.module}"]
    env = config.child_environment(PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    remedy = f"fix it, uninstall {found.dist}, or set FLASHMLA_HUB_DISABLE_PLUGINS={found.name}"
    try:
        child = subprocess.run(
            command, env=env, timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"import did not finish in {limit:g} s; {remedy}"
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        return f"import ended with {child.returncode}: {lines[-1]}; {remedy}"
    write_atomically(stamp, json.dumps({"ok": True, "plugin": found.name, "dist": found.dist}))
    return ""


def _fingerprint(found: Found) -> str:
    spec = importlib.util.find_spec(found.module.partition(".")[0])
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    changed = origin.stat().st_mtime_ns if origin is not None and origin.exists() else 0
    facts = (found.name, found.value, found.dist, found.dist_version, sys.version, changed)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def write_atomically(path: Path, text: str) -> bool:
    """Write through a temporary file and a rename. False where the place cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return False
    return True
