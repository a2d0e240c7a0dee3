"""What a backend's declarations take, in a phrase for each op; for tables and listings."""

from __future__ import annotations

from collections.abc import Sequence

from flashmla_hub.capabilities import ANY, Capabilities, IntSet

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def describe(declared: Sequence[Capabilities]) -> list[str]:
    """The devices, then one phrase for each op. Rewrites, which widen it, are left out."""
    if declared and all(any(rule.name == "refused" for rule in d.rules) for d in declared):
        return ["nothing: refuses with the way forward"]
    devices = ", ".join(dict.fromkeys(str(c) for d in declared for c in d.devices))
    first: dict[str, list[str]] = {}
    phrases: list[str] = []
    for declaration in declared:
        facts, op = _facts(declaration), declaration.op.replace("_", " ")
        if op not in first:
            first[op] = facts
            phrases.append(f"{op}: {', '.join(facts)}")
        elif differing := [fact for fact in facts if fact not in first[op]]:
            phrases[-1] += f", or {', '.join(differing)}"
    return [devices, *phrases]


def _facts(d: Capabilities) -> list[str]:
    facts = ["/".join(SHORT.get(name, name) for name in d.dtypes)]
    facts += [_span(name, getattr(d, name)) for name in ("h_q", "s_q", "h_kv")]
    facts.append(_span("page", d.page_block_size))
    if d.kv_formats != ("dense",):
        facts.append("cache " + "/".join(d.kv_formats))
    return [*facts, *d.hazards]


def _span(name: str, accepted: IntSet) -> str:
    if accepted == ANY:
        return f"any {name}"
    values = accepted.values
    if len(values) > 4:
        return f"{name} {values[0]}, {values[1]} .. {values[-1]}"
    return f"{name} {str(accepted).replace(' | ', '/')}"
