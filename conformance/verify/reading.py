"""Reads a file that anybody may have written, bounded in size, depth and numbers."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 32 << 20  # the largest evidence of this kit is a few megabytes
MOST_VALUES = 1_000_000
MOST_DEPTH = 24
MOST_TEXT = 20_000  # characters of one string
MOST_INTEGER = 1 << 63


class Unreadable(ValueError):
    """The file is no evidence; the message is one line."""


def read(path: Path) -> str:
    """The text of a regular file.

    Raises:
        Unreadable: missing, not a regular file, too large, or not UTF-8.
    """
    try:
        # without O_NONBLOCK the open of a pipe waits for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise Unreadable("not a regular file")
            if facts.st_size > MOST_BYTES:
                raise Unreadable(f"{facts.st_size >> 20} MB, expected {MOST_BYTES >> 20} at most")
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Unreadable(error.strerror or "cannot be opened") from None
    except ValueError as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable("no path of this system") from None  # a zero byte in it
    if len(raw) > MOST_BYTES:
        raise Unreadable(f"more than {MOST_BYTES >> 20} MB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None


def parse(text: str) -> Any:
    """JSON as plain values.

    Raises:
        Unreadable: no JSON, a field twice, NaN or Infinity, or past one of the bounds above.
    """
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise Unreadable(f"nested deeper than {MOST_DEPTH}") from None
    except Unreadable:
        raise
    except ValueError as error:  # JSONDecodeError, and integers past Python's own limit
        raise Unreadable(f"no JSON: {str(error)[:100]}") from None
    _bounded(data)
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Unreadable(f"the field {name[:80]!r} occurs twice")
            seen.add(name)
    return result


def _no_constant(name: str) -> Any:
    raise Unreadable(f"{name} is no JSON; non-finite numbers are the strings inf, -inf and nan")


def _bounded(data: Any) -> None:
    """Level by level, without recursion: everything after this may recurse and print."""
    level, count = [data], 0
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            else:
                _plain(value)
        count += len(below)
        if count > MOST_VALUES:
            raise Unreadable(f"more than {MOST_VALUES} values")
        if not below:
            return
        level = below
    raise Unreadable(f"nested deeper than {MOST_DEPTH}")


def _plain(value: Any) -> None:
    if isinstance(value, str):
        if len(value) > MOST_TEXT:
            raise Unreadable(f"a text of {len(value)} characters, expected {MOST_TEXT} at most")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise Unreadable("a lone surrogate, which is no text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Unreadable("a number past the range of float64")
    elif isinstance(value, int) and not -MOST_INTEGER <= value < MOST_INTEGER:
        raise Unreadable("an integer past 64 bits")
