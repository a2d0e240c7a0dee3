"""Remove one line of an adapter, run the battery on it in a forked child: it must fail.

The source on disk is not touched: a loader in the child hands out the altered text.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds; a mutant that hangs is caught


@dataclass(frozen=True)
class Mutant:
    """``old``, the ``nth`` line of ``module`` that reads so, becomes ``new``, or goes."""

    module: str  # below flashmla_hub.backends
    old: str
    labels: tuple[str, ...]
    nth: int = 0
    new: str = ""

    def __str__(self) -> str:
        change = f" -> {self.new}" if self.new else ""
        return f"{self.module}[{self.nth}]: {self.old}{change}"

    @property
    def path(self) -> Path:
        return ROOT / "backends" / f"{self.module.replace('.', '/')}.py"

    def source(self) -> str:
        """The altered text. Raises ValueError where the line is gone from the file."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        places = [i for i, line in enumerate(lines) if line.strip() == self.old]
        if self.nth >= len(places):
            raise ValueError(f"{self.path.name} has no such line: {self}")
        at = places[self.nth]
        indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        lines[at : at + 1] = [indent + self.new] if self.new else []
        return "\n".join(lines) + "\n"

    def compiles(self) -> bool:
        try:
            compile(self.source(), str(self.path), "exec")
        except SyntaxError:
            return False
        return True


class _Altered(importlib.machinery.SourceFileLoader):
    """Loads a module from other text than its file holds."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text.encode()

    def get_data(self, path: str) -> bytes:
        return self._text if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("not from the bytecode cache")


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self.name = f"flashmla_hub.backends.{mutant.module}"
        self.path, self.text = str(mutant.path), mutant.source()

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        loader = _Altered(name, self.path, self.text)
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def caught(mutant: Mutant, run: Callable[[str, Path], None]) -> bool:
    """Whether ``run(label, folder)`` fails in a child where ``mutant`` is in force."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(mutant, run, Path(folder)))
        return _wait(child) != 0


def _in_child(mutant: Mutant, run: Callable[[str, Path], None], folder: Path) -> int:
    with contextlib.suppress(OSError):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    try:
        with _in_force(mutant):
            for label in mutant.labels:
                run(label, folder / label)
    except BaseException:  # whatever ends the battery, pytest's own outcomes included
        return 1
    return 0


@contextlib.contextmanager
def _in_force(mutant: Mutant) -> Iterator[None]:
    from flashmla_hub import foreign, registry

    sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]
    stale = ("flashmla_hub.backends.", "tests.simulated_ports.backends")
    for name in [m for m in sys.modules if m.startswith(stale)]:
        del sys.modules[name]
    for table in (foreign._loaded, foreign._importers, foreign._hidden):
        table.clear()
    registry.reload()
    yield


def _wait(child: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]
