"""Logging: one JSON object a line on stderr, or text for a person at a terminal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog

from jobworker.wire import service_manager
from jobworker.wire.messages import Welcome

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)


class LogLevel:
    """The level that is logged from: the settings', until the supervisor has others, after a reload of its own.

    Args:
        level: debug, info, warning or error.
    """

    def __init__(self, level: str) -> None:
        self._level = level

    def apply(self, message: Any) -> None:
        """Take in what the supervisor said."""
        if isinstance(message, Welcome) and message.log_level != self._level:
            self._level = message.log_level
            configure(self._level)
            structlog.get_logger().info("log level", set=self._level)


def configure(level: str) -> None:
    """Send what is logged from now on to stderr, that of libraries included.

    Args:
        level: debug, info, warning or error.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    final = _final()
    structlog.configure(
        processors=[*_SHARED, *final],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        # A logger that is kept would keep its level.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[remove, *final], foreign_pre_chain=_SHARED)
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _final() -> tuple[structlog.typing.Processor, ...]:
    if sys.stderr.isatty():
        # https://no-color.org: by its presence, whatever its value, but an empty one.
        plain, colours = structlog.dev.plain_traceback, not os.environ.get("NO_COLOR")
        return (structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain),)
    render = structlog.processors.JSONRenderer()
    if not service_manager.reads_priorities():
        return structlog.processors.format_exc_info, render

    def with_priority(logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        return f"<{service_manager.PRIORITIES[str(event['level'])]}>{render(logger, name, event)!s}"

    return structlog.processors.format_exc_info, with_priority
