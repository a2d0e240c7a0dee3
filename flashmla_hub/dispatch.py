"""From a ChoiceKey and a device to a Decision, and from a Decision to a bound kernel.

Order of choice: explicit ``backend=`` > ``use_backend()`` > ``FLASHMLA_HUB_BACKEND`` > this
machine's tuning table > declared rank. An explicit choice never falls back to another backend
(contract C5.4). pluggy serves discovery; here everything is a dictionary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flashmla_hub import capabilities, config, legalize, log, registry, shadow, tuning
from flashmla_hub.backend import Backend, BoundKernel, PositionalKernel
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.decision import Candidate, Decision
from flashmla_hub.device import DeviceInfo, capturing
from flashmla_hub.errors import NoBackendError, NotSupportedError, PluginError
from flashmla_hub.hookspecs import PROTOCOL_CURRENT
from flashmla_hub.request import ChoiceKey, KernelKey

MAX_BOUND = 512
MAX_ROUTES = 2048

_SIMULATED = "runs on real devices only; a simulated device changes what explain answers"


@dataclass(frozen=True)
class Route:
    """A request's way: the kernel that serves it and the decision that chose it."""

    kernel: BoundKernel
    decision: Decision
    key: KernelKey


class _Cache:
    """A bounded mapping, oldest use first out. Lookups by many threads, values made once a key."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def get_or_make(self, key: Any, make: Any) -> Any:
        found = self.get(key)
        if found is not None:
            return found
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # other keys go on meanwhile: a bind may compile for seconds
            found = self.get(key)
            if found is not None:
                return found
            try:
                found = make()
                with self._lock:
                    self._items[key] = found
                    while len(self._items) > self.limit:
                        self._items.popitem(last=False)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return found

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        with self._lock:
            self._items.clear()


bound_kernels = _Cache(MAX_BOUND)
routes = _Cache(MAX_ROUTES)


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
    for backend in registry.state().backends.values():
        candidate = _candidate(backend, choice, device, as_installed, running)
        if candidate is not None:
            candidates.append(candidate)
    candidates.sort(key=lambda c: (not c.accepted, -c.rank, c.backend))
    if name is not None:
        registry.get(name)
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


def bind(backend: Backend, key: KernelKey, device: DeviceInfo) -> BoundKernel:
    """The backend's kernel for ``key``, bound once."""
    cached = (backend, key, device)  # the object: a name may be registered anew

    def make() -> BoundKernel:
        _refuse_in_capture(backend.name, device)
        return bind_now(backend, key, device)

    return bound_kernels.get_or_make(cached, make)  # type: ignore[no-any-return]


def bind_now(backend: Backend, key: KernelKey, device: DeviceInfo) -> BoundKernel:
    """The backend's kernel for ``key``, as the current plugin protocol has it; kept by nobody."""
    kernel = backend.bind(key, device)
    if not isinstance(kernel, BoundKernel):
        raise PluginError(
            f"backend {backend.name!r}: bind returned {type(kernel).__name__}, "
            "expected a BoundKernel"
        )
    if registry.state().protocols.get(backend.name, PROTOCOL_CURRENT) < 2:
        return PositionalKernel(kernel, key.op)
    return kernel


def _resolve(
    choice: ChoiceKey, device: DeviceInfo, explicit: str | None, notes: tuple[str, ...]
) -> Route:
    refused: dict[str, str] = {}
    while True:
        decision = _without(decide(choice, device, explicit, running=True, notes=notes), refused)
        name = decision.selected
        if name is None:
            raise NoBackendError(f"no backend can serve this request\n{decision}", decision)
        chosen = decision.candidate
        assert chosen is not None
        backend = registry.get(name)
        by_name = _explicit(explicit)[0] is not None
        narrow = chosen.steps[-1].narrow if chosen.steps else choice.kernel
        try:
            kernel = bind(backend, narrow, device)
        except NotSupportedError as error:
            if by_name or error.feature == _CAPTURE:
                raise
            log.warning("backend %s refused what it claims: %s", name, error)
            refused[name] = f"bind refused: {error}"
            continue
        except Exception as error:
            reason = f"bind raised {type(error).__name__}: {error}"
            if by_name:
                raise PluginError(f"backend {name!r}: {reason}") from error
            registry.quarantine(name, reason)
            continue
        log.info("%s on %s: chose %s, %s", choice, device, name, decision.why)
        decision = _with_notes(decision, chosen, backend.notes(device))
        kernel = _shadowed(legalize.wrap(kernel, chosen.steps), chosen, choice.kernel, device)
        return Route(kernel, decision, choice.kernel)


def _shadowed(
    kernel: BoundKernel, chosen: Candidate, key: KernelKey, device: DeviceInfo
) -> BoundKernel:
    """The kernel, under FLASHMLA_HUB_CHECK compared with the reference's for the same key."""
    count = config.current().check
    if not count or chosen.backend == shadow.REFERENCE:
        return kernel
    reference = bind(registry.get(shadow.REFERENCE), key, device)
    return shadow.Shadowed(chosen.backend, kernel, reference, count, chosen.hazards)


def _explicit(argument: str | None) -> tuple[str | None, str]:
    scope = config.scope()
    for name, source in (
        (argument, "backend= argument"),
        (scope.backend, "use_backend()"),
        (scope.config.backend, "FLASHMLA_HUB_BACKEND"),
    ):
        if name is not None:
            return name, source
    return None, ""


def _candidate(
    backend: Backend, choice: ChoiceKey, device: DeviceInfo, as_installed: bool, running: bool
) -> Candidate | None:
    try:
        declarations = _declarations(backend, device)
        reasons, declaration, steps = _fit(declarations, choice.kernel, device)
        missing = tuple(backend.environment_reasons(device))
        rank = int(backend.rank(choice, device)) - legalize.penalty(steps)
        notes = tuple(backend.notes(device))
    except Exception as error:
        registry.quarantine(backend.name, f"declaration raised {type(error).__name__}: {error}")
        return None
    if running and device.simulated and not backend.runs_simulated:
        reasons.append(_SIMULATED)
    elif missing and (as_installed or running):
        reasons += missing
    elif missing:
        notes += tuple(f"here: {reason}" for reason in missing)
    hazards = declaration.hazards if declaration is not None else ()
    return Candidate(
        backend=backend.name,
        accepted=not reasons,
        rank=rank,
        reasons=tuple(reasons),
        steps=() if reasons else steps,
        hazards=hazards,
        notes=notes,
        automatic="needs_finite_cache" not in hazards,
    )


def _declarations(backend: Backend, device: DeviceInfo) -> tuple[Capabilities, ...]:
    declared = backend.capabilities(device)
    for item in declared:
        if not isinstance(item, Capabilities):
            raise TypeError(f"capabilities returned {type(item).__name__}, expected Capabilities")
    return tuple(declared)


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
