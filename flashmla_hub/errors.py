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

Every message states the actual value, the expected one and the way forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmla_hub.decision import Decision


class FlashMLAHubError(Exception):
    """Base of all errors the hub raises on purpose."""


class InvalidRequestError(FlashMLAHubError, ValueError):
    """An argument is wrong whatever the backend (contract C5.1)."""

    def __init__(self, argument: str, actual: object, expected: str) -> None:
        self.argument, self.actual, self.expected = argument, actual, expected
        super().__init__(f"{argument}: got {_bounded(actual)}, expected {_bounded(expected)}")


class NotSupportedError(FlashMLAHubError, NotImplementedError):
    """A backend (or the hub itself) refuses something valid that it cannot do (contract C5.1)."""

    def __init__(self, backend: str, feature: str, value: object, accepted: str) -> None:
        self.backend, self.feature, self.value, self.accepted = backend, feature, value, accepted
        super().__init__(
            f"backend {backend!r} does not support {feature}={_bounded(value)}; "
            f"accepted: {accepted}"
        )


class NoBackendError(FlashMLAHubError, RuntimeError):
    """No backend can serve the request; ``decision`` holds every candidate and all its reasons."""

    def __init__(self, message: str, decision: Decision | None = None) -> None:
        self.decision = decision
        super().__init__(message)


class DeviceConflictError(FlashMLAHubError, RuntimeError):
    """Two identification plugins claim one device."""


class PluginError(FlashMLAHubError):
    """A plugin broke the plugin contract; the registry quarantines it with this text."""


_LONGEST = 500


def _bounded(value: object) -> str:
    """An argument of the caller's in a message: a line of it, however long it is."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
