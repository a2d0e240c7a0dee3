"""From a run to its evidence: an in-toto Statement in canonical JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashmla_hub.conformance.model import (
    LEVELS,
    CaseResult,
    Outcome,
    RunResult,
    to_json,
)
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.digests import (
    build_digest,
    build_files,
    evidence_digest,
    kit_digest,
    sha256_file,
)

_DEVICE = tuple(schema.Device.__dataclass_fields__)  # others that a DeviceInfo may get stay out
MUSTPASS = Path(__file__).resolve().parent.parent / "mustpass"
PACKAGES = ("flashmla-hub", "torch", "triton", "numpy", "pluggy", "cuda-bindings")


def build_statement(run: RunResult) -> dict[str, Any]:
    """The statement of ``run`` as plain JSON values, its digest filled in.

    Raises OSError when a file that the backend says it loaded cannot be read.
    """
    meta = run.meta
    files = build_files(meta.files)
    build = build_digest(files)
    digests = {case.id: case.digest() for case in run.cases}
    lists = mustpass_lists(meta.contract_version)
    evidence = schema.Evidence(
        schema_version=schema.SCHEMA_VERSION,
        contract_version=meta.contract_version,
        kit=schema.KitInfo(
            version=meta.kit_version,
            generator_version=meta.generator_version,
            source_sha256=kit_digest(),
        ),
        mustpass=lists,
        backend=schema.BackendEvidence(
            name=meta.backend, version=meta.backend_version, build_sha256=build, files=files
        ),
        claims=meta.claims,
        device=schema.Device(**{name: meta.device[name] for name in _DEVICE}),
        software=software(),
        run=schema.RunFacts(
            level=meta.level,
            selected=meta.selected,
            seed=meta.seed,
            challenge=meta.challenge,
            isolated=meta.isolated,
            argv=tuple(Path(word).name for word in meta.argv[:1]) + meta.argv[1:],
            started=meta.started,
            ended=meta.ended,
        ),
        verdict=schema.Verdict(
            level=run.level,
            badge=run.badge,
            extras=run.extras,
            levels=run.levels,
            families=run.families,
        ),
        totals=totals(run.results),
        results=tuple(
            schema.CaseEvidence(case_digest=digests[r.id], **vars(r)) for r in run.results
        ),
        known_failures=meta.known_failures,
        stale_known_failures=meta.stale_known_failures,
        fields=schema.Marks(recomputed=schema.RECOMPUTED, asserted=schema.ASSERTED),
        digest="",
    )
    configuration = [
        schema.Resource(name=f"mustpass/{item.file}", digest={"sha256": item.sha256})
        for item in lists
    ]
    configuration.append(
        schema.Resource(name="conformance kit", digest={"sha256": evidence.kit.source_sha256})
    )
    statement: dict[str, Any] = to_json(
        schema.Statement(
            _type=schema.STATEMENT_TYPE,
            subject=(
                schema.Resource(
                    name=f"{meta.backend} {meta.backend_version}".strip(),
                    digest={"sha256": build},
                ),
            ),
            predicateType=schema.PREDICATE_TYPE,
            predicate=schema.Predicate(
                configuration=tuple(configuration),
                flashmla_hub=evidence,
                **test_lists(run.results, run.level),
            ),
        )
    )
    statement["predicate"]["flashmla_hub"]["digest"] = evidence_digest(statement)
    return statement


def test_lists(results: Iterable[CaseResult], level: str) -> dict[str, Any]:
    """in-toto's verdict: FAILED with a bad case or no level, WARNED with known failures."""
    passed, warned, failed = [], [], []
    for result in results:
        if result.outcome.counts:
            passed.append(result.id)
        elif result.outcome.bad:
            failed.append(result.id)
        elif result.outcome is Outcome.KNOWN_FAILURE:
            warned.append(result.id)
    verdict = "FAILED" if failed or not level else ("WARNED" if warned else "PASSED")
    return {
        "result": verdict,
        "passedTests": tuple(passed),
        "warnedTests": tuple(warned),
        "failedTests": tuple(failed),
    }


def totals(results: Iterable[CaseResult]) -> Mapping[str, int]:
    """The number of cases of each outcome that occurs."""
    count = Counter(result.outcome.value for result in results)
    return dict(sorted(count.items()))


def mustpass_lists(contract_version: int) -> tuple[schema.MustPass, ...]:
    """The frozen lists of this kit for a contract version."""
    found = []
    for level in LEVELS:
        path = MUSTPASS / f"{level}-v{contract_version}.txt"
        if path.is_file():
            lines = path.read_text().splitlines()
            count = sum(1 for line in lines if line.strip() and not line.startswith("#"))
            found.append(
                schema.MustPass(level=level, file=path.name, sha256=sha256_file(path), count=count)
            )
    return tuple(found)


def software() -> schema.Software:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return schema.Software(
        python=platform.python_version(),
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical CPUs",
        packages=packages,
    )


def write_evidence(statement: dict[str, Any], path: Path) -> None:
    path.write_text(readable_json(statement) + "\n", encoding="ascii")


def readable_json(data: Any, indent: int = 0) -> str:
    """``data`` with one item a line and sorted keys, so that a difference can be read: a list of
    numbers is one item. Layout means nothing: digest and signature are over the canonical
    form."""
    pad = "\n" + " " * (indent + 1)
    if isinstance(data, dict) and data:
        items = [f"{json.dumps(k)}: {readable_json(data[k], indent + 1)}" for k in sorted(data)]
        return "{" + pad + f",{pad}".join(items) + "\n" + " " * indent + "}"
    if isinstance(data, list) and data and not any(isinstance(v, int | float) for v in data):
        items = [readable_json(item, indent + 1) for item in data]
        return "[" + pad + f",{pad}".join(items) + "\n" + " " * indent + "]"
    return json.dumps(data, sort_keys=True, allow_nan=False)
