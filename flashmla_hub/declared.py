"""Declarations as the hub keeps them: checked, copied in depth, taken once for each device.

A backend that answers differently at the next call, or whose objects somebody changes, changes
nothing that was taken; and a field of the wrong type is found here rather than in the middle of a
decision.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flashmla_hub.capabilities import HAZARDS, Capabilities, DeviceClass, IntSet, Rule
from flashmla_hub.guard import Fault, shown
from flashmla_hub.request import OPS

MAX_DECLARATIONS = 256
_PARTS = (IntSet, DeviceClass)
_PLAIN = (str, int, bool)


def frozen(declared: Any) -> tuple[Capabilities, ...]:
    """Copies of what ``capabilities`` returned.

    Raises:
        Fault: something in it is not what the contract of a declaration says.
    """
    if not isinstance(declared, (tuple, list)):
        raise Fault(f"capabilities returned {shown(declared)}, expected a tuple of Capabilities")
    if len(declared) > MAX_DECLARATIONS:
        raise Fault(f"capabilities returned {len(declared)} items, at most {MAX_DECLARATIONS}")
    return tuple(_declaration(item) for item in tuple(declared))


def _declaration(item: Any) -> Capabilities:
    if not isinstance(item, Capabilities):
        raise Fault(f"capabilities returned {shown(item)}, expected Capabilities")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Capabilities):
        value = getattr(item, field.name)
        values[field.name] = _copy(field.name, value, type(field.default))
    made = Capabilities(**values)
    if made.op not in OPS:
        raise Fault(f"capabilities: op is {shown(made.op)}, expected {' | '.join(OPS)}")
    unknown = [h for h in made.hazards if h not in HAZARDS]
    if unknown:
        raise Fault(f"capabilities: hazard {shown(unknown[0])}, expected {' | '.join(HAZARDS)}")
    return made


def _copy(name: str, value: Any, kind: type) -> Any:
    """``value`` rebuilt as a plain ``kind``; bools are no ints, lists may stand for tuples."""
    if kind in _PLAIN:
        if type(value) is not kind:
            raise _wrong(name, value, kind.__name__)
        return value
    if kind is tuple:
        if not isinstance(value, (tuple, list)):
            raise _wrong(name, value, "tuple")
        return tuple(_element(name, v) for v in tuple(value))
    if kind in _PARTS:
        return _part(name, value, kind)
    raise _wrong(name, value, kind.__name__)


def _element(name: str, value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_element(name, v) for v in tuple(value))
    if isinstance(value, Rule):
        if not callable(value.check):
            raise _wrong(name, value.check, "a function of a KernelKey")
        return Rule(_copy(name, value.name, str), value.check)
    for kind in _PARTS:
        if isinstance(value, kind):
            return _part(name, value, kind)
    raise _wrong(name, value, "text, a number or a part of a declaration")


def _part(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _wrong(name, value, kind.__name__)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        found = getattr(value, field.name)
        optional_int = kind is IntSet and field.name == "high"
        if optional_int and found is None:
            made[field.name] = None
        else:
            made[field.name] = _copy(name, found, int if optional_int else type(field.default))
    if kind is IntSet and made["step"] < 1:
        raise _wrong(name, made["step"], "a step >= 1")
    return kind(**made)


def _wrong(name: str, value: Any, expected: str) -> Fault:
    return Fault(f"capabilities: {name} is {shown(value)}, expected {expected}")
