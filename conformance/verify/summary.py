"""A verification in words: what holds, what does not, and what it proves. Everything that comes
from the file is quoted, in ASCII."""

from __future__ import annotations

from flashmla_hub.conformance.quoting import plain
from flashmla_hub.conformance.verify.finding import KINDS, Verification

_SHOWN = 20  # findings of one kind


def summary(result: Verification) -> str:
    """Several lines, the verdict first."""
    lines = [_headline(result)]
    if result.cases and not result.older:
        lines.append(
            f"  recomputed from {result.inputs}: {result.recomputed} of {result.cases} cases, "
            f"{result.values} recorded values"
        )
    if result.share < 1 and result.passed:
        missed = 1 - max(1, round(result.share * result.passed)) / result.passed
        lines.append(
            f"  share {result.share:g}, --seed {result.seed}: one wrong case among them is missed "
            f"{100 * missed:.0f} times in 100; --share 1 misses none"
        )
    if result.signer:
        lines.append(f"  signed by {result.signer!a}, whom the file of signers lists")
    lines += _some("stale", result.stale)
    lines += _some("note", result.notes)
    if result.state != "refused":
        lines += [f"  asserted: {text}" for text in result.asserted]
    for kind in dict.fromkeys(finding.kind for finding in result.findings):
        found = [finding for finding in result.findings if finding.kind == kind]
        lines.append(f"\n{kind}: {KINDS[kind]}")
        lines += [f"  {plain(f.where)}: {plain(f.detail)}" for f in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN} more")
    lines += ["", *_proves(result)] if result.state != "refused" else []
    return "\n".join(lines)


def _some(word: str, texts: list[str]) -> list[str]:
    lines = [f"  {word}: {plain(text)}" for text in texts[:_SHOWN]]
    if len(texts) > _SHOWN:
        lines.append(f"  {word}: and {len(texts) - _SHOWN} more")
    return lines


def _headline(result: Verification) -> str:
    if result.state == "refused":
        count = len(result.findings)
        return f"NOT VERIFIED: {count} {'thing does' if count == 1 else 'things do'} not hold"
    word = {
        "verified": "VERIFIED",
        "stale": "STALE, otherwise verified",
        "older": f"CONTRACT VERSION {result.contract_version}, read and not recomputed",
    }[result.state]
    return f"{word}: {result.backend}: {result.badge or 'no level'} on {result.device}"


def _proves(result: Verification) -> list[str]:
    if result.older:
        return [
            "The file is whole and answers what that version of the contract asked. This kit",
            "judges a later one; the kit that made the file recomputes its outputs.",
        ]
    part = "every passed case" if result.share == 1 else "the drawn share of passed cases"
    return [
        "This shows: the questions are the kit's;",
        f"for {part} that records outputs, the recorded values are",
        "what the contract asks for on the inputs drawn here; level, counts and badge follow from",
        "the outcomes, and the outcomes do not contradict the claims.",
        "It does not show what is called asserted above: which device, driver or build computed",
        "the values, nor any timing. The digest tells of accidents, a signature who stands behind",
        "the file, a challenge that the values were computed after it was chosen.",
    ]
