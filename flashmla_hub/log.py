"""The hub's logger. Level from the configuration; messages go through Python's logging only."""

from __future__ import annotations

import logging

from flashmla_hub import config

_logger = logging.getLogger("flashmla_hub")


def _enabled(level: int) -> bool:
    return level >= getattr(logging, config.current().log.upper())


def emit(level: int, message: str, *args: object) -> None:
    """Log at ``level`` if the configuration in force lets it through.

    Without a handler of the application's, logging's last-resort handler prints to stderr what
    is at least a warning; ``FLASHMLA_HUB_LOG=info`` has to show lines there too.
    """
    if not _enabled(level):
        return
    if level < logging.WARNING and not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flashmla_hub: %(message)s"))
        _logger.addHandler(handler)
    if not _logger.isEnabledFor(level):
        _logger.setLevel(level)
    _logger.log(level, message, *args)


def info(message: str, *args: object) -> None:
    emit(logging.INFO, message, *args)


def warning(message: str, *args: object) -> None:
    emit(logging.WARNING, message, *args)
