"""What nobody recomputes, in words: the submitter's own, quoted, for whoever reads the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flashmla_hub.conformance.model import Case, Outcome
from flashmla_hub.conformance.quoting import plain, quoted
from flashmla_hub.conformance.report import schema


def lines(evidence: schema.Evidence, known: Mapping[str, Case], recomputable: int) -> list[str]:
    """One line each: whose kernel, on what, when, and the cases that leave no record."""
    backend, device, run = evidence.backend, evidence.device, evidence.run
    place = quoted(" ".join(filter(None, (device.vendor, device.arch))))
    found = [
        f"that it was backend {quoted(backend.name)}, version {quoted(backend.version)}: "
        + _build(backend),
        f"that it ran on {place}, torch type {quoted(device.type)}, named {quoted(device.name)}; "
        f"known by: {quoted(device.rule)}",
        f"when: {quoted(run.started)} to {quoted(run.ended)}",
    ]
    counts = Counter(got.outcome for got in evidence.results)
    words = {
        counts[Outcome.PASSED] - recomputable: "passed without recorded outputs",
        counts[Outcome.REFUSED_OK]: "refused rightly",
        counts[Outcome.NOT_CLAIMED]: "not claimed",
    }
    parts = [f"{count} {word}" for count, word in words.items() if count > 0]
    if parts:
        found.append(f"outcomes of cases that leave no outputs: {', '.join(parts)}")
    if evidence.known_failures:
        found.append(f"reasons of {len(evidence.known_failures)} known failures")
    return found


def _build(backend: schema.BackendEvidence) -> str:
    if not backend.files:
        return "no file of its build is named"
    folders = Counter(file.path.rpartition("/")[0] or "." for file in backend.files)
    shown = ", ".join(plain(folder, 60) for folder, _ in folders.most_common(2))
    more = f" and {len(folders) - 2} more folders" if len(folders) > 2 else ""
    return f"{len(backend.files)} files of {shown}{more}"
