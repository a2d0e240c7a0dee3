"""Packages of other people, found by their metadata and imported beside the drop-in.

Several ports install a distribution that is imported as ``flash_mla``, and the hub itself may
answer to that name (the drop-in). A backend therefore says which distribution it means and gets
it from :func:`load`. Finding out what is installed (:func:`distributions`, :func:`source`) reads
metadata and files and imports nothing.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DROP_IN_MARK = "__flashmla_hub_drop_in__"  # set on the drop-in's finder and on its modules
CONTESTED = frozenset({"flash_mla"})  # the name that ports and the drop-in share

_lock = threading.RLock()  # one import at a time; reentrant, as packages import each other
_loaded: dict[tuple[str, Path | None], ModuleType] = {}
_importers: dict[Path | None, _PrivateImporter] = {}
_hidden: dict[str, ModuleType] = {}


def distributions(name: str) -> list[Distribution]:
    """Every installed distribution called ``name``, in the order of ``sys.path``.

    The search is repeated when ``sys.path`` or one of its folders has changed.
    """
    return list(_distributions(name, tuple((path, _changed(path)) for path in sys.path)))


def _changed(path: str) -> int:
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _distributions(name: str, places: tuple[tuple[str, int], ...]) -> tuple[Distribution, ...]:
    found: dict[Path, Distribution] = {}
    for distribution in importlib.metadata.distributions(name=name):
        found.setdefault(root(distribution), distribution)
    return tuple(found.values())


def root(distribution: Distribution) -> Path:
    """The folder that the distribution's packages lie in (of an editable install, its checkout)."""
    return _checkout(distribution) or Path(str(distribution.locate_file(""))).resolve()


def _checkout(distribution: Distribution) -> Path | None:
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not direct.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(direct["url"]).path)).resolve()


def top_level(distribution: Distribution) -> frozenset[str]:
    """The names that the distribution is imported by, from its list of files."""
    names = set((distribution.read_text("top_level.txt") or "").split())
    checkout = _checkout(distribution)
    if checkout is not None:  # its list of files names none of the packages
        names |= {file.parent.name for file in checkout.glob("*/__init__.py")}
        names |= {file.name.partition(".")[0] for file in checkout.glob("*.*")}
    for file in distribution.files or ():
        if file.suffix in (".py", ".so", ".pyd") and ".." not in file.parts:
            names.add(file.parts[0].partition(".")[0])
    return frozenset(n for n in names if n.isidentifier())


def source(distribution: Distribution, path: str) -> str | None:
    """The text of one Python file of the distribution, None where it is absent or compiled."""
    file = root(distribution) / path
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def load(name: str, distribution: Distribution | None = None) -> ModuleType:
    """Import ``name`` (dotted names are fine) as the real package, never as the drop-in.

    A package that goes by a name of its own is imported in the ordinary way, and one that the user
    has imported already is shared. A contested name, and a package that another copy stands before
    on ``sys.path``, is imported privately: its own absolute imports (at import and later) find its
    own modules, and ``sys.modules`` keeps what the user sees. A user who imports that very package
    later gets the modules that are there: a second copy would register its operators twice.

    Raises:
        ImportError: the package is absent or fails to import; the cause is the package's own.
    """
    where = root(distribution) if distribution is not None else None
    key = (name, where)
    module = _loaded.get(key)
    if module is None:
        with _lock:
            module = _loaded.get(key)
            if module is None:
                module = _loaded[key] = _load(name, where, distribution)
    return module


def hide(name: str) -> None:
    """Take ``name`` and its submodules out of ``sys.modules``; :func:`load` still has them.

    The drop-in calls this before it takes a name over, so that a package which the user imported
    first is not imported a second time.
    """
    with _lock:
        for module_name in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            module = sys.modules[module_name]
            if not _is_drop_in(module):
                _hidden[module_name] = sys.modules.pop(module_name)


def _load(name: str, where: Path | None, distribution: Distribution | None) -> ModuleType:
    top = name.partition(".")[0]
    present = _hidden.get(top) or sys.modules.get(top)
    if present is not None and not _is_drop_in(present) and _lies_in(present, where):
        if top not in _hidden:
            return importlib.import_module(name)
        if name in _hidden:
            return _hidden[name]
    elif present is None and top not in CONTESTED:
        spec = _find_public(top) if where is not None else None
        if where is None or (spec is not None and _spec_in(spec, where)):
            return importlib.import_module(name)
    importer = _importers.get(where)
    if importer is None:
        names = top_level(distribution) if distribution is not None else frozenset()
        importer = _importers[where] = _PrivateImporter(where, names | {top})
    importer.names |= {top}
    if top in CONTESTED and _sharer not in sys.meta_path:
        first = next((i for i, f in enumerate(sys.meta_path) if not _is_drop_in(f)), 0)
        sys.meta_path.insert(first, _sharer)
    return importer.get(name)


def _is_drop_in(thing: object) -> bool:
    return bool(getattr(thing, DROP_IN_MARK, False))


def _lies_in(module: ModuleType, where: Path | None) -> bool:
    spec = getattr(module, "__spec__", None)
    return where is None or (spec is not None and _spec_in(spec, where))


def _spec_in(spec: ModuleSpec, where: Path) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(Path(p).resolve().is_relative_to(where) for p in places)


def _find_public(name: str) -> ModuleSpec | None:
    for finder in sys.meta_path:  # editable installs bring finders of their own
        if finder is not _sharer and not _is_drop_in(finder):
            spec = finder.find_spec(name, None)
            if spec is not None:
                return spec
    return None


class _PrivateImporter:
    """Imports the packages of one distribution into a table of its own.

    Each module gets builtins whose ``__import__`` looks into the table first; Python takes
    ``__import__`` from a function's own builtins, so imports inside functions that run later
    find the table too.
    """

    def __init__(self, where: Path | None, names: frozenset[str]) -> None:
        self.where = where
        self.names = names
        self.modules: dict[str, ModuleType] = {}

    def get(self, name: str) -> ModuleType:
        """The private module ``name``, imported with its parents on first use."""
        with _lock:
            module = self.modules.get(name)
            if module is not None:
                return module
            parent_name, _, child = name.rpartition(".")
            parent = self.get(parent_name) if parent_name else None
            module = self.modules.get(name)  # the parent may have imported it
            if module is None:
                module = self._import(name, parent)
                if parent is not None:
                    setattr(parent, child, module)
            return module

    def _import(self, name: str, parent: ModuleType | None) -> ModuleType:
        spec = self._find(name, parent)
        if spec is None or spec.loader is None:
            place = f" in {self.where}" if self.where else ""
            raise ModuleNotFoundError(f"No module named {name!r}{place}", name=name)
        before = sys.modules.get(name)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.import_}
        self.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del self.modules[name]
            raise
        finally:
            # extension modules with single-phase initialisation enter sys.modules themselves
            if sys.modules.get(name) is not before:
                sys.modules.pop(name, None)
                if before is not None:
                    sys.modules[name] = before
        return module

    def _find(self, name: str, parent: ModuleType | None) -> ModuleSpec | None:
        if parent is not None:
            return PathFinder.find_spec(name, list(getattr(parent, "__path__", ())))
        if self.where is not None:
            return PathFinder.find_spec(name, [str(self.where)])
        return _find_public(name)

    def _owns(self, name: str) -> bool:
        return name.partition(".")[0] in self.names

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` for the private modules."""
        absolute = name
        if level:
            package = (globals or {}).get("__package__") or ""
            absolute = importlib.util.resolve_name("." * level + name, package)
        if not self._owns(absolute):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        try:
            leaf = self.get(absolute)
        except ModuleNotFoundError as missing:
            # a name the distribution's metadata lists but another one on sys.path provides
            top = absolute.partition(".")[0]
            if level or missing.name != top or top in self.modules:
                raise
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if not fromlist:
            return leaf if level else self.modules[absolute.partition(".")[0]]
        wanted = list(getattr(leaf, "__all__", ())) if "*" in fromlist else fromlist
        for item in wanted:
            if not hasattr(leaf, item) and hasattr(leaf, "__path__"):
                try:
                    self.get(f"{absolute}.{item}")
                except ModuleNotFoundError as missing:
                    if missing.name != f"{absolute}.{item}":
                        raise
        return leaf


class _Sharer:
    """A finder, and the loader it names, that hands the user the modules imported privately.

    It answers where ordinary finders would find the same file, and for submodules of what it
    handed out; a name that the drop-in answers to never reaches it.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top, dot, _ = name.partition(".")
        if top not in CONTESTED:
            return None
        with _lock:  # a module that is being imported privately is not handed out half made
            for importer in _importers.values():
                module = importer.modules.get(name)
                if module is None:
                    continue
                if dot:
                    ours = sys.modules.get(top) is importer.modules.get(top)
                else:
                    public = _find_public(name)
                    ours = public is not None and public.origin == _origin(module)
                if ours:
                    package = hasattr(module, "__path__")
                    return ModuleSpec(
                        name, _Handed(module), origin=_origin(module), is_package=package
                    )
        return None


def _origin(module: ModuleType) -> str | None:
    return getattr(module.__spec__, "origin", None)


class _Handed(Loader):
    """The loader of a module that exists."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """It ran when it was imported privately."""


_sharer = _Sharer()
