"""badge.svg: level, contract version, device class and extras; never a bare pass."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from flashmla_hub.conformance.quoting import plain

COLOURS = {"": "#8b949e", "L0": "#b08800", "L1": "#2f81c7", "L2": "#1a7f8c", "L3": "#1a7f4b",
           "L4": "#116329"}  # fmt: skip
FAILED = "#b42318"
_MOST = 60  # characters of either side
_CHARACTER = 6.6  # pixels of an 11 px sans-serif character, on the wide side


def badge_svg(label: str, level: str, text: str) -> str:
    """A flat badge ``label | text``, coloured by ``level`` ('' for none reached)."""
    label, text = plain(label, _MOST), plain(text, _MOST)
    left = round(len(label) * _CHARACTER) + 14
    right = round(len(text) * _CHARACTER) + 14
    width, title = left + right, f"{label}: {text}"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" \
aria-label={quoteattr(title)}>
<title>{escape(title)}</title>
<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)">
<rect width="{left}" height="20" fill="#3b434b"/>
<rect x="{left}" width="{right}" height="20" fill="{COLOURS.get(level, COLOURS[""])}"/>
</g>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{left / 2}" y="14">{escape(label)}</text>
<text x="{left + right / 2}" y="14">{escape(text)}</text>
</g>
</svg>
"""
