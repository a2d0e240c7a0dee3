"""Evidence files as one page: backend x device x family x level, and what failed, with its clause.

Every file is verified; what it says of itself stands on the page only if nothing in it contradicts
that, and names are those it asserts.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flashmla_hub.conformance import levels
from flashmla_hub.conformance.quoting import plain
from flashmla_hub.conformance.report import grouping, schema
from flashmla_hub.conformance.verify import Unreadable, Verification, envelope, read, verify

MOST_FILES = 1000
_CELL = 80  # characters
_FAILURES = 12  # causes shown of one file
STATES = {
    "verified": "verified",
    "stale": "verified, stale",
    "older": "of an older contract: read, not recomputed",
    "refused": "NOT VERIFIED",
}


@dataclass
class Entry:
    """One evidence file; ``evidence`` is None where it could not be read."""

    file: str
    state: str
    evidence: schema.Evidence | None = None
    why: str = ""  # the first thing that does not hold
    failures: list[grouping.Finding] = field(default_factory=list)

    @property
    def families(self) -> dict[str, str]:
        """Level by family; a file of contract 1 has one ladder for all."""
        if self.evidence is None:
            return {}
        return levels.by_family(self.evidence.verdict)

    @property
    def device(self) -> str:
        if self.evidence is None:
            return ""
        device = self.evidence.device
        kind = " ".join(filter(None, (device.vendor, device.arch)))
        return f"{device.name} ({kind})" if device.name else kind

    @property
    def date(self) -> str:
        return self.evidence.run.ended[:10] if self.evidence else ""


def entries(folder: Path, share: float = 1.0) -> list[Entry]:
    """One for each ``*.json`` under ``folder``, by backend and device; ``share`` as of verify."""
    found = [_entry(path, folder, share) for path in sorted(folder.rglob("*.json"))[:MOST_FILES]]
    return sorted(found, key=_order)


def _entry(path: Path, folder: Path, share: float) -> Entry:
    name = path.relative_to(folder).as_posix()
    try:
        text = read(path)
    except Unreadable as error:
        return Entry(name, "refused", why=str(error))
    result = verify(text, share)
    _, statement = envelope.parse(text, Verification())
    evidence = statement.predicate.flashmla_hub if statement else None
    if result.state == "refused":
        return Entry(name, "refused", evidence, why=str(result.findings[0]))
    assert evidence is not None  # nothing without it is anything but refused
    return Entry(name, result.state, evidence, failures=grouping.findings(evidence.results))


def _order(entry: Entry) -> tuple[str, str, str]:
    return (entry.evidence.backend.name if entry.evidence else "~", entry.device, entry.file)


def verified_on(folder: Path) -> dict[str, tuple[str, ...]]:
    """By backend, what the evidence files of ``folder`` say, newest first: for a table of backends.

    Nothing is recomputed here; the files are those that the board was made of.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.json")):
        _, statement = envelope.parse(read(path), Verification())
        if statement is None:
            continue
        evidence = statement.predicate.flashmla_hub
        badge = plain(grouping.short_badge(evidence.verdict.badge)) or "no level"
        name = plain(evidence.device.name or evidence.device.vendor)
        failed = sum(result.outcome.bad for result in evidence.results)
        wrong = f", {failed} cases failed" if failed else ""
        date = evidence.run.ended[:10]
        text = f"{name}: {badge}{wrong}, {plain(date)}, {path.name}"
        found.setdefault(evidence.backend.name, []).append((date, text))
    return {
        backend: tuple(text for _, text in sorted(texts, reverse=True))
        for backend, texts in found.items()
    }


Row = tuple[str, ...]
HEAD = ("backend", "device", "contract", "level", "families", "cases", "date", "state")
TITLE = "Verdicts"
LEAD = (
    "What the conformance kit says of each backend, from the evidence files of one folder. "
    "Backend, device and date are what a file asserts; its level follows from what was recomputed. "
    "Stale: the backend or the kit has changed since."
)


def rows(found: list[Entry]) -> Iterator[tuple[str, ...]]:
    """The cells of HEAD for each entry."""
    for entry in found:
        if entry.evidence is None:
            yield (entry.file, "", "", "", "", "", "", f"{STATES['refused']}: {entry.why}")
            continue
        evidence, backend = entry.evidence, entry.evidence.backend
        good = sum(result.outcome.counts for result in evidence.results)
        bad = sum(result.outcome.bad for result in evidence.results)
        cases = f"{good} right" + (f", {bad} failed" if bad else "")
        families = ", ".join(f"{name} {level}" for name, level in entry.families.items())
        state = STATES[entry.state] + (f": {entry.why}" if entry.why else "")
        level = evidence.verdict.level if entry.state != "refused" else ""
        version = str(evidence.contract_version)
        yield (f"{backend.name} {backend.version}", entry.device, version, level or "none",
               families if entry.state != "refused" else "", cases, entry.date, state)  # fmt: skip


def failures(found: list[Entry]) -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """(heading, (clause, cause, how many, first case and what it says)) for what went wrong."""
    for entry in found:
        if not entry.failures or entry.evidence is None:
            continue
        backend = entry.evidence.backend
        lines = [
            (", ".join(f.clauses), f.title, str(f.count), f"{f.first.id}: {f.first.reason}")
            for f in entry.failures[:_FAILURES]
        ]
        if len(entry.failures) > _FAILURES:
            lines.append(("", f"{len(entry.failures) - _FAILURES} more causes", "", entry.file))
        yield f"{backend.name} {backend.version} on {entry.device}", lines


FAILURE_HEAD = ("clause", "cause", "cases", "first")


def markdown(found: list[Entry]) -> str:
    """The page in Markdown."""
    lines = [f"# {TITLE}", "", LEAD, "", *_table(HEAD, rows(found))]
    wrong = list(failures(found))
    if wrong:
        lines += ["", "## What failed"]
    for heading, causes in wrong:
        lines += ["", f"### {_md(heading)}", "", *_table(FAILURE_HEAD, causes)]
    return "\n".join(lines) + "\n"


def _table(head: Row, body: Iterable[Row]) -> list[str]:
    lines = [head, ("---",) * len(head), *(tuple(map(_md, row)) for row in body)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _md(text: str) -> str:
    """Text of somebody else's choice in a cell: no markup, no links, no cell of its own."""
    safe = plain(text, 4 * _CELL)
    return "".join(f"\\{c}" if c in "\\`*[]<>|" else c for c in safe)


def page(found: list[Entry], style: str) -> str:
    """The page in HTML, self-contained."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title><style>{style}</style></head><body>",
        f'<header><div><h1>{TITLE}</h1><p class="lead">{LEAD}</p></div></header><main>',
        _html_table(HEAD, rows(found)),
    ]
    wrong = list(failures(found))
    if wrong:
        parts.append("<h2>What failed</h2>")
    for heading, causes in wrong:
        parts += [f"<h3>{_cell(heading)}</h3>", _html_table(FAILURE_HEAD, causes)]
    return "\n".join([*parts, "</main></body></html>", ""])


def _html_table(head: Row, body: Iterable[Row]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in body)
    return (f'<div class="wide"><table class="board"><thead><tr>{top}</tr></thead><tbody>'
            + "\n".join(lines) + "</tbody></table></div>")  # fmt: skip


def _cell(text: str) -> str:
    return html.escape(plain(text, 4 * _CELL))


def write(found: list[Entry], folder: Path) -> Mapping[str, Path]:
    """board.md and board.html in ``folder``; their paths by kind."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    texts = {"board.md": markdown(found), "board.html": page(found, style)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts}
