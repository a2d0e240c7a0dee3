"""SHA-256 digests of the kit, of a backend's files and of an evidence file. Standard library."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flashmla_hub
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.report.schema import BuildFile

_KIT = Path(__file__).resolve().parent.parent
_SUFFIXES = (".py", ".txt", ".j2", ".css", ".js")
_CHECKOUT = ("backends", "conformance", "csrc")  # packages beside flashmla_hub/ in a checkout
_LONGEST_NAME = 300


def sha256_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kit_digest() -> str:
    """Over the lines ``<sha256>  <path>`` of the kit's sources and frozen lists, sorted."""
    lines = (
        f"{sha256_file(path)}  {path.relative_to(_KIT).as_posix()}"
        for path in _KIT.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    )
    return _lines_digest(sorted(lines))


def build_files(paths: Iterable[str]) -> tuple[BuildFile, ...]:
    """The digests of ``paths``, named below their import root, sorted by that name."""
    found = (
        BuildFile(path=portable_name(path), sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in map(Path, paths)
    )
    return tuple(sorted(found, key=lambda f: f.path))


def build_digest(files: Iterable[BuildFile]) -> str:
    return _lines_digest(sorted(f"{f.sha256}  {f.path}" for f in files))


def portable_name(path: Path) -> str:
    """``path`` below its import root, its bare name outside of all; never this machine's paths."""
    path = path.resolve()
    roots = [(Path(root).resolve(), "flashmla_hub/") for root in flashmla_hub.__path__]
    roots += [(Path(root).resolve(), "") for root in sys.path if root]
    inside = [(root, prefix) for root, prefix in roots if path.is_relative_to(root)]
    if not inside:
        return path.name
    root, prefix = max(inside, key=lambda pair: len(pair[0].parts))  # the first of equals
    return prefix + path.relative_to(root).as_posix()


def locate(name: str) -> Path | None:
    """The file on this machine that ``portable_name`` called ``name``, None if there is none.

    The name comes from whoever wrote the evidence: nothing outside the installed packages is
    looked at, whatever it says and wherever links lead.
    """
    package, _, rest = name.partition("/")
    parts = rest.split("/")
    odd = len(name) > _LONGEST_NAME or not name.isascii() or not name.isprintable()
    if odd or not package.isidentifier() or any(p.startswith(".") or not p for p in parts):
        return None
    for root in _package_folders(package, parts[0]):
        try:
            path = root.joinpath(*parts).resolve()
            if path.is_relative_to(root.resolve()) and path.is_file():
                return path
        except OSError:
            continue
    return None


@functools.cache
def _package_folders(package: str, inside: str) -> list[Path]:
    """Where an installed package's files lie; nothing is imported for it."""
    if package == "flashmla_hub":
        own, *checkout = map(Path, flashmla_hub.__path__)
        return [own, *(checkout if inside in _CHECKOUT else ())]
    if package not in _installed():
        return []
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return []
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []


@functools.cache
def _installed() -> frozenset[str]:
    """The top-level packages that distributions on this machine bring."""
    return frozenset(importlib.metadata.packages_distributions())


def evidence_digest(statement: dict[str, Any]) -> str:
    """Of a statement's canonical JSON with the field that holds the digest empty."""
    predicate = statement["predicate"]
    body = {**predicate["flashmla_hub"], "digest": ""}
    blank = {**statement, "predicate": {**predicate, "flashmla_hub": body}}
    return hashlib.sha256(canonical_json(blank).encode()).hexdigest()


def _lines_digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
