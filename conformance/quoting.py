"""Text that somebody else chose, made safe to print: ASCII, on one line, of bounded length.

Control characters, terminal escapes, right-to-left marks and letters that look like others are
shown as escapes. Imports nothing.
"""

from __future__ import annotations


def quoted(text: object, most: int = 120) -> str:
    """A value in quotes as Python writes it in ASCII; what is past ``most`` characters is cut."""
    whole = str(text)
    cut = whole[:most]
    return ascii(cut) if len(whole) <= most else f"{cut!a} and {len(whole) - most} more"


def plain(text: str, most: int = 400) -> str:
    """A line without quotes: only what is not printable ASCII is escaped."""
    cut = text[:most]
    safe = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in cut)
    return safe if len(text) <= most else f"{safe}... ({len(text)} characters)"
