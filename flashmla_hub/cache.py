"""The cache folder: where compiled kernels, verdicts on plugins and tuning tables are kept.

It may be missing (a user without a home), unwritable, or not to be trusted: others can write to
it, or it belongs to somebody else. Whoever can write there would run code in this process, so
nothing is loaded from such a place, which is said once; the hub works without.
"""

from __future__ import annotations

from pathlib import Path

from flashmla_hub import config, files, log

_told: set[str] = set()


def folder(name: str) -> Path | None:
    """The part of the cache called ``name``, made or not; None where there is no cache to use."""
    root = config.current().cache_dir
    reason = problem(root / name if root is not None else None)
    if root is None or reason:
        if reason not in _told:
            _told.add(reason)
            log.warning("the cache is not used: %s", reason)
        return None
    return root / name


def problem(place: Path | None = None) -> str:
    """Why ``place`` inside the cache (None: the cache itself) is not used; '' when it is."""
    root = config.current().cache_dir
    if root is None:
        return "this user has no home folder; set FLASHMLA_HUB_CACHE_DIR"
    return files.unsafe(root) or (files.unsafe(place) if place is not None else "")
