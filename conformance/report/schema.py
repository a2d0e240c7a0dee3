"""The evidence file as frozen values, and the JSON Schema derived from them.

One definition serves the writer, the reader (``model.from_json`` names the field that is wrong)
and docs/evidence-schema.json, which a test compares. The envelope is an in-toto Statement whose
predicate is a test result; what the predicate does not foresee stands under ``flashmla_hub``.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmla_hub.conformance.model import CaseResult, FamilyResult, LevelResult

SCHEMA_VERSION = "2"
READABLE = ("1", "2")  # what 2 added has defaults: a file of 1 is read as it is
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"

# What verify works out again, and what it must take the file's word for. Paths below
# predicate.flashmla_hub; [] stands for every entry of a list.
RECOMPUTED = (
    "contract_version",
    "mustpass",
    "results[].id",
    "results[].clauses",
    "results[].case_digest",
    "results[].input_digest",
    "results[].samples",
    "verdict",
    "totals",
    "digest",
)
ASSERTED = (
    "kit",
    "backend",
    "claims",
    "device",
    "software",
    "run",
    "known_failures",
    "results[].outcome",
    "results[].reason",
    "results[].diagnosis",
    "results[].rewrites",
    "results[].refused_by",
    "results[].duration",
    "results[].metrics",
)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """in-toto's ResourceDescriptor, as far as it is used: a name and its digests."""

    name: str
    digest: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class KitInfo:
    """``source_sha256`` covers the kit's sources and frozen lists (``digests.kit_digest``)."""

    version: str
    generator_version: int
    source_sha256: str


@dataclass(frozen=True, kw_only=True)
class MustPass:
    """A frozen list of case ids; ``sha256`` is that of the file, ``count`` its number of ids."""

    level: str
    file: str
    sha256: str
    count: int


@dataclass(frozen=True, kw_only=True)
class BuildFile:
    """A file the backend loaded: path below its import root (or bare name), digest, bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class BackendEvidence:
    """``build_sha256`` is over the lines ``<sha256>  <path>`` of ``files``, in order of path."""

    name: str
    version: str
    build_sha256: str
    files: tuple[BuildFile, ...]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the run was told of its device. ``simulated``: under simulate_device or a device
    override, vendor and arch being what somebody said. Sizes in bytes, 0 where unknown."""

    vendor: str
    arch: str
    type: str
    index: int
    name: str
    runtime: str
    multiprocessors: int
    shared_memory: int
    memory: int
    simulated: bool
    confidence: str
    rule: str


@dataclass(frozen=True, kw_only=True)
class Software:
    python: str
    os: str
    machine: str
    cpu: str
    packages: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """``level`` is that asked for; ``selected`` a -k expression ('' for a whole run);
    ``challenge`` the nonce that all inputs were drawn from ('': ``seed``)."""

    level: str
    selected: str
    seed: int
    isolated: bool
    argv: tuple[str, ...]
    started: str
    ended: str
    challenge: str = ""  # since schema 2


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``level`` is the highest reached ('' for none)."""

    level: str
    badge: str
    extras: tuple[str, ...]
    levels: tuple[LevelResult, ...]
    families: tuple[FamilyResult, ...] = ()  # since contract 2


@dataclass(frozen=True, kw_only=True)
class CaseEvidence(CaseResult):
    """A case's result and the digest of the question (``Case.digest``)."""

    case_digest: str


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Which fields verify recomputes and which are the submitter's word."""

    recomputed: tuple[str, ...]
    asserted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What stands under ``predicate.flashmla_hub``; docs/evidence-schema.md explains each field.

    ``digest`` is the SHA-256 of the statement's canonical JSON with this field as ''.
    """

    schema_version: str
    contract_version: int
    kit: KitInfo
    mustpass: tuple[MustPass, ...]
    backend: BackendEvidence
    claims: tuple[Mapping[str, Any], ...]
    device: Device
    software: Software
    run: RunFacts
    verdict: Verdict
    totals: Mapping[str, int]
    results: tuple[CaseEvidence, ...]
    known_failures: Mapping[str, str]
    stale_known_failures: tuple[str, ...]
    fields: Marks
    digest: str


@dataclass(frozen=True, kw_only=True)
class Predicate:
    """in-toto's test result; the names are in-toto's."""

    result: str  # PASSED, WARNED or FAILED
    configuration: tuple[Resource, ...]
    passedTests: tuple[str, ...]
    warnedTests: tuple[str, ...]
    failedTests: tuple[str, ...]
    flashmla_hub: Evidence


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The whole file."""

    _type: str
    subject: tuple[Resource, ...]
    predicateType: str
    predicate: Predicate


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an evidence file."""
    definitions: dict[str, Any] = {}
    root = _schema_of(Statement, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"flashmla_hub conformance evidence, schema {SCHEMA_VERSION}",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}]},
    Any: {},
}


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return {"anyOf": [_schema_of(inner, definitions), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0], definitions)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(args[1], definitions)}
    if issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # reserves the place in case of recursion
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        definitions[kind.__name__] = {
            "type": "object",
            "properties": {f.name: _schema_of(hints[f.name], definitions) for f in fields},
            "required": [
                f.name
                for f in fields
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            ],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}
