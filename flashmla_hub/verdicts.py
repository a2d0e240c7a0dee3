"""What a third-party plugin does to a process, found out in a child, and kept on disk.

The child imports the plugin, calls its hooks and asks its backends what the hub will ask. A good
verdict holds for one state of the plugin's files: an edit of any of them is judged anew. It never
means that the plugin is trusted here: the host's own calls stay under their limits and marks.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from flashmla_hub import cache, config, files, guard, log, marks
from flashmla_hub.plugins import Found
from flashmla_hub.version import __version__

STAGE = "flashmla_hub rehearsal: "  # what the child prints before each step
_HUNG_HOLDS_S = 3600.0  # so long is a plugin that hung in the child not asked again
_START_S = 60.0
_KEPT = 512
_MAX_FILES = 20_000


def judge(candidates: Iterable[Found]) -> tuple[dict[Found, str], dict[Found, str]]:
    """({plugin: what is wrong with it}, {plugin: fingerprint of its files}), each third-party
    plugin judged in a child of its own unless a verdict on these very files is kept.

    Side by side: most of a child's time goes into importing torch.
    """
    prints = {found: fingerprint(found) for found in candidates if not found.builtin}
    if not prints:
        return {}, {}
    with ThreadPoolExecutor(max_workers=min(4, len(prints))) as pool:
        context = contextvars.copy_context()  # the pool's threads see the settings of this one
        verdicts = {f: pool.submit(context.copy().run, _judge, f, p) for f, p in prints.items()}
    return {f: why for f, verdict in verdicts.items() if (why := verdict.result())}, prints


def folder() -> Path | None:
    """Where verdicts and marks are kept."""
    return cache.folder("plugins")


def _judge(found: Found, stem: str) -> str:
    place = folder()
    if died := marks.death(place, stem):
        return (
            f"{died}; it is not imported again before its files change: fix it, uninstall "
            f"{found.dist}, or remove {died.path}"
        )
    known = _kept(place, stem)
    if known is not None:
        return known
    why, hung = _rehearse(found)
    if not why or hung:  # whatever else went wrong may be mended without touching these files
        _keep(place, stem, found, why)
    return why


def _kept(place: Path | None, stem: str) -> str | None:
    """A verdict on these files: '' good, else what is wrong; None: judge."""
    if place is None:
        return None
    try:
        kept = files.parse_json(files.read_regular(place / f"{stem}.json", 10_000))
        if kept["ok"] is True:
            return ""
        if abs(time.time() - float(kept["when"])) < _HUNG_HOLDS_S:
            return str(kept["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not judged yet, or a damaged entry
    return None


def _keep(place: Path | None, stem: str, found: Found, why: str) -> None:
    if place is not None:
        verdict = {"ok": not why, "why": why, "when": time.time(), "plugin": found.name}
        with contextlib.suppress(OSError):
            files.write_atomically(place / f"{stem}.json", json.dumps(verdict))
            files.prune(place, "*.json", _KEPT)


def _rehearse(found: Found) -> tuple[str, bool]:
    """(what went wrong in the child or '', whether it hung)."""
    limit = config.current().plugin_timeout
    command = [sys.executable, "-m", f"{__package__}.rehearsal", found.name, found.value]
    env = config.child_environment(
        PYTHONPATH=os.pathsep.join(p or os.getcwd() for p in sys.path),
        FLASHMLA_HUB_DISABLE_PLUGINS="all",  # a plugin that asks the hub starts no more children
        FLASHMLA_HUB_DEVICE="",
        FLASHMLA_HUB_BACKEND="",
    )
    remedy = f"fix it, uninstall {found.dist}, or set FLASHMLA_HUB_DISABLE_PLUGINS={found.name}"
    # Files, not pipes: something that the child started may hold a pipe open after its end.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = _wait(child, out, limit)
        finally:
            _end(child)
        if code is None:
            return f"{_stage(out)} did not finish in {limit:g} s; {remedy}", True
        if code == 0:
            return "", False
        return f"{_stage(out)} ended with {code}: {_last_words(err)}; {remedy}", False


def _wait(child: subprocess.Popen[bytes], out: IO[bytes], limit: float) -> int | None:
    """The child's exit status, None where the plugin took longer than ``limit`` seconds. Python
    and torch, which come up before it says its first step, are not the plugin's time."""
    deadline, began = time.monotonic() + max(limit, _START_S), False
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(0.02)
        if not began and os.fstat(out.fileno()).st_size:
            deadline, began = time.monotonic() + limit, True
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all that it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def _tail(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 20_000))
    return stream.read().decode(errors="replace")


def _stage(out: IO[bytes]) -> str:
    steps = [line for line in _tail(out).splitlines() if line.startswith(STAGE)]
    return steps[-1].removeprefix(STAGE) if steps else "import"


def _last_words(err: IO[bytes]) -> str:
    """The last line of a traceback, and the file and line it is about."""
    text = _tail(err).strip()
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    places = re.findall(r'File "([^"<]+)", line (\d+)', text)
    where = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    return lines[-1].strip()[:300] + where


def fingerprint(found: Found) -> str:
    """A digest of everything a verdict depends on: the entry, the versions, the plugin's files."""
    torch = sys.modules.get("torch")
    facts: list[Any] = [found.name, found.value, found.dist, found.dist_version]
    facts += [sys.version, __version__, str(getattr(torch, "__version__", ""))]
    digest = hashlib.sha256(repr(facts).encode())
    try:
        for path in guard.here("finding its files", lambda _: sorted(_files(found.module))):
            with contextlib.suppress(OSError):
                s = os.stat(path)
                digest.update(f"{path} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}\n".encode())
    except guard.Fault as fault:  # a finder of somebody's; the child will say what is wrong
        log.debug("plugin %s: %s", found.name, fault)
    return digest.hexdigest()[:32]


def _files(module: str) -> Iterator[str]:
    """All files of the package that ``module`` lies in, of an editable install in its checkout.

    Of a namespace that several distributions share, only the part that holds the module.
    """
    words = module.split(".")
    spec = importlib.util.find_spec(words[0])
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        yield _existing(spec.origin or "")
        return
    places = [str(p) for p in spec.submodule_search_locations]
    if spec.origin is None and len(words) > 1:
        places = [os.path.join(p, words[1]) for p in places]
        yield from (p + ".py" for p in places)
    count = 0
    for place in places:
        if not os.path.isdir(place):
            yield _existing(place)
        for parent, folders, names in os.walk(place):
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            for name in names:
                yield os.path.join(parent, name)
                count += 1
                if count >= _MAX_FILES:
                    return


def _existing(path: str) -> str:
    """``path``, or the archive that it lies in."""
    while path and not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path
