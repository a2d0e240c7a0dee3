"""The file itself: that it parses, fits the schema and has its digest, and which build it names."""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance import CONTRACT_VERSION, GENERATOR_VERSION, KIT_VERSION
from flashmla_hub.conformance.model import from_json
from flashmla_hub.conformance.quoting import quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.report.digests import (
    build_digest,
    evidence_digest,
    kit_digest,
    locate,
    sha256_file,
)
from flashmla_hub.conformance.verify import reading
from flashmla_hub.conformance.verify.finding import Verification


def parse(text: str, result: Verification) -> tuple[Any, schema.Statement | None]:
    """The file as plain values and as a Statement; None and findings where it does not fit."""
    try:
        data = reading.parse(text)
    except reading.Unreadable as error:
        result.add("schema", "file", str(error))
        return None, None
    version = _at(data, "predicate", "flashmla_hub", "schema_version")
    if version not in schema.READABLE:
        expected = " or ".join(map(repr, schema.READABLE))
        what = f"schema version {quoted(version)}, expected {expected}"
        result.add("schema", "file", what if version is not None else "no evidence of this kit")
        return None, None
    try:
        statement = from_json(schema.Statement, data)
    except ValueError as error:
        result.add("schema", "file", str(error))
        return None, None
    expected = {"_type": schema.STATEMENT_TYPE, "predicateType": schema.PREDICATE_TYPE}
    for name, value in expected.items():
        if data[name] != value:
            result.add("schema", name, f"{quoted(data[name])}, expected {value!r}")
    return data, statement


def _at(data: Any, *names: str) -> Any:
    for name in names:
        if not isinstance(data, dict):
            return None
        data = data.get(name)
    return data if isinstance(data, str) else None


def check(data: Any, statement: schema.Statement, result: Verification) -> None:
    """Digest, versions, marks and subject."""
    evidence = statement.predicate.flashmla_hub
    digest = evidence_digest(data)
    if evidence.digest != digest:
        result.add("digest", "digest", f"{evidence.digest or 'none'}, expected {digest}")
    result.older = 1 <= evidence.contract_version < CONTRACT_VERSION
    if not 1 <= evidence.contract_version <= CONTRACT_VERSION:
        result.add(
            "contract_version",
            "contract_version",
            f"{evidence.contract_version}, this kit judges {CONTRACT_VERSION} and reads older ones",
        )
    if not result.older and evidence.kit.generator_version != GENERATOR_VERSION:
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
        made = f"{quoted(evidence.kit.version)} ({evidence.kit.source_sha256[:16]})"
        result.stale.append(f"kit {made}, here {KIT_VERSION} ({own[:16]})")
    absent = 0
    for file in evidence.backend.files:
        path = locate(file.path)
        if path is None:
            absent += 1
        elif path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
            result.stale.append(f"{file.path} is another one here")
    if absent:
        result.notes.append(f"{absent} of {len(evidence.backend.files)} files of the backend's "
                            "build are not on this machine")  # fmt: skip
