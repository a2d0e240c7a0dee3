"""A verification in words: what holds, what does not, and what it proves."""

from __future__ import annotations

from flashmla_hub.conformance.verify.finding import KINDS, Verification

_SHOWN = 20  # findings of one kind


def summary(result: Verification) -> str:
    """Several lines, the verdict first."""
    lines = [_headline(result)]
    if result.cases:
        lines.append(
            f"  {result.recomputed} of {result.cases} cases recomputed, "
            f"{result.values} recorded values compared"
            + (f" (share {result.share:g}, --seed {result.seed})" if result.share < 1 else "")
        )
    lines += [f"  stale: {text}" for text in result.stale]
    lines += [f"  note: {text}" for text in result.notes]
    for kind in dict.fromkeys(finding.kind for finding in result.findings):
        found = [finding for finding in result.findings if finding.kind == kind]
        lines.append(f"\n{kind}: {KINDS[kind]}")
        lines += [f"  {finding.where}: {finding.detail}" for finding in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN} more")
    lines += ["", *_proves(result)]
    return "\n".join(lines)


def _headline(result: Verification) -> str:
    if not result.ok:
        count = len(result.findings)
        return f"NOT VERIFIED: {count} {'thing does' if count == 1 else 'things do'} not hold"
    badge = result.badge or "no level"
    return f"{'STALE, otherwise verified' if result.stale else 'VERIFIED'}: " \
           f"{result.backend}: {badge} on {result.device}"  # fmt: skip


def _proves(result: Verification) -> list[str]:
    if not result.ok:
        return []
    part = "every passed case" if result.share == 1 else "the drawn share of passed cases"
    return [
        f"This shows: the questions are the frozen ones; for {part} that records outputs,",
        "the recorded values are what the contract asks for on the inputs drawn here; level,",
        "counts and badge follow from the outcomes.",
        "It does not show: which device, driver or build computed them, any timing, nor the",
        "outcomes of property and refusal cases. Those are the submitter's word; the file's",
        "digest tells of accidents, only a signature tells who wrote it.",
    ]
