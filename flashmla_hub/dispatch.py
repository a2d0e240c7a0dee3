"""From a ChoiceKey and a device to a Decision, and from a Decision to a bound kernel.

Order of choice: explicit ``backend=`` > ``use_backend()`` > ``FLASHMLA_HUB_BACKEND`` > this
machine's tuning table > declared rank. An explicit choice never falls back to another backend
(contract C5.4). pluggy serves discovery; here everything is a dictionary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flashmla_hub import capabilities, config, legalize, log, registry, shadow, tuning
from flashmla_hub.asking import Broken, Entry, passing_want
from flashmla_hub.backend import BoundKernel
from flashmla_hub.bounded import Bounded
from flashmla_hub.capabilities import EXPLICIT_ONLY, Capabilities
from flashmla_hub.decision import Candidate, Decision
from flashmla_hub.device import DeviceInfo, capturing
from flashmla_hub.errors import NoBackendError, NotSupportedError, PluginError, clipped
from flashmla_hub.guard import Asking, Fault
from flashmla_hub.request import ChoiceKey, KernelKey

MAX_BOUND = 512
MAX_ROUTES = 2048
RETRY_S = 60.0

_VARIABLE = "FLASHMLA_HUB_BACKEND"
_SIMULATED = "runs on real devices only; a simulated device changes what explain answers"


@dataclass(frozen=True)
class Route:
    """A request's way: the kernel that serves it and the decision that chose it.

    ``passing``: a better backend could not be bound for want of memory or disk, so the route is
    not remembered.
    """

    kernel: BoundKernel
    decision: Decision
    key: KernelKey
    passing: bool = False


bound_kernels = Bounded(MAX_BOUND)
routes = Bounded(MAX_ROUTES)
_later = Bounded(MAX_BOUND)  # binds that failed for want of something: when to try again


def decide(
    choice: ChoiceKey,
    device: DeviceInfo,
    explicit: str | None = None,
    *,
    as_installed: bool = True,
    running: bool = False,
    notes: tuple[str, ...] = (),
) -> Decision:
    """Every backend's answer to ``choice`` on ``device``, and the one chosen.

    ``as_installed``: what this machine lacks counts as a reason (else it is a note).
    ``running``: under a simulated device only backends that may run there count.
    """
    name, source = _explicit(explicit)
    candidates = []
    for entry in registry.state().entries.values():
        candidate = _candidate(entry, choice, device, as_installed, running)
        if candidate is not None:
            candidates.append(candidate)
    candidates.sort(key=lambda c: (not c.accepted, -c.rank, c.backend))
    if name is not None:
        registry.entry(name, _argument(source))
        own = next((c for c in candidates if c.backend == name), None)
        selected = name if own is not None and own.accepted else None
        why = (
            source if selected else f"{source}, and it refuses; an explicit choice never falls back"
        )
        return Decision(choice, device, selected, why, tuple(candidates), notes, name)
    selected, why = _select(choice, device, candidates)
    return Decision(choice, device, selected, why, tuple(candidates), notes)


def _select(
    choice: ChoiceKey, device: DeviceInfo, candidates: Sequence[Candidate]
) -> tuple[str | None, str]:
    """The backend to take of ``candidates``, best first, and why."""
    usable = [c for c in candidates if c.accepted and c.automatic]
    if not usable:
        return None, "no backend accepts"
    measured = tuning.preferred(choice, device)
    if measured is not None and any(c.backend == measured for c in usable):
        return measured, "measured best on this machine (tuning table)"
    best = usable[0]
    return best.backend, f"highest rank ({best.rank}) of {len(usable)} that accept"


def resolve(
    choice: ChoiceKey,
    device: DeviceInfo,
    explicit: str | None = None,
    notes: tuple[str, ...] = (),
) -> Route:
    """The route of a call; cached by what it depends on.

    Raises:
        NoBackendError: nobody can serve it; carries the decision.
        NotSupportedError: the backend asked for refuses at bind, or a new kernel is met while a
            graph is being captured.
        PluginError: the backend asked for by name broke.
    """
    scope = config.scope()
    state = registry.state()
    settings = (scope.backend, scope.config.backend, scope.config.check)
    key = (choice, device, explicit, settings, state.generation, notes)
    return routes.get_or_make(key, lambda: _resolve(choice, device, explicit, notes))  # type: ignore[no-any-return]


def bind(entry: Entry, key: KernelKey, device: DeviceInfo) -> BoundKernel:
    """The backend's kernel for ``key``, bound once."""
    cached = (entry, key, device)  # the object: a name may be registered anew

    def make() -> BoundKernel:
        _refuse_in_capture(entry.name, device)
        return entry.bind(key, device)

    return bound_kernels.get_or_make(cached, make)  # type: ignore[no-any-return]


def _resolve(
    choice: ChoiceKey, device: DeviceInfo, explicit: str | None, notes: tuple[str, ...]
) -> Route:
    refused: dict[str, str] = {}
    passing = False
    while True:
        decision = _without(decide(choice, device, explicit, running=True, notes=notes), refused)
        name = decision.selected
        if name is None:
            raise NoBackendError(f"no backend can serve this request\n{decision}", decision)
        chosen = decision.candidate
        assert chosen is not None
        entry = registry.entry(name)
        by_name = _explicit(explicit)[0] is not None
        narrow = chosen.steps[-1].narrow if chosen.steps else choice.kernel
        reason = "" if by_name else _not_now(entry, narrow, device)
        if reason:
            passing |= (entry, narrow, device) in _later
            refused[name] = reason
            continue
        try:
            kernel = bind(entry, narrow, device)
        except NotSupportedError as error:
            if by_name or error.feature == _CAPTURE:
                raise
            log.warning("backend %s refused what it claims: %s", name, error)
            refused[name] = f"bind refused: {clipped(error, 2000)}"
            continue
        except Fault as fault:
            if by_name:
                raise PluginError(f"backend {name!r}: {fault.reason}") from fault.__cause__
            if passing_want(fault.__cause__):
                passing = True
                _later.put((entry, narrow, device), time.monotonic() + RETRY_S)
                log.warning("backend %s: %s; it is tried again later", name, fault.reason)
                refused[name] = f"{fault.reason}; it is tried again {RETRY_S:g} s later"
            else:
                registry.quarantine(name, fault.reason)
            continue
        log.info("%s on %s: chose %s, %s", choice, device, name, decision.why)
        decision = _with_notes(decision, chosen, entry.notes(device))
        kernel = _shadowed(legalize.wrap(kernel, chosen.steps), chosen, choice.kernel, device)
        return Route(kernel, decision, choice.kernel, passing)


def _shadowed(
    kernel: BoundKernel, chosen: Candidate, key: KernelKey, device: DeviceInfo
) -> BoundKernel:
    """The kernel, under FLASHMLA_HUB_CHECK compared with the reference's for the same key."""
    count = config.current().check
    if not count or chosen.backend == shadow.REFERENCE:
        return kernel
    reference = bind(registry.entry(shadow.REFERENCE), key, device)
    return shadow.Shadowed(chosen.backend, kernel, reference, count, chosen.hazards)


def _not_now(entry: Entry, key: KernelKey, device: DeviceInfo) -> str:
    """Why ``key`` is not bound now unless it is asked for by name; '' when it may be."""
    until = _later.get((entry, key, device))
    if until is not None and time.monotonic() < until:
        return f"bind failed less than {RETRY_S:g} s ago for want of memory, disk or the like"
    return entry.died_binding(key, device)


def _argument(source: str) -> str:
    return source if source == _VARIABLE else "backend"


def _explicit(argument: str | None) -> tuple[str | None, str]:
    scope = config.scope()
    for name, source in (
        (argument, "backend= argument"),
        (scope.backend, "use_backend()"),
        (scope.config.backend, _VARIABLE),
    ):
        if name is not None:
            return name, source
    return None, ""


@dataclass(frozen=True)
class _Answer:
    """What a backend says to a request, before the machine and the choice are looked at."""

    reasons: list[str]
    declaration: Capabilities | None
    steps: tuple[legalize.Step, ...]
    missing: tuple[str, ...]
    rank: int
    notes: tuple[str, ...]


def _candidate(
    entry: Entry, choice: ChoiceKey, device: DeviceInfo, as_installed: bool, running: bool
) -> Candidate | None:
    def ask(asking: Asking) -> _Answer:
        declarations = entry.declarations(device, asking)
        asking.question = "declaration"
        reasons, declaration, steps = _fit(declarations, choice.kernel, device)
        missing = entry.lacks(device, asking)
        rank = entry.rank(choice, device, asking) - legalize.penalty(steps)
        return _Answer(reasons, declaration, steps, missing, rank, entry.notes(device, asking))

    try:
        answer = entry.ask("declaration", device, ask)
    except Broken as fault:
        registry.quarantine(entry.name, fault.reason)
        return None
    except Fault as fault:  # an answer to this question; the next one may fare better
        return Candidate(entry.name, accepted=False, reasons=(fault.reason,))
    reasons, notes, missing = list(answer.reasons), answer.notes, answer.missing
    if running and device.simulated and not entry.runs_simulated:
        reasons.append(_SIMULATED)
    elif missing and (as_installed or running):
        reasons += missing
    elif missing:
        notes += tuple(f"here: {reason}" for reason in missing)
    hazards = answer.declaration.hazards if answer.declaration is not None else ()
    return Candidate(
        backend=entry.name,
        accepted=not reasons,
        rank=answer.rank,
        reasons=tuple(reasons),
        steps=() if reasons else answer.steps,
        hazards=hazards,
        notes=notes,
        automatic=EXPLICIT_ONLY.isdisjoint(hazards),
    )


def _fit(
    declarations: Iterable[Capabilities], key: KernelKey, device: DeviceInfo
) -> tuple[list[str], Capabilities | None, tuple[legalize.Step, ...]]:
    """(reasons, the declaration that takes it, rewrites); the fewest rewrites win."""
    declarations = tuple(declarations)
    best: tuple[int, Capabilities, tuple[legalize.Step, ...]] | None = None
    refusals: list[list[str]] = []
    for declaration in declarations:
        if declaration.op != key.op:
            continue
        reasons, steps = legalize.search(key, declaration)
        reasons = [*declaration.device_reasons(device), *reasons]
        if reasons:
            refusals.append(reasons)
        elif best is None or len(steps) < best[0]:
            best = (len(steps), declaration, steps)
    if best is not None:
        return [], best[1], best[2]
    if refusals:
        return min(refusals, key=len), None, ()
    return capabilities.unsupported_reasons(declarations, key, device), None, ()


def _without(decision: Decision, refused: dict[str, str]) -> Decision:
    """The decision once the backends that refused at bind count as rejected."""
    if not refused:
        return decision
    candidates = tuple(
        Candidate(c.backend, False, c.rank, (refused[c.backend],), hazards=c.hazards)
        if c.backend in refused
        else c
        for c in decision.candidates
    )
    selected, why = _select(decision.choice, decision.device, candidates)
    return replace(decision, selected=selected, why=why, candidates=candidates)


def _with_notes(decision: Decision, chosen: Candidate, notes: tuple[str, ...]) -> Decision:
    """The decision with what the chosen backend has to say now that it is bound."""
    if not set(notes) - set(chosen.notes):
        return decision
    noted = replace(chosen, notes=tuple(dict.fromkeys((*chosen.notes, *notes))))
    candidates = tuple(noted if c is chosen else c for c in decision.candidates)
    return replace(decision, candidates=candidates)


_CAPTURE = "graph capture"


def _refuse_in_capture(name: str, device: DeviceInfo) -> None:
    """A kernel first met while a graph is captured would compile and allocate inside it (C6.1)."""
    if capturing(device.type):
        raise NotSupportedError(
            name, _CAPTURE, "first use", "call once, or warmup(), before capture"
        )
