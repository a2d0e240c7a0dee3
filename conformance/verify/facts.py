"""What the file asserts of device and run: nobody can recompute it, but it must not contradict
itself."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator

from flashmla_hub.conformance.challenge import fault
from flashmla_hub.conformance.model import LEVELS
from flashmla_hub.conformance.quoting import quoted
from flashmla_hub.conformance.report import schema
from flashmla_hub.conformance.verify.finding import Verification

_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ARCH = re.compile(r"[a-z0-9][a-z0-9_.+-]{0,31}")
_BACKEND = re.compile(r"[A-Za-z_][A-Za-z0-9_.:]{0,99}")  # a name, or module:function
_SLACK = 5.0  # seconds: started and ended are whole ones, and reading the claims takes a moment
_CLOCKS = datetime.timedelta(days=1)  # how far two machines' clocks may be apart
# options of the command line and the field that says the same
_OPTIONS = {"--backend": "backend", "--call": "backend", "--level": "level", "--seed": "seed",
            "--challenge": "challenge", "-k": "selected"}  # fmt: skip


def check(evidence: schema.Evidence, result: Verification) -> None:
    """Every contradiction in what is asserted, under the name of the part it is in."""
    for where, detail in device_faults(evidence):
        result.add("device", where, detail)
    for where, detail in run_faults(evidence):
        result.add("run", where, detail)
    name = evidence.backend.name
    if not _BACKEND.fullmatch(name):
        result.add("subject", "backend.name", f"{quoted(name)}, expected one word in ASCII")
    if evidence.device.simulated or "FLASHMLA_HUB_DEVICE" in evidence.device.rule:
        said = f"{evidence.device.vendor} {evidence.device.arch}".strip()
        result.add("simulated", "device", f"{quoted(said)} by {quoted(evidence.device.rule)}")


def device_faults(evidence: schema.Evidence) -> Iterator[tuple[str, str]]:
    """An empty or many-worded fact, and a type that the rest of the device belies."""
    device = evidence.device
    for name, form in (("vendor", _WORD), ("type", _WORD), ("arch", _ARCH)):
        value = getattr(device, name)
        optional = name == "arch" and not value
        if not optional and not form.fullmatch(value):
            yield f"device.{name}", f"{quoted(value)}, expected one lower-case word"
    if not device.rule:
        yield "device.rule", "empty: what identified the device is not said"
    if device.confidence not in ("high", "medium", "low"):
        yield "device.confidence", f"{quoted(device.confidence)}, expected high, medium or low"
    for name in ("index", "multiprocessors", "shared_memory", "memory"):
        if getattr(device, name) < 0:
            yield f"device.{name}", f"{getattr(device, name)}, expected >= 0"
    if device.simulated:
        return
    if (device.type == "cpu") != (device.vendor == "cpu"):
        yield "device.type", f"{quoted(device.type)} of vendor {quoted(device.vendor)}"
    if device.type == "cpu":
        machine = evidence.software.machine
        if device.arch != machine.lower() or device.name != f"{machine} CPU":
            yield (
                "device.type",
                f"'cpu', with arch {quoted(device.arch)} and name {quoted(device.name)} on a "
                f"{quoted(machine)} machine",
            )
        if device.multiprocessors or device.shared_memory:
            yield "device.type", "'cpu', with the multiprocessors of an accelerator"
        if "cpu" not in device.rule:
            yield "device.rule", f"{quoted(device.rule)}, and the type is 'cpu'"
    elif device.name.upper().endswith(" CPU"):
        yield "device.name", f"{quoted(device.name)} of type {quoted(device.type)}"
    elif not device.name:
        yield "device.name", "empty: an accelerator's runtime names it"


def run_faults(evidence: schema.Evidence) -> Iterator[tuple[str, str]]:
    """Dates and durations that cannot be, and options that say otherwise than the fields."""
    run = evidence.run
    moments = {}
    for name in ("started", "ended"):
        moment = _moment(getattr(run, name))
        if moment is None:
            yield f"run.{name}", f"{quoted(getattr(run, name))}, expected ISO 8601 in UTC"
        elif moment > datetime.datetime.now(datetime.timezone.utc) + _CLOCKS:
            yield f"run.{name}", f"{quoted(getattr(run, name))} lies in the future"
        else:
            moments[name] = moment
    if len(moments) == 2:
        wall = (moments["ended"] - moments["started"]).total_seconds()
        spent = sum(r.duration for r in evidence.results if math.isfinite(r.duration))
        if wall < 0:
            yield "run.ended", f"{-wall:g} s before it started"
        elif spent > wall + _SLACK:
            yield "results[].duration", f"{spent:.0f} s of cases in a run of {wall:.0f} s"
    for got in evidence.results:
        if not 0 <= got.duration < math.inf:
            yield got.id, f"duration {got.duration}, expected seconds"
    if run.seed < 0:
        yield "run.seed", f"{run.seed}, expected >= 0"
    if run.challenge and run.seed:
        yield "run.challenge", f"beside seed {run.seed}: one of them drew the inputs"
    if why := fault(run.challenge):
        yield "run.challenge", f"{quoted(run.challenge)}: {why}"
    if run.level not in LEVELS:
        yield "run.level", f"{quoted(run.level)}, expected one of {', '.join(LEVELS)}"
    yield from _options(evidence)


def _options(evidence: schema.Evidence) -> Iterator[tuple[str, str]]:
    run, words = evidence.run, list(evidence.run.argv)
    fields = {"backend": evidence.backend.name, "level": run.level, "seed": str(run.seed),
              "challenge": run.challenge, "selected": run.selected}  # fmt: skip
    if len(words) < 2 or words[1] != "conformance":
        return  # run by a script: its arguments are its own
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in _OPTIONS or not (equals or i + 1 < len(words)):
            continue
        value = value if equals else words[i + 1]
        told = fields[_OPTIONS[option]]
        if value != told:
            yield "run.argv", f"{option} {quoted(value)}, and {_OPTIONS[option]} is {quoted(told)}"


def _moment(text: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.utcoffset() == datetime.timedelta(0) else None
