"""The file itself: that it parses, fits the schema and has its digest, and which build it names."""

from __future__ import annotations

import json
from typing import Any

from flashmla_hub.conformance import CONTRACT_VERSION, GENERATOR_VERSION, KIT_VERSION
from flashmla_hub.conformance.model import from_json
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.digests import (
    build_digest,
    evidence_digest,
    kit_digest,
    locate,
    sha256_file,
)
from flashmla_hub.conformance.verify.finding import Verification


def parse(text: str, result: Verification) -> tuple[Any, schema.Statement | None]:
    """The file as plain values and as a Statement; None and findings where it does not fit."""
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        version = data["predicate"]["flashmla_hub"]["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        result.add("schema", "file", f"no evidence file: {type(error).__name__}: {error}")
        return None, None
    if version != schema.SCHEMA_VERSION:
        result.add("schema", "schema_version", f"{version!r}, expected {schema.SCHEMA_VERSION!r}")
        return None, None
    try:
        statement = from_json(schema.Statement, data)
    except ValueError as error:
        result.add("schema", "file", str(error))
        return None, None
    expected = {"_type": schema.STATEMENT_TYPE, "predicateType": schema.PREDICATE_TYPE}
    for name, value in expected.items():
        if data[name] != value:
            result.add("schema", name, f"{data[name]!r}, expected {value!r}")
    return data, statement


def check(data: Any, statement: schema.Statement, result: Verification) -> None:
    """Digest, versions, marks and subject."""
    evidence = statement.predicate.flashmla_hub
    digest = evidence_digest(data)
    if evidence.digest != digest:
        result.add("digest", "digest", f"{evidence.digest or 'none'}, expected {digest}")
    if evidence.contract_version != CONTRACT_VERSION:
        result.add(
            "contract_version",
            "contract_version",
            f"{evidence.contract_version}, this kit judges {CONTRACT_VERSION}",
        )
    if evidence.kit.generator_version != GENERATOR_VERSION:
        result.add(
            "generator_version",
            "kit.generator_version",
            f"{evidence.kit.generator_version}, this kit draws {GENERATOR_VERSION}; "
            f"verify with the kit that made it ({evidence.kit.version})",
        )
    marks = schema.Marks(recomputed=schema.RECOMPUTED, asserted=schema.ASSERTED)
    if evidence.fields != marks:
        result.add("marks", "fields", "not the lists of schema " + schema.SCHEMA_VERSION)
    _subject(statement, result)
    if evidence.device.get("simulated"):
        result.add("simulated", "device.simulated", str(evidence.device.get("vendor", "")))
    _stale(evidence, result)


def _subject(statement: schema.Statement, result: Verification) -> None:
    backend = statement.predicate.flashmla_hub.backend
    build = build_digest(backend.files)
    if backend.build_sha256 != build:
        result.add("subject", "backend.build_sha256", f"{backend.build_sha256}, expected {build}")
    expected = schema.Resource(
        name=f"{backend.name} {backend.version}".strip(), digest={"sha256": build}
    )
    if statement.subject != (expected,):
        result.add("subject", "subject", f"{statement.subject}, expected {expected}")


def _stale(evidence: schema.Evidence, result: Verification) -> None:
    """Another build than this machine's is said, and is no fault of the evidence."""
    own = kit_digest()
    if evidence.kit.source_sha256 != own or evidence.kit.version != KIT_VERSION:
        result.stale.append(
            f"kit {evidence.kit.version} ({evidence.kit.source_sha256[:16]}), "
            f"here {KIT_VERSION} ({own[:16]})"
        )
    absent = 0
    for file in evidence.backend.files:
        path = locate(file.path)
        if path is None:
            absent += 1
        elif (here := sha256_file(path)) != file.sha256:
            result.stale.append(f"{file.path} ({file.sha256[:16]}), here {here[:16]}")
    if not evidence.backend.files:
        result.notes.append("the evidence names no file of the backend: its build is unknown")
    elif absent:
        result.notes.append(f"{absent} of {len(evidence.backend.files)} files of the backend's "
                            "build are not on this machine")  # fmt: skip


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} occurs twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; non-finite numbers are the strings inf, -inf and nan")
