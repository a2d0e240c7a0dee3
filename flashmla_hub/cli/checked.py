"""Checks of what was typed, before the work: a device, a backend, a place to write to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from flashmla_hub import registry
from flashmla_hub.errors import InvalidRequestError


def here() -> str:
    """The default of ``--device``: this machine's accelerator, else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator and torch.accelerator.is_available() else "cpu"


def device(name: str, option: str = "--device") -> torch.device:
    """The torch device ``name``, on which this machine can hold a tensor.

    Raises:
        InvalidRequestError: with torch's own reason.
    """
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidRequestError(
            option,
            f"{name!r} ({first})",
            "a torch device of this machine; see flashmla-hub devices",
        ) from error
    return found


def backend(name: str | None, option: str = "--backend") -> None:
    """Refuse a name that no backend has (PluginError where it is quarantined)."""
    if name is not None:
        try:
            registry.get(name)
        except InvalidRequestError as error:
            raise InvalidRequestError(option, error.actual, error.expected) from None


def folder(path: Path, option: str) -> Path:
    """``path`` as a folder that files can be written into; made if missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-"):
            pass
    except OSError as error:
        raise _not_writable(option, path, error, "a folder that can be written to") from error
    return path


def file(path: Path, option: str) -> Path:
    """``path`` as a file that can be written; what it holds is left alone until then."""
    try:
        there = path.exists()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        if not there:
            path.unlink()
    except OSError as error:
        raise _not_writable(option, path, error, "a file that can be written") from error
    return path


def _not_writable(option: str, path: Path, error: OSError, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(option, f"{path} ({error.strerror or error})", wanted)
