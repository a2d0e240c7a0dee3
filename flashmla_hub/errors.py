"""The public exceptions, and the step of a call that raises each.

=============================  ==========================================================
step                           error
=============================  ==========================================================
validate the arguments         :class:`InvalidRequestError` (argument, actual, expected)
identify the device            :class:`DeviceConflictError`
load a plugin                  :class:`PluginError` (kept in the registry as a quarantine
                               reason; raised only where that backend was asked for by name)
choose a backend               :class:`NoBackendError` (every backend with all its reasons)
bind or run a backend          :class:`NotSupportedError` (what the backend cannot do)
=============================  ==========================================================

Every message states the actual value, the expected one and the way forward, and is bounded in
length whatever the value was. All of them can be pickled: engines raise across processes. What
cannot be pickled with them (a tensor as the actual value, say) arrives as its text.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmla_hub.decision import Decision

VALUE_LENGTH = 400
MESSAGE_LENGTH = 40_000


def clipped(value: object, length: int = VALUE_LENGTH) -> str:
    """``str(value)``, its middle left out where it is longer than ``length``."""
    try:
        text = str(value)
    except Exception as error:  # an int of 5000 digits, an object of a plugin's
        text = f"<a {type(value).__name__} that cannot be printed: {type(error).__name__}>"
    if len(text) <= length:
        return text
    head = length * 2 // 3
    return f"{text[:head]} ... ({len(text)} characters) ... {text[len(text) - length // 4 :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` where something known is close to ``name``, else ''."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _portable(value: Any) -> Any:
    """``value`` where it survives pickling, else its text."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return clipped(value)
    return value


class FlashMLAHubError(Exception):
    """Base of all errors the hub raises on purpose."""


class InvalidRequestError(FlashMLAHubError, ValueError):
    """An argument is wrong whatever the backend (contract C5.1)."""

    def __init__(self, argument: str, actual: object, expected: str) -> None:
        self.argument, self.actual, self.expected = argument, actual, expected
        super().__init__(
            f"{clipped(argument)}: got {clipped(actual)}, expected {clipped(expected, 2000)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.argument, _portable(self.actual), self.expected)


class NotSupportedError(FlashMLAHubError, NotImplementedError):
    """A backend (or the hub itself) refuses something valid that it cannot do (contract C5.1)."""

    def __init__(self, backend: str, feature: str, value: object, accepted: str) -> None:
        self.backend, self.feature, self.value, self.accepted = backend, feature, value, accepted
        super().__init__(
            f"backend {clipped(backend)!r} does not support {clipped(feature)}="
            f"{clipped(value, 8000)}; accepted: {clipped(accepted, 2000)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.feature, _portable(self.value), self.accepted)


class NoBackendError(FlashMLAHubError, RuntimeError):
    """No backend can serve the request; ``decision`` holds every candidate and all its reasons."""

    def __init__(self, message: str, decision: Decision | None = None) -> None:
        self.decision = decision
        super().__init__(clipped(message, MESSAGE_LENGTH))

    def __reduce__(self) -> tuple[Any, ...]:
        decision = _portable(self.decision)
        return type(self), (self.args[0], None if isinstance(decision, str) else decision)


class DeviceConflictError(FlashMLAHubError, RuntimeError):
    """Two identification plugins claim one device."""


class PluginError(FlashMLAHubError):
    """A plugin broke the plugin contract; the registry quarantines it with this text."""
