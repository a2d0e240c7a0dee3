"""How a command ends: one line and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from flashmla_hub import config
from flashmla_hub.errors import FlashMLAHubError, InvalidRequestError

FINE, FAILED, WRONG_USE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that has something to say about what was done until then."""


def ends_in_one_line(name: str, work: Callable[[], int]) -> int:
    """Do ``work``; turn whatever it raises into a line on stderr and an exit code.

    0 as ``work`` says, also where the reader of a pipe went away; 1 the hub's or the system's
    refusal; 2 wrong use; 3 a fault of the hub's own, whose traceback ``FLASHMLA_HUB_LOG=debug``
    shows; 130 interrupted. The output is flushed in here: a full disk is found now, or never.
    """
    try:
        code = int(work())
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _close_stdout()
        return FINE
    except InvalidRequestError as error:
        return _end(name, str(error), WRONG_USE)
    except FlashMLAHubError as error:
        return _end(name, str(error), FAILED)
    except KeyboardInterrupt as stop:
        return _end(name, f"interrupted{f': {stop}' if str(stop) else ''}", INTERRUPTED)
    except OSError as error:
        _close_stdout()
        return _end(name, _system(error), FAILED)
    except Exception as error:
        if _debugging():
            traceback.print_exc()
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return _end(
            name,
            f"internal error: {type(error).__name__}: {first} (FLASHMLA_HUB_LOG=debug shows where; "
            "flashmla-hub doctor has what a report needs)",
            INTERNAL,
        )


def _system(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename is not None else what


def _end(name: str, words: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # nobody may listen there either
        print(f"{name}: {words}", file=sys.stderr)
    return code


def _close_stdout() -> None:
    """What cannot be written must not be tried again when Python ends, which would say so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file: a notebook's stdout
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _debugging() -> bool:
    try:
        return config.current().log == "debug"
    except InvalidRequestError:
        return False
