"""The nouns of the kit as frozen values, and their JSON form. Imports neither torch nor numpy.

A :class:`Case` is what is asked, a :class:`CaseResult` what came of it, a :class:`RunResult` one
whole run. ``to_json``/``from_json`` turn them into plain JSON values and back without loss:
non-finite floats travel as the strings ``inf``, ``-inf`` and ``nan``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flashmla_hub.request import KernelKey

LEVELS = ("L0", "L1", "L2", "L3", "L4")
FAMILIES = ("flat", "peaked", "extreme")

LAYOUT_ORDER = (
    "causal_flag", "shared_pages", "pooled", "tiled", "poison", "null_block", "pad_nan",
    "table_strided", "negative_length", "over_capacity", "invalid", "leading_invalid",
    "duplicates", "sink_inf", "free_scales", "head_major", "q_batch_strided", "q_expanded",
    "neg_view", "kv_neg_view", "inference", "uint8", "int8", "records", "near_extra", "unaligned",
)  # fmt: skip
"""Words of ``Case.layout``: what lies around a case's numbers in memory, and how."""

# What a case does with the port. "values" compares out and lse with the oracle; all others judge
# a property or a refusal (conformance/checks/ has one function for each).
VALUES = "values"
CLAIMS = "claims"  # the optional group of all cases drawn from claims: no extra of a badge
# a backend's own refusal of one unclaimed key, through the back door (C5.2)
REFUSAL = "refusal"


class Outcome(str, enum.Enum):
    """What came of a case. Only PASSED and REFUSED_OK count towards a level."""

    PASSED = "passed"
    REFUSED_OK = "refused_ok"  # the case asks for a refusal and got the right one
    FAILED = "failed"  # ran and is wrong
    ERROR = "error"  # raised something it must not
    TIMEOUT = "timeout"  # ran past the case's limit (with --isolate)
    CRASHED = "crashed"  # the process ended: exit(), signal (with --isolate)
    NOT_CLAIMED = "not_claimed"  # the backend does not claim it, and refuses it
    NOT_REACHED = "not_reached"  # could not be run here (memory, no such device); has a reason
    KNOWN_FAILURE = "known_failure"  # failed, and the port's own list says why

    @property
    def counts(self) -> bool:
        return self in (Outcome.PASSED, Outcome.REFUSED_OK)

    @property
    def bad(self) -> bool:
        return self in (Outcome.FAILED, Outcome.ERROR, Outcome.TIMEOUT, Outcome.CRASHED)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question to a port.

    Attributes:
        id: unique and stable; frozen in ``mustpass/`` beside :meth:`digest`.
        clauses: of the contract, the most telling first.
        level: the lowest level whose run includes the case.
        optional: '' for a case its level needs; else the badge's extra it belongs to (``fp16``).
        check: ``values``, ``refusal`` or the name of a property.
        key: the request's facts.
        batch: rows; sparse_prefill has that many queries.
        lengths: of each row in tokens (dense), or how many leading entries of ``indices`` count
            (sparse; equal to topk where the call gets no topk_length).
        family: ``flat``, ``peaked`` or ``extreme``; decides the inputs and the tolerance.
        variant: what in particular, e.g. ``late_token`` of the extreme family.
        layout: words on how memory is laid out, in a fixed order, e.g. ``shared_pages``.
        scale: softmax_scale, None for the default of C1.6.
        extra_lengths: like lengths, for the second cache of a sparse call; () without one.
        table_width: columns of block_table; 0 for a few past the longest row's.
        seed: of the inputs; 0 in every frozen case.
    """

    id: str
    clauses: tuple[str, ...]
    level: str
    key: KernelKey
    batch: int
    lengths: tuple[int, ...]
    check: str = VALUES
    optional: str = ""
    family: str = "flat"
    variant: str = ""
    layout: tuple[str, ...] = ()
    scale: float | None = None
    extra_lengths: tuple[int, ...] = ()
    table_width: int = 0
    seed: int = 0

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: a changed case shows."""
        return hashlib.sha256(canonical_json(to_json(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How far from the oracle. Errors are absolute unless said otherwise; ratios are error /
    tolerance, 1 being the limit. ``at`` is the worst (for a failure: the first bad) coordinate of
    ``tensor``; ``expected`` and ``got`` are its values."""

    worst_abs: float = 0.0
    worst_rel: float = 0.0
    out_ratio: float = 0.0
    cos: float = 0.0  # worst per (row, query, head) vector, 1 - 2*sum(xy)/sum(x^2+y^2)
    cos_tensor: float = 0.0
    lse_abs: float = 0.0
    lse_ratio: float = 0.0
    inf_mismatch: int = 0  # positions where exactly one side is inf, or nan on either side
    bad_elements: int = 0
    tensor: str = ""
    at: tuple[int, ...] = ()
    expected: float | None = None
    got: float | None = None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Recorded outputs of one tensor: C-order flat indices and the values there, as float."""

    tensor: str  # out, lse or max_logits
    shape: tuple[int, ...]
    index: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What came of one case.

    ``rewrites`` are those the hub applied for the port (empty: native). ``input_digest`` is the
    hex SHA-256 over the meaningful input bytes, '' where no inputs were drawn. ``refused_by`` is
    ``hub``, ``backend`` or ''. ``diagnosis`` names the known mistake that reproduces the output.
    """

    id: str
    clauses: tuple[str, ...]
    outcome: Outcome
    reason: str = ""
    clause: str = ""  # the clause a failure breaks
    diagnosis: str = ""
    rewrites: tuple[str, ...] = ()
    refused_by: str = ""
    duration: float = 0.0  # seconds
    metrics: Metrics | None = None
    input_digest: str = ""
    samples: tuple[Samples, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """A level's count over the cases it needs, those of the levels below included."""

    level: str
    reached: bool
    needed: int
    native: int  # passed without a rewrite
    rewritten: int
    failed: int
    not_claimed: int
    not_reached: int
    known_failures: int
    why_not: str = ""  # '' when reached


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """A family's own levels, L0 to L3; ``level`` is the highest reached, '' for none."""

    family: str
    level: str
    levels: tuple[LevelResult, ...]


@dataclass(frozen=True, kw_only=True)
class RunMeta:
    """Facts of a run beside its cases. ``claims`` are the declared capabilities, verbatim."""

    contract_version: int
    kit_version: str
    generator_version: int
    backend: str  # a backend's name, or module:function with --call
    backend_version: str = ""
    level: str = "L0"  # that was asked for
    selected: str = ""  # the -k expression; such a run has no level
    seed: int = 0  # 0: the frozen inputs; with others there is no level
    challenge: str = ""  # inputs drawn from this nonce instead of the frozen seed; reaches levels
    isolated: bool = False
    device: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[Mapping[str, Any], ...] = ()
    files: tuple[str, ...] = ()  # Backend.files(): their digests go into the evidence
    argv: tuple[str, ...] = ()
    started: str = ""  # UTC, ISO 8601
    ended: str = ""
    known_failures: Mapping[str, str] = field(default_factory=dict)
    stale_known_failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run: every case that was asked, in order, and the levels computed from them.

    ``level`` is the highest reached, '' for none; ``families`` each have their own; ``extras`` are
    the optional groups passed whole; ``badge`` reads like ``L2 v2 cpu sparse L2 +fp16``.
    """

    meta: RunMeta
    cases: tuple[Case, ...]
    results: tuple[CaseResult, ...]
    levels: tuple[LevelResult, ...] = ()
    level: str = ""
    families: tuple[FamilyResult, ...] = ()
    extras: tuple[str, ...] = ()
    badge: str = ""


def to_json(value: Any) -> Any:
    """``value`` as dicts, lists, strings, numbers, bools and None."""
    if isinstance(value, KernelKey):
        return _key_to_json(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


# Fields of KernelKey that version 1 of the contract did not have. The digests of its frozen cases
# hold: a field is written where it says something, and ``alignment`` stands for q and cache.
_SINCE_2 = (
    "extra_kv_strides", "out_strides", "q_alignment", "kv_alignment", "extra_kv_alignment",
    "out_alignment",
)  # fmt: skip


def _key_to_json(key: KernelKey) -> dict[str, Any]:
    both = key.q_alignment == key.kv_alignment and key.q_alignment in (1, 16)
    neutral, left_out = KernelKey(), ("q_alignment", "kv_alignment") if both else ()
    written = {
        f.name: getattr(key, f.name)
        for f in dataclasses.fields(key)
        if f.name not in left_out
        and (f.name not in _SINCE_2 or getattr(key, f.name) != getattr(neutral, f.name))
    }
    return {**written, "alignment": key.q_alignment if both else 16}


def _key_from_json(data: Any) -> Any:
    """All fields of a key that ``_key_to_json`` wrote."""
    if not isinstance(data, dict) or "alignment" not in data:
        return data
    both, neutral = data["alignment"], KernelKey()
    new = {name: getattr(neutral, name) for name in _SINCE_2}
    new |= {"q_alignment": both, "kv_alignment": both}
    return new | {name: value for name, value in data.items() if name != "alignment"}


T = TypeVar("T")


def from_json(cls: type[T], data: Any) -> T:
    """The ``cls`` (a dataclass of this module, or KernelKey) that ``to_json`` made ``data`` of.

    Raises ValueError naming the field for an unknown, missing or wrongly typed one.
    """
    return typing.cast(T, _decode(cls, data, cls.__name__))


def canonical_json(data: Any) -> str:
    """Sorted keys, no spaces, ASCII: one text for one value, fit for hashing."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _decode(next(a for a in args if a is not type(None)), data, where)
    if dataclasses.is_dataclass(kind):
        data = _key_from_json(data) if kind is KernelKey else data
        return _decode_dataclass(kind, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where}: got {type(data).__name__}, expected a list")
        if set(map(type, data)) <= {args[0]}:  # plain values, as samples are: most of a file
            return tuple(data)
        return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: got {type(data).__name__}, expected an object")
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and data in ("nan", "inf", "-inf"):
        return float(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if type(data) is not kind:
        raise ValueError(f"{where}: got {data!r}, expected {kind.__name__}")
    return data


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        message = f"{where}: got {type(data).__name__}, expected an object"
        raise ValueError(message)
    hints = _hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; this kit may be older")
    values = {k: _decode(hints[k], v, f"{where}.{k}") for k, v in data.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without default is missing
        raise ValueError(f"{where}: {error}") from None
