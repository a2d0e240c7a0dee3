"""The hub's logger, ``flashmla_hub``. Messages go through Python's logging only.

How much of it is shown is the application's business. Only where ``FLASHMLA_HUB_LOG`` is set does
the hub touch the logger: the user asked for these lines, so they are let through, and shown on
stderr where the application shows nothing.
"""

from __future__ import annotations

import logging

from flashmla_hub import config

_logger = logging.getLogger("flashmla_hub")


def emit(level: int, message: str, *args: object) -> None:
    wanted = config.current().log
    if wanted is not None:
        if level < getattr(logging, wanted.upper()):
            return
        if not _logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("flashmla_hub: %(message)s"))
            _logger.addHandler(handler)
        if not _logger.isEnabledFor(level):
            _logger.setLevel(level)
    _logger.log(level, message, *args)


def debug(message: str, *args: object) -> None:
    emit(logging.DEBUG, message, *args)


def info(message: str, *args: object) -> None:
    emit(logging.INFO, message, *args)


def warning(message: str, *args: object) -> None:
    emit(logging.WARNING, message, *args)
