"""Level, badge, totals and in-toto lists, worked out from the outcomes."""

from __future__ import annotations

from collections.abc import Mapping

from flashmla_hub.conformance import levels
from flashmla_hub.conformance.model import Case, RunMeta
from flashmla_hub.conformance.quoting import quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.evidence import mustpass_lists, test_lists, totals
from flashmla_hub.conformance.verify.finding import Verification


def check(statement: schema.Statement, known: Mapping[str, Case], result: Verification) -> None:
    """``known``: the kit's case of every result that answers one."""
    check_counts(statement, result)
    _levels(statement.predicate.flashmla_hub, known, result)


def check_counts(statement: schema.Statement, result: Verification) -> None:
    """What follows from the outcomes without the questions: totals, lists, if a level may be."""
    evidence = statement.predicate.flashmla_hub
    counted = totals(evidence.results)
    if dict(evidence.totals) != counted:
        result.add("totals", "totals", f"{dict(evidence.totals)}, expected {counted}")
    _test_lists(statement, result)
    lists = mustpass_lists(evidence.contract_version)
    if evidence.mustpass != lists:
        _lists_differ(evidence.mustpass, lists, result)
    kit = schema.Resource(name="conformance kit", digest={"sha256": evidence.kit.source_sha256})
    named = [schema.Resource(name=f"mustpass/{item.file}", digest={"sha256": item.sha256})
             for item in evidence.mustpass]  # fmt: skip
    if statement.predicate.configuration != (*named, kit):
        result.add("mustpass", "configuration", "does not name the lists and the kit of the body")
    if (evidence.run.selected or evidence.run.seed) and evidence.verdict.level:
        result.add(
            "other_inputs",
            "verdict.level",
            f"{evidence.verdict.level} with -k {evidence.run.selected!r} and seed "
            f"{evidence.run.seed}",
        )


def _lists_differ(
    given: tuple[schema.MustPass, ...], own: tuple[schema.MustPass, ...], result: Verification
) -> None:
    """One finding for each field of each list that differs."""
    if len(given) != len(own):
        result.add("mustpass", "mustpass", f"{len(given)} lists, expected {len(own)}")
    for got, want in zip(given, own, strict=False):
        for name, value in vars(want).items():
            if getattr(got, name) != value:
                said = quoted(getattr(got, name))
                result.add("mustpass", f"{want.file} {name}", f"{said}, expected {quoted(value)}")


def _test_lists(statement: schema.Statement, result: Verification) -> None:
    predicate = statement.predicate
    expected = test_lists(predicate.flashmla_hub.results, predicate.flashmla_hub.verdict.level)
    for name, value in expected.items():
        if getattr(predicate, name) != value:
            wrong = set(getattr(predicate, name)) ^ set(value)
            shown = getattr(predicate, name) if name == "result" else sorted(wrong)[:3]
            result.add("test_lists", name, f"differs from the outcomes: {shown}")


def _levels(
    evidence: schema.Evidence, known: Mapping[str, Case], result: Verification
) -> None:  # fmt: skip
    answered = [got for got in evidence.results if got.id in known]
    meta = RunMeta(
        contract_version=evidence.contract_version,
        kit_version=evidence.kit.version,
        generator_version=evidence.kit.generator_version,
        backend=evidence.backend.name,
        level=evidence.run.level,
        selected=evidence.run.selected,
        seed=evidence.run.seed,
        challenge=evidence.run.challenge,
        device=vars(evidence.device),
        claims=evidence.claims,
    )
    run = levels.finish(meta, [known[got.id] for got in answered], answered)
    verdict = evidence.verdict
    if verdict.level != run.level:
        why = next((item.why_not for item in run.levels if not item.reached), "")
        given, counted = verdict.level or "none", run.level or "none"
        result.add("level", "verdict.level", f"{given}, the cases give {counted} ({why})")
    for got, want in zip(verdict.levels, run.levels, strict=False):
        if got != want:
            result.add("level", f"verdict.levels {want.level}", f"{got}, expected {want}")
    if len(verdict.levels) != len(run.levels):
        result.add("level", "verdict.levels", f"{len(verdict.levels)}, not {len(run.levels)}")
    if verdict.families != run.families:
        result.add("level", "verdict.families", "the families' levels do not follow from the cases")
    if (verdict.badge, verdict.extras) != (run.badge, run.extras):
        result.add(
            "badge",
            "verdict.badge",
            f"{verdict.badge!r} {verdict.extras}, expected {run.badge!r} {run.extras}",
        )
