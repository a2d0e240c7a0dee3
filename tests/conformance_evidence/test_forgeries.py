"""Evidence made by hand, sealed as the kit's own writer seals it: every class is refused with a
reason, or what it claims is shown as an assertion, quoted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flashmla_hub.conformance import levels
from flashmla_hub.conformance.model import CaseResult, Outcome, RunResult, canonical_json
from flashmla_hub.conformance.report.digests import evidence_digest
from flashmla_hub.conformance.report.evidence import build_statement
from flashmla_hub.conformance.verify import summary, verify

Evidence = dict[str, Any]
CUDA = {
    "vendor": "nvidia", "arch": "sm_90", "type": "cuda", "name": "NVIDIA H200",
    "multiprocessors": 132, "shared_memory": 232448, "rule": "torch.version.cuda",
}  # fmt: skip
CASE = "smoke/one-call"
CLAIMED = "core/h64-peaked"
OF_THE_WHOLE = {"device", "simulated", "subject", "run", "schema"}  # two cases show these


def forged(run: RunResult, **changes: Any) -> RunResult:
    """The run with other facts, its levels and badge following from them."""
    meta = replace(run.meta, **changes)
    return levels.finish(meta, run.cases, run.results)


def device(run: RunResult, **changes: Any) -> RunResult:
    return forged(run, device={**run.meta.device, **changes})


def outcome(run: RunResult, case: str, **changes: Any) -> RunResult:
    """The run with another result of the cases whose id begins with ``case``."""
    results = tuple(
        replace(r, **changes) if r.id.startswith(case) else r for r in run.results
    )  # fmt: skip
    assert results != run.results
    return levels.finish(run.meta, run.cases, results)


def claims(run: RunResult, **changes: Any) -> RunResult:
    return forged(run, claims=tuple({**claim, **changes} for claim in run.meta.claims))


def emptied(result: CaseResult, **changes: Any) -> CaseResult:
    return replace(result, metrics=None, samples=(), input_digest="", **changes)


def unrecorded(run: RunResult, case: str) -> RunResult:
    """Free text in place of a measured pass."""
    results = tuple(emptied(r) if r.id.startswith(case) else r for r in run.results)
    return levels.finish(run.meta, run.cases, results)


def unclaimed(run: RunResult, case: str) -> RunResult:
    results = tuple(
        emptied(r, outcome=Outcome.NOT_CLAIMED, reason="not for us") if r.id == case else r
        for r in run.results
    )
    return levels.finish(run.meta, run.cases, results)


# name -> (kind that must be found, the run that the forger says there was)
CONTRADICTIONS: dict[str, tuple[str, Callable[[RunResult], RunResult]]] = {
    "the type of a host on an accelerator": (
        "device", lambda run: device(run, **{**CUDA, "type": "cpu"})),
    "an accelerator's name on a host": ("device", lambda run: device(run, name="NVIDIA H200")),
    "a host's name on an accelerator": (
        "device", lambda run: device(run, **{**CUDA, "name": "x86_64 CPU"})),
    "another machine's arch": ("device", lambda run: device(run, arch="sm_90")),
    "multiprocessors of a host": ("device", lambda run: device(run, multiprocessors=132)),
    "memory below nothing": ("device", lambda run: device(run, memory=-1)),
    "badge words in the type": (
        "device", lambda run: device(run, **{**CUDA, "type": "cuda +fp32"})),
    "a line break in the type": ("device", lambda run: device(run, **{**CUDA, "type": "cuda\nL4"})),
    "look-alike letters in the vendor": (
        "device", lambda run: device(run, **{**CUDA, "vendor": "nvidi\u0430"})),
    "no vendor": ("device", lambda run: device(run, **{**CUDA, "vendor": ""})),
    "no rule": ("device", lambda run: device(run, rule="")),
    "a rule of the host on an accelerator's behalf": (
        "device", lambda run: device(run, rule="torch.version.cuda")),
    "confidence of one's own": ("device", lambda run: device(run, confidence="certified")),
    "an override that calls itself real": (
        "simulated", lambda run: device(run, **{**CUDA, "rule": "FLASHMLA_HUB_DEVICE"})),
    "a simulated device": ("simulated", lambda run: device(run, simulated=True)),
    "a headline for a name": (
        "subject", lambda run: forged(run, backend="hopper 1: L4 v1 cuda on NVIDIA H200")),
    "a name with a look-alike": ("subject", lambda run: forged(run, backend="h\u043epper")),
    "a name right to left": ("subject", lambda run: forged(run, backend="\u202ereppoh")),
    "no name": ("subject", lambda run: forged(run, backend="")),
    "ended before it started": ("run", lambda run: forged(run, ended="2020-01-01T00:00:00+00:00")),
    "ends in the future": ("run", lambda run: forged(run, ended="2999-01-01T00:00:00+00:00")),
    "no date": ("run", lambda run: forged(run, started="")),
    "a date of no zone": ("run", lambda run: forged(run, started=run.meta.started[:19])),
    "a word for a date": ("run", lambda run: forged(run, started="yesterday")),
    "seconds below nothing": ("run", lambda run: outcome(run, CASE, duration=-1.0)),
    "endless seconds": ("run", lambda run: outcome(run, CASE, duration=float("inf"))),
    "no number of seconds": ("run", lambda run: outcome(run, CASE, duration=float("nan"))),
    "longer than the run": ("run", lambda run: outcome(run, CASE, duration=9e4)),
    "a seed below 0": ("run", lambda run: forged(run, seed=-1)),
    "a seed beside a challenge": ("run", lambda run: forged(run, seed=7, challenge="mine")),
    "escapes in a challenge": ("run", lambda run: forged(run, challenge="\x1b[2J")),
    "a level of one's own": ("run", lambda run: replace(run, meta=replace(run.meta, level="L9"))),
    "options of another level": (
        "run", lambda run: forged(run, argv=("x", "conformance", "--level", "L3"))),
    "options of another seed": (
        "run", lambda run: forged(run, argv=("x", "conformance", "--seed=7"))),
    "options of another backend": (
        "run", lambda run: forged(run, argv=("x", "conformance", "--backend", "other"))),
    "the frozen results under a seed": ("case_digest", lambda run: forged(run, seed=7)),
    "the frozen results under a challenge": (
        "case_digest", lambda run: forged(run, challenge="words of today")),
    "no claims": ("claims", lambda run: forged(run, claims=())),
    "fewer claims than results": ("claims", lambda run: claims(run, h_q="1..16")),
    "claims for another dtype": ("claims", lambda run: claims(run, dtypes=["float16"])),
    "claims for another device": ("claims", lambda run: claims(run, devices=["amd (gfx942)"])),
    "claims that are no set": ("claims", lambda run: claims(run, h_q="all of them")),
    "claims with a step of 0": ("claims", lambda run: claims(run, h_q=">= 1, multiples of 0")),
    "claims of a bare function": ("claims", lambda run: forged(run, backend="module:function")),
    "a failure called not claimed": ("claims", lambda run: unclaimed(run, "core/h16-peaked")),
    "a rewrite where none was needed": (
        "claims", lambda run: outcome(run, CLAIMED, rewrites=("pad_heads",))),
    "a rewrite nobody knows": ("claims", lambda run: outcome(run, CLAIMED, rewrites=("magic",))),
    "a refusal of what is claimed": (
        "claims", lambda run: outcome(run, "claims/page-16", outcome=Outcome.REFUSED_OK)),
    "values in free text": ("missing_samples", lambda run: unrecorded(run, CLAIMED)),
    "properties in free text": ("missing_samples", lambda run: unrecorded(run, "metadata/")),
    "metrics left out": ("metrics", lambda run: outcome(run, "metadata/", metrics=None)),
    "a refusal where values are asked": (
        "outcome", lambda run: outcome(run, CLAIMED, outcome=Outcome.REFUSED_OK)),
    "a pass where a refusal is asked": (
        "outcome", lambda run: outcome(run, "invalid/", outcome=Outcome.PASSED)),
    "out of reach for no reason": (
        "outcome", lambda run: outcome(run, CLAIMED, outcome=Outcome.NOT_REACHED)),
}  # fmt: skip

# name -> (path below predicate.flashmla_hub, value, kind that must be found)
EDITS: dict[str, tuple[str, Any, str]] = {
    "an empty device": ("device", {}, "schema"),
    "simulated removed": ("device.simulated", None, "schema"),
    "simulated, an empty text": ("device.simulated", "", "schema"),
    "simulated, a number": ("device.simulated", 0, "schema"),
    "a fact more of the device": ("device.certified", True, "schema"),
    "a boolean for a number": ("device.memory", True, "schema"),
    "another kit's digest in the body alone": ("kit.source_sha256", "0" * 64, "mustpass"),
    "a list's level": ("mustpass.0.level", "L3", "mustpass"),
    "a list's count": ("mustpass.1.count", 1, "mustpass"),
    "no lists": ("mustpass", [], "mustpass"),
    "a file more in the build": (
        "backend.files", [{"path": "/etc/passwd", "sha256": "0" * 64, "bytes": 1}], "subject"),
    "a schema of the future": ("schema_version", "3", "schema"),
    "a contract of the future": ("contract_version", 99, "contract_version"),
    "a contract before the first": ("contract_version", 0, "contract_version"),
}  # fmt: skip

# name -> (the run, words of the assertion that must be shown)
ASSERTIONS: dict[str, tuple[Callable[[RunResult], RunResult], str]] = {
    "another backend's name": (lambda run: forged(run, backend="acme"), "backend 'acme'"),
    "another version": (
        lambda run: forged(run, backend_version="9\x1b[31m"), r"version '9\x1b[31m'"),
    "another device class": (lambda run: device(
        run, vendor="huawei", type="npu", arch="", name="Ascend", rule="it is one"),
        "ran on 'huawei', torch type 'npu', named 'Ascend'"),
    "another device's name": (
        lambda run: device(run, **{**CUDA, "name": "H200\u202e\u0430"}),
        r"named 'H200\u202e\u0430'"),
    "no file of the build": (lambda run: forged(run, files=()), "no file of its build is named"),
    "cases that leave no record": (lambda run: run, "passed without recorded outputs"),
    "refusals": (lambda run: run, "refused rightly"),
}  # fmt: skip


def sealed(statement: Evidence) -> str:
    statement["predicate"]["flashmla_hub"]["digest"] = evidence_digest(statement)
    return canonical_json(statement)


def test_the_honest_run_has_no_contradiction(honest_run: RunResult) -> None:
    result = verify(canonical_json(build_statement(honest_run)), share=0.05)
    assert result.state == "verified", summary(result)


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(
    name: str, honest_run: RunResult, honest_smoke: RunResult
) -> None:
    kind, forge = CONTRADICTIONS[name]
    run = forge(honest_smoke if kind in OF_THE_WHOLE else honest_run)
    result = verify(canonical_json(build_statement(run)), share=0.01, seed=0)
    text = summary(result)
    assert kind in {finding.kind for finding in result.findings}, text
    assert text.startswith("NOT VERIFIED")
    assert text.replace("\n", "").isascii()
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused(name: str, honest: Evidence) -> None:
    path, value, kind = EDITS[name]
    forged = honest
    *parents, last = path.split(".")
    place: Any = forged["predicate"]["flashmla_hub"]
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    result = verify(sealed(forged), share=0.01, seed=0)
    assert kind in {finding.kind for finding in result.findings}, summary(result)


@pytest.mark.parametrize("name", ASSERTIONS)
def test_what_nobody_can_recompute_is_shown_as_an_assertion(
    name: str, honest_run: RunResult
) -> None:
    forge, words = ASSERTIONS[name]
    result = verify(canonical_json(build_statement(forge(honest_run))), share=0.01, seed=0)
    assert result.ok, summary(result)
    lines = [line for line in summary(result).splitlines() if line.startswith("  asserted: ")]
    assert any(words in line for line in lines), lines
    assert summary(result).replace("\n", "").isprintable()
    assert summary(result).isascii()


def test_a_share_says_what_it_may_miss(honest_run: RunResult) -> None:
    result = verify(canonical_json(build_statement(honest_run)), share=0.1, seed=1)
    assert "missed 90 times in 100; --share 1 misses none" in summary(result)


def test_thirty_and_more_ways() -> None:
    assert len(CONTRADICTIONS) + len(EDITS) + len(ASSERTIONS) >= 70
